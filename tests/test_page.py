"""Test the page of three experiments with three seeds each, also in a real browser."""

import csv
import html
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from small import run

from hsakd_pl.errors import UsageError
from hsakd_pl.records.formats import read_details
from hsakd_pl.report.charts import STYLES, Chart, round_numbers
from hsakd_pl.report.groups import Group
from hsakd_pl.report.page import write_page
from hsakd_pl.report.rows import collect
from hsakd_pl.report.table import records

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: install Debian's package")
MODULES = {
    "baseline": ("BaselineModule", {"network": "resnet8"}),
    "teacher": ("TeacherModule", {"network": "resnet8"}),
    "student": ("StudentModule", {"network": "resnet8", "teacher": "resnet8", "teacher_weights": "random"}),
}
EVIL = "<script>document.title='evil'</script>\"'&"


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> list[Group]:
    """Return three experiments with three seeds, each trained for 2 epochs and tested on a batch."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("page"))
        patch.setattr(sys, "argv", ["main.py"])
        for kind, (module, arguments) in MODULES.items():
            rows = []
            for seed in range(3):
                limits = {"max_epochs": 2, "limit_train_batches": 1, "limit_val_batches": 1, "limit_test_batches": 1}
                options: dict[str, Any] = {
                    "module": module,
                    "model": {"init_args": arguments},
                    "trainer": {**limits, "default_root_dir": f"runs/{kind}/seed{seed}"},
                }
                run("fit", "--seed_everything", str(seed), **options)
                ensemble = ["--model.init_args.ensemble", "all"] if kind == "teacher" and not seed else []
                run("test", "--ckpt_path", "last", *ensemble, **options)
                rows += collect(Path(f"runs/{kind}/seed{seed}"))
            found.append(Group(kind, rows, [], "", False, None, {}, []))
    protocol = {"hash": "0123456789ab", "epochs": 2, "optimizer": "SGD", "lr": 0.01, "options": {"model.lr": 0.01}}
    found[0].rows[0]["protocol"] |= protocol
    differences = {"trainer.max_epochs": (240, 2), "model.init_args.lr": (0.05, 0.01)}
    recipe = "cifar100/student_joint_wrn_40_2-wrn_16_2"
    found[2] = found[2]._replace(recipe=recipe, paper="78.67 +- 0.20", differences=differences)
    return [found[0], found[1]._replace(marks=["limited batches"]), found[2]]


@pytest.fixture(scope="module")
def page(groups: list[Group], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("out") / "page.html"
    write_page(groups, path)
    return path


class Elements(HTMLParser):
    """Collect the elements of a page with their attributes, and check that each is closed."""

    VOID = ("meta", "link", "img", "br", "input")  # SVG closes its own

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def text_of(groups: list[Group], path: Path) -> str:
    write_page(groups, path)
    return path.read_text()


def changed(group: Group, **entries: Any) -> Group:
    """Return a group whose first run has other entries."""
    return group._replace(rows=[{**group.rows[0], **entries}, *group.rows[1:]])


def test_page_loads_nothing_from_the_network(page: Path) -> None:
    text = page.read_text()
    assert not re.findall(r"https?://|@import|url\(|<iframe", text)
    links = [attributes.get(name) for _, attributes in Elements(text).elements for name in ("src", "href")]
    assert {link[0] for link in links if link} == {"d", "#"}
    assert {link[:5] for link in links if link and link[0] == "d"} == {"data:"}


def test_page_pictures_have_alternative_text(page: Path) -> None:
    elements = Elements(page.read_text()).elements
    pictures = [attributes for tag, attributes in elements if tag == "svg" and "aria-hidden" not in attributes]
    assert len(pictures) == 4 + 9 * 2  # curves, and a diagram and an embedding per run
    assert all(each["role"] == "img" and len(each["aria-label"] or "") > 30 for each in pictures)
    assert [len(each["alt"] or "") > 10 for tag, each in elements if tag == "img"] == [True] * 9 * 4
    assert dict(elements)["html"] == {"lang": "en"}


def test_page_shows_options_and_results_of_each_run(page: Path, groups: list[Group]) -> None:
    text = page.read_text()
    for name in ("trainer.max_epochs", "model.init_args.lr", "0123456789ab", "limited batches", "78.67 ± 0.20"):
        assert name in text
    for row in (row for group in groups for row in group.rows):
        assert row["folder"] in text and f"{100 * row['test']['acc']:.2f} % test accuracy" in text
        assert row["test"]["sha256"][:12] in text
    student = groups[2].rows[1]
    for number in (1, 2, 3):
        cells = [student["test"][f"branch{number}_{kind}"] for kind in ("class", "class_top5", "joint")]
        row = f"branch {number}</th>" + "".join(f"<td>{100 * cell:.2f}</td>" for cell in cells)
        assert row in text
    for found in groups[1].rows[0]["test"]["cascade"]:
        cells = f"<td>{100 * found['acc']:.2f}</td><td>{found['multiply_adds'] / 1e6:.1f}</td>"
        assert text.count(f"cascade at {found['threshold']}</th>{cells}") == 1
    assert text.count("class head, all views</th>") == 1
    true, predicted, count = student["details"]["confused"][0]
    assert re.search(rf'<td class="name">{true}</td><td class="name">{predicted}</td><td [^>]*>{count}</td>', text)


def test_page_marks_options_that_differ_among_experiments(groups: list[Group], tmp_path: Path) -> None:
    protocols = [{"hash": "0", "lr": lr, "momentum": 0.9, "options": {"model.lr": lr}} for lr in (0.1, 0.1, 0.2)]
    settings = [changed(group, protocol=protocol) for group, protocol in zip(groups, protocols, strict=True)]
    text = text_of(settings, tmp_path / "page.html")
    for option, value in (("lr", 0.1), ("lr", 0.2), ("model.lr", 0.1), ("model.lr", 0.2)):
        cells = f'<th scope="row"><code>{option}</code></th><td><code>{value}</code></td><td class="name">differ</td>'
        assert f'<tr class="differs">{cells}' in text
    assert text.count('<tr><th scope="row"><code>momentum</code></th><td><code>0.9</code></td>') == 3
    assert text.count('class="differs"') == 3 * 2
    alone = text_of(settings[:1], tmp_path / "page.html")
    assert "<code>momentum</code>" in alone and "differs" not in alone.split("</style>")[1]


def test_page_draws_data_sets_apart(groups: list[Group], tmp_path: Path) -> None:
    splits = [{"fingerprint": name, "images": 5, "classes": 2, "pictures": ""} for name in ("one", "other", "one")]
    protocols = [{"hash": "0", "options": {}, "data": {"test": split}} for split in splits]
    mixed = [changed(group, protocol=protocol) for group, protocol in zip(groups, protocols, strict=True)]
    text = text_of(mixed, tmp_path / "page.html")
    first, second = re.findall(r"<section.*?</section>", text, re.DOTALL)[:2]
    for section, name, numbers in ((first, "one", {0, 1}), (second, "other", {2})):
        assert f"data: 2 classes, 5 test images, fingerprint {name}</h2>" in section
        assert set(map(int, re.findall(r'href="#experiment-(\d)', section))) == {number + 1 for number in numbers}
        assert set(map(int, re.findall(r'class="series-(\d)', section))) == numbers
    assert len(groups) == text.count('class="experiment"')


def test_mean_curve_covers_the_epochs_of_all_runs(groups: list[Group], tmp_path: Path) -> None:
    """Shorten a run, whose thin line ends there, and with it the mean of all."""
    history = groups[0].rows[0]["history"][:1]
    text = text_of([changed(groups[0], history=history)], tmp_path / "page.html")
    figure = re.search(r"<figure>.*?</figure>", text, re.DOTALL)
    assert figure
    lines = re.findall(r'<polyline points="([^"]*)"', figure[0])
    assert [len(line.split()) for line in lines] == [1, 2, 2, 1]  # of the seeds, and the mean
    assert "in epoch 1" in figure[0] and "in epoch 2" not in figure[0]


def test_page_escapes_text_from_files(groups: list[Group], tmp_path: Path) -> None:
    details = {**groups[0].rows[0]["details"], "class_names": [f"{EVIL}{label}" for label in range(10)]}
    entries = dict.fromkeys(("folder", "device", "seed"), EVIL)
    first = groups[0].rows[0]
    evil = changed(groups[0], **entries, config=[EVIL], details=details, test={**first["test"], "checkpoint": EVIL})
    evil = changed(evil, protocol={EVIL: EVIL}, changes=[{"option": EVIL, "from": EVIL, "to": EVIL, "step": EVIL}])
    evil = evil._replace(base=EVIL, marks=[EVIL], paper="78.67 +- 0.20", recipe=EVIL, differences={EVIL: (EVIL, EVIL)})
    text = text_of(
        [evil._replace(others=[{"folder": EVIL, "seed": EVIL}]), changed(groups[1], test=None)], tmp_path / "p"
    )
    assert "&lt;script&gt;document" in text and text.count("<script>") == 1
    assert {tag for tag, _ in Elements(text).elements} == {
        tag for tag, _ in Elements(text_of(groups, tmp_path / "p")).elements
    } | {"strong", "ul", "li"}


def test_page_names_test_command_for_untested_run(groups: list[Group], tmp_path: Path) -> None:
    untested = changed(groups[1], test=None, details=None, folder="my runs/a")
    command = "hsakd test --config &#39;my runs/a/config.yaml&#39; --ckpt_path last"
    assert command in text_of([untested], tmp_path / "page.html")


def test_page_shows_rows_of_older_versions(tmp_path: Path) -> None:
    row = {"config": ["a.yaml"], "folder": "runs/a", "last_val_acc": 0.5, "best_val_acc": None}
    row |= {"history": [], "test": None, "details": None}
    text = text_of(
        [Group("a", [row], [], "", False, None, {}, [row]), Group("empty", [], [], "", False, None, {}, [])],
        tmp_path / "p",
    )
    assert "50.00" in text and "did not record" in text and "None of these runs has a metrics.csv" in text
    Elements(text)


@pytest.mark.parametrize(
    "broken", [{"confused": []}, [], "text", {"class_names": 1, "reliability": [], "confused": []}]
)
def test_details_not_written_by_test_are_refused(tmp_path: Path, broken: Any) -> None:
    path = tmp_path / "test_details.json"
    path.write_text(json.dumps(broken))
    with pytest.raises(UsageError, match=r"test_details.json is not a result \(.*\): remove it"):
        read_details(path)


def test_page_colours_most_confused_of_many_classes(groups: list[Group], tmp_path: Path) -> None:
    points = [[float(number % 7), float(number % 11)] for number in range(200)]
    embedding = {"method": "t-SNE", "points": points, "labels": [number % 100 for number in range(200)]}
    names = [f"class{label}" for label in range(100)]
    details = {**groups[0].rows[0]["details"], "embedding": embedding, "confused": [[7, 93, 5]], "class_names": names}
    text = text_of([changed(groups[0], details=details)._replace(marks=[])], tmp_path / "page.html")
    legend = re.search(r"200 test images.*?</ul>", text, re.DOTALL)
    assert legend and "90 other classes" in legend[0] and "class7<" in legend[0] and "class93<" in legend[0]


def test_page_axes_have_round_numbers() -> None:
    assert round_numbers(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert round_numbers(0, 239, 1) == [0, 50, 100, 150, 200, 250]
    assert round_numbers(0, 0, 1) == [0, 1] and round_numbers(3, 3, 1) == [3, 4]
    for low, high in ((2.31, 2.32), (-3, 1e6), (1e-9, 2e-9), (5, 5), (0.97, 0.97)):
        found = round_numbers(low, high)
        assert found[0] <= low and high <= found[-1] and 2 <= len(found) <= 9 and len(set(found)) == len(found)
    chart = Chart([0, 10], [0, 1])
    assert chart.line([(0, 0), (10, 1)]) == f"{chart.left}.0,{chart.bottom}.0 {chart.right}.0,{chart.top}.0"


def test_page_lines_differ_without_colours() -> None:
    assert len(set(STYLES)) == len({(style.colour, style.dash) for style in STYLES}) == 35
    assert all(one.dash != other.dash and one.shape != other.shape for one, other in pairwise(STYLES))


def browse(page: Path, *options: str, fragment: str = "") -> tuple[str, str]:
    """Open a page in a headless browser; return its output and its log."""
    assert CHROMIUM is not None
    quiet = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={page.parent}/profile",
    ]
    log = ["--enable-logging=stderr", "--v=0", "--virtual-time-budget=5000"]
    command = [CHROMIUM, *quiet, *log, *options, f"{page.as_uri()}{fragment}"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0, shown.stderr
    return shown.stdout, shown.stderr


def with_script(page: Path, script: str) -> Path:
    """Return a copy of a page with a script at its end."""
    copy = page.with_name("copy.html")
    copy.write_text(page.read_text().replace("</body>", f"<script>{script}</script></body>"))
    return copy


def column(text: str, number: int) -> list[str]:
    """Return a column of the first table as the browser shows it, from the top."""
    body = text[text.index("<tbody>") : text.index("</tbody>")]
    return [
        re.sub("<[^>]*>", "", re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)[number]).strip()
        for row in body.split("</tr>")[:-1]
    ]


@needs_browser
def test_page_causes_no_browser_errors(page: Path, tmp_path: Path) -> None:
    assert "CONSOLE" not in browse(page, "--dump-dom")[1]
    broken = with_script(page, "missing()")
    assert re.search("CONSOLE.*missing is not defined", browse(broken, "--dump-dom")[1])  # an error would be detected


@needs_browser
def test_page_table_sorts_by_clicked_column(page: Path) -> None:
    names = ["baseline", "teacher", "student"]
    assert column(browse(page, "--dump-dom")[0], 0) == names
    assert column(browse(page, "--dump-dom", fragment="#sort=0")[0], 0) == sorted(names)
    once = with_script(page, "document.querySelectorAll('.sortable button')[3].click()")
    accuracies = [float(cell.split()[0]) for cell in column(browse(once, "--dump-dom")[0], 3)]
    assert accuracies == sorted(accuracies) and len(set(accuracies)) > 1
    twice = with_script(page, "for (let i = 0; i < 2; i++) document.querySelectorAll('.sortable button')[3].click()")
    shown = browse(twice, "--dump-dom")[0]
    assert [float(cell.split()[0]) for cell in column(shown, 3)] == accuracies[::-1]
    assert shown.count('aria-sort="descending"') == 1 and 'aria-sort="ascending"' not in shown


@needs_browser
def test_browser_draws_the_page(page: Path, tmp_path: Path) -> None:
    browse(page, "--window-size=1280,2000", f"--screenshot={tmp_path / 'page.png'}")
    shot = Image.open(tmp_path / "page.png").convert("RGB")
    assert shot.size == (1280, 2000)
    colours = shot.getcolors(1 << 24)
    assert colours is not None and len(colours) > 500
    drawn = {colour for _, colour in colours}
    assert {(0, 0x72, 0xB2), (0xD5, 0x5E, 0), (0, 0x9E, 0x73)} <= drawn  # one line each


@needs_browser
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_page_is_no_wider_than_the_screen(page: Path, width: int) -> None:
    """Use a frame, since the browser's own windows are at least 500 pixels wide."""
    script = """
    const frame = document.createElement("iframe");
    frame.style = "width: WIDTHpx; height: 800px; border: 0";
    frame.srcdoc = document.documentElement.outerHTML.replace(/<script>[^]*?<.script>/g, "");
    frame.onload = () => {
      const page = frame.contentDocument.documentElement;
      frame.contentDocument.querySelectorAll("details").forEach((run) => { run.open = true; });
      document.title = [page.scrollWidth, frame.contentWindow.innerWidth].join(" of ");
    };
    document.body.append(frame);
    """
    shown = browse(with_script(page, script.replace("WIDTH", str(width))), "--dump-dom")[0]
    assert f"<title>{width} of {width}</title>" in shown


