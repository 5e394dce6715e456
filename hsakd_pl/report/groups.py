"""Groups of runs: all runs of one protocol are one row of a table, whatever their files are called."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hsakd_pl.errors import counted
from hsakd_pl.recipes import ALL_RECIPES, Recipe
from hsakd_pl.records.formats import Row
from hsakd_pl.records.measured import fingerprint_of, is_validated, reasons_against_test_of, test_accuracy
from hsakd_pl.records.options import CALLBACKS, WEIGHT_OPTIONS
from hsakd_pl.report.differences import Differences, differing, expected, is_of_machine
from hsakd_pl.report.rows import seed_of

TEST_DATA = "test data"  # what the fingerprint of the test split is called in names
UNKNOWN_DATA = "data not recorded"
CLASS_PATHS = re.compile(r"[\w.]+\.(?=\w+\()")  # what comes before the name of a class


class Group(NamedTuple):
    """The runs of one protocol.

    Attributes:
        base: name of the recipe, or of the configuration files.
        rows: the runs that count, one per seed.
        marks: notes for the reader of their mean.
        paper: accuracy in percent as published, for example ``"78.67 +- 0.20"``, or ``""`` where the runs or their data
            are not those of the published number.
        comparable: whether a published number may be shown next to these runs.
        recipe: name of the recipe, if all runs follow the same one.
        differences: options that differ from the recipe.
        others: runs that do not count: unfinished ones, and further runs of a seed.
        changed: what distinguishes the runs from the recipe and from other groups, in words.
    """

    base: str
    rows: list[Row]
    marks: list[str]
    paper: str
    comparable: bool
    recipe: str | None
    differences: Differences
    others: list[Row]
    changed: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name in the table, different for each group."""
        return ", ".join([self.base, *self.changed])

    @property
    def all_rows(self) -> list[Row]:
        """All runs, also those that do not count."""
        return [*self.rows, *self.others]


def groups(rows: Iterable[Row], recipes: Mapping[str, Recipe] = ALL_RECIPES) -> list[Group]:
    """Group runs by their protocol, in the order of their first runs.

    Args:
        rows: runs as :func:`hsakd_pl.report.rows.collect` returns them.
        recipes: recipes by name, with which runs are compared.
    """
    members_of: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        protocol = row.get("protocol")
        members_of[protocol["hash"] if protocol else ("", _files(row))].append(row)
    # Runs that follow no recipe are compared with the first of them on the same data.
    references: dict[Any, Mapping[str, Any]] = {}
    result = []
    for members in members_of.values():
        recipe = _recipe(members, recipes)
        options = _protocol(members).get("options", {})
        if recipe is None:
            reference = references.setdefault((_files(members[0]), fingerprint_of(members[0])), options)
        else:
            reference = references.setdefault(recipe.name, expected(recipe))
        result.append(_group(recipe, members, differing(reference, options) if options else {}))
    return _with_distinct_names(result)


def by_data(groups: Iterable[Group]) -> dict[str, list[Group]]:
    """Sort groups by the images that they were evaluated on, under a label of these.

    Accuracies on different images do not belong into one table.
    """
    groups_by_test_split: dict[str | None, list[Group]] = defaultdict(list)
    for group in groups:
        groups_by_test_split[evaluated_on(group)].append(group)
    return {data_label(members[0]): members for members in groups_by_test_split.values()}


def evaluated_on(group: Group) -> str | None:
    """Return the fingerprint of the test split of a group's runs, None if it was not recorded."""
    return fingerprint_of(group.all_rows[0]) if group.all_rows else None


def data_label(group: Group) -> str:
    """Return the name of the data module without ``DataModule``, and size and fingerprint of the test split."""
    if evaluated_on(group) is None:
        return UNKNOWN_DATA
    protocol = _protocol(group.all_rows)
    split = protocol["data"]["test"]
    name = str(protocol["options"].get("data.class_path", "data")).rpartition(".")[2].removesuffix("DataModule")
    counts = [(split.get("classes"), "class"), (split["images"], "test image")]
    facts = [counted(count, noun) for count, noun in counts if count is not None]
    facts.append(f"fingerprint {split['fingerprint']}")
    return f"{name}: {', '.join(facts)}"


def shared_changes(groups: Sequence[Group]) -> list[str]:
    """Return the words of :attr:`Group.changed` that all of several groups have, which need not be in each name."""
    if len(groups) < 2:
        return []
    return [words for words in _besides_data(groups[0]) if all(words in group.changed for group in groups)]


