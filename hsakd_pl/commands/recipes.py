"""Write the paper's experiments into a folder, one configuration of ``fit`` each, as in ``configs/``.

Without a folder, list them with the accuracy in the paper. hsakd bench TABLE --list shows those of the bench.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from hsakd_pl.errors import UsageError
from hsakd_pl.files import local_path, naming, read_text, replacing
from hsakd_pl.files.escaping import show
from hsakd_pl.recipes import BENCH_TABLES, OVERLAYS, RECIPES


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("folder", type=Path, nargs="?", help="where to write, for example configs")
    parser.add_argument("--overwrite", action="store_true", help="replace files that differ")


def run(options: Namespace) -> None:
    """List the recipes, or write them; raises UsageError before a file that differs is lost."""
    if options.folder is None and options.overwrite:
        raise UsageError("--overwrite has no effect without a folder to write into: name one, for example configs")
    if options.folder is None:
        list_recipes()
    else:
        write_recipes(local_path("folder", options.folder), options.overwrite)


def files() -> dict[str, str]:
    """Return the files of ``configs/``: path -> text of each recipe, each table of the bench, and each overlay."""
    overlays = {f"trainer/{path.name}": path for path in OVERLAYS.glob("*.yaml")}
    copied = overlays | {f"bench/{path.name}": path for path in BENCH_TABLES.values()}
    recipes = {f"{name}.yaml": recipe.text for name, recipe in RECIPES.items()}
    return recipes | {name: path.read_text() for name, path in copied.items()}


def list_recipes() -> None:
    """Print the recipes with the paper's numbers."""
    for name, recipe in RECIPES.items():
        print(f"{name:<66} {recipe.published:<13} {recipe.title}")


def write_recipes(folder: Path, overwrite: bool) -> None:
    """Write all files into ``folder``; raises UsageError for files that differ, unless ``overwrite``."""
    texts = {folder / path: text for path, text in files().items()}
    with naming(folder):
        differing = [str(path) for path, text in texts.items() if path.exists() and read_text(path) != text]
    if differing and not overwrite:
        raise UsageError(f"these files differ and were not overwritten: {', '.join(differing)}; use --overwrite")
    for path, text in texts.items():
        with replacing(path) as file:
            file.write(text)
    for name in differing:
        show(f"replaced {name}")
    show(f"{len(texts)} files are in {folder}")
