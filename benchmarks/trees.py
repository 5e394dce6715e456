"""The package of this checkout, or of an earlier commit in a folder and, if it needs one, an environment of its own."""

import os
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

from hsakd_pl.errors import UsageError

CHECKOUT = Path(__file__).parents[1]
LINKED = ("configs", "main.py")  # what a command may name by its path in the repository


class Tree(NamedTuple):
    """A package's folder, its commit, and the interpreter that runs it."""

    folder: Path
    commit: str | None
    python: str = sys.executable

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables with which Python imports the tree's package, and the benchmarks of this checkout."""
        paths = [str(self.folder), str(CHECKOUT), os.environ.get("PYTHONPATH")]
        return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}

    def prepare(self, folder: Path) -> None:
        """Create a working folder for a command, in which the paths of the repository's documents are valid."""
        folder.mkdir()
        for name in LINKED:
            (folder / name).symlink_to(self.folder / name)


def git(*arguments: str) -> str:
    """Return what git prints about this checkout; raises UsageError with its message if it fails."""
    try:
        done = subprocess.run(["git", "-C", str(CHECKOUT), *arguments], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise UsageError("git is not installed: install it to compare commits") from None
    except subprocess.CalledProcessError as error:
        raise UsageError(f"git {arguments[0]}: {error.stderr.strip()}") from None
    return done.stdout.strip()


def checkout() -> Tree:
    """Return this checkout, whose commit is the last that changed the package, marked if files have changed since."""
    try:
        commit = git("log", "-1", "--format=%h", "--", "hsakd_pl")
        if git("status", "--porcelain", "--", "hsakd_pl"):
            commit += "-dirty"
    except UsageError:  # not a clone
        commit = None
    return Tree(CHECKOUT, commit)


def earlier(commit: str, folder: Path) -> Tree:
    """Write a commit, except for its benchmarks, into a new folder; if its dependencies differ, install those too."""
    name = git("rev-parse", "--short", "--verify", f"{commit}^{{commit}}")
    folder.mkdir()
    archive = folder.with_suffix(".tar")
    git("archive", f"--output={archive}", name, "--", ".", ":!benchmarks")
    subprocess.run(["tar", "-xf", archive, "-C", folder], check=True)
    archive.unlink()
    missing = unsatisfied(folder / "setup.cfg")
    if not missing:
        return Tree(folder, name)
    print(f"{name} needs {', '.join(missing)}: installing its dependencies")
    environment = folder.with_suffix(".venv")
    python = str(environment / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "uv"], check=True)
    subprocess.run([python, "-m", "uv", "pip", "install", "--quiet", "--python", python, folder], check=True)
    return Tree(folder, name, python)


def unsatisfied(setup: Path) -> list[str]:
    """Return the requirements of a ``setup.cfg`` that the packages of this interpreter do not meet."""
    config = ConfigParser()
    config.read(setup)
    lines = config["options"]["install_requires"].split("\n")
    requirements = [Requirement(line) for line in lines if line.strip()]
    return [str(requirement) for requirement in requirements if not is_met(requirement)]


def is_met(requirement: Requirement) -> bool:
    """Return whether an installed package meets a requirement, or it is for other systems."""
    if requirement.marker and not requirement.marker.evaluate():
        return True
    try:
        return requirement.specifier.contains(version(requirement.name), prereleases=True)
    except PackageNotFoundError:
        return False