def title_of(page: Path, script: str, *options: str) -> Any:
    """Return what a script leaves as JSON in the title of the page."""
    shown = browse(with_script(page, f"{{{script}}}"), *options, "--dump-dom")[0]  # in a scope of its own
    title = re.search("<title>(.*?)</title>", shown, re.DOTALL)
    assert title
    return json.loads(html.unescape(title[1]))


@needs_browser
@pytest.mark.parametrize("clipboard", ["allowed", "refused", "neither"])
def test_table_is_copied_as_csv(clipboard: str, page: Path, groups: list[Group]) -> None:
    """Copy the first table by the clipboard, by a text area, or by the user's own keys."""
    script = """
    const copied = [];
    const write = async (text) => { if (CLIPBOARD !== "allowed") throw new Error(); copied.push(text); };
    Object.defineProperty(navigator, "clipboard", {value: {writeText: write}});
    document.execCommand = () => {
      const area = document.activeElement;
      if (CLIPBOARD === "refused") copied.push(area.value.slice(area.selectionStart, area.selectionEnd));
      return CLIPBOARD === "refused";
    };
    const bar = document.querySelector(".copy");
    bar.querySelector("button").click();
    setTimeout(() => {
      const left = bar.querySelector("textarea");
      const said = bar.querySelector("[role=status]").textContent;
      document.title = JSON.stringify([copied[0] ?? left.value, Boolean(left), said]);
    }, 100);
    """
    text, is_left, said = title_of(page, script.replace("CLIPBOARD", json.dumps(clipboard)))
    assert (is_left, "Ctrl+C" in said) == ((True, True) if clipboard == "neither" else (False, False))
    table = list(csv.DictReader(StringIO(text)))
    assert [row["experiment"] for row in table] == ["baseline", "teacher", "student"]
    for row, record in zip(table, records(groups), strict=True):
        assert row["last epoch, %"] == f"{record['last_mean']:.2f}"
        assert row["standard deviation of best epoch, %"] == f"{record['best_std']:.2f}"
        assert row["images/s"] == f"{record['images_per_second']:.0f}"
    assert [row["paper, %"] for row in table] == ["", "", "78.67"] and table[1]["marks"] == "limited batches"


