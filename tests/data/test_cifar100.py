"""Test CIFAR-100 in every form on disk, and the files that are refused."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.model_selection import StratifiedShuffleSplit
from torchvision.transforms.v2.functional import to_pil_image

from hsakd_pl.data import CIFAR100DataModule
from hsakd_pl.errors import UsageError


def write(folder: Path, protocol: int = 2, **changes: Any) -> Path:
    """Write a data set of 100 images in the canonical layout; ``changes`` replace entries of train."""
    folder.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(0).integers(256, size=(100, 3072), dtype=np.uint8)
    content = {
        "data": data,
        "fine_labels": list(range(100)),
        "coarse_labels": [0] * 100,
        "filenames": ["x"] * 100,
    }
    for name, entries in (("train", {**content, **changes}), ("test", content)):
        with (folder / name).open("wb") as file:
            pickle.dump(entries, file, protocol)
    return folder


def test_cifar100_reads_folder_or_its_parent(cifar_mini: Path) -> None:
    for root in (cifar_mini, cifar_mini / "cifar-100-python"):
        data = CIFAR100DataModule(root, batch_size=64)
        data.prepare_data()
        data.setup()
        train, test = data.splits["train"], data.splits["test"]
        assert train.images.shape == (2000, 3, 32, 32) and test.images.shape == (500, 3, 32, 32)
        assert train.images.dtype == torch.uint8 and train.targets.dtype == torch.int64
        assert torch.bincount(train.targets).tolist() == [20] * 100
        assert data.class_names[0] == "apple" and data.class_names[99] == "worm"
    with (cifar_mini / "cifar-100-python" / "test").open("rb") as file:
        raw = pickle.load(file, encoding="latin1")
    assert torch.equal(test.images.reshape(500, -1), torch.from_numpy(raw["data"]))
    assert test.targets.tolist() == raw["fine_labels"]


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.75, 1.0])
def test_cifar100_few_shot_labels_match_scikit_learn(cifar_mini: Path, fraction: float) -> None:
    data = CIFAR100DataModule(cifar_mini, train_fraction=fraction)
    data.setup("fit")
    whole = data.read(train=True)
    indices = np.arange(2000)
    if fraction < 1:
        splitter = StratifiedShuffleSplit(n_splits=1, test_size=1 - fraction, random_state=0)
        indices, _ = next(splitter.split(np.zeros(2000), whole.targets.numpy()))
    assert torch.equal(data.splits["train"].images, whole.images[indices])
    assert torch.bincount(data.splits["train"].targets).tolist() == [20 * fraction] * 100


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("keys", [str, str.encode])
def test_cifar100_reads_repacked_pickles(tmp_path: Path, protocol: int, keys: Any) -> None:
    folder = write(tmp_path / "cifar-100-python", protocol)
    content = pickle.loads((folder / "test").read_bytes())
    content = {keys(key): value for key, value in content.items()} | {"fine_labels": np.arange(100)}
    (folder / "test").write_bytes(pickle.dumps(content, protocol))
    data = CIFAR100DataModule(tmp_path)
    data.setup("test")
    assert data.splits["test"].targets.tolist() == list(range(100))
    assert data.class_names[7] == "7"


def test_cifar100_reads_class_folders_of_images(tmp_path: Path) -> None:
    images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
    for number, image in enumerate(images):
        split, name = ("train", "test")[number // 4], ("cat", "apple")[number % 2]
        (tmp_path / split / name).mkdir(parents=True, exist_ok=True)
        to_pil_image(image).save(tmp_path / split / name / f"{number}.png")
    data = CIFAR100DataModule(tmp_path)
    assert data.num_classes == 2
    data.setup()
    assert data.class_names == ["apple", "cat"]
    assert torch.equal(data.splits["train"].images, images[[1, 3, 0, 2]])
    assert data.splits["test"].targets.tolist() == [0, 0, 1, 1]

    to_pil_image(images[0, :, :20]).save(tmp_path / "test" / "cat" / "small.png")
    with pytest.raises(UsageError, match=r"small.png has 20 x 32 pixels, not 32 x 32"):
        CIFAR100DataModule(tmp_path).setup("test")


def test_missing_cifar100_raises_with_folder_and_remedy(tmp_path: Path) -> None:
    data = CIFAR100DataModule(tmp_path / "nowhere")
    data.prepare_data()
    with pytest.raises(UsageError, match=r"nowhere.*--data.init_args.download true"):
        data.setup("fit")
    (write(tmp_path / "half") / "test").unlink()
    with pytest.raises(UsageError, match=r"half/test is missing"):
        CIFAR100DataModule(tmp_path / "half").setup("fit")


def test_failed_cifar100_download_raises_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments: Any, **options: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    with pytest.raises(UsageError, match=r"CIFAR-100 .* \(no network\)"):
        CIFAR100DataModule(tmp_path, download=True).prepare_data()
    CIFAR100DataModule(write(tmp_path / "cifar-100-python"), download=True).prepare_data()  # nothing to fetch


class Malicious:
    """Create a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_malicious_pickle_is_refused_before_it_runs(tmp_path: Path, protocol: int) -> None:
    write(tmp_path / "data", protocol, filenames=Malicious(tmp_path / "harm"))
    with pytest.raises(UsageError, match=r"data/train was refused: it asks for (posix|nt).mkdir"):
        CIFAR100DataModule(tmp_path / "data").setup("fit")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("name", ["builtins\neval", "numpy\nload", "numpy.core.multiarray\nfromfile", "os\nsystem"])
