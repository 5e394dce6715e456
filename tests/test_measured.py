"""Test that every accuracy belongs to the weights and the images that it stands next to."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small import run
from torch import Tensor, nn

from hsakd_pl.export import export_student
from hsakd_pl.files.weights import weights_digest
from hsakd_pl.records.formats import Row
from hsakd_pl.records.measured import is_tested, last_accuracy
from hsakd_pl.report.groups import groups
from hsakd_pl.report.page import write_page
from hsakd_pl.report.rows import collect
from hsakd_pl.report.table import records

BATCH = 2
TEST_IMAGES = 4  # in each of two classes


def write_images(root: Path, per_class: int = TEST_IMAGES) -> Path:
    """Write class folders with noisy pictures, the same ones at every call."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", per_class)):
        for label, name in enumerate(("cat", "dog")):
            for number in range(count):
                path = root / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                noise = generator.integers(0, 100, (8, 8, 3)) + 100 * label
                Image.fromarray(noise.astype(np.uint8)).save(path)
    return root


def options(folder: Path, seed: int = 0, **trainer: Any) -> dict[str, Any]:
    """Return changes of a small configuration: pictures of two classes, and the folder of the run."""
    statistics = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    images = {"root": "images", "image_size": 8, "batch_size": BATCH, **statistics}
    return {
        "seed_everything": seed,
        "data": {"class_path": "hsakd_pl.ImageFolderDataModule", "init_args": images},
        "trainer": {"default_root_dir": str(folder), **trainer},
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two runs of different seeds; the first has a complete test."""
    root = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        write_images(Path("images"))
        write_images(Path("more"), TEST_IMAGES + 1)
        for seed in (0, 1):
            run("fit", **options(Path(f"runs/{seed}"), seed))
        run("test", "--ckpt_path", "last", **options(Path("runs/0")))
    return root


@pytest.fixture
def folder(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the first run in the working folder; its own test still counts."""
    monkeypatch.chdir(tmp_path)
    for name in ("images", "more"):
        Path(name).symlink_to(runs / name)
    shutil.copytree(runs / "runs/1", "other")
    shutil.copytree(runs / "runs/0", "run")
    return Path("run")


def evaluate(folder: Path, checkpoint: Path | str = "last", data: dict[str, Any] | None = None, **trainer: Any) -> None:
    (folder / "test.json").unlink()
    changes = options(folder, **trainer)
    changes["data"]["init_args"] |= data or {}
    run("test", "--ckpt_path", str(checkpoint), **changes)


def with_other_weights(folder: Path) -> Path:
    """Return a checkpoint of the run in which a weight has changed, as within an epoch."""
    content = torch.load(folder / "last.ckpt", weights_only=True)
    next(iter(content["state_dict"].values())).mul_(1.5)
    torch.save(content, folder / "best.ckpt")
    return folder / "best.ckpt"


def unfinished(folder: Path) -> None:
    row = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(row | {"finished": False, "weights_digest": None}))


OTHER_MEASUREMENTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a part of the split": (lambda folder: evaluate(folder, limit_test_batches=1), "2 of 8 images"),
    "half of the split": (lambda folder: evaluate(folder, limit_test_batches=0.5), "4 of 8 images"),
    "another seed": (lambda folder: evaluate(folder, "other/last.ckpt"), "of other weights"),
    "other weights": (lambda folder: evaluate(folder, with_other_weights(folder)), "of other weights"),
    "other data": (lambda folder: evaluate(folder, data={"root": "more"}), "on other data"),
    "an unfinished run": (unfinished, ""),
}


def shown(folder: Path) -> tuple[float | None, str, str]:
    """Return the accuracy in the table's column, the marks of its row, and the page."""
    [group] = groups(collect(folder))
    page = folder.parent / "page.html"
    write_page([group], page)
    [record] = records([group])
    return record["test_mean"], record["marks"], page.read_text()


def card_of(folder: Path) -> str:
    """Return the model card without its table of files."""
    export_student(folder, "out", ["safetensors"])
    return Path("out/README.md").read_text().partition("## Files")[0]


def test_test_of_last_weights_counts_everywhere(folder: Path) -> None:
    test = json.loads((folder / "test.json").read_text())
    row = json.loads((folder / "result.json").read_text())
    saved = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    assert row["weights_digest"] == test["weights_digest"] == weights_digest(saved)
    assert (test["images"], test["split_images"]) == (8, 8)
    accuracy, marks, page = shown(folder)
    assert accuracy == pytest.approx(100 * test["acc"])
    assert "does not count" not in marks + page
    assert is_tested(folder)
    card = card_of(folder)
    assert card.count("test accuracy") == card.count("validation accuracy") == 2  # text and metadata
    assert weights_digest(export_weights("out")) in card


