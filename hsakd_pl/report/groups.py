"""Runs of one protocol are one row of a table, whatever their files are called, and runs of two never are."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hsakd_pl.recipes import ALL_RECIPES, Recipe
from hsakd_pl.records.formats import Row
from hsakd_pl.report.differences import MACHINE, Differences, differing, expected
from hsakd_pl.report.rows import seed_of


class Group(NamedTuple):
    """The runs of one protocol: what the table calls them, those that count, by seed, and what to know of them.

    ``paper``: accuracy in percent there, +- its standard deviation, or "". ``others``: runs that do not count, since
    they have not ended or their seed stands twice.
    """

    name: str
    rows: list[Row]
    marks: list[str]
    paper: str
    recipe: str | None
    differences: Differences
    others: list[Row]


def groups(rows: Iterable[Row], recipes: Mapping[str, Recipe] = ALL_RECIPES) -> list[Group]:
    """Sort rows into groups, in the order of their folders; their names are all different.

    Args:
        rows: of :func:`hsakd_pl.report.rows.collect`.
        recipes: recipes by name, with which runs are compared.
    """
    found: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        found[row["protocol"]["hash"] if row.get("protocol") else ("", _files(row))].append(row)
    firsts: dict[str, Mapping[str, Any]] = {}  # of runs that follow no recipe the first is what others differ from
    made = []
    for members in found.values():
        recipe = _recipe(members, recipes)
        options = _protocol(members).get("options", {})
        if recipe is None:
            base = firsts.setdefault(_files(members[0]), options)
        else:
            base = firsts.setdefault(recipe.name, expected(recipe))
        made.append(_group(recipe, members, differing(base, options) if options else {}))
    return _told_apart(made)


def _group(recipe: Recipe | None, members: list[Row], differences: Differences) -> Group:
    ended = [row for row in members if row.get("finished", True)]
    counted = [*{seed_of(row): row for row in reversed(ended)}.values()][::-1]  # the first of each seed
    others = [row for row in members if not any(row is each for each in counted)]
    changed = {option: new for option, (_, new) in differences.items() if not MACHINE.match(option)}
    paper = recipe.published if recipe and not changed else ""
    recipe_name = recipe.name if recipe else None
    name = ", ".join([recipe_name or _files(members[0]), *(_said(option, new) for option, new in changed.items())])
    return Group(name, counted, _marks(members, ended), paper, recipe_name, differences, others)


def test_of(row: Row) -> float | None:
    """Return the accuracy that the last epoch of a run reached in a test; None where that was of others."""
    test = row["test"] or {}
    last = test.get("epoch") is not None and test["epoch"] == row.get("epochs")
    return test["acc"] if last and isinstance(test.get("acc"), int | float) else None


def _said(option: str, value: Any) -> str:
    return f"{option.removesuffix('.class_path').rpartition('.')[2]} {str(value).rpartition('/')[2]:.40}"


def _marks(members: Sequence[Row], ended: Sequence[Row]) -> list[str]:
    """What a reader of the mean must know."""
    seeds = Counter(map(seed_of, ended))
    marks = [f"seed {seed} stands {count} times" for seed, count in seeds.items() if count > 1]
    for row in members:
        planned = (row.get("protocol") or {}).get("epochs")
        if not row.get("finished", True):
            marks.append(f"{row['folder']} is unfinished, epoch {row.get('epochs')}")
        elif planned not in (None, -1, row.get("epochs")):
            marks.append(f"{row['folder']} ended in epoch {row.get('epochs')} of {planned}")
        if row["test"] and test_of(row) is None:
            marks.append(f"the test in {row['folder']} is not of its last epoch: {row['test'].get('checkpoint')}")
    limited = _protocol(members).get("limited", {})
    marks += [_said(option, value) for option, value in limited.items()]
    if any(str(row.get("commit")).endswith("-dirty") for row in members):
        marks.append("uncommitted changes")
    if any(row.get("changes") for row in members):
        marks.append("options changed on resume")
    return marks if _protocol(members) else [*marks, "older row, no protocol recorded"]


def _told_apart(made: Sequence[Group]) -> list[Group]:
    """Add to names that stand twice what these groups differ in, and where that is not enough the hash."""
    return _renamed(_renamed(made, _facts), lambda group: {"protocol": _protocol(_all(group)).get("hash", "unknown")})


def _renamed(made: Sequence[Group], facts_of: Callable[[Group], dict[str, Any]]) -> list[Group]:
    by_name: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for group in made:
        by_name[group.name].append(facts_of(group))
    names = []
    for group in made:
        own, all_facts = facts_of(group), by_name[group.name]
        varying = [fact for fact in own if len({str(facts.get(fact)) for facts in all_facts}) > 1]
        names.append(", ".join([group.name, *(_said(fact, own[fact]) for fact in varying)]))
    return [group._replace(name=name) for group, name in zip(made, names, strict=True)]


def _facts(group: Group) -> dict[str, Any]:
    """What may tell groups of one name apart: options of the machine, and what the protocol found out."""
    protocol = _protocol(_all(group))
    shas = {name: str(protocol.get(f"{name}_sha256"))[:12] for name in ("teacher", "weights", "projection")}
    machine = {option: new for option, (_, new) in group.differences.items() if MACHINE.match(option)}
    return {**machine, **shas, **{name: protocol.get(name) for name in ("devices", "precision")}}


def _all(group: Group) -> list[Row]:
    return [*group.rows, *group.others]


def _protocol(members: Sequence[Row]) -> dict[str, Any]:
    return members[0].get("protocol") or {}


def _files(row: Row) -> str:
    return " + ".join(Path(config).stem for config in row["config"]) or row["folder"]


def _recipe(members: Sequence[Row], recipes: Mapping[str, Recipe]) -> Recipe | None:
    """Return the recipe that all of these runs name, None where they differ or name none."""
    names = {row.get("recipe") for row in members}
    return recipes.get(str(names.pop())) if len(names) == 1 else None
