"""Test that a number belongs to the data it was measured on: rows, resumed runs, processes and published numbers."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import small
import torch
from PIL import Image
from stand_ins import pictures

from hsakd_pl import BaselineModule, ImageFolderDataModule
from hsakd_pl.cli.main import main
from hsakd_pl.data import ImageDataModule, Split
from hsakd_pl.data.fingerprint import facts_of, read_facts, saved_facts
from hsakd_pl.errors import UsageError
from hsakd_pl.export.card import is_subset
from hsakd_pl.recipes import ALL_RECIPES
from hsakd_pl.recipes.data_sets import PUBLISHED_DATA
from hsakd_pl.records.formats import RESULT_FILE, read_row
from hsakd_pl.report.groups import groups
from hsakd_pl.report.rows import collect
from hsakd_pl.report.table import lines

CLASSES = ("ant", "bee")
FOLDER_OPTIONS = {"image_size": 8, "mean": "imagenet", "num_workers": 0, "batch_size": 4}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])


def write_pictures(root: Path) -> Path:
    """Write four training and two test pictures of each class."""
    for split, per_class in (("train", 4), ("test", 2)):
        labels = np.arange(2).repeat(per_class)
        for number, picture in enumerate(pictures(labels, 2, seed=per_class)):
            path = root / split / CLASSES[labels[number]] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.transpose(1, 2, 0)[:8, :8]).save(path)
    return root


def add_picture(root: Path) -> None:
    shutil.copy(root / "train/ant/0.png", root / "train/ant/new.png")


def replace_picture(root: Path) -> None:
    Image.new("RGB", (8, 8), "white").save(root / "train/ant/1.png")


def exchange_pictures(root: Path) -> None:
    ant = root / "train/ant/0.png"
    bee = root / "train/bee/4.png"
    content = ant.read_bytes()
    ant.write_bytes(bee.read_bytes())
    bee.write_bytes(content)


def remove_test_picture(root: Path) -> None:
    (root / "test/bee/2.png").unlink()


def rename_class(root: Path) -> None:
    for split in ("train", "test"):
        (root / split / "bee").rename(root / split / "wasp")


def move_picture_to_other_class(root: Path) -> None:
    (root / "train/ant/0.png").rename(root / "train/bee/0.png")


CHANGES = [
    add_picture,
    replace_picture,
    exchange_pictures,
    remove_test_picture,
    rename_class,
    move_picture_to_other_class,
]


def fingerprints(root: Path) -> dict[str, str]:
    data = ImageFolderDataModule(root, **FOLDER_OPTIONS)  # type: ignore[arg-type]
    data.setup("fit")
    return data.fingerprints


@pytest.mark.parametrize("change", CHANGES)
def test_changed_folder_has_another_fingerprint(change: Callable[[Path], None]) -> None:
    before = fingerprints(write_pictures(Path("photos")))
    change(Path("photos"))
    after = fingerprints(Path("photos"))
    assert before.keys() == after.keys() == {"train", "test"}
    assert before != after


def test_copied_or_renamed_folder_has_the_same_fingerprint() -> None:
    before = fingerprints(write_pictures(Path("photos")))
    shutil.copytree("photos", "elsewhere/pictures")
    Path("photos").rename("moved")
    assert fingerprints(Path("elsewhere/pictures")) == fingerprints(Path("moved")) == before


class Generated(ImageDataModule):
    """Provide generated pictures in memory, with a change of one kind."""

    num_classes = 2
    image_size = 8
    mean = std = (0.5, 0.5, 0.5)
    train_transform = torch.nn.Identity()  # type: ignore[assignment]

    def __init__(self, change: str = "", names: tuple[str, ...] = CLASSES, **options: Any) -> None:
        super().__init__(augment=False, num_workers=0, batch_size=4, **options)
        self.change = change
        self.names = list(names)

    def read_class_names(self) -> list[str]:
        return self.names

    def read(self, train: bool) -> Split:
        labels = torch.arange(8) % 2
        images = torch.from_numpy(pictures(labels.numpy(), 2, seed=int(train)))[:, :, :8, :8].contiguous()
        if train and self.change == "pixel":
            images[5, 1, 2, 3] ^= 1
        if train and self.change == "label":
            labels[0] = 1
        if train and self.change == "one image less":
            images = images[:-1]
            labels = labels[:-1]
        if train and self.change == "order":
            images = images.flip(0)
            labels = labels.flip(0)
        if not train and self.change == "test label":
            labels[3] = 0
        if self.change == "float":
            return Split(images / 255, labels)
        return Split(images, labels)


IN_MEMORY = ["pixel", "label", "one image less", "order", "test label", "float"]


def ready(**options: Any) -> Generated:
    data = Generated(**options)
    data.setup("fit")
    return data


@pytest.mark.parametrize("change", IN_MEMORY)
def test_changed_tensors_have_another_fingerprint(change: str) -> None:
    assert ready().fingerprints == ready().fingerprints != ready(change=change).fingerprints


def test_class_names_and_their_order_are_part_of_the_fingerprint() -> None:
    found = [ready(names=names).fingerprints["train"] for names in (CLASSES, ("bee", "ant"), ("ant", "wasp"))]
    assert len({*found}) == 3


def test_fingerprint_does_not_depend_on_the_part_that_is_trained_on() -> None:
    whole = ready().fingerprints["train"]
    assert ready(train_fraction=0.5).fingerprints["train"] == whole
    assert ready(val_fraction=0.5, seed=3).fingerprints == {"train": whole}


def test_pictures_digest_does_not_depend_on_the_order() -> None:
    forwards = ready().facts["train"]
    backwards = ready(change="order").facts["train"]
    assert forwards.pictures == backwards.pictures and forwards.labels != backwards.labels


def test_facts_survive_being_saved() -> None:
    facts = ready().facts
    assert read_facts(json.loads(json.dumps(saved_facts(facts))), "x") == facts
    for content in ([], {"train": 1}, {"train": {}}, {"train": {"classes": "many"}}):
        with pytest.raises(UsageError, match="x does not identify its data"):
            read_facts(content, "x")


def fit_pictures(root: str, folder: str, seed: int) -> None:
    data = {"class_path": "hsakd_pl.ImageFolderDataModule", "init_args": {"root": root, **FOLDER_OPTIONS}}
    trainer = {"default_root_dir": folder}
    small.run("fit", "--seed_everything", str(seed), data=data, trainer=trainer)


def test_runs_on_other_data_are_another_row(capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(Path("photos"))
    shutil.copytree("photos", "copy")
    shutil.copytree("photos", "other")
    add_picture(Path("other"))
    for seed, root in enumerate(("photos", "copy", "other")):
        fit_pictures(root, f"runs/{root}", seed)
    capsys.readouterr()
    main(["report", "runs", "--format", "json"])
    table = json.loads(capsys.readouterr().out)
    assert sorted(line["n"] for line in table) == [1, 2]
    assert len({line["run"] for line in table}) == 2
    assert {row["protocol"]["data"]["train"]["images"] for row in collect(Path("runs"))} == {8, 9}


def test_measured_statistics_are_part_of_the_identity() -> None:
    write_pictures(Path("photos"))
    options = {"mean": "auto", "image_size": 8, "num_workers": 0, "batch_size": 4, "root": "photos"}
    data = {"class_path": "hsakd_pl.ImageFolderDataModule", "init_args": options}
    for seed in range(3):
        if seed == 2:
            stored = Path("photos/hsakd_statistics.json")
            content = json.loads(stored.read_text())
            (entry,) = content.values()
            entry["mean"][1] += 0.1
            stored.write_text(json.dumps(content))
        small.run("fit", data=data, trainer={"default_root_dir": f"runs/{seed}"})
    rows = collect(Path("runs"))
    hashes = [row["protocol"]["hash"] for row in rows]
    assert hashes[0] == hashes[1] != hashes[2]
    names = [group.name for group in groups(rows)]
    assert len({*names}) == 2 and all("mean [" in name for name in names)


BYTES = {"small": 1000, "large": 3 * 2**20}


@pytest.mark.parametrize("place", ["first", "middle", "last", "size"])
@pytest.mark.parametrize("size", BYTES)
def test_file_changed_anywhere_has_another_digest(size: str, place: str) -> None:
    content = bytearray(range(250)) * (BYTES[size] // 250)
    labels = torch.zeros(1, dtype=torch.int64)
    Path("a.bmp").write_bytes(content)
    before = facts_of(Split(["a.bmp"], labels), ["x"])
    if place == "size":
        content += b"1"
    else:
        index = {"first": 0, "middle": len(content) // 2, "last": len(content) - 1}[place]
        content[index : index + 2**18] = bytes(len(content[index : index + 2**18]))
    Path("a.bmp").write_bytes(content)
    assert facts_of(Split(["a.bmp"], labels), ["x"]).pictures != before.pictures


def test_files_that_are_not_sampled_are_told_apart_by_their_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hsakd_pl.data.fingerprint.MOST_FILES", 2)
    paths = [f"{number}.png" for number in range(6)]
    digests = set()
    for changed in range(7):
        for number, path in enumerate(paths):
            Path(path).write_bytes(bytes(10 + (number == changed)))
        digests.add(facts_of(Split(paths, torch.arange(6)), paths).pictures)
    assert len(digests) == 7


@pytest.mark.parametrize("change", [None, add_picture, exchange_pictures, rename_class])
def test_finished_seed_of_a_sweep_has_the_data_of_the_command(
    change: Callable[[Path], None] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(Path("photos"))
    data = {"class_path": "hsakd_pl.ImageFolderDataModule", "init_args": {"root": "photos", **FOLDER_OPTIONS}}
    small.run("sweep", "--seeds", "0", data=data)
    shutil.copytree("photos", "other")
    words = ["sweep", "--seeds", "0", "--config", "config.yaml", "--data.init_args.root", "other"]
    if change is None:
        main(words)
        assert "seed 0 has a result" in capsys.readouterr().out
        return
    change(Path("other"))
    assert "the train split differs in " in small.error_of(capsys, lambda: main(words))


def resumed(folder: Path, **options: Any) -> None:
    data = Generated(**options)
    module = BaselineModule("resnet8", num_classes=2)
    small.trainer(folder, max_epochs=2).fit(module, data, ckpt_path=folder / "last.ckpt")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of one epoch."""
    folder = tmp_path_factory.mktemp("begun")
    small.trainer(folder).fit(BaselineModule("resnet8", num_classes=2), Generated())
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("pixel", "train split .* differs in pictures"),
        ("label", "train split .* labels, pictures"),
        ("one image less", r"train split .* number of images \(8, now 7\)"),
        ("test label", "test split .* labels"),
    ],
)
def test_run_resumed_with_other_data_raises(begun: Path, change: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        resumed(begun, change=change)


def test_run_resumes_with_the_same_data_at_another_place(begun: Path, tmp_path: Path) -> None:
    shutil.copytree(begun, "copy")
    resumed(Path("copy"), root=tmp_path / "elsewhere")


def test_test_of_a_checkpoint_on_other_data_is_allowed(begun: Path) -> None:
    data = Generated(change="test label")
    small.trainer().test(BaselineModule("resnet8", num_classes=2), data, ckpt_path=begun / "last.ckpt", verbose=False)


def published_facts(recipe: str) -> dict[str, dict[str, Any]]:
    """Return the facts of the data that a recipe's number belongs to."""
    published = ALL_RECIPES[recipe].published_data
    assert published is not None
    facts = {}
    for split, images in published.images.items():
        digest = published.pictures.get(split, "0")
        facts[split] = {"classes": published.classes, "images": images, "pictures": digest, "fingerprint": split}
    return facts


def row(recipe: str, facts: dict[str, Any] | None, seed: int = 0) -> dict[str, Any]:
    protocol = {"hash": f"{facts}", "options": {}, "limited": {}, "epochs": 1, "data": facts}
    made: dict[str, Any] = {"config": ["x.yaml"], "recipe": recipe, "seed": seed, "finished": True, "epochs": 1}
    made |= {"last_val_acc": 0.5, "best_val_acc": 0.5, "images_per_second": 1.0, "seconds": 1.0}
    return made | {"folder": f"runs/{seed}", "protocol": protocol, "history": [], "test": None, "details": None}


RECIPES = [
    "cifar100/baseline_resnet20",
    "cifar100/fewshot_25_resnet56-resnet20",
    "stl10/probe_mobilenetv2",
    "tinyimagenet/probe_mobilenetv2",
    "imagenet/baseline_resnet18_imagenet",
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_published_number_is_shown_next_to_its_own_data_alone(recipe: str) -> None:
    right = published_facts(recipe)
    wrong = [
        right | {"train": right["train"] | {"images": right["train"]["images"] - 1}},
        right | {"test": right["test"] | {"classes": 3}},
        {"train": right["train"]},
        None,
    ]
    if PUBLISHED_DATA["CIFAR100"] is ALL_RECIPES[recipe].published_data:
        wrong.append(right | {"test": right["test"] | {"pictures": "other"}})
    assert [line["paper"] for line in lines(groups([row(recipe, right)]))] == [ALL_RECIPES[recipe].published]
    for facts in wrong:
        (group,) = groups([row(recipe, facts)])
        assert group.paper == "" and not group.comparable
        assert any("data" in mark for mark in group.marks)


def test_older_rows_are_not_averaged_with_rows_that_know_their_data() -> None:
    facts = published_facts("cifar100/baseline_resnet20")
    old = row("cifar100/baseline_resnet20", None, seed=1)
    del old["protocol"]["data"]
    found = groups([row("cifar100/baseline_resnet20", facts), old])
    assert [len(group.rows) for group in found] == [1, 1]
    assert "data not recorded" in found[1].marks and "data not recorded" not in found[0].marks


def test_full_cifar100_is_the_published_data(tmp_path: Path) -> None:
    """Use the digests of all images, in whatever order a file has them."""
    facts = published_facts("cifar100/baseline_resnet20")
    data = PUBLISHED_DATA["CIFAR100"]
    assert data.difference(facts) == ""
    assert data.difference({**facts, "train": facts["train"] | {"pictures": "0"}}) == (
        "the train split has other labels or pictures"
    )


@pytest.mark.parametrize("images", [2000, 50_000], ids=["part", "whole"])
def test_card_names_the_data_set_of_whole_data_alone(images: int) -> None:
    facts = published_facts("cifar100/baseline_resnet20")
    facts["train"] = facts["train"] | {"images": images}
    content = row("cifar100/baseline_resnet20", facts)
    assert is_subset(content, "CIFAR100DataModule") == (images == 2000)
    assert not is_subset(content, "DigitsDataModule") and not is_subset({}, "CIFAR100DataModule")


def test_large_splits_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hsakd_pl.data.fingerprint.MOST_BYTES", 4 * 192)
    monkeypatch.setattr("hsakd_pl.data.fingerprint.MOST_FILES", 4)
    split = Generated().read(train=True)
    facts = facts_of(split, CLASSES)
    assert facts == facts_of(split, CLASSES) and facts.images == 8
    files = write_pictures(Path("photos"))
    paths = sorted(str(path) for path in files.rglob("*.png"))
    sampled = facts_of(Split(paths, torch.zeros(len(paths), dtype=torch.int64)), CLASSES)
    assert sampled.images == 12 and asdict(replace(sampled, pictures=""))["pictures"] == ""


@pytest.mark.parametrize(
    "data",
    [[], {"train": 1}, {"train": {}}, {"train": {"fingerprint": 1, "classes": 2, "images": 2, "pictures": ""}}],
    ids=str,
)
def test_result_with_forged_data_raises(data: Any) -> None:
    content = row("cifar100/baseline_resnet20", data)
    Path(RESULT_FILE).write_text(json.dumps(content))
    with pytest.raises(UsageError, match="is not a result"):
        read_row(Path(RESULT_FILE))


def test_foreign_data_module_keeps_its_root_in_the_protocol() -> None:
    config = {"class_path": "test_data_identity.Foreign", "init_args": {"root": "a"}}
    config_other = {"class_path": "test_data_identity.Foreign", "init_args": {"root": "b"}}
    for name, data in (("a", config), ("b", config_other)):
        small.run("fit", data=data | {"init_args": data["init_args"] | {"num_workers": 0}}, trainer=_place(name))
    found = groups(collect(Path("runs")))
    assert [len(group.rows) for group in found] == [1, 1]
    assert all("data not recorded" in group.marks for group in found)


def _place(name: str) -> dict[str, str]:
    return {"default_root_dir": f"runs/{name}"}


class Foreign(pl.LightningDataModule):
    """Provide batches of a module that is not an ImageDataModule."""

    num_classes = small.CLASSES

    def __init__(self, root: str, num_workers: int = 0) -> None:
        super().__init__()

    def train_dataloader(self) -> Any:
        return small.loader()

    def val_dataloader(self) -> Any:
        return small.loader()
