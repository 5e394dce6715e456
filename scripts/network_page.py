"""Write docs/networks.md, and docs/networks.json, which holds the outcomes that the page is written from."""

import json
import platform
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "networks.md"
STORED = DOCS / "networks.json"
OUTCOMES = ("works", "refused", "traceback", "difference", "not run")
CHECKS = ("create", "logits", "student", "teacher", "feature", "hsakd", "count", "export")
TRAINING = ("student", "teacher")
KINDS = {"timm": "timm's families", "torchvision": "torchvision", "own": "own modules"}
LIBRARIES = ("torch", "torchvision", "timm", "onnxruntime", "pytorch_lightning")

HEAD = """<!-- Written by scripts/networks.py; tests/test_network_sweep.py compares. -->
# Networks that were tried

`scripts/networks.py` tries networks that the package has not been written for: the smallest model of each of timm's
families, torchvision's classifiers, and the shapes of own code in `tests/own_networks.py`. Every check compares the
package with the network itself, called without it. On CPUs, until {date}, with {versions}:

{summary}

- *Works*: equal to the network itself. *Refused*: a `UsageError` of one sentence. *Traceback* and *difference*, a wrong
  result without an error, are bugs.
- `create` compares the number of parameters, `logits` those in eval mode. `student` and `teacher` compare a step of KD
  (loss, step of the weights, what the teacher answers in the fit) with the same step in plain PyTorch. `feature` is a
  step of FitNet and `hsakd` one of HSAKD, with `fast` and without. `count` compares multiply-adds with the shapes of
  the network's own calls. `export` trains a step, writes safetensors, pt2 and ONNX, and compares them with the trained
  network.
- Steps are of 4 images at 32 and 64 pixels, of 2 at 224, and have random weights and images. A network that is larger
  than 60 M parameters is not tried.
{missing}
"""

WEIGHTS = """
## Weight files

What [weights](weights.md) may be in, and the test that reads each.

| file | outcome | test |
|---|---|---|
"""
WEIGHT_FILES = (
    ("bare dicts, and envelopes such as `state_dict`, `model`, `net`", "read", "test_weights.py"),
    (
        "prefixes `module.`, `_orig_mod.`, `model.` and any other",
        "read; other keys are named",
        "test_foreign_weights.py",
    ),
    ("checkpoints of Lightning with options of any class", "tensors alone are read", "test_foreign_weights.py"),
    ("averages next to raw weights", "the log says which; or `FILE#NAME`", "test_kept_behaviour.py"),
    ("two sets of weights in one state dict", "the log says which; or `FILE#PREFIX`", "test_foreign_weights.py"),
    ("names and envelopes of FSDP, DeepSpeed and `AveragedModel`", "read", "test_foreign_weights.py"),
    ("weights of networks in `DataParallel` or `torch.compile`", "read", "test_foreign_weights.py"),
    ("safetensors and `.bin` in shards, with their index", "read", "test_foreign_weights.py"),
    ("state dicts with a version, as of MNASNet", "read", "test_foreign_weights.py"),
    ("CIFAR networks of pytorchcv and of chenyaofo's collection", "read", "test_foreign_weights.py"),
    ("timm's files, and those of other classes", "read; `new_head` for other classes", "test_timm.py"),
    ("files of before PyTorch 1.6", "read", "test_classic_files.py"),
    ("files without weights, damaged or cut short", "refused", "test_weight_files.py"),
    ("pickles that call a function", "the call is never made", "test_foreign_weights.py"),
    ("forged headers and pickles", "refused", "test_weight_forgeries.py"),
)


def read_stored() -> dict[str, Any]:
    """Return the content of docs/networks.json."""
    return json.loads(STORED.read_text())


