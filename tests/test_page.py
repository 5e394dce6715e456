"""The page of three experiments with three seeds each: what it holds, and how a real browser shows it."""

import csv
import io
import json
import shutil
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from small import run

from hsakd_pl.report.groups import Group
from hsakd_pl.report.page import write_page
from hsakd_pl.report.rows import Row

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: install Debian's package")
MODULES = {
    "baseline": ("BaselineModule", {"network": "resnet8"}),
    "teacher": ("TeacherModule", {"network": "resnet8"}),
    "student": ("StudentModule", {"network": "resnet8", "teacher": "resnet8", "teacher_weights": "random"}),
}
EVIL = "<script>document.title='evil'</script>\"'&"


def read_row(folder: Path) -> Row:
    """Give the row of a run, its epochs and what its test found."""
    epochs: dict[str, dict[str, float]] = defaultdict(dict)
    metrics = folder / "logs/version_0/metrics.csv"
    for line in csv.DictReader(io.StringIO(metrics.read_text())):
        epochs[line["epoch"]] |= {name: float(cell) for name, cell in line.items() if cell}
    details, test, result = (json.loads((folder / f"{n}.json").read_text()) for n in ("test_details", "test", "result"))
    return {**result, "folder": str(folder), "test": test, "details": details, "history": [*epochs.values()]}


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> list[Group]:
    """Three experiments with three seeds, each trained in 2 epochs and tested on a batch."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("page"))
        patch.setattr(sys, "argv", ["main.py"])
        for kind, (module, arguments) in MODULES.items():
            rows = []
            for seed in range(3):
                limits = {"max_epochs": 2, "limit_val_batches": 1, "limit_test_batches": 1}
                options: dict[str, Any] = {
                    "module": module,
                    "model": {"init_args": arguments},
                    "trainer": {**limits, "default_root_dir": f"runs/{kind}/seed{seed}"},
                }
                run("fit", "--seed_everything", str(seed), **options)
                run("test", "--ckpt_path", "last", **options)
                rows.append(read_row(Path(f"runs/{kind}/seed{seed}")))
            found.append(Group(kind, rows, [], "", None, {}, []))
    protocol = {"hash": "0123456789ab", "epochs": 2, "optimizer": "SGD", "lr": 0.01, "options": {"model.lr": 0.01}}
    found[0].rows[0]["protocol"] = protocol
    differences = {"trainer.max_epochs": (240, 2), "model.init_args.lr": (0.05, 0.01)}
    recipe = "cifar100/student_joint_wrn_40_2-wrn_16_2"
    found[2] = found[2]._replace(recipe=recipe, paper="78.67 +- 0.20", differences=differences)
    return [found[0], found[1]._replace(marks=["limited batches"]), found[2]]


@pytest.fixture(scope="module")
def page(groups: list[Group], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("out") / "page.html"
    write_page(groups, path)
    return path