def test_pickle_globals_are_refused_by_name(tmp_path: Path, name: str) -> None:
    (write(tmp_path) / "train").write_bytes(b"c" + name.encode() + b"\n.")
    with pytest.raises(UsageError, match=name.replace("\n", ".")):
        CIFAR100DataModule(tmp_path).setup("fit")


@pytest.mark.parametrize("kept", [0, 1, 40, 3000, -1])
def test_truncated_pickle_raises_naming_file(tmp_path: Path, kept: int) -> None:
    file = write(tmp_path) / "train"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(UsageError, match=r"train is truncated or corrupt"):
        CIFAR100DataModule(tmp_path).setup("fit")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": np.zeros((100, 3071), np.uint8)}, r"data is uint8 \(100, 3071\)"),
        ({"data": np.zeros((100, 3072), np.float32)}, r"data is float32"),
        ({"data": [1, 2]}, "data is list"),
        ({"fine_labels": [0] * 99}, "fine_labels are not 100 integers below 100"),
        ({"fine_labels": [100] * 100}, "fine_labels are not 100 integers below 100"),
        ({"fine_labels": [0.5] * 100}, "fine_labels are not 100 integers below 100"),
        ({"fine_labels": [-1] * 100}, "fine_labels are not 100 integers below 100"),
        ({"fine_labels": [[0], [0, 1]] * 50}, "fine_labels are not 100 integers below 100"),
        ({"fine_labels": [*range(99), [99]]}, "fine_labels are not 100 integers below 100"),
        ({"fine_labels": [True] * 100}, "fine_labels are not 100 integers below 100"),
        ({"fine_labels": [10**30] * 100}, "fine_labels are not 100 integers below 100"),
        ({"fine_labels": "0" * 100}, "fine_labels are not 100 integers below 100"),
        ({"fine_labels": {"0": 0}}, "fine_labels are not 100 integers below 100"),
        ({"fine_labels": None}, "fine_labels are not 100 integers below 100"),
        ({"fine_labels": np.zeros((100, 1), int)}, "fine_labels are not 100 integers below 100"),
        ({"fine_labels": np.zeros(100)}, "fine_labels are not 100 integers below 100"),
        ({"data": np.zeros((0, 3072), np.uint8), "fine_labels": []}, r"data is uint8 \(0, 3072\)"),
        ({"data": np.zeros((100, 3072), np.int8)}, "data is int8"),
        ({"data": np.zeros(3072, np.uint8)}, r"data is uint8 \(3072,\)"),
        ({"data": None}, "data is NoneType"),
    ],
)
def test_wrong_cifar100_content_raises_naming_file(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write(tmp_path, **changes)
    with pytest.raises(UsageError, match=rf"train: {message}"):
        CIFAR100DataModule(tmp_path).setup("fit")


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["cat", "dog"], "list of 2"),
        ([*range(100)], "list of 100"),
        ("x" * 100, "str"),
        ({"cat": 0}, "dict"),
        (None, "NoneType"),
        (7, "int"),
        ([["cat"]] * 100, "list of 100"),
        (np.arange(100), "ndarray of 100"),
    ],
)
def test_wrong_class_names_raise_naming_file(tmp_path: Path, names: Any, found: str) -> None:
    (write(tmp_path) / "meta").write_bytes(pickle.dumps({"fine_label_names": names}))
    with pytest.raises(UsageError, match=f"meta gives class names as a {found}, not as a list of 100 strings"):
        CIFAR100DataModule(tmp_path).setup("fit")


@pytest.mark.parametrize("names", [list, tuple, np.array, lambda names: [name.encode() for name in names]])
def test_class_names_of_any_pickle_protocol_are_read(tmp_path: Path, names: Any) -> None:
    expected = [f"class {number}" for number in range(100)]
    for protocol in (2, 5):
        (write(tmp_path) / "meta").write_bytes(pickle.dumps({b"fine_label_names": names(expected)}, protocol))
        assert CIFAR100DataModule(tmp_path).read_class_names() == expected


def test_unrelated_pickle_raises_naming_file(tmp_path: Path) -> None:
    for content, message in (({"weights": 1}, "no data and fine_labels"), ([1, 2], "truncated or corrupt")):
        (write(tmp_path) / "train").write_bytes(pickle.dumps(content))
        with pytest.raises(UsageError, match=f"train .*{message}"):
            CIFAR100DataModule(tmp_path).setup("fit")
