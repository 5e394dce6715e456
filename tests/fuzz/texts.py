"""Forge texts: encodings, annotation columns, YAML aliases, nesting and types, fields of JSON rows."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

from fuzz.mutations import Change

ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1.5,
    1e308,
    10**400,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    "x",
    "0.5",
    "\ud800",
    "[/]",
    "[red]",
    "\x1b[2J",
    "\0",
    "a\nb",
    "=1+1",
    "x" * 10**5,
    [],
    [1],
    [[1]],
    [None],
    {},
    {"a": 1},
    {"mean": 1},
    ["[/x]", "\ud83d"],
)
CODINGS = ("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "cp037", "utf-7", "latin1", "cp1252", "shift-jis", "utf-8")


def recoded(rng: Random, data: bytes) -> Change:
    """Return the text in another encoding, with a non-ASCII letter, or with bytes that are not text."""
    coding = rng.choice(CODINGS)
    text = data.decode()
    at = rng.randrange(len(text) + 1)
    letter = rng.choice(("", "é", "ü", "日本", "\u2028", "\x85", "\ufeff", "\0", "\x1b", "\x0b", "\xa0", "\U0001f600"))
    changed = (text[:at] + letter + text[at:]).encode(coding, "replace")
    raw = rng.choice((b"", b"", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x80"))
    place = rng.randrange(len(changed) + 1)
    return Change(f"{coding}, {letter!r}, {raw!r}", changed[:place] + raw + changed[place:], forged=True)


def lines(rng: Random, data: bytes) -> Change:
    """Drop, repeat, swap, empty or re-terminate lines."""
    rows = data.decode().splitlines()
    at, other = rng.randrange(len(rows)), rng.randrange(len(rows))
    ways: dict[str, list[str]] = {
        "line dropped": rows[:at] + rows[at + 1 :],
        "line repeated": [*rows, rows[at]],
        "one line in another's place": [rows[other] if row == rows[at] else row for row in rows],
        "empty line": [*rows[:at], "", *rows[at:]],
        "line of spaces": [*rows[:at], " \t ", *rows[at:]],
        "lines in another order": rng.sample(rows, len(rows)),
        "long line": [*rows[:at], rows[at] * 10**5, *rows[at + 1 :]],
        "many lines": rows * 10**4,
        "comment": ["# a comment", *rows],
    }
    name = rng.choice(list(ways))
    return Change(name, rng.choice(("\n", "\n", "\r\n", "\r")).join(ways[name]).encode(), forged=True)


def annotations(rng: Random, data: bytes) -> Change:
    """Change a column of one annotation."""
    rows = [line.split("\t") for line in data.decode().splitlines()]
    row = rng.choice(rows)
    values = (
        "",
        " ",
        ".",
        "..",
        "../val_annotations.txt",
        "../../train/n1/images/n1_0.JPEG",
        "/dev/zero",
        "/etc/passwd",
        "a/b",
        "val_0.JPEG",
        "x" * 300,
        "\0",
        "val_0.jpeg",
        "VAL_0.JPEG",
        "n1",
        "n2",
        "n3",
        "N1",
        "n1 ",
        "-1",
        "nan",
        "é",
        "val_9.JPEG",
        "~/x",
        "*",
        "images",
    )
    ways: dict[str, Callable[[], Any]] = {
        "column": lambda: row.__setitem__(rng.randrange(len(row)), rng.choice(values)),
        "name or class": lambda: row.__setitem__(rng.randrange(2), rng.choice(values)),
        "column lost": lambda: row.pop(rng.randrange(len(row))),
        "columns cut": lambda: row.__delitem__(slice(rng.randrange(len(row)), None)),
        "column more": lambda: row.insert(rng.randrange(len(row) + 1), rng.choice(values)),
        "columns exchanged": lambda: row.__setitem__(slice(0, 2), row[1::-1]),
    }
    name = rng.choice(list(ways))
    ways[name]()
    glue = rng.choice(("\t", "\t", "\t", "\t", " ", ",", "\t\t", ";"))
    return Change(f"{name}, {glue!r}", "\n".join(glue.join(columns) for columns in rows).encode() + b"\n", forged=True)


def names(rng: Random, data: bytes) -> Change:
    """Return class names: too few, too many, none, or duplicates."""
    class_names = data.decode().splitlines()
    ways = (
        class_names[:-1],
        [*class_names, "more"],
        [],
        [""] * len(class_names),
        class_names[:1] * len(class_names),
        [" ".join(class_names)],
        [f"{n} {n}" for n in class_names],
    )
    return Change("class names", "\n".join(rng.choice(ways)).encode(), forged=True)


YAML_VALUES = (
    "",
    "~",
    "yes",
    "1e3",
    "0x10",
    "0o7",
    "1_000",
    ".nan",
    ".inf",
    "-1",
    "2001-01-01",
    "2001-13-99",
    "'x'",
    "[1, 2",
    "{a: b",
    "[]",
    "{}",
    "!!python/object/apply:os.system ['mkdir executed']",
    "!!python/name:os.system",
    "!!python/object/new:os.system [mkdir executed]",
    "!!binary x",
    "!!binary eA==",
    "!!timestamp x",
    "!!int x",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "!!float x",
    "!x y",
    "*unknown",
    "&a [*a]",
    "&a {x: *a}",
    "? [a, b]",
    "{[a]: b}",
    "{{a: b}: c}",
    "@x",
    "`x`",
    "%x",
    "\t- x",
    "|\n x",
    ">-\n",
    "- - - x",
    "'unended",
    '"\\ud800"',
    '"\\x00"',
    "9" * 5000,
    "0b" + "1" * 5000,
    "12:30:45",
    "190:20:30:15:60:70",
    "=",
    "<<",
    "null",
    "${oc.env:HOME}",
    "$HOME",
    "{<<: *x}",
    "{class_path: os.system}",
    "{class_path: x, class_path: y}",
    "http://127.0.0.1:9/x",
    "/dev/zero",
    "../input",
    "x: y: z",
    "{class_path: hsakd_pl.StudentModule, init_args: 3}",
    "{init_args: {}}",
    "[{class_path: pytorch_lightning.callbacks.Timer}]",
)


def yaml_value(rng: Random, data: bytes) -> Change:
    """Replace the value of one key."""
    rows = data.decode().splitlines()
    at = rng.choice([i for i, row in enumerate(rows) if ":" in row])
    value = rng.choice(YAML_VALUES)
    key = rows[at].partition(":")[0]
    nested = at + 1 < len(rows) and len(rows[at + 1]) - len(rows[at + 1].lstrip()) > len(key) - len(key.lstrip())
    drop = nested and rng.random() < 0.7
    end = at + 1
    while drop and end < len(rows) and len(rows[end]) - len(rows[end].lstrip()) > len(key) - len(key.lstrip()):
        end += 1
    rows[at:end] = [f"{key}: {value}"]
    return Change(f"{key.strip()}: {value[:60]}", "\n".join(rows).encode(), forged=True, refuse="!!python" in value)


def yaml_keys(rng: Random, data: bytes) -> Change:
    """Add a key twice with different values, an unknown key, or one of another type."""
    rows = data.decode().splitlines()
    at = rng.choice([i for i, row in enumerate(rows) if row.partition(":")[2].strip()])
    key, _, value = rows[at].partition(":")
    indent = key[: len(key) - len(key.lstrip())]
    if rng.random() < 0.5:
        spelled = rng.choice(
            (key, indent + f'"{key.strip()}"', indent + f"'{key.strip()}'", indent + f"? {key.strip()}\n{indent}")
        )
        rows.insert(at + rng.randrange(2), f"{spelled}: {rng.choice(('3', 'x', 'null', value + '1'))}")
        return Change(f"{key.strip()} twice", "\n".join(rows).encode(), forged=True, refuse=True)
    other = rng.choice(
        ("1", "null", "~", "true", "[a]", "{a: b}", "x" * 5000, "x.y", ".", "__class__", "é", "''", "<<", "-", "1.5")
    )
    rows.insert(at, f"{indent}{other}: 3")
    return Change(f"key {other[:20]}", "\n".join(rows).encode(), forged=True, refuse=True)


def yaml_bomb(rng: Random, data: bytes) -> Change:
    """Return nesting, aliases and sizes that cost stack, time or memory."""
    depth = rng.choice((100, 1000, 20_000))
    laughs = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    laughs += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, rng.choice((3, 6, 9, 12)))]
    merges = ["a0: &a0 {x0: 1}"] + [f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}], x{i}: 1}}" for i in range(1, 20)]
    inside = "\n".join(f"  {line}" for line in laughs)
    arguments = f"\n      x: &x [{'y, ' * 9}]\n      z: [{'*x, ' * 9}]"
    text = data.decode()
    ways = {
        "flow lists": "[" * depth,
        "closed flow lists": "x: " + "[" * depth + "]" * depth,
        "flow maps": "{a: " * depth,
        "block lists": "- " * depth + "x",
        "keys": "".join("\n" + " " * i + "a:" for i in range(min(depth, 3000))),
        "aliases": "\n".join(laughs),
        "aliases below data": text + "data2:\n" + inside,
        "merged": "\n".join(merges),
        "aliases as arguments": text.replace("init_args:", f"init_args:{arguments}", 1),
        "long scalar": "x: " + "y" * 10**7,
        "many keys": "".join(f"a{i}: 1\n" for i in range(20_000)),
        "tabs": "\t" * depth,
        "many documents": "--- x\n" * 1000,
        "two documents": text + "\n---\n" + text,
        "directive": "%YAML 9.9\n---\n" + text,
        "question marks": "? " * depth + "x",
        "anchors": "".join(f"&a{i} " for i in range(depth)) + "x",
        "comment": "#" * 10**7,
        "self": "x: &x\n  y: *x\n" + text,
        "quoted": "x: '" + "''" * 10**5,
        "digits": "x: " + "1" * 10**6,
        "colons": "x" + ":" * 10**6,
        "sexagesimal": "x: " + "1:" * 10**5 + "1",
        "float": "x: 1." + "_" * 10**5 + "x",
        "list": "- 1\n- 2\n",
        "a scalar": "5",
        "a word": "x",
    }
    name = rng.choice(list(ways))
    return Change(name, ways[name].encode(), forged=True)


def row_fields(rng: Random, data: bytes) -> Change:
    """Remove fields of a JSON row or change their type or value, at any depth."""
    row = {"metrics": {}, "versions": {}, **json.loads(data)}
    what = []
    for _ in range(rng.choice((1, 1, 2, 4))):
        protocol = row.get("protocol")
        inner = [protocol, protocol.get("options")] if isinstance(protocol, dict) else []
        places = [row, row, row, row["metrics"], row["versions"], *inner]
        place = rng.choice([node for node in places if isinstance(node, dict)])
        key = rng.choice(list(place) or ["x"])
        if rng.random() < 0.3:
            place.pop(key, None)
            what.append(f"no {key}")
        else:
            place[key] = rng.choice(ODD)
            what.append(f"{key} = {place[key]!r}"[:50])
        row = {"metrics": {}, "versions": {}, **row}
        row |= {key: {} for key in ("metrics", "versions") if not isinstance(row[key], dict)}
    return Change(", ".join(what), json.dumps(row).encode(), forged=True)


def row_whole(rng: Random, data: bytes) -> Change:
    """Return JSON that is not a row, or is nested too deeply."""
    depth = rng.choice((500, 5000, 10**6))
    text = data.decode()
    whole = (
        "[]",
        "3",
        "null",
        '"x"',
        "[[]]",
        '[["a", 1]]',
        "{}",
        "true",
        "[" * depth,
        '{"a":' * depth,
        "[" * depth + "]" * depth,
        "NaN",
        "9" * 5000,
        "{'a': 1}",
        text + text,
        text[:-2] + ", " + text[1:],
        "// x\n" + text,
        text.replace("0.5", "NaN"),
        "\ufeff" + text,
        text.replace("0.5", "5e-1"),
        text.replace("0.5", "1e999"),
        text.replace("0.5", "-0.5"),
        text.replace("0.5", "57.5"),
        text.replace("}", ', "folder": 3}', 1),
        text.replace('"seed"', '"folder": "x", "seed"'),
        text.replace('"seed"', '"seed": 2, "seed"'),
    )
    return Change("whole", rng.choice(whole).encode("utf-8", "surrogatepass"), forged=True)
