"""Test that the site builds strictly, and that pages and README state what the package and its results hold."""

import ast
import inspect
import json
import os
import queue
import re
import runpy
import shutil
import subprocess
import sys
import threading
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import programs
import pytest
from test_page import CHROMIUM, needs_browser
from test_readme import DOCUMENTS, REPOSITORY

import hsakd_pl
from hsakd_pl.recipes.paper import MUTUAL, TABLE_1

PROSE = {name: re.sub(r"```.*?```", "", text, flags=re.DOTALL) for name, text in DOCUMENTS.items()}
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")


def cells(document: str, first: str) -> list[str]:
    """Return the other cells of the table row that begins with ``first``."""
    [row] = re.findall(rf"^\| {re.escape(first)} \|(.*)\|$", DOCUMENTS[document], re.MULTILINE)
    return [cell.strip().replace("±", "+-").strip("*") for cell in row.split("|")]


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Deploy the pages as a version in a copy of the repository: strict, which checks links, anchors and API names."""
    for module in ("zensical", "mkdocstrings_handlers", "mike"):
        if find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install 'hsakd_pl[docs]' with Python 3.11 or newer")
    copy = tmp_path_factory.mktemp("repository")
    shutil.copytree(REPOSITORY / "docs", copy / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("mkdocs.yml", *(path.name for path in REPOSITORY.glob("*.md"))):
        shutil.copy(REPOSITORY / file, copy)
    (copy / "hsakd_pl").symlink_to(REPOSITORY / "hsakd_pl")
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    commands = [
        [*git, "init", "--quiet"],
        [*git, "commit", "--quiet", "--allow-empty", "--message", "The first"],
        [sys.executable, "docs/deploy.py", "1.0", "latest"],
        [*git, "archive", "--output", "site.tar", "gh-pages"],
    ]
    environment = {**os.environ, "GIT_COMMITTER_NAME": "test", "GIT_COMMITTER_EMAIL": "test@localhost"}
    for command in commands:
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
    shutil.unpack_archive(copy / "site.tar", copy / "deployed")
    return copy / "deployed"


@pytest.fixture(scope="module")
def site(versions: Path) -> Path:
    return versions / "latest"


@pytest.mark.slow
def test_deployed_version_is_listed_and_is_the_start_page(versions: Path) -> None:
    listed = [{"version": "1.0", "title": "1.0", "aliases": ["latest"]}]
    assert json.loads((versions / "versions.json").read_text()) == listed
    assert 'url=latest/"' in (versions / "index.html").read_text()
    assert (versions / "latest").samefile(versions / "1.0")


@pytest.mark.slow
def test_site_has_all_pages_and_options(site: Path) -> None:
    pages = {str(path.relative_to(site)): path.read_text() for path in site.rglob("*.html")}
    assert len(pages) == len(DOCUMENTS)  # one more, 404, for the README
    assert [name for name, text in pages.items() if "arithmatex" in text or ".. math::" in text] == []
    assert pages["method.html"].count('<svg role="img"') > 6
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?:', "".join(pages.values()))
    for page, name in (("modules", "StudentModule"), ("data", "CIFAR100DataModule"), ("methods", "methods.DKDModule")):
        section = pages[f"api/{page}.html"].partition(f'id="hsakd_pl.{name}"')[2].partition('<h3 id="')[0]
        options = inspect.signature(attrgetter(name)(hsakd_pl)).parameters
        assert [option for option in options if section.count(option) < 2] == [], name  # signature and description


@pytest.mark.slow
def test_local_targets_of_the_site_exist(site: Path) -> None:
    """Check pictures, style sheets and the navigation; a strict build checks only links in Markdown."""
    found = 0
    for page in site.rglob("*.html"):
        for target in re.findall(r'(?:src|href)="([^"#?:]+)["#?]', page.read_text()):
            assert page.name == "404.html" or (page.parent / target).exists(), f"{page.name}: {target}"
            found += 1
    assert found > 1000


@pytest.mark.slow
def test_search_finds_every_page(site: Path) -> None:
    items = json.loads((site / "search.json").read_text())["items"]
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    assert {item["location"].partition("#")[0] for item in items} == pages - {"404.html"}


# Measures pages in frames, since the browser's own windows are at least 500 pixels wide
WIDTHS = """<!doctype html><body><script>
async function width_of(page, width) {
  const frame = document.createElement("iframe");
  frame.sandbox = "allow-same-origin";
  frame.style = `width: ${width}px; height: 800px; border: 0`;
  await new Promise((loaded) => { frame.onload = loaded; frame.src = page; document.body.append(frame); });
  const found = frame.contentDocument.documentElement.scrollWidth;
  frame.remove();
  return found;
}
(async () => {
  const found = {};
  for (const width of [390, 1280])
    for (const page of PAGES) found[`${page} at ${width}`] = [width, await width_of(page, width)];
  await fetch("/widths", {method: "POST", body: JSON.stringify(found)});
})();
</script>"""


class Measured(SimpleHTTPRequestHandler):
    """Serve the site, and take what the browser has measured."""

    widths: ClassVar[queue.Queue[dict[str, list[int]]]] = queue.Queue()

    def do_POST(self) -> None:
        self.widths.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(HTTPStatus.NO_CONTENT)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@needs_browser
@pytest.mark.slow
def test_pages_are_no_wider_than_a_phone_or_a_laptop(site: Path, tmp_path: Path) -> None:
    pages = [path.relative_to(site).as_posix() for path in site.rglob("*.html") if path.name != "404.html"]
    (site / "widths.htm").write_text(WIDTHS.replace("PAGES", json.dumps(pages)))
    assert CHROMIUM is not None
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-background-networking"]
    options = [*quiet, f"--user-data-dir={tmp_path}", "--remote-debugging-port=0"]
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Measured, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/widths.htm"
        with subprocess.Popen([CHROMIUM, *options, address], stderr=subprocess.DEVNULL) as browser:
            try:
                widths = Measured.widths.get(timeout=programs.PATIENCE)
            finally:
                browser.terminate()
        server.shutdown()
    assert len(widths) == 2 * len(pages) > 100
    assert [page for page, (width, found) in widths.items() if found > width] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documentation_links_resolve(name: str) -> None:
    """Check local links; a strict build checks those between pages, and external links are not followed."""
    for target in ("".join(found) for found in LINK.findall(PROSE[name])):
        parts = urlsplit(target)
        if parts.scheme:
            assert parts.scheme == "https" and re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc), target
        elif name == "README.md":
            assert (REPOSITORY / parts.path).is_file(), target


def test_every_page_is_a_tested_document() -> None:
    pages = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "docs").rglob("*.md")}
    assert pages == {*DOCUMENTS} - {"README.md"}


def test_published_numbers_on_pages_equal_recipes() -> None:
    for row in ("Teacher", "Teacher*", "Student", "KD", "HSAKD", "HSAKD*"):
        assert cells("docs/results.md", row) == [pair[row] for pair in TABLE_1], row
    assert cells("docs/results.md", "Mutual") == list(MUTUAL.values())
    assert cells("README.md", "CIFAR-100, wrn_16_2, 240 epochs")[:2] == [TABLE_1[0]["Student"], TABLE_1[0]["HSAKD*"]]


def test_measured_numbers_of_readme_appear_in_results() -> None:
    results = (REPOSITORY / "RESULTS.md").read_text()
    numbers = cells("README.md", "handwritten digits, resnet8, 50 labels")[:2]
    assert len(numbers) == 2
    assert [number for number in numbers if number not in results] == []


def test_speed_ups_of_readme_equal_stored_measurements() -> None:
    devices = [json.loads(path.read_text()) for path in REPOSITORY.glob("benchmarks/results/*.json")]
    rows = [loops for stored in devices for case, loops in stored.items() if case.startswith("student")]
    fits = [loops["fit"]["times_as_fast"] for loops in rows]
    assert f"{min(fits):.2f} to {max(fits):.2f} times as fast" in DOCUMENTS["README.md"]


def test_api_pages_list_every_export_once() -> None:
    pages = [text for name, text in DOCUMENTS.items() if name.startswith("docs/api/")]
    documented = re.findall(r"^::: (\S+)", "\n".join(pages), re.MULTILINE)
    assert len(documented) == len({*documented})
    exported = {f"hsakd_pl.{name}" for name in hsakd_pl.__all__}
    exported |= {f"hsakd_pl.methods.{name}" for name in hsakd_pl.methods.__all__}
    assert exported - {*documented} == set()


def test_api_index_equals_what_its_script_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("griffe", reason="griffe is not installed: pip install 'mkdocstrings[python]'")
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")
    script = runpy.run_path(str(REPOSITORY / "scripts/api_page.py"))
    assert script["page"]() == DOCUMENTS["docs/api.md"], "python scripts/api_page.py"


def test_documented_versions_equal_declared_versions() -> None:
    declared = (REPOSITORY / "setup.cfg").read_text()
    for words, package in (("PyTorch", "torch"), ("Lightning", "pytorch_lightning"), ("Python", "python_requires = ")):
        stated = re.findall(rf"{words} ([\d.]+) or newer", DOCUMENTS["README.md"] + DOCUMENTS["docs/index.md"])
        assert {*stated} == {*re.findall(rf"^ *{package}>=([\d.]+)", declared, re.MULTILINE)}, words


def print_networks() -> None:
    print(*hsakd_pl.list_networks())


def test_network_table_lists_every_network() -> None:
    by_name = DOCUMENTS["docs/your-network.md"].partition("timm's |")[0]
    listed = programs.run(print_networks).stdout  # tests register more in this process
    assert set(re.findall(r"`(\w+)`", by_name)) == {*listed.split()}


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name.startswith("docs/")])
def test_documented_code_fits_the_page_width(name: str) -> None:
    """Check 96 columns, which fit a screen of 1,280 pixels; printed output may be longer."""
    blocks = re.findall(r"^```(?:python|bash|yaml)\n(.*?)^```", DOCUMENTS[name], re.MULTILINE | re.DOTALL)
    assert [line for block in blocks for line in block.splitlines() if len(line) > 96] == []


def literal(node: ast.AST) -> str:
    """Return the text of a string in the source, with … for its placeholders."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(literal, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return literal(node.left) + literal(node.right)
    return "…"


def test_troubleshooting_quotes_existing_messages() -> None:
    quoted = re.findall(r"^> `(.+)`$", DOCUMENTS["docs/troubleshooting.md"], re.MULTILINE)
    sources = [path.read_text() for path in (REPOSITORY / "hsakd_pl").rglob("*.py")]
    kinds = (ast.JoinedStr, ast.BinOp, ast.Constant)
    found = {literal(node) for text in sources for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)}
    texts = {re.sub("…+", "…", text) for text in found}
    assert len(quoted) > 40
    missing = [message for message in quoted if not any(text.startswith(message.rstrip("…")) for text in texts)]
    assert missing == []


def test_figure_equals_output_of_its_script(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'hsakd_pl[plots]'")
    runpy.run_path(str(REPOSITORY / "docs/assets/method.py"))["main"](tmp_path)
    words = re.compile(r"<!-- (.+?) -->")
    for name in ("method-light.svg", "method-dark.svg"):
        committed = (REPOSITORY / "docs/assets" / name).read_text()
        assert words.findall((tmp_path / name).read_text()) == words.findall(committed) != []
