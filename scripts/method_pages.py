"""Write docs/methods/, a page per method and their index, and the same index in the package.

python scripts/method_pages.py

Nothing is declared here but why a step takes longer than one of KD: formulas, options and sources come from docstrings,
constants and published numbers from the tables of the bench, measured numbers from RESULTS.md, costs from
benchmarks/results/, and traps from docs/reproducing.md.
"""

import csv
import inspect
import json
import re
import runpy
import shlex
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

from hsakd_pl import HSAKDModule, create_network, methods, ops
from hsakd_pl.methods.schedules import ScheduledFactor
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.recipes import ALL_RECIPES, BENCH_TABLES, read_table
from hsakd_pl.recipes.bench import MARKS

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
PAGES = DOCS / "methods"
INDEX = Path(methods.__file__).with_name("index.md")  # the copy in the package
as_markdown = runpy.run_path(str(DOCS / "formulas.py"))["as_markdown"]

PAIR = {"network": "resnet8", "teacher": "resnet14", "teacher_weights": "random", "num_classes": 10}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "CRDModule": PAIR | {"samples": 16},
    "WKDModule": PAIR | {"feature_weight": 0.1},
    "DMLModule": {"networks": ["resnet8", "resnet8"], "num_classes": 10},
    "SSKDModule": PAIR | {"projection_weights": "random"},
    "SSKDProjectionModule": {"network": "resnet14", "weights": "random", "num_classes": 10},
}
EXAMPLES = ("wrn_40_2-wrn_16_2", "resnet32x4-resnet8x4")  # the pairs whose numbers the index shows
USUAL = ("classic", "newer")  # tables of one protocol
SHORTENED = "small"  # the table that repeats lines of the others for a smaller budget, which pages leave out
# Why a step takes longer than one of KD; every method above 1.3 times KD has a reason
REASONS = {
    "CRDModule": "it multiplies the embeddings of both networks with all rows of the banks, one per training image.",
    "CRLDModule": "two views of each image pass through the student and the teacher.",
    "MLKDModule": "two views of each image pass through the student and the teacher.",
    "ReviewKDModule": "for wrn_16_2, its fusion blocks have three quarters of the student's multiply-adds, on maps "
    "with four times as many channels as the student's first ones.",
    "SSKDModule": "four rotations of each image pass through the student and the teacher. KD with four times as many "
    "images takes about as long.",
    "SSKDProjectionModule": "four rotations of each image pass through the teacher.",
    "VIDModule": "three 1 x 1 convolutions regress each of the teacher's maps.",
}
LAST_EPOCH = 10**6  # by which every schedule has ended
OUTPUTS = {
    "logits": "class logits",
    "features": "stage maps",
    "embedding": "embedding",
    "pooled_map": "pooled map",
}
PAPER = re.compile(r"(?P<name>[^(]+) \((?:(?P<short>[^;()]+); )?(?P<authors>[^)]+)\)(?P<rest>.*)", re.DOTALL)
SOURCE = re.compile(r"\b([\w-]+/[\w.-]+) ?@\s([0-9a-f]{7})\b")
CREDIT = re.compile(r"\n\nSource: (?:.+\n?)+")  # a page names the paper in its first paragraph
LISTED = re.compile(r"^::: hsakd_pl\.(\S+)", re.MULTILINE)  # on a page of the API
SECTION = re.compile(r"\n\n(?:Args|Examples|Returns|Raises|Arguments|Other arguments)\b.*", re.DOTALL)
ARGUMENT = re.compile(r"^    (\w+): (.+(?:\n {8}.+)*)", re.MULTILINE)
ROLE = re.compile(r":(?:class|func|meth|mod):`([\w.]+)`")
GENERATED = "<!-- Written by scripts/method_pages.py; tests/test_method_pages.py compares. -->\n"
WIDE = "---\nhide: [toc]\n---\n\n"  # a page of the site without the column of its headings
INDEX_TEXT = """# The methods

A page per method has its formula, the constants and published numbers of each pair of networks with their source, the
command that trains it, and what makes reproductions of it differ. HSAKD itself has [its own page]({docs}method.md).

- **Hooks**: outputs that a method uses next to the class logits, and what it needs besides a loss. *Pooled map*: the
  map that the head averages. *Schedule*: a weight or factor follows the epochs. *Trained parts*: parameters that are
  trained with the student and not deployed; *deployed parts* are. *Two views* and *transformed images*: a step passes
  each image more than once. *Reads the batch*: the loss compares the images of a batch, so that batch size, accumulated
  gradients and several devices change it. *Kept answers*: it can
  [ask the teacher once]({docs}results.md#asking-the-teacher-once).
- **Cost**: how many times as long as a step of KD one of the method takes, from
  [Speed]({docs}speed.md#what-a-step-of-each-method-costs).
- **Protocol**: the [tables of the bench]({docs}results.md#filling-a-table) that have the method. `classic` and `newer`
  share the usual protocol; a star says that the published runs differ from it, as the method's page tells.
- **Published**: top-1 accuracy in percent on CIFAR-100 of {first} and {second} in the first of these tables, or of the
  pair that is named. [Marks]({docs}your-method.md#on-the-bench) tell numbers that are not from the
  method's own paper or repository.
- **Measured**: with this code, on the small budget that [Results]({docs}results.md) states. Never compare it with the
  column before.

| method | loss | module | hooks | cost | paper | protocol | published | measured |
|---|---|---|---|---|---|---|---|---|
"""