@needs_browser
def test_legend_hides_and_shows_lines(page: Path) -> None:
    script = """
    const boxes = [...document.querySelectorAll("[data-series]")];
    const shown = () => document.querySelectorAll(".curves figure g[class^=series]:not(.hidden)").length;
    const counts = [shown()];
    for (const number of [1, 3, 1, 3]) { boxes[number].click(); counts.push(shown()); }
    document.title = JSON.stringify([boxes.length, counts]);
    """
    # of 4 charts of 3 experiments, a mean and a group of single runs each
    assert title_of(page, script) == [4, [24, 16, 8, 12, 24]]


CONTRAST = """
const luminance = (colour) => colour.map((part) => part / 255)
  .map((part) => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
  .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
const background = (element) => {
  for (let part = element; part; part = part.parentElement) {
    const [red, green, blue, alpha = 1] = numbers(getComputedStyle(part).backgroundColor);
    if (alpha > 0) return [red, green, blue];
  }
};
document.querySelectorAll("details").forEach((part) => { part.open = true; });
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
const low = [];
while (texts.nextNode()) {
  const element = texts.currentNode.parentElement;
  if (!texts.currentNode.textContent.trim() || element.closest("script, title")) continue;
  const style = getComputedStyle(element);
  const ink = numbers(element.closest("svg") ? style.fill : style.color).slice(0, 3);
  const both = [luminance(ink), luminance(background(element))].sort((one, other) => other - one);
  if ((both[0] + 0.05) / (both[1] + 0.05) < 4.5) low.push(texts.currentNode.textContent);
}
"""