def short_names(groups: Sequence[Group]) -> list[str]:
    """Return the names of groups on one data set, without its fingerprint and :func:`shared_changes`."""
    shared = shared_changes(groups)
    return [
        ", ".join([group.base, *(words for words in _besides_data(group) if words not in shared)]) for group in groups
    ]


def _besides_data(group: Group) -> list[str]:
    return [words for words in group.changed if not words.startswith(f"{TEST_DATA} ")]


def _group(recipe: Recipe | None, members: list[Row], differences: Differences) -> Group:
    ended = [row for row in members if row.get("finished", True)]
    first_of_seed: dict[str, Row] = {}
    for row in ended:
        first_of_seed.setdefault(seed_of(row), row)
    counted_rows = list(first_of_seed.values())
    changed = {option: new for option, (_, new) in differences.items() if not is_of_machine(option)}
    comparable = recipe is not None and _has_published_data(recipe, members) and not changed
    return Group(
        base=recipe.name if recipe else _files(members[0]),
        rows=counted_rows,
        marks=_marks(members, ended) + _marks_of_tests(counted_rows) + _marks_of_data(recipe, members),
        paper=recipe.published if recipe and comparable else "",
        comparable=comparable,
        recipe=recipe.name if recipe else None,
        differences=differences,
        others=[row for row in members if not any(row is counted_row for counted_row in counted_rows)],
        changed=tuple(_describe(option, new) for option, new in changed.items()),
    )


def _has_published_data(recipe: Recipe, members: Sequence[Row]) -> bool:
    """Return True if the runs have the data of the recipe's published number, or nothing is known of these."""
    if recipe.published_data is None:
        return True
    facts = _data(members)
    return bool(facts) and not recipe.published_data.difference(facts)


def _marks_of_data(recipe: Recipe | None, members: Sequence[Row]) -> list[str]:
    facts = _data(members)
    if not facts:
        return ["data not recorded"] if _protocol(members) else []
    if recipe is None or recipe.published_data is None:
        return []
    difference = recipe.published_data.difference(facts)
    return [f"not the paper's data: {difference}"] if difference else []


def _describe(option: str, value: Any) -> str:
    """Return the last names of an option and of its value."""
    option_name = option.removesuffix(".class_path").rpartition(".")[2]
    if option == CALLBACKS:
        return f"{option_name} {CLASS_PATHS.sub('', str(value)):.40}"
    value_name = str(value).rpartition("/")[2]
    return f"{option_name} {value_name:.40}"


def _marks(members: Sequence[Row], ended: Sequence[Row]) -> list[str]:
    """Return notes for the reader of the mean."""
    marks = [f"seed {seed} has {count} runs" for seed, count in Counter(map(seed_of, ended)).items() if count > 1]
    for row in members:
        marks += _marks_of_run(row)
    limited = _protocol(members).get("limited", {})
    marks += [_describe(option, value) for option, value in limited.items()]
    if any(str(row.get("commit")).endswith("-dirty") for row in members):
        marks.append("uncommitted changes")
    if not tested_on_one_split(members):
        marks.append("the tests are on different data, and do not count")
    if any(row.get("changes") for row in members):
        marks.append("options changed on resume")
    if not _protocol(members):
        marks.append("older row, no protocol recorded")
    return marks


def _marks_of_tests(rows: Sequence[Row]) -> list[str]:
    tested = sum(bool(row.get("test")) for row in rows)
    return [f"test of {tested} of {counted(len(rows), 'run')}"] if 0 < tested < len(rows) else []


def _marks_of_run(row: Row) -> list[str]:
    marks = []
    epochs = row.get("epochs")
    planned = (row.get("protocol") or {}).get("epochs")
    if not row.get("finished", True):
        marks.append(f"{row['folder']} is unfinished, epoch {epochs}")
    elif planned not in (None, -1, epochs):
        marks.append(f"{row['folder']} ended in epoch {epochs} of {planned}")
    if not is_validated(row):
        step = row.get("last_val_step")
        last_validation = f"its last validation was in step {step}" if step else "it was never validated"
        marks.append(f"{row['folder']} has {counted(row.get('steps') or 0, 'step')}, {last_validation}")
    reasons = reasons_against_test_of(row)
    if reasons:
        marks.append(f"the test in {row['folder']} does not count: {', '.join(reasons)}")
    elif row.get("test") and "weights_digest" not in row:
        marks.append(f"the test in {row['folder']} counts by its epoch, the weights are not recorded")
    elif row["test"] and _precision(row) not in (None, row["test"].get("precision")):
        marks.append(f"the test in {row['folder']} ran in {row['test'].get('precision')}")
    return marks


