"""Test that every accuracy belongs to the weights and the images that it is shown with."""

import json
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small import error_of, run
from torch import Tensor, nn

from hsakd_pl.cli.main import main
from hsakd_pl.errors import UsageError
from hsakd_pl.export import Student, export_student, load_student, student_from_checkpoint
from hsakd_pl.files.weights import weights_digest
from hsakd_pl.records.formats import Row
from hsakd_pl.records.measured import is_partial, is_tested, last_accuracy
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
    ("epochs", "steps", "length"), [(None, 50, "50 steps"), (-1, 1500, "1,500 steps"), (None, None, "unlimited epochs")]
)
def test_card_states_the_length_of_a_run_without_a_number_of_epochs(
    epochs: int | None, steps: int | None, length: str, folder: Path
) -> None:
    row = json.loads((folder / "result.json").read_text())
    row["protocol"]["epochs"] = epochs
    (folder / "result.json").write_text(json.dumps(row | {"planned_steps": steps}))
    assert f", {length}, seed 0" in card_of(folder)


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


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "a trained weight": lambda student: next(student.parameters()).data.mul_(1.5),
    "a running mean": lambda student: next(student.buffers()).add_(1),
    "another precision": lambda student: student.bfloat16(),
}


def saved_card(student: Student, folder: Path) -> str:
    student.save_pretrained(folder)
    return (folder / "README.md").read_text()


@pytest.fixture
def exported(folder: Path) -> Path:
    export_student(folder, "exported", ["safetensors"])
    return Path("exported")


@pytest.mark.parametrize("kind", CHANGES)
def test_copy_of_changed_student_claims_no_accuracy(kind: str, exported: Path) -> None:
    student = load_student(exported)
    assert "test accuracy" in saved_card(student, Path("unchanged"))
    student.network.requires_grad_(False)
    CHANGES[kind](student.network)
    assert "accuracy" not in saved_card(student, Path("changed"))
    with pytest.raises(UsageError, match="exported has the export of other weights"):
        student.save_pretrained(exported)
    assert "test accuracy" in (exported / "README.md").read_text()


def test_card_next_to_other_weights_is_not_taken_over(exported: Path, folder: Path) -> None:
    export_student("other", "second", ["safetensors"])
    shutil.copy("second/model.safetensors", exported)
    assert "accuracy" not in saved_card(load_student(exported), Path("copy"))


@pytest.mark.parametrize("peer", [1, 2])
def test_card_shows_accuracy_of_exported_peer(peer: int, folder: Path) -> None:
    names = {"networks": ["resnet8", "resnet8"]}
    run("fit", module="MutualModule", model={"init_args": names}, **options(Path("mutual")))
    run("test", "--ckpt_path", "last", module="MutualModule", model={"init_args": names}, **options(Path("mutual")))
    test = json.loads(Path("mutual/test.json").read_text()) | {"acc": 0.123, "peer1_acc": 0.25, "peer2_acc": 0.75}
    Path("mutual/test.json").write_text(json.dumps(test))
    export_student("mutual", "peer", ["safetensors"], peer=peer)
    assert (
        f"| test accuracy | {25 if peer == 1 else 75}.00 %, on the test split |" in Path("peer/README.md").read_text()
    )


