"""The shape of the code: sizes, what may import what, and questions that it does not ask."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hsakd_pl"
# What stands above may import what stands below it, from the ground floor up
HOUSE = [
    "errors",
    "files",
    "ops",
    "networks",
    "weights",
    "data",
    "modules",
    "methods",
    "fast",
    "recipes",
    "report",
    "records",
    "exported",
    "runs",
]
CORE = ("errors.py", "ops.py", "networks", "weights.py", "data", "modules")
BUDGETS = {
    tuple(f"hsakd_pl/{part}" for part in CORE): 5145,
    ("hsakd_pl/methods",): 800,
    ("hsakd_pl/files",): 560,
    ("hsakd_pl/fast/*.py",): 232,
    ("hsakd_pl/fast/winograd",): 450,
    ("hsakd_pl/recipes",): 265,
    ("hsakd_pl/report",): 880,
    ("hsakd_pl/records",): 1250,
    ("hsakd_pl/exported",): 785,
    ("hsakd_pl/runs",): 1990,
    ("benchmarks",): 641,
}


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def sources(pattern: str) -> list[Path]:
    found = [ROOT / pattern] if (ROOT / pattern).is_file() else [*ROOT.glob(pattern)]
    nested = [path for folder in found if folder.is_dir() for path in folder.rglob("*") if path.suffix in (".py", ".c")]
    return [path for path in [*found, *nested] if path.is_file()]


@pytest.mark.parametrize("parts", BUDGETS, ids=lambda parts: parts[-1])
def test_a_part_keeps_to_its_budget(parts: tuple[str, ...]) -> None:
    counted = {str(path.relative_to(ROOT)): lines(path) for part in parts for path in sources(part)}
    assert 0 < sum(counted.values()) <= BUDGETS[parts], counted


def test_a_file_is_one_idea() -> None:
    long = {str(path): lines(path) for path in PACKAGE.rglob("*.py") if lines(path) >= 200}
    assert long == {}


def test_imports_go_down_only() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        floor = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if floor not in HOUSE:
            continue
        for node in ast.parse(path.read_text()).body:  # at the top of a file; hooks may reach up
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hsakd_pl."):
                imported = str(node.module).split(".")[1]
                if imported in HOUSE and HOUSE.index(imported) > HOUSE.index(floor):
                    wrong.append(f"{path.relative_to(ROOT)} imports {imported}")
    assert wrong == []


def test_networks_are_not_felt_for_attributes() -> None:
    """In modules: what is asked by ``getattr`` is Lightning's trainer, data module or schedule."""
    asked = [
        line
        for path in (PACKAGE / "modules").glob("*.py")
        for line in re.findall(r".*[gh][ea][ts]attr\(.*", path.read_text())
    ]
    assert [line for line in asked if not re.search(r"trainer|data|schedule|self\.network, name\)", line)] == []


def test_nothing_sets_the_process() -> None:
    """No module or data module changes what others in the process see."""
    settings = r"torch\.set_num_threads|add_safe_globals|environ\[.*\] =|environ\.setdefault|mallopt|__class__ ="
    files = [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in ("records", "runs")]
    assert [f"{path}: {found}" for path in files for found in re.findall(settings, path.read_text())] == []