def _precision(row: Row) -> str | None:
    return (row.get("protocol") or {}).get("precision")


def tested_on_one_split(rows: Sequence[Row]) -> bool:
    """Return whether all tests that count are on the same images, as far as they say."""
    return len({row["test"].get("data") for row in rows if test_accuracy(row) is not None}) < 2


def _with_distinct_names(groups: Sequence[Group]) -> list[Group]:
    """Add the differences between groups of the same name to their names, and the hash where they are not enough.

    Where groups of one test split were trained or validated on different data, all of their names say on which.
    """
    renamed = _with_varying_facts(groups, _facts, lambda group: group.name)
    renamed = _with_varying_facts(renamed, _varying_data, evaluated_on)
    return _with_varying_facts(renamed, _hash_fact, lambda group: group.name)


def _with_varying_facts(
    groups: Sequence[Group], facts_of: Callable[[Group], dict[str, Any]], key_of: Callable[[Group], str | None]
) -> list[Group]:
    """Add those facts to the names that differ among the groups of the same key."""
    facts_by_key: dict[str | None, list[dict[str, Any]]] = defaultdict(list)
    for group in groups:
        facts_by_key[key_of(group)].append(facts_of(group))
    renamed = []
    for group in groups:
        descriptions = dict.fromkeys(group.changed)
        for fact, value in facts_of(group).items():
            values = {str(facts.get(fact)) for facts in facts_by_key[key_of(group)]}
            if len(values) > 1:
                descriptions[_describe(fact, value)] = None
        renamed.append(group._replace(changed=tuple(descriptions)))
    return renamed


def _facts(group: Group) -> dict[str, Any]:
    """Return facts that may distinguish groups of one name: options of the machine, weights, devices and precision."""
    protocol = _protocol(group.all_rows)
    facts = {option: new for option, (_, new) in group.differences.items() if is_of_machine(option)}
    facts |= {key.removesuffix("_sha256"): str(protocol.get(key))[:12] for key in WEIGHT_OPTIONS.values()}
    facts |= {name: protocol.get(name) for name in ("devices", "precision")}
    facts |= protocol.get("statistics") or {}
    facts |= {f"{split} data": each.get("fingerprint") for split, each in _data(group.all_rows).items()}
    return facts


def _varying_data(group: Group) -> dict[str, Any]:
    """Return what may differ among groups that were tested on the same images."""
    training_split = _data(group.all_rows).get("train", {})
    validated_on = _protocol(group.all_rows).get("validated_on")
    return {"train data": training_split.get("fingerprint"), "validated on": validated_on}


def _hash_fact(group: Group) -> dict[str, Any]:
    return {"protocol": _protocol(group.all_rows).get("hash", "unknown")}


def _protocol(members: Sequence[Row]) -> dict[str, Any]:
    return members[0].get("protocol") or {}


def _data(members: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Return what identifies each split of the data; empty for rows of earlier versions."""
    return _protocol(members).get("data") or {}


def _files(row: Row) -> str:
    """Return the names of the configuration files of a run; without any, its module and networks, or its folder."""
    return " + ".join(Path(config).stem for config in row["config"]) or _model(row) or row["folder"]


def _model(row: Row) -> str:
    """Return module and networks of a run without configuration files, ``""`` where they are not recorded."""
    options = (row.get("protocol") or {}).get("options", {})
    names = [options.get(f"model.init_args.{option}") for option in ("teacher", "network", "networks")]
    module = str(options.get("model.class_path") or "").rpartition(".")[2]
    words = [re.sub(r"[\[\]' ]", "", str(name)).replace(",", "+") for name in names if name]
    return " ".join(filter(None, [module, "-".join(words)]))


def _recipe(members: Sequence[Row], recipes: Mapping[str, Recipe]) -> Recipe | None:
    """Return the recipe that all of these runs name, None if they name different ones or none."""
    names = {row.get("recipe") for row in members}
    return recipes.get(str(names.pop())) if len(names) == 1 else None
