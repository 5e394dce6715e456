"""Test what is published: version, command, extras, the distributions' content, and a standalone wheel."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import hsakd_pl
from hsakd_pl.commands.recipes import files

ROOT = Path(__file__).parents[1]


def test_version_equals_installed_metadata() -> None:
    assert hsakd_pl.__version__ == metadata.version("hsakd_pl")


def test_console_command_resolves() -> None:
    (command,) = metadata.entry_points(group="console_scripts", name="hsakd")
    assert callable(command.load())


def test_extras_are_declared() -> None:
    loggers = {"loggers", "tensorboard", "wandb", "mlflow"}
    extras = set(metadata.metadata("hsakd_pl").get_all("Provides-Extra", []))
    data = {"hub", "datasets", "heic", "litdata"}
    others = {"notebooks", "docs", "test", "dev", "export", "timm", "completion", "slurm", "openvino"}
    assert extras == {"plots"} | data | others | loggers


def test_example_dependencies_are_not_required() -> None:
    required = [line for line in metadata.metadata("hsakd_pl").get_all("Requires-Dist", []) if "extra" not in line]
    assert required and not [line for line in required if line.startswith("matplotlib")]


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the source distribution and the wheel built from it by ``python -m build``."""
    pytest.importorskip("build")
    source = tmp_path_factory.mktemp("source")
    for path in (path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"):
        shutil.copy(path, source)
    for folder in ("hsakd_pl", "tests"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", source], check=True, capture_output=True)
    return source / "dist"


@pytest.mark.slow
def test_distributions_contain_all_files(distributions: Path) -> None:
    [wheel], [source] = distributions.glob("*.whl"), distributions.glob("*.tar.gz")
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "hsakd_pl").rglob("*") if path.is_file()}
    package = {name for name in package if "__pycache__" not in name}
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == package
    with tarfile.open(source) as archive:
        found = {name.partition("/")[2] for name in archive.getnames() if "egg-info" not in name}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff"} | package < found
    assert not [name for name in found if name.startswith("tests")]


@pytest.mark.slow
def test_distributions_pass_twine_check(distributions: Path) -> None:
    pytest.importorskip("twine")
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *distributions.iterdir()], check=True)


@pytest.mark.slow
def test_wheel_runs_without_the_checkout(distributions: Path, tmp_path: Path) -> None:
    """Install the wheel into an environment that sees this one's packages but not this checkout."""
    venv.create(tmp_path / "venv", symlinks=True)
    [packages] = (tmp_path / "venv").glob("lib/python*/site-packages")
    installed = [path for path in sys.path if "-packages" in path]  # .pth files in there do not count
    (packages / "dependencies.pth").write_text("\n".join(installed))
    python, [wheel] = tmp_path / "venv/bin/python", distributions.glob("*.whl")
    install = ["-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--force-reinstall", wheel]
    subprocess.run([sys.executable, *install], check=True, capture_output=True)
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def output(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=outside, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    recipes = "from hsakd_pl.cli import main; print(main.__file__); main.main(['recipes', 'written'])"
    assert output(python, "-c", recipes).startswith(str(packages / "hsakd_pl/cli/main.py"))
    assert {str(path.relative_to(tmp_path / "written")) for path in (tmp_path / "written").rglob("*.*")} == set(files())
    few = [f"--trainer.{name}=1" for name in ("max_epochs", "limit_train_batches", "limit_val_batches")]
    configs = [f"--config=written/{name}.yaml" for name in ("digits/teacher_joint_resnet20", "trainer/cpu")]
    assert "result.json" in output(tmp_path / "venv/bin/hsakd", "fit", *configs, *few)


def test_citation_names_paper_and_software() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["type"] == "software" and citation["title"].startswith(metadata.metadata("hsakd_pl")["Name"])
    paper = citation["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == ["Yang", "An", "Cai", "Xu"]
    assert paper["doi"] == "10.24963/ijcai.2021/168" and paper["url"] in (ROOT / "README.md").read_text()


def test_changelog_is_ready_for_the_next_version() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert [re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", heading) for heading in headings[1:]].count(None) == 0


def test_contributor_commands_exist() -> None:
    """Check that the commands in CONTRIBUTING.md, the workflow and the hooks are Makefile targets or files."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    texts = [(ROOT / name).read_text() for name in ("CONTRIBUTING.md", ".github/workflows/ci.yml")]
    called = {target for text in texts for target in re.findall(r"^[ \-]*(?:run: )?make ([a-z]+)", text, re.MULTILINE)}
    assert {"test", "oldest", "dist"} <= called <= targets
    workflow = yaml.safe_load(texts[1])
    runs = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert ".ci/run" in runs and all((ROOT / run.split()[-1]).exists() for run in runs if "make" not in run)
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["id"] for hook in hooks] == ["ruff", "ruff-format", "mypy", "notebooks"]
    assert all(hook["entry"].startswith(".venv/bin/python -m ") for hook in hooks)
