"""Write the paper's experiments into a folder, a configuration of ``fit`` each, as ``configs/`` holds them.

Without a folder: list them, with the accuracy in the paper. Those of the bench: hsakd bench TABLE --list.
"""

from argparse import ArgumentParser
from pathlib import Path

from hsakd_pl.errors import UsageError
from hsakd_pl.recipes import BENCH_TABLES, OVERLAYS, RECIPES


def files() -> dict[str, str]:
    """What ``configs/`` holds: path -> text of each recipe, each table of the bench, and each machine's overlay."""
    overlays = {f"trainer/{path.name}": path for path in OVERLAYS.glob("*.yaml")}
    copied = overlays | {f"bench/{path.name}": path for path in BENCH_TABLES.values()}
    recipes = {f"{name}.yaml": recipe.text for name, recipe in RECIPES.items()}
    return recipes | {name: path.read_text() for name, path in copied.items()}


def command(parser: ArgumentParser, args: list[str]) -> None:
    """List the recipes, or write them; UsageError before any file that differs is lost."""
    parser.add_argument("folder", type=Path, nargs="?", help="where to write, for example configs")
    parser.add_argument("--overwrite", action="store_true", help="replace files that differ")
    asked = parser.parse_args(args)
    if asked.folder is None:
        for name, recipe in RECIPES.items():
            print(f"{name:<66} {recipe.published:<13} {recipe.title}")
        return
    texts = {asked.folder / path: text for path, text in files().items()}
    differing = [str(path) for path, text in texts.items() if path.exists() and path.read_text() != text]
    if differing and not asked.overwrite:
        raise UsageError(f"not overwritten, since it differs: {', '.join(differing)}; --overwrite replaces it")
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    print(*(f"replaced {path}" for path in differing), f"{len(texts)} files are in {asked.folder}", sep="\n")