def stored(results: Iterable[Any], planned: Mapping[str, int], families: list[str], day: str) -> dict[str, Any]:
    """Return the latest outcome of each check, by network, in a form that is small as JSON.

    Args:
        results: results of the sweep.
        planned: number of networks of each kind that a complete sweep tries.
        families: smallest model of each of timm's families.
        day: date of the latest results.
    """
    networks: dict[str, dict[str, dict[str, str]]] = {}
    reasons: dict[str, dict[str, str]] = {}
    for result in results:
        label = f"{result.kind}:{result.name}"
        networks.setdefault(label, {}).setdefault(result.check, {})[str(result.side)] = result.outcome
        if result.reason and result.outcome != "works":
            sentence = re.sub(r"/tmp/\S+", "FOLDER", result.reason)
            reasons.setdefault(label, {}).setdefault(result.check, sentence[:200])
    return {
        "date": day,
        "versions": versions(),
        "planned": dict(planned),
        "families": families,
        "networks": {
            label: {"checks": networks[label], "reasons": reasons.get(label, {})} for label in sorted(networks)
        },
    }


def versions() -> dict[str, str]:
    """Return the versions of the libraries that matter."""
    from importlib.metadata import version

    return {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}


def as_json(content: Mapping[str, Any]) -> str:
    """Return the stored outcomes as JSON with a network in each line."""
    head = {key: value for key, value in content.items() if key != "networks"}
    lines = [f"  {json.dumps(label)}: {json.dumps(facts)}" for label, facts in content["networks"].items()]
    return json.dumps(head, indent=1)[:-2] + ',\n "networks": {\n' + ",\n".join(lines) + "\n }\n}\n"


def write_page(results: list[Any], planned: Mapping[str, int], families: list[str]) -> None:
    """Store the outcomes and write the page."""
    STORED.write_text(as_json(stored(results, planned, families, date.today().isoformat())))
    PAGE.write_text(page(read_stored()))


def outcomes(networks: Mapping[str, Any], kind: str, check: str) -> Counter[str]:
    """Return how often a check of a kind of networks had each outcome, over all sides."""
    counts: Counter[str] = Counter()
    for label, facts in networks.items():
        if label.startswith(f"{kind}:"):
            counts.update(facts["checks"].get(check, {}).values())
    return counts


def page(content: Mapping[str, Any]) -> str:
    """Return the text of the page."""
    networks = content["networks"]
    head = HEAD.format(
        date=content["date"],
        versions=", ".join(f"{name} {number}" for name, number in content["versions"].items()),
        summary="\n".join(summary(networks)),
        missing="\n".join(missing(networks, content["planned"])),
    )
    sections = [
        section(
            "timm's families with branches",
            "They have stages, so that HSAKD and feature methods take them.",
            with_branches(networks),
        ),
        section(
            "timm's families without branches", "They teach and learn class logits alone.", without_branches(networks)
        ),
        section(
            "Sizes that timm's families accept",
            "A step of KD as student and as teacher: *yes*, *no* (refused in one sentence), or not tried.",
            sizes(networks, "timm"),
        ),
        section("Own modules and torchvision's", "", own_modules(networks)),
    ]
    weights = "\n".join(f"| {file} | {outcome} | `tests/{test}` |" for file, outcome, test in WEIGHT_FILES)
    return head + "".join(sections) + WEIGHTS + weights + "\n"


def section(title: str, text: str, rows: Iterable[str]) -> str:
    return "\n".join(["", f"## {title}", "", *([text, ""] if text else []), *rows, ""])


