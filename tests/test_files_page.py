"""Test the page of files: it is up to date, and describes the fields of a real run and a real export, and no others."""

import csv
import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import small
import torch
import yaml
from torchvision.io import write_png

from hsakd_pl.cli.main import main
from hsakd_pl.export import calibration, described, student
from hsakd_pl.files.described import FileFormat, paths
from hsakd_pl.files.schema import Fields, Items
from hsakd_pl.records import described as of_runs
from hsakd_pl.records import formats

REPOSITORY = Path(__file__).resolve().parents[1]
FILES = [file for file in (*of_runs.FILES, *described.FILES) if file.fields]
SCHEMAS = [
    (of_runs.RESULT, formats.RESULT_FIELDS),
    (of_runs.TEST, formats.TEST_FIELDS),
    (of_runs.DETAILS, formats.DETAILS_FIELDS),
    (of_runs.CHECKPOINT, formats.CHECKPOINT_FIELDS),
    (described.CALIBRATION, calibration.CALIBRATION_FIELDS),
    (described.CONFIG, student.CONFIG_FIELDS),
]

UNWRITTEN = {f"{exits}[].{name}" for exits in ("early_exit", "cascade") for name in ("nll", "ece")}  # but accepted


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run every command that writes files, and return the folder above all of them."""
    folder = tmp_path_factory.mktemp("written")
    data = {"class_path": "DigitsDataModule", "init_args": {"val_fraction": 0.2, "num_workers": 0}}
    options: Any = {"module": "TeacherModule", "data": data}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_png(torch.zeros(3, 20, 20, dtype=torch.uint8), "photo.png")
        run = str(small.run("fit", "--trainer.limit_train_batches=2", **options))
        small.run("test", "--ckpt_path", "last", "--model.ensemble=identity", **options)
        main(["calibrate", run, "--target-accuracy", "0.01"])
        main(["export", run, "out", "--int8", "dynamic"])
        main(["predict", "out", "photo.png"])
        main(["report", "runs"])
    return folder


def content_of(path: Path) -> Any:
    """Return the content of a file as plain data."""
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".csv":
        return [*csv.DictReader(path.read_text().splitlines())]
    if path.suffix == ".yaml":
        return yaml.safe_load(path.read_text())
    checkpoint = torch.load(path, weights_only=True)
    return {name: part if name == "data" else None for name, part in checkpoint.items()}


def fields_in(file: FileFormat, folder: Path) -> set[str]:
    """Return the paths of all fields of the files of one format."""
    found = [path for name in file.name.split(", ") for path in folder.rglob(name) if path != folder / "config.yaml"]
    assert found, f"no {file.name} was written"
    return {path.removeprefix("[].") for name in found for path in paths(content_of(name))}


def declared(schema: Any, place: str = "") -> Iterator[str]:
    """Yield the paths of the fields that a schema declares by name."""
    if isinstance(schema, Items) and isinstance(schema.entry, Fields):
        yield from declared(schema.entry, f"{place}[]")
    elif isinstance(schema, Fields) and schema.declared:
        for name, part in schema.declared.items():
            yield from declared(part, f"{place}.{name}" if place else name)
    elif not (isinstance(schema, Fields) and schema.others is not None):
        yield place


def test_page_equals_what_its_script_writes() -> None:
    script = runpy.run_path(str(REPOSITORY / "scripts/files_page.py"))
    assert script["PAGE"].read_text() == script["page"](), "python scripts/files_page.py"


@small.needs_onnx
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_fields_of_a_real_file_are_those_described(file: FileFormat, written: Path) -> None:
    found = fields_in(file, written)
    assert [path for path in sorted(found) if file.described(path) is None] == []
    always = {name for name, field in file.fields.items() if not field.when}
    assert always - {file.described(path) for path in found} == set()


@small.needs_onnx
def test_every_file_that_is_written_is_on_the_page(written: Path) -> None:
    names = {name for file in (*of_runs.FILES, *described.FILES) for name in file.name.split(", ")}
    assert {path.name for path in written.rglob("*") if path.is_file()} == names | {"photo.png"}


@pytest.mark.parametrize(("file", "schema"), SCHEMAS, ids=lambda value: getattr(value, "name", ""))
def test_fields_that_a_reader_checks_are_described(file: FileFormat, schema: Fields) -> None:
    missing = {path for path in declared(schema) if file.described(path) is None}
    assert missing - UNWRITTEN == set()