@needs_browser
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_page_is_readable_in_both_colour_schemes_and_by_keyboard(scheme: str, page: Path) -> None:
    """Compute contrasts as in WCAG 2, 1.4.3; what is wider than the narrow window is reached by the tab key."""
    script = (
        CONTRAST
        + """
    setTimeout(() => {
      const wide = [...document.querySelectorAll(".scroll")].filter((area) => area.scrollWidth > area.clientWidth);
      const reached = wide.filter((area) => area.tabIndex === 0 && area.getAttribute("aria-label"));
      document.title = JSON.stringify([low, background(document.body), wide.length, reached.length]);
    }, 300);
    """
    )
    options = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    low, background, wide, reached = title_of(page, script, "--window-size=500,900", *options)
    assert low == [] and (max(background) < 40) == (scheme == "dark")
    assert reached == wide > 0


@needs_browser
def test_printed_page_has_no_buttons_and_no_cut_tables(groups: list[Group], tmp_path: Path) -> None:
    """Show what the rules for print do, on a dark screen narrower than a sheet of paper."""
    page = tmp_path / "page.html"
    write_page([groups[0], groups[1]._replace(base="a_long_name_" * 20), groups[2]], page)
    script = """
    for (const rule of document.styleSheets[0].cssRules) {
      if (rule.media?.mediaText === "print") rule.media.mediaText = "all";
      else if (rule.media?.mediaText.startsWith("screen")) rule.media.mediaText = "not all";
    }
    dispatchEvent(new Event("beforeprint"));
    const isShown = (element) => element.checkVisibility();
    const buttons = [...document.querySelectorAll("button, input")].filter(isShown).map((each) => each.textContent);
    const closed = document.querySelectorAll("details.run:not([open])").length;
    const cut = [...document.querySelectorAll(".scroll")].filter((area) => area.scrollWidth > area.clientWidth).length;
    dispatchEvent(new Event("afterprint"));
    const open = document.querySelectorAll("details.run[open]").length;
    document.title = JSON.stringify([buttons, closed, cut, getComputedStyle(document.body).backgroundColor, open]);
    """
    options = ["--window-size=600,900", "--blink-settings=preferredColorScheme=0"]
    buttons, closed, cut, background, open_runs = title_of(page, script, *options)
    assert [name for name in buttons if "Copy" in name or not name] == []
    assert (closed, cut, background, open_runs) == (0, 0, "rgb(255, 255, 255)", 3)