def summary(networks: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of the numbers of outcomes."""
    yield f"| networks | check | {' | '.join(OUTCOMES)} |"
    yield "|---|---|" + "---:|" * len(OUTCOMES)
    for kind, words in KINDS.items():
        for check in CHECKS:
            counts = outcomes(networks, kind, check)
            if counts:
                yield f"| {words} | `{check}` | {' | '.join(str(counts[outcome]) for outcome in OUTCOMES)} |"


def missing(networks: Mapping[str, Any], planned: Mapping[str, int]) -> Iterator[str]:
    """Yield a line for what has run, of each kind."""
    for kind, words in KINDS.items():
        members = {label: facts for label, facts in networks.items() if label.startswith(f"{kind}:")}
        tried = {
            side: sum(side in facts["checks"].get("logits", {}) for facts in members.values())
            for side in ("32", "64", "224")
        }
        exported = sum("export" in facts["checks"] for facts in members.values())
        by_side = ", ".join(f"{count} at {side} pixels" for side, count in tried.items())
        complete = exported == planned[kind] and {*tried.values()} == {planned[kind]}
        rest = "" if complete else " The others have not run."
        group = "models of torchvision" if kind == "torchvision" else words
        yield f"- Of {planned[kind]} {group}, tried were {by_side}; {exported} were exported.{rest}"


def names(networks: Mapping[str, Any], kind: str) -> Iterator[tuple[str, Any]]:
    for label, facts in networks.items():
        if label.startswith(f"{kind}:"):
            yield label, facts


def tried(facts: Any, check: str) -> set[str]:
    return {*facts["checks"].get(check, {}).values()}


def with_branches(networks: Mapping[str, Any]) -> Iterator[str]:
    yield "| model | HSAKD at | FitNet at |"
    yield "|---|---|---|"
    for label, facts in names(networks, "timm"):
        if "works" in tried(facts, "hsakd") | tried(facts, "feature"):
            cells = [
                ", ".join(side for side, outcome in facts["checks"].get(check, {}).items() if outcome == "works")
                for check in ("hsakd", "feature")
            ]
            yield f"| `{label}` | {cells[0] or '-'} | {cells[1] or '-'} |"


def without_branches(networks: Mapping[str, Any]) -> Iterator[str]:
    yield "| model | reason |"
    yield "|---|---|"
    for label, facts in names(networks, "timm"):
        if "works" in tried(facts, "hsakd") | tried(facts, "feature"):
            continue
        reasons = facts["reasons"]
        reason = reasons.get("hsakd") or reasons.get("create") or reasons.get("logits") or "not tried"
        yield f"| `{label}` | {shortened(reason)} |"


def shortened(reason: str) -> str:
    """Return the part of a refusal that tells why, in one cell of a table."""
    inner = re.search(r"\((its .+|nothing .+|.+?)\): take", reason)
    words = inner[1] if inner else reason
    return words.replace("|", "\\|").replace("<", "&lt;")[:140]


def answer(facts: Any, side: str) -> str:
    """Return whether a network trains and teaches at a side."""
    found = {facts["checks"].get(check, {}).get(side) for check in TRAINING} - {None}
    if not found:
        return ""
    if found == {"works"}:
        return "yes"
    worst = max(found, key=OUTCOMES.index)
    return "no" if worst == "refused" else worst


def sizes(networks: Mapping[str, Any], kind: str) -> Iterator[str]:
    yield "| model | 32 | 64 | 224 |"
    yield "|---|---|---|---|"
    for label, facts in names(networks, kind):
        yield f"| `{label}` | {' | '.join(answer(facts, side) for side in ('32', '64', '224'))} |"


def own_modules(networks: Mapping[str, Any]) -> Iterator[str]:
    yield "| network | trains and teaches at 32 | 64 | 224 | export | what is refused |"
    yield "|---|---|---|---|---|---|"
    for kind in ("own", "torchvision"):
        for label, facts in names(networks, kind):
            cells = [answer(facts, side) for side in ("32", "64", "224")]
            exported = [*facts["checks"].get("export", {}).values()]
            reasons = facts["reasons"]
            reason = reasons.get("student") or reasons.get("teacher") or reasons.get("export") or ""
            name = label if kind == "torchvision" else label.removeprefix("own:")
            last = {"works": "yes", "refused": "in part or not"}.get(exported[-1], exported[-1]) if exported else ""
            yield f"| {name} | {' | '.join(cells)} | {last} | {shortened(reason)} |"
