"""Test what is published: version, command, extras, the distributions' content, and a standalone wheel."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from functools import partial
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


def test_documents_list_the_extras() -> None:
    extras = set(metadata.metadata("hsakd_pl").get_all("Provides-Extra", []))
    [table] = re.findall(r"\| extra \| for \|\n.*\n((?:\|.*\n)+)", (ROOT / "docs/index.md").read_text())
    assert set(re.findall(r"`(\w+)`", re.sub(r" \| .*", "", table))) == extras
    sizes = re.findall(r"^\| `(\w+)` \| \d+ \|$", (ROOT / "docs/install.md").read_text(), re.MULTILINE)
    assert set(sizes) == extras


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
    """Tests, documents, configurations and stored results are part of it, so that the tests run there, too."""
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


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile in order, continued lines joined."""
    lines = re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE)
    return re.findall(r"^([A-Z]+) (.*)$", lines.replace("\\\n", ""), re.MULTILINE)


def make_environment(folder: Path) -> None:
    """Create an environment with links to this one's packages except hsakd_pl."""
    venv.create(folder, symlinks=True)
    [packages] = folder.glob("lib/python*/site-packages")
    installed = [path for entry in sys.path if "-packages" in entry for path in Path(entry).iterdir()]
    for path in installed:
        if "hsakd_pl" not in path.name and not (packages / path.name).exists():
            (packages / path.name).symlink_to(path)
    pip = folder / "bin/pip"
    pip.write_text('#!/bin/sh\nexec python -m pip "$@"\n')
    pip.chmod(0o755)


@pytest.mark.slow
def test_image_and_wheel_run_without_the_checkout(tmp_path: Path) -> None:
    """Run the Dockerfile's commands for CPUs below a folder, with this environment's packages, then train there.

    Not run are those that need root or the network: Debian's packages and the user. PyTorch and the packages of the
    extras are installed already, so that pip only checks that they are what the wheel and its extras require.
    """
    make_environment(tmp_path / "venv")
    (tmp_path / "src").mkdir()
    _, *allowed = re.findall(r"^!?([\w.*]+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    for name in files_of_checkout():
        if name.partition("/")[0] in allowed:
            (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / "src" / name)
    (tmp_path / "work").mkdir()
    settings = {"PATH": f"{tmp_path}/venv/bin:{os.environ['PATH']}", "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0"}
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PIP_FIND_LINKS")}
    environment = inherited | settings

    def output(command: str) -> str:
        shell = partial(subprocess.run, shell=True, capture_output=True, text=True)
        done = shell(command, cwd=tmp_path / "work", env=environment)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    outputs = []
    for instruction, text in instructions(ROOT / "Dockerfile"):
        if instruction == "ARG":
            name, _, value = text.partition("=")
            environment[name] = value
        if instruction == "RUN" and not text.startswith(("apt-get", "useradd")):
            outputs.append(output(re.sub(r"(?<=[ (])/(src|wheels)\b", rf"{tmp_path}/\1", text)))
    assert len(outputs) == 5 and not [text for text in outputs if "does not provide the extra" in text]
    assert output("hsakd --version") == f"hsakd_pl {hsakd_pl.__version__}\n"
    written = tmp_path / "work/configs"
    assert {str(path.relative_to(written)) for path in written.rglob("*.*")} == set(files())
    few = "--trainer.max_epochs=1 --trainer.limit_train_batches=1 --trainer.limit_val_batches=1"
    fit = f"hsakd fit --config=configs/digits/teacher_joint_resnet20.yaml --config=configs/trainer/cpu.yaml {few}"
    assert "result.json" in output(fit)


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
