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


def files_of_checkout() -> set[str]:
    """Return the names of the files that git tracks or would track."""
    if not (ROOT / ".git").exists():
        pytest.skip("only a git checkout tells which files belong to it")
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return {name for name in names if (ROOT / name).exists()}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the source distribution and the wheel built from it by ``python -m build``."""
    pytest.importorskip("build")
    source = tmp_path_factory.mktemp("source")
    for name in files_of_checkout():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", source], check=True, capture_output=True)
    return source / "dist"


@pytest.mark.slow
def test_wheel_contains_the_package(distributions: Path) -> None:
    [wheel] = distributions.glob("*.whl")
    package = {name for name in files_of_checkout() if name.startswith("hsakd_pl/")}
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == package


@pytest.mark.slow
def test_source_distribution_contains_the_checkout(distributions: Path) -> None:
    """With tests, documents, configurations and stored results, the tests run in an unpacked source distribution, too."""
    [source] = distributions.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    made = {name for name in names if name == "PKG-INFO" or name.startswith("hsakd_pl.egg-info/")}
    assert names - made == files_of_checkout()


@pytest.mark.slow
def test_description_on_an_index_has_no_links_into_the_checkout(distributions: Path) -> None:
    [wheel] = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        [metadata_name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        description = archive.read(metadata_name).decode().partition("\n\n")[2]
    assert description.startswith("# hsakd_pl")
    targets = re.findall(r"\]\(([^)]+)\)|(?:src|srcset)=", description)
    assert targets and all(target.startswith("https://") for target in targets)


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
