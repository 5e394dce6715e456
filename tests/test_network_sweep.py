"""Test the sweep of networks on a small part of it, and its page against the stored outcomes."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn as nn
from own_networks import OWN, REFUSED

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
MODULES = ("network_checks", "network_page", "networks")
CHECKS = ("create", "logits", "student", "teacher", "feature", "hsakd", "count")
IN_CI = ("features and classifier", "stages", "dict output")
NIGHTLY = [pytest.mark.slow, pytest.mark.nightly]
# Families of timm whose smallest model is small, and others that once went wrong
TIMM = (
    "test_byobnet test_convnext test_vit test_resnet test_nfnet test_efficientnet test_coatnet test_mambaout "
    "ghostnet_050 levit_128s mobilevit_xxs coat_tiny xcit_nano_12_p8_224 crossvit_tiny_240 efficientvit_m0 "
    "starnet_s050 repvit_m1 deit_tiny_patch16_224 convit_tiny pit_ti_224 gmlp_ti16_224 pvt_v2_b0 dla46x_c "
    "inception_next_atto fastvit_t8 test_vit_relpos vit_tiny_r_s16_p8_224 iformer_t regnetx_002 "
    "edgenext_xx_small ese_vovnet19b_slim_dw"
)
TORCHVISION = "alexnet squeezenet1_1 shufflenet_v2_x0_5 mobilenet_v3_small mnasnet0_5 googlenet regnet_y_400mf"
FOREIGN = [("timm", name) for name in TIMM.split()] + [("torchvision", name) for name in TORCHVISION.split()]


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """Import the scripts of the sweep."""
    monkeypatch.syspath_prepend(SCRIPTS)
    import network_checks
    import network_page
    import networks

    yield {module.__name__: module for module in (network_checks, network_page, networks)}
    for name in MODULES:
        del sys.modules[name]


def test_page_equals_what_its_script_writes(scripts: dict[str, ModuleType]) -> None:
    page = scripts["network_page"]
    content = json.loads(page.STORED.read_text())
    assert page.PAGE.read_text() == page.page(content)
    assert page.STORED.read_text() == page.as_json(content)


def test_every_network_on_the_page_is_one_that_the_script_tries(scripts: dict[str, ModuleType]) -> None:
    networks = json.loads(scripts["network_page"].STORED.read_text())["networks"]
    known = {f"own:{name}" for name in OWN} | {f"torchvision:{name}" for name in scripts["networks"].TORCHVISION}
    assert {label for label in networks if not label.startswith("timm:")} <= known


def test_stored_outcomes_are_no_tracebacks_and_no_differences(scripts: dict[str, ModuleType]) -> None:
    networks = json.loads(scripts["network_page"].STORED.read_text())["networks"]
    found = {
        (label, check, side)
        for label, facts in networks.items()
        for check, sides in facts["checks"].items()
        for side, outcome in sides.items()
        if outcome in ("traceback", "difference")
    }
    assert found == set()


def test_tests_of_weight_files_on_the_page_exist(scripts: dict[str, ModuleType]) -> None:
    _, _, section = scripts["network_page"].PAGE.read_text().partition("## Weight files")
    tests = re.findall(r"`tests/(\w+\.py)`", section)
    assert len(tests) == len(scripts["network_page"].WEIGHT_FILES)
    assert all((Path(__file__).parent / name).is_file() for name in tests)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in IN_CI else NIGHTLY) for name in OWN])
def test_own_network_works_or_is_refused_in_one_sentence(
    name: str, scripts: dict[str, ModuleType], record_property: Callable[[str, str], None]
) -> None:
    subject = scripts["network_checks"].Subject("own", name)
    results = {check: scripts["networks"].attempt(subject, 32, check) for check in CHECKS}
    for result in results.values():
        record_property("result", json.dumps(result._asdict()))  # in the file that --junitxml names
    failed = {check: result.reason for check, result in results.items() if result.outcome not in ("works", "refused")}
    assert failed == {}
    taken = {check for check, result in results.items() if result.outcome == "works"}
    assert ("student" in taken) == (name not in REFUSED)
    assert ("hsakd" in taken) == name.startswith("stages")


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("name", OWN)
def test_exports_of_own_network_equal_it_or_are_refused(
    name: str, scripts: dict[str, ModuleType], record_property: Callable[[str, str], None]
) -> None:
    result = scripts["networks"].attempt(scripts["network_checks"].Subject("own", name), 32, "export")
    record_property("result", json.dumps(result._asdict()))
    assert result.outcome in ("works", "refused"), result.reason


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize(("kind", "name"), FOREIGN)
def test_foreign_network_works_or_is_refused_in_one_sentence(
    kind: str, name: str, scripts: dict[str, ModuleType], record_property: Callable[[str, str], None]
) -> None:
    subject = scripts["network_checks"].Subject(kind, name)
    results = [scripts["networks"].attempt(subject, 32, check) for check in CHECKS]
    for result in results:
        record_property("result", json.dumps(result._asdict()))
    assert [result for result in results if result.outcome not in ("works", "refused")] == []


def test_sweep_resumes_where_it_was_interrupted(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    networks, checks = scripts["networks"], scripts["network_checks"]
    subject = checks.Subject("own", "perceptron")
    path = tmp_path / "results.jsonl"
    networks.write(path, networks.Result("own", "perceptron", 32, "create", "works"))
    networks.write(path, networks.Result("own", "perceptron", 32, "logits", "refused", "of another size"))
    with path.open("a") as file:
        file.write('{"kind": "own", "na')  # killed while it wrote
    networks.write(path, networks.Result("own", "perceptron", 32, "count", "works"))
    done = {result[:4]: result for result in networks.read(path)}
    assert networks.planned(done, subject, 32, ["create", "logits", "count", "student"]) == ["student"]
    assert networks.planned(done, subject, 64, ["create", "logits", "count"]) == ["logits"]


def test_stored_outcomes_are_kept_when_a_sweep_on_another_machine_adds_some(scripts: dict[str, ModuleType]) -> None:
    networks, page = scripts["networks"], scripts["network_page"]
    content = page.read_stored()
    results = networks.stored_results()
    assert page.stored(results, content["planned"], content["families"], content["date"]) == content
    added = networks.Result("own", "perceptron", 4096, "logits", "works")
    grown = page.stored([*results, added], content["planned"], content["families"], content["date"])
    sides = grown["networks"]["own:perceptron"]["checks"]["logits"]
    assert sides == content["networks"]["own:perceptron"]["checks"]["logits"] | {"4096": "works"}


class Halving(nn.Module):
    """Return half of the logits when it is called for the second time."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)
        self.calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.fc(images.mean((2, 3))) / self.calls


@pytest.mark.parametrize(
    ("outcome", "network"),
    [("difference", Halving), ("traceback", lambda: nn.Flatten("start")), ("refused", OWN["tuple output"])],
)
def test_sweep_tells_differences_and_tracebacks(
    outcome: str, network: type[nn.Module], scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check networks that answer otherwise each time, that fail, and that return no logits."""
    monkeypatch.setitem(scripts["network_checks"].OWN, "made here", network)
    subject = scripts["network_checks"].Subject("own", "made here")
    results = [scripts["networks"].attempt(subject, 32, check) for check in ("logits", "student", "teacher")]
    assert outcome in {result.outcome for result in results}