NOTATION = "s and t are outputs of student and teacher, y is the label, a bar is the mean over a batch."
COST_LINK = "[step relative to KD](../speed.md#what-a-step-of-each-method-costs)"
BENCH_TEXT = """
The bench trains what a method needs, such as the teacher, first; `--teachers` names the file of a trained one.
`--dry-run` lists the runs and tells how long they take.
"""
EPOCHS = {"": "", "best": "numbers of the best epoch on the test split", "last": "numbers of the last epoch"}
NUMBERS_TEXT = "Published top-1 accuracies in percent, and the constants of a pair that differ from the defaults above."
MARKS_TEXT = """
[Marks](../your-method.md#on-the-bench) tell numbers that are not from the method's own paper or repository, and
[here](../reproducing.md#where-published-numbers-come-from) is where those come from.
"""


class Row(NamedTuple):
    """Hold one line of a table of the bench: published numbers, their epoch, and options of its own by pair."""

    table: str
    method: str
    note: str
    epoch: str
    numbers: dict[str, str]
    options: dict[str, str]


class Step(NamedTuple):
    """Hold what one step of a small module shows: outputs that it uses, loss terms, and hooks."""

    used: list[str]
    terms: list[str]
    hooks: list[str]


def method_files() -> dict[str, ModuleType]:
    """Return the modules of Python that define the methods, by the names of their pages, oldest first."""
    files = {}
    for method in method_classes():
        module = inspect.getmodule(method)
        assert module is not None
        files[module.__name__.rpartition(".")[2]] = module
    return dict(sorted(files.items(), key=lambda file: (year(file[1]), title(file[1]).lower())))


def method_classes(module: ModuleType | None = None) -> list[type[HSAKDModule]]:
    """Return all public methods, without their base, or those of one file in the order of the file."""
    public = [getattr(methods, name) for name in methods.__all__]
    classes = [member for member in public if inspect.isclass(member) and issubclass(member, HSAKDModule)]
    classes = [cls for cls in classes if cls is not methods.DistilledModule]
    return in_file(classes, module) if module else classes


def functions(module: ModuleType) -> list[Any]:
    """Return the public functions and parts of a file, in its order; KD's is among those of all modules."""
    public = [getattr(methods, name) for name in methods.__all__]
    others = [member for member in public if not (inspect.isclass(member) and issubclass(member, HSAKDModule))]
    return in_file(others, module) or [ops.kd_loss]