def export_weights(folder: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(Path(folder, "model.safetensors"))


@pytest.mark.parametrize("kind", OTHER_MEASUREMENTS)
def test_test_of_something_else_is_marked_and_counts_nowhere(kind: str, folder: Path) -> None:
    measure, reason = OTHER_MEASUREMENTS[kind]
    measure(folder)
    accuracy, marks, page = shown(folder)
    assert accuracy is None
    assert reason in marks and reason in page
    assert not is_tested(folder)
    if kind != "an unfinished run":
        assert "test accuracy" not in card_of(folder)


def test_sweep_considers_its_own_limits_as_tested(folder: Path) -> None:
    """A sweep whose configuration limits tests would repeat them for ever."""
    row = json.loads((folder / "result.json").read_text())
    row["protocol"]["options"]["trainer.limit_test_batches"] = 1
    (folder / "result.json").write_text(json.dumps(row))
    evaluate(folder, limit_test_batches=1)
    assert is_tested(folder) and shown(folder)[0] is None


@pytest.mark.parametrize("digest", [None, "0" * 64])
def test_card_of_weights_that_no_result_names_shows_no_accuracy(digest: str | None, folder: Path) -> None:
    row = json.loads((folder / "result.json").read_text())
    changes = {"weights_digest": digest, "best_weights_digest": digest}
    (folder / "result.json").write_text(json.dumps(row | changes))
    (folder / "test.json").unlink()
    card = card_of(folder)
    assert "accuracy |" not in card and "model-index" not in card


def test_card_of_partly_validated_run_shows_no_validation_accuracy(folder: Path) -> None:
    row = json.loads((folder / "result.json").read_text())
    row["protocol"]["limited"] = {"trainer.limit_val_batches": 1}
    (folder / "result.json").write_text(json.dumps(row))
    assert "validation accuracy" not in card_of(folder)


@pytest.mark.parametrize(
    ("steps", "counts"),
    [({}, True), ({"steps": 9, "last_val_step": 9}, True), ({"steps": 9, "last_val_step": 6}, False)],
)
def test_validation_of_earlier_weights_is_not_that_of_the_last_epoch(
    steps: dict[str, int], counts: bool, folder: Path
) -> None:
    row: Row = {name: entry for name, entry in collect(folder)[0].items() if name not in ("steps", "last_val_step")}
    row |= steps
    [group] = groups([row])
    assert (last_accuracy(row) is not None) == counts
    assert (records([group])[0]["last_mean"] is not None) == counts
    assert any("its last validation was in step 6" in mark for mark in group.marks) != counts


def test_tests_on_different_data_are_not_averaged(folder: Path) -> None:
    """Runs that hold out images for validation never read the test split, so that no protocol names it."""
    rows = []
    for seed, data in ((0, "aaaaaaaaaaaa"), (1, "bbbbbbbbbbbb")):
        [row] = collect(folder)
        row["protocol"]["data"] = None
        rows.append(row | {"seed": seed, "test": row["test"] | {"data": data}})
    [group] = groups(rows)
    assert records([group])[0]["test_mean"] is None
    assert "the tests are on different data, and do not count" in group.marks
    rows[1]["test"]["data"] = "aaaaaaaaaaaa"
    assert records(groups(rows))[0]["test_mean"] is not None


TENSORS: dict[str, Tensor] = {
    "scalar": torch.tensor(3),
    "empty": torch.zeros(0, 2),
    "bool": torch.tensor([True, False]),
    "bfloat16": torch.ones(2, 3, dtype=torch.bfloat16),
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
    "parameter": nn.Parameter(torch.ones(2)),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_digest_depends_on_name_dtype_shape_and_value_alone(kind: str) -> None:
    tensor = TENSORS[kind].detach()
    digest = weights_digest({"a": tensor, "b": torch.ones(1)})
    assert digest == weights_digest({"module.b": torch.ones(1), "_orig_mod.a": tensor.contiguous(), "extra": "state"})
    others = [{"c": tensor}, {"a": tensor.reshape(1, *tensor.shape)}, {"a": tensor.to(torch.complex64)}]
    if tensor.numel():
        others.append({"a": tensor + 1 if tensor.dtype != torch.bool else ~tensor})
    digests = {digest, *(weights_digest({"b": torch.ones(1), **other}) for other in others)}
    assert len(digests) == len(others) + 1