def test_fit_does_not_replace_finished_result(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Try a new run, a trial without checkpoints, and the checkpoint of another run."""
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    without_checkpoints = options(folder, enable_checkpointing=False)
    commands: dict[str, Callable[[], object]] = {
        "resume it with --ckpt_path": lambda: run("fit", **options(folder)),
        "a fit without checkpoints": lambda: run("fit", **without_checkpoints),
        "without checkpoints would": lambda: run("fit", "--ckpt_path", "last", **without_checkpoints),
        "belongs to another run": lambda: run("fit", "--ckpt_path", "other/last.ckpt", **options(folder)),
    }
    for reason, command in commands.items():
        assert reason in error_of(capsys, command)
        assert {name: (folder / name).read_bytes() for name in before} == before
    (folder / "last.ckpt").unlink()  # to save space
    del before["last.ckpt"]
    assert "its last.ckpt is missing" in error_of(capsys, lambda: run("fit", **options(folder)))
    assert {name: (folder / name).read_bytes() for name in before} == before
    run("fit", **options(folder, fast_dev_run=True))  # writes nothing
    assert {name: (folder / name).read_bytes() for name in before} == before


@pytest.mark.parametrize(
    "words",
    [
        ["--ckpt_path", "last", "--trainer.max_epochs", "0"],
        ["--ckpt_path", "last", "--trainer.limit_train_batches", "0", "--trainer.max_epochs", "9"],
        ["--ckpt_path", "last", "--trainer.max_steps", "1"],
        ["--trainer.barebones", "true"],
    ],
    ids=" ".join,
)
def test_fit_that_trains_nothing_or_records_nothing_changes_no_file(words: list[str], folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    main(["fit", "--config", str(folder / "config.yaml"), "--trainer.default_root_dir", str(folder), *words])
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("--html", "result.json"),
        ("--html", "notes.txt"),
        ("--html", "index.html"),
        ("--plot", "curves.png"),
        ("--plot", "photo.svg"),
        ("--plot", "last.ckpt"),
    ],
)
def test_report_replaces_no_other_file(
    option: str, name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / name
    if not path.exists():
        path.write_text("<title>Notes on hsakd report</title>, <dc:title>curves</dc:title>")
    before = path.read_bytes()
    message = error_of(capsys, lambda: main(["report", str(folder), option, str(path)]))
    assert "was not written by a report" in message and path.read_bytes() == before


@pytest.mark.parametrize("name", ["page.html", "curves.png", "curves.svg", "curves.pdf", "curves"])
def test_report_replaces_its_own_file(name: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / name
    for _ in range(2):
        main(["report", str(folder), "--html" if name.endswith("html") else "--plot", str(path)])
    assert path.stat().st_size > 1000


@pytest.mark.parametrize("source", ["random", "other/last.ckpt"])
def test_test_of_other_weights_does_not_replace_that_of_the_run(source: str, folder: Path) -> None:
    before = {name: (folder / name).read_bytes() for name in ("test.json", "test_details.json")}
    changes = options(folder)
    if source == "random":
        changes["model"] = {"init_args": {"weights": "random"}}
        run("test", **changes)
    else:
        run("test", "--ckpt_path", source, **changes)
    assert {name: (folder / name).read_bytes() for name in before} == before


def other_test_of(folder: Path) -> Path:
    """Test the changed best.ckpt in a folder, and return the file that holds this test next to that of the run."""
    digest = weights_digest(torch.load(folder / "best.ckpt", weights_only=True)["state_dict"])
    run("test", "--ckpt_path", "best", **options(folder))
    return folder / f"test_{digest[:12]}.json"


def test_tests_of_last_and_other_weights_are_both_kept(folder: Path) -> None:
    before = {name: (folder / name).read_bytes() for name in ("test.json", "test_details.json")}
    with_other_weights(folder)
    other = other_test_of(folder)
    assert {name: (folder / name).read_bytes() for name in before} == before
    content = json.loads(other.read_text())
    assert content["checkpoint"].endswith("best.ckpt") and content["images"] == 8
    assert other.with_name(other.name.replace("test_", "test_details_")).exists()
    whole = other.read_bytes()
    run("test", "--ckpt_path", "best", **options(folder, limit_test_batches=1))
    assert other.read_bytes() == whole
    export_student(folder / "best.ckpt", "out", ["safetensors"])
    card = Path("out/README.md").read_text().partition("## Files")[0]
    assert "test accuracy" in card and f"{100 * content['acc']:.2f} %" in card


def test_test_of_last_weights_takes_its_name_from_an_earlier_one(folder: Path) -> None:
    (folder / "test.json").unlink()
    with_other_weights(folder)
    other = other_test_of(folder)
    assert not other.exists()  # nothing to keep apart from
    before = {name: (folder / name).read_bytes() for name in ("test.json", "test_details.json")}
    run("test", "--ckpt_path", "last", **options(folder, limit_test_batches=1))
    assert is_partial(json.loads((folder / "test.json").read_text()))
    assert other.read_bytes() == before["test.json"]
    assert other.with_name(other.name.replace("test_", "test_details_")).read_bytes() == before["test_details.json"]
    run("test", "--ckpt_path", "last", **options(folder))
    assert is_tested(folder)


@pytest.mark.parametrize("digest", ["../../outside", "a/b", "x" * 5000])
def test_name_of_an_earlier_test_is_no_path(digest: str, folder: Path) -> None:
    test = json.loads((folder / "test.json").read_text())
    (folder / "test.json").write_text(json.dumps(test | {"weights_digest": digest, "epoch": None}))
    run("test", "--ckpt_path", "last", **options(folder))
    assert json.loads((folder / "test_earlier.json").read_text())["weights_digest"] == digest
    assert is_tested(folder)


def test_test_of_a_row_without_digests_is_marked(folder: Path) -> None:
    for name in ("result.json", "test.json"):
        content = json.loads((folder / name).read_text())
        earlier = {key: value for key, value in content.items() if "weights_digest" not in key}
        (folder / name).write_text(json.dumps(earlier))
    accuracy, marks, page = shown(folder)
    assert accuracy is not None
    for text in (marks, page):
        assert "counts by its epoch, the weights are not recorded" in text


def test_run_without_time_is_not_said_to_have_all_its_epochs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = options(folder, max_epochs=3, max_time="00:00:00:00")
    assert "max_time" in error_of(capsys, lambda: run("fit", "--ckpt_path", "last", **changes))


OWN_CONFIGURATIONS = ["# mine\ntrainer: {max_epochs: 3}\n", "", "- 1\n", "text: [\n"]


@pytest.mark.parametrize("text", OWN_CONFIGURATIONS)
def test_fit_does_not_replace_a_configuration_of_its_user(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    path = Path("run/config.yaml")
    path.write_text(text)
    assert "run/config.yaml is not the configuration of a run" in error_of(
        capsys, lambda: run("fit", trainer={"default_root_dir": "run"})
    )
    assert path.read_text() == text


@pytest.mark.parametrize("name", ["metrics.csv", "curves.png", "best.ckpt"])
def test_fit_does_not_replace_a_file_that_no_run_wrote(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    path = Path("run", name)
    path.write_text("mine")
    message = error_of(capsys, lambda: run("fit", trainer={"default_root_dir": "run"}))
    assert message.startswith(f"run/{name} was not written by a run, and the fit would replace it")
    assert [*Path("run").iterdir()] == [path] and path.read_text() == "mine"


def test_fit_replaces_the_configuration_of_a_run_that_left_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = run("fit", trainer={"limit_val_batches": 1})
    for path in folder.iterdir():
        if path.name != "config.yaml":
            path.unlink()
    main(["fit", "--config", str(folder / "config.yaml"), "--trainer.limit_train_batches", "1"])
    assert (folder / "result.json").exists()


def test_partial_test_does_not_replace_a_whole_one(folder: Path) -> None:
    before = (folder / "test.json").read_bytes()
    run("test", "--ckpt_path", "last", **options(folder, limit_test_batches=1))
    assert (folder / "test.json").read_bytes() == before


def test_report_keeps_foreign_rows_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content in ("mine", '{"folder": "a"}\n', "[1]\n"):
        (folder / "rows.jsonl").write_text(content)
        main(["report", str(folder)])
        assert (folder / "rows.jsonl").read_text() == content
        captured = capsys.readouterr()
        assert "was not written by a report" in captured.err and "config" in captured.out
    (folder / "rows.jsonl").unlink()
    for _ in range(2):
        main(["report", str(folder)])
    assert json.loads((folder / "rows.jsonl").read_text())["folder"] == str(folder)


def places(content: Any, depth: int = 2) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of the parts of a checkpoint but its tensors, down to a depth."""
    if depth and isinstance(content, dict):
        for key, entry in content.items():
            yield (key,)
            if key not in ("state_dict", "loops"):
                yield from ((key, *path) for path in places(entry, depth - 1))


def test_checkpoint_field_of_another_type_is_refused_or_unused(folder: Path) -> None:
    """Change each field of a checkpoint to another value; exports and predictions read it in the same way."""
    original = torch.load(folder / "last.ckpt", weights_only=True)
    values = (None, True, -1, 1.5, "x", [], {}, torch.zeros(2, 2))
    refused = 0
    for number, place in enumerate(places(original)):
        content = deepcopy(original)
        part = content
        for key in place[:-1]:
            part = part[key]
        part[place[-1]] = values[number % len(values)]
        torch.save(content, folder / "last.ckpt")
        try:
            student_from_checkpoint(folder)
        except UsageError:
            refused += 1
    assert refused > 3


def predict(source: Path | str, *images: str, more: tuple[str, ...] = ()) -> None:
    main(["predict", str(source), *images, "--accelerator", "cpu", "--num_workers", "0", *more])


def test_predict_replaces_only_predictions_of_the_same_weights_and_images(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(folder, "images/train/cat")
    predict(folder, "images/train/cat")  # the same command
    predict(folder / "last.ckpt", "images/train")  # all of these images and more
    before = Path("predictions.csv").read_bytes()
    commands = {
        "predictions of other weights": ("other", "images/train"),
        "predictions of other images": (folder, "images/test"),
        "of other images, such as": (folder, "images/train/dog"),
    }
    for reason, (source, images) in commands.items():
        message = error_of(capsys, lambda source=source, images=images: predict(source, images))
        assert reason in message and "--folder" in message
        assert Path("predictions.csv").read_bytes() == before
    predict("other", "images/test", more=("--folder", "elsewhere"))


@pytest.mark.parametrize("lines", [None, "", "text\n", '{"image": "a.png"}\n', '{"weights": 1}\n', "[]\n"])
def test_predict_keeps_table_of_unknown_origin(
    lines: str | None, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("predictions.csv").write_text("mine")
    if lines is not None:
        Path("predictions.jsonl").write_text(lines)
    assert "does not say of which" in error_of(capsys, lambda: predict(folder, "images/train/cat"))
    assert Path("predictions.csv").read_text() == "mine"


def test_limited_predict_does_not_replace_a_whole_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predict_dir = ["--data.init_args.predict_dir", "images/train", "--ckpt_path", "last"]
    run("predict", *predict_dir, **options(folder))
    before = (folder / "predictions.csv").read_bytes()
    run("predict", *predict_dir, **options(folder, fast_dev_run=True))
    assert (folder / "predictions.csv").read_bytes() == before
    message = error_of(capsys, lambda: run("predict", *predict_dir, **options(folder, limit_predict_batches=1)))
    assert "of other images" in message and "--trainer.default_root_dir" in message
    assert (folder / "predictions.csv").read_bytes() == before