def in_file(members: Iterable[Any], module: ModuleType) -> list[Any]:
    """Return the members that a file defines, in its order."""
    own = [member for member in members if member.__module__ == module.__name__]
    return sorted(own, key=lambda member: inspect.getsourcelines(member)[1])


def paper(module: ModuleType) -> re.Match[str]:
    """Return name, short name, authors and the rest of the first paragraph of a file's docstring."""
    match = PAPER.fullmatch((inspect.getdoc(module) or "").partition("\n\n")[0])
    assert match is not None, f"{module.__name__}: its docstring has to begin with NAME (SHORT; AUTHORS, VENUE)"
    return match


def year(module: ModuleType) -> str:
    """Return the year of a method."""
    return paper(module)["authors"][-4:]


def title(module: ModuleType) -> str:
    """Return the short name of a method, or its name."""
    return paper(module)["short"] or paper(module)["name"]


def prose(docstring: str) -> str:
    """Return the description in a docstring as Markdown: without sections, with formulas and links to the API."""
    text = CREDIT.sub("", as_markdown(SECTION.sub("", docstring)))
    text = re.sub(r"^(?!.*\$).*$", lambda line: line[0].replace("T^2", "T²"), text, flags=re.MULTILINE)
    return ROLE.sub(lambda role: api_link(role[1]), text.replace("``", "`"))


def api_pages() -> list[Path]:
    """Return the pages of the API."""
    return sorted((DOCS / "api").glob("*.md"))


def api_link(name: str, docs: str = "../") -> str:
    """Return a link to a name on the pages of the API, or the name as code if none has it."""
    short = name.removeprefix("hsakd_pl.")
    path = f"methods.{short}" if short in methods.__all__ else {"kd_loss": "ops.kd_loss"}.get(short, short)
    code = f"`{short.rpartition('.')[2]}`"
    for page in api_pages():
        if path in LISTED.findall(page.read_text()):
            return f"[{code}]({docs}api/{page.name}#hsakd_pl.{path})"
    return code


def one_step(method: type[HSAKDModule]) -> Step:
    """Return what one step of a small module shows."""
    used: set[str] = set()

    class RecordedOutput(NetworkOutput):
        def __getattribute__(self, name: str) -> Any:
            if name in NetworkOutput._fields:
                used.add(name)
            return super().__getattribute__(name)

    torch.manual_seed(0)
    module = method(**ARGUMENTS.get(method.__name__, PAIR))
    outputs = module.network.outputs
    module.network.outputs = lambda images: RecordedOutput(*outputs(images))
    batch = [torch.rand(8 if module.needs_strong_view else 4, 3, 32, 32), torch.arange(4)]
    if method is methods.CRDModule:
        batch.append(torch.arange(8).view(4, 2))
    if method is methods.WKDModule:
        module.cost = 1 - torch.eye(10)
    terms = module.losses(batch)
    return Step([name for name in OUTPUTS if name in used], list(terms), hooks(module))


def hooks(module: Any) -> list[str]:
    """Return what a method needs besides a loss of outputs."""
    schedules = [schedule for each in getattr(module, "weight_schedules", {}).values() for schedule in each]
    factors = any(isinstance(part, ScheduledFactor) for part in module.modules())
    parts = any(not name.startswith(("network.", "networks.")) for name, _ in module.named_parameters())
    student = create_network(PAIR["network"], num_classes=PAIR["num_classes"], branches=False)
    is_larger = hasattr(module, "teacher") and len([*module.network.parameters()]) > len([*student.parameters()])
    conditions = {
        "schedule": factors or any(schedule(1) != schedule(LAST_EPOCH) for schedule in schedules),
        "trained parts": parts,
        "deployed parts": is_larger,
        "two views": module.needs_strong_view,
        "transformed images": module.views > 1 and not module.needs_strong_view,
        "reads the batch": bool(module.batch_terms),
        "indices of the images": module.needs_indices,
        "kept answers": getattr(module, "needs_only_logits", False),
    }
    return [name for name, holds in conditions.items() if holds]


