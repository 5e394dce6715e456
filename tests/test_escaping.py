"""Test that names of others are shown, not obeyed, by terminals, Markdown, LaTeX and spreadsheets."""

import csv
import json
import logging
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.utilities import rank_zero_info
from small import error_of

from hsakd_pl.cli.main import main
from hsakd_pl.files.escaping import for_latex, for_markdown, for_spreadsheet, for_terminal
from hsakd_pl.records.summary import aligned
from hsakd_pl.records.text_table import text_table

EVIL = ["\x1b[2J\x1b[31m", "a\nb | c", "a\rb", "\x9b31m", "\u202eexe.gpj", "a\u2028b", "\x07\x00", "\x1b]0;title\x07"]
HARMLESS = ["resnet20, lr 0.1", "größe 猫 🐈", "👨‍👩‍👧", "a b", "[78.67 +- 0.20]"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])


def is_printable(text: str) -> bool:
    return all(sign.isprintable() or sign in "\n\u200d" for sign in text)


@pytest.mark.parametrize("name", EVIL, ids=ascii)
def test_terminal_gets_no_control_characters(name: str) -> None:
    for text in (for_terminal(name), text_table([{"run": name}]), aligned([("data", name)])):
        assert is_printable(text)
    assert "\n" not in for_terminal(name) and "\n" not in aligned([("data", name)])


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_names_stay_as_they_are(name: str) -> None:
    assert for_terminal(name) == for_markdown(name) == for_spreadsheet(name) == name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a|b", r"a\|b"),
        ("<b>x</b>", r"\<b>x\</b>"),
        ("[x](http://y)", r"[x\](http://y)"),
        ("![x](y)", r"\![x\](y)"),
        ("`x`", r"\`x\`"),
        ("*x*", r"\*x*"),
        ("_x_", r"\_x\_"),
        ("a_b_c", "a_b_c"),
        ("HSAKD*", "HSAKD*"),
        ("&lt;", r"\&lt;"),
        ("a\nb", r"a\\nb"),
        ("a\\", r"a\\"),
    ],
)
def test_markdown_is_escaped(name: str, expected: str) -> None:
    assert for_markdown(name) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a_b & 5 %", r"a\_b \& 5 \%"),
        (r"\input{/etc/passwd}", r"\textbackslash{}input\{/etc/passwd\}"),
        ("a^b~c", r"a\textasciicircum{}b\textasciitilde{}c"),
        ("a\nb", r"a\textbackslash{}nb"),
        ("<#$>", r"\textless{}\#\$\textgreater{}"),
    ],
)
def test_latex_is_escaped(name: str, expected: str) -> None:
    assert for_latex(name) == expected


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"])
def test_spreadsheet_formula_gets_an_apostrophe(name: str) -> None:
    assert for_spreadsheet(name) == f"'{name}"


def write_row(recipe: str, name: str) -> None:
    """Write a result whose names are not what they seem."""
    row: dict[str, Any] = {"config": [name], "last_val_acc": 0.5, "best_val_acc": 0.5, "recipe": recipe}
    row |= {"images_per_second": 1.0, "seconds": 1.0, "finished": False, "epochs": 3}
    Path("runs/=a\x1b[2J").mkdir(parents=True, exist_ok=True)
    Path("runs/=a\x1b[2J/result.json").write_text(json.dumps(row))


@pytest.mark.parametrize("name", ["=cmd\x1b[2J|x", "@evil\nname", "\\input{x}\x9b31m"], ids=ascii)
@pytest.mark.parametrize("form", ["table", "md", "latex", "csv", "json"])
def test_report_escapes_names_in_every_format(form: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    def report(name: str) -> str:
        write_row("x", name)
        main(["report", "runs", "--format", form])
        return capsys.readouterr().out

    printed = report(name)
    assert is_printable(printed)
    if form == "csv":
        (line,) = csv.DictReader(StringIO(printed))
        assert not line["run"].startswith(("=", "@"))
    if form in ("md", "latex"):
        assert len(printed.splitlines()) == len(report("harmless").splitlines())


@pytest.mark.parametrize("name", EVIL[:4], ids=ascii)
def test_error_and_log_escape_names(name: str, capsys: pytest.CaptureFixture[str], caplog: Any) -> None:
    message = error_of(capsys, lambda: main(["report", f"missing{name.replace(chr(0), '')}"]))
    assert is_printable(message)
    with caplog.at_level(logging.INFO, "pytorch_lightning"):
        rank_zero_info(f"classes {name}")
    assert is_printable(caplog.messages[-1])