@cache
def bench_rows() -> dict[str, list[Row]]:
    """Return the lines of all tables of the bench by class path; a line without a class belongs to its method's."""
    rows: dict[str, list[Row]] = {}
    classes: dict[str, str] = {}
    for table in sorted(BENCH_TABLES.keys() - {SHORTENED}, key=lambda name: (name not in USUAL, name)):
        cells = {(cell.method, cell.pair): cell for cell in read_table(BENCH_TABLES[table], ALL_RECIPES).cells}
        with BENCH_TABLES[table].open(newline="") as lines:
            for line in csv.DictReader(lines):
                method = line["method"]
                path = line["class"] or classes.get(method, "")
                classes.setdefault(method, path)
                pairs = [pair for pair in line if (method, pair) in cells]
                options = {pair: own_options(line["options"], line[pair].partition("; ")[2]) for pair in pairs}
                numbers = {pair: cells[method, pair].published or "-" for pair in pairs}
                epoch = line["published_epoch"] if set(numbers.values()) - {"-"} else ""
                rows.setdefault(path, []).append(Row(table, method, line.get("note", ""), epoch, numbers, options))
    return rows


def own_options(of_the_line: str, of_the_pair: str) -> str:
    """Return the constants among the options of a cell, without names of networks and files."""
    options = [option for cell in (of_the_line, of_the_pair) for option in cell.split("; ") if option]
    return ", ".join(f"`{option}`" for option in options if "{" not in option and "runs/" not in option)


def rows_of(method: type[HSAKDModule]) -> list[Row]:
    """Return the lines of a method in the tables of the bench, without those that show no result."""
    rows = bench_rows().get(f"hsakd_pl.methods.{method.__name__}", [])
    return [row for row in rows if row.numbers]


@cache
def table_contents() -> dict[str, str]:
    """Return what each table of the bench holds, from docs/results.md."""
    return dict(re.findall(r"^\| `([\w-]+)` \| (.+) \|$", (DOCS / "results.md").read_text(), re.MULTILINE))


@cache
def measured() -> dict[str, list[tuple[str, str]]]:
    """Return the accuracies after the last epoch in RESULTS.md, as (number, heading) by the method's name."""
    numbers: dict[str, list[tuple[str, str]]] = {}
    heading, column = "", 0
    for line in (REPOSITORY / "RESULTS.md").read_text().splitlines():
        cells = [cell.strip(" *") for cell in line.strip("|").split("|")]
        if line.startswith("#"):
            heading, column = line.lstrip("# "), 0
        elif "last epoch" in cells:
            column = cells.index("last epoch")
        elif column and line.startswith("|") and cells[0] and not cells[0].startswith("-"):
            numbers.setdefault(cells[0], []).append((cells[column], heading))
    return numbers


def anchor(heading: str) -> str:
    """Return the anchor of a heading on the site."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def measured_links(method: type[HSAKDModule], docs: str) -> list[str]:
    """Return the measured accuracies of a method, linked to the section that says how."""
    names = dict.fromkeys(row.method for row in rows_of(method))
    return [
        f"[{number}]({docs}results.md#{anchor(heading)})"
        for name in names
        for number, heading in measured().get(name, [])
    ]


@cache
def costs() -> dict[str, dict[str, list[float]]]:
    """Return the costs of a step relative to KD by the name of the class and the line of the bench, one per device."""
    found: dict[str, dict[str, list[float]]] = {}
    for path in sorted((REPOSITORY / "benchmarks" / "results").glob("*.json")):
        for name, row in json.loads(path.read_text()).items():
            if name.startswith("method-costs:"):
                for line, numbers in row.items():
                    if line != "environment":
                        of_class = found.setdefault(numbers["class"].removeprefix("methods."), {})
                        of_class.setdefault(line, []).append(numbers["relative"])
    return found


def cost(method: type[HSAKDModule]) -> str:
    """Return the cost of a step relative to KD, from the least to the most of the devices; empty if not measured."""
    lines = costs().get(method.__name__, {})
    ranges = {}
    for line, numbers in lines.items():
        ends = dict.fromkeys(f"{number:.2f}" for number in (min(numbers), max(numbers)))
        ranges[line] = " to ".join(ends)
    return "<br>".join(f"{line}: {text}" if len(ranges) > 1 else text for line, text in ranges.items())


@cache
def traps() -> dict[str, str]:
    """Return the paragraphs of docs/reproducing.md by the page of the method that they belong to."""
    _, _, text = (DOCS / "reproducing.md").read_text().partition("\n## Method by method\n")
    sections = re.findall(r"^### \[.+?\]\(methods/(\w+)\.md\)\n\n(.+?)(?=\n###? |\Z)", text, re.MULTILINE | re.DOTALL)
    return {page: re.sub(r"\]\(([\w-]+\.md)", r"](../\1", paragraphs.strip()) for page, paragraphs in sections}


def index(docs: str, pages: str) -> str:
    """Return the index as Markdown.

    Args:
        docs: path to the folder ``docs``.
        pages: path to the folder of the pages.
    """
    first, second = EXAMPLES
    lines = [INDEX_TEXT.format(docs=docs, first=first, second=second)]
    for page, module in method_files().items():
        losses = [member.__name__ for member in functions(module) if member.__name__.endswith(("_loss", "_terms"))]
        is_kd = losses == [ops.kd_loss.__name__]
        for method in method_classes(module):
            step = one_step(method)
            rows = [row for row in rows_of(method) if row.table not in ("few-shot", "transfer")]
            own = [name for name in losses if re.search(rf"\b{name}\b", inspect.getsource(method))]
            cells = [
                f"[{name_of(method, module)}]({pages}{page}.md)",
                ", ".join(f"`{name}`" for name in (losses if is_kd else own)),
                f"`{method.__name__}`",
                ", ".join([*(OUTPUTS[name] for name in step.used if name != "logits"), *step.hooks]),
                cost(method),
                paper(module)["authors"],
                protocol(rows),
                published(rows),
                "<br>".join(measured_links(method, docs)),
            ]
            lines.append(f"| {' | '.join(cells)} |\n")
    return "".join([*lines, "\n", GENERATED])


def name_of(method: type[HSAKDModule], module: ModuleType) -> str:
    """Return the name of one of the methods in a file: that of its first line in the tables of the bench."""
    if len(method_classes(module)) == 1:
        return title(module)
    rows = bench_rows().get(f"hsakd_pl.methods.{method.__name__}", [])
    return rows[0].method.strip("()").partition(" (")[0] if rows else method.__name__.removesuffix("Module")


def protocol(rows: list[Row]) -> str:
    """Return the tables of the bench, with a star if the published protocol differs from that of the table."""
    noted = {row.table for row in rows if row.note}
    return ", ".join(dict.fromkeys(f"`{row.table}`{'*' * (row.table in noted)}" for row in rows))


def published(rows: list[Row]) -> str:
    """Return the published accuracies of the example pairs, or else of the first pair that has one."""
    own = [row for row in rows if row.table not in ("hsakd", "mutual")]
    shown = []
    for row in own:
        numbers = {pair: number for pair, number in row.numbers.items() if number != "-"}
        examples = [numbers.get(pair, "-") for pair in EXAMPLES]
        first = next((f"{number} ({pair})" for pair, number in numbers.items()), "")
        text = first if set(examples) == {"-"} else ", ".join(examples)
        if text:
            shown.append(f"{row.method}: {text}" if len(own) > 1 else text)
    return "<br>".join(shown)


def page(name: str) -> str:
    """Return the page of a method as Markdown."""
    module = method_files()[name]
    about = paper(module)
    more = (inspect.getdoc(module) or "").partition("\n\n")[2]
    parts = [
        f"# {title(module)}",
        prose(f"{about['name']} ({about['authors']}){about['rest']}"),
        *([prose(more)] if more else []),
        facts(module),
        *reasons(module),
        f"## Formula\n\n{NOTATION}{sources(module)}",
        *(formula(member) for member in functions(module)),
        "## Options",
        *(module_options(method) for method in method_classes(module)),
        training(module),
        numbers_section(module),
        traps_section(name),
        GENERATED,
    ]
    return "\n\n".join(parts)


def facts(module: ModuleType) -> str:
    """Return the table of facts of a page, a column per method."""
    classes = method_classes(module)
    steps = [one_step(method) for method in classes]
    lines = {
        "module": [api_link(method.__name__) for method in classes],
        "uses": [", ".join(OUTPUTS[name] for name in step.used) for step in steps],
        "loss terms": [", ".join(f"`{term}`" for term in step.terms) for step in steps],
        "[hooks](index.md)": [", ".join(step.hooks) or "-" for step in steps],
    }
    if any(cost(method) for method in classes):
        lines[COST_LINK] = [cost(method) or "-" for method in classes]
    head = "|" + " |" * (1 + len(classes)) + "\n|" + "---|" * (1 + len(classes)) + "\n"
    return head + "\n".join(f"| {name} | {' | '.join(cells)} |" for name, cells in lines.items())


def reasons(module: ModuleType) -> list[str]:
    """Return why a step of each method in a file takes longer than one of KD, for those with a reason."""
    names = [method.__name__ for method in method_classes(module)]
    return [
        f"A step of {api_link(name)} takes longer than one of KD: {REASONS[name]}" for name in names if name in REASONS
    ]


def sources(module: ModuleType) -> str:
    """Return a sentence that names the code which the losses of a file are compared with, if a docstring does."""
    text = " ".join(inspect.getdoc(member) or "" for member in (module, *functions(module)))
    found = dict.fromkeys(SOURCE.findall(text))
    links = [f"[{repository}](https://github.com/{repository}) at commit {commit}" for repository, commit in found]
    return f"\nTests compare with the published code of {' and '.join(links)}." if links else ""


def formula(member: Any) -> str:
    """Return the description of a function, under its name."""
    return f"### {api_link(member.__name__)}\n\n{prose(inspect.getdoc(member) or '')}"


def module_options(method: type[HSAKDModule]) -> str:
    """Return the description of a module, and a table of the options that it declares itself."""
    docstring = inspect.getdoc(method) or ""
    described = dict(ARGUMENT.findall(docstring.partition("\n\nArgs:\n")[2].partition("\n\n")[0]))
    parameters = inspect.signature(vars(method)["__init__"]).parameters.values()
    lines = ["| option | default | meaning |", "|---|---|---|"]
    for option in parameters:
        if option.default is not option.empty:
            meaning = prose(" ".join(described[option.name].split()))
            lines.append(f"| `{option.name}` | `{option.default}` | {meaning} |")
    return f"### {api_link(method.__name__)}\n\n{prose(docstring)}\n\n" + "\n".join(lines)


def training(module: ModuleType) -> str:
    """Return the section with the command that trains the method on one pair."""
    of_methods = [rows for method in method_classes(module) if (rows := rows_of(method))]
    commands = [command([row for row in rows if row.table == rows[0].table]) for rows in of_methods]
    text = "\n".join(dict.fromkeys(commands))
    return f"## Training\n\n{BENCH_TEXT.strip()}\n\n```bash\n{text}\n```"


def command(rows: list[Row]) -> str:
    """Return the command that trains a method on the first pair with a published number, or the first pair."""
    pairs = list(rows[0].numbers)
    pair = next((pair for pair in pairs if rows[0].numbers[pair] != "-"), pairs[0])
    names = ",".join(row.method for row in rows if pair in row.numbers)
    return f"hsakd bench {rows[0].table} --methods {shlex.quote(names)} --pairs {pair} \\\n  --seeds 0-2"


def numbers_section(module: ModuleType) -> str:
    """Return the section with the constants and published numbers of each pair, and the measured numbers."""
    parts = ["## Constants and numbers"]
    tables: dict[str, list[Row]] = {}
    links = []
    for method in method_classes(module):
        links += measured_links(method, "../")
        for row in rows_of(method):
            tables.setdefault(row.table, []).append(row)
    if any(has_numbers(row) for rows in tables.values() for row in rows):
        numbers = [number for rows in tables.values() for row in rows for number in row.numbers.values()]
        is_marked = any(number.endswith(MARKS) for number in numbers)
        parts.append(NUMBERS_TEXT + (f"\n{MARKS_TEXT.strip()}" if is_marked else ""))
    for table, rows in tables.items():
        shown = [row for row in rows if has_numbers(row)]
        if shown:
            parts.append(f"**`{table}`**: {table_contents()[table]}.")
            remarks = [f"- {row.method}: {remark}." for row in shown if (remark := remark_on(row))]
            parts += ["\n".join(remarks)] if remarks else []
            parts += [table_of_numbers] if (table_of_numbers := number_table(shown)) else []
        else:
            parts.append(f"**`{table}`** has no published number of it, and no constants but the defaults.")
    if links:
        parts.append(f"Measured with this code, on a small budget: {', '.join(links)}.")
    else:
        parts.append("Not measured with this code yet.")
    return "\n\n".join(parts)


def remark_on(row: Row) -> str:
    """Return the note of a line, the epoch of its numbers, and the constants that all its pairs have."""
    return "; ".join(text for text in (row.note, EPOCHS[row.epoch], shared_options(row)) if text)


def shared_options(row: Row) -> str:
    """Return the constants of a line if all its pairs have the same."""
    distinct = set(row.options.values())
    return distinct.pop() if len(distinct) == 1 and len(row.options) > 1 else ""


def has_numbers(row: Row) -> bool:
    """Check whether a line has a published number, or constants of a pair."""
    return any(number != "-" for number in row.numbers.values()) or any(row.options.values())


def number_table(rows: list[Row]) -> str:
    """Return numbers and constants of the lines of one table, without pairs that have neither."""
    several = len(rows) > 1
    constants = any(options for row in rows if not shared_options(row) for options in row.options.values())
    head = ["pair", *(["method"] if several else []), "published", *(["constants"] if constants else [])]
    lines = []
    for pair in dict.fromkeys(pair for row in rows for pair in row.numbers):
        for row in rows:
            number = row.numbers.get(pair, "-")
            options = "" if shared_options(row) else row.options.get(pair, "")
            if number != "-" or options:
                cells = [pair, *([row.method] if several else []), number, *([options] if constants else [])]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *lines] if lines else [])


def traps_section(name: str) -> str:
    """Return the section with the traps of a method."""
    head = "## Why your reproduction differs\n\n"
    general = "[what holds for all methods](../reproducing.md)"
    if name not in traps():
        return f"{head}Nothing is known besides {general}."
    return f"{head}{traps()[name]}\n\nSee also {general}."


def documents() -> dict[Path, str]:
    """Return the text of all generated files."""
    pages = {PAGES / f"{name}.md": page(name) for name in method_files()}
    return pages | {PAGES / "index.md": WIDE + index("../", ""), INDEX: index("../../docs/", "../../docs/methods/")}


if __name__ == "__main__":
    PAGES.mkdir(exist_ok=True)
    for path, text in documents().items():
        path.write_text(text)
