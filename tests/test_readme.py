"""Test that the commands and examples of the README and the site's pages run unchanged on less data."""

import json
import re
import shlex
import sys
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple

import pytest
import pytorch_lightning as pl
import torch
import yaml
from torchvision.io import write_png

from hsakd_pl.cli.main import main
from hsakd_pl.networks import registry

REPOSITORY = Path(__file__).resolve().parents[1]
NAVIGATION = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())["nav"]
PAGES = [f"docs/{path}" for path in re.findall(r"[\w/-]+\.md", json.dumps(NAVIGATION))]
METHOD_PAGES = [path for path in PAGES if path.startswith("docs/methods/")]
DOCUMENTS = {name: (REPOSITORY / name).read_text() for name in ["README.md", *PAGES]}
FENCE = re.compile(r"(?:<!-- not run: (.+?) -->\n)?^( *)```(.*?)\n(.*?)^\2```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """Hold a fenced block: position, language, text, and the reason why it is not run, if any."""

    document: str
    language: str
    text: str
    reason: str

    @property
    def commands(self) -> list[str]:
        """Return the lines, with continued ones joined."""
        return re.sub(r"\\\n *", "", self.text).splitlines() if self.language == "bash" else []


BLOCKS = [
    Block(name, language, dedent(text), reason)
    for name, document in DOCUMENTS.items()
    for reason, _, language, text in FENCE.findall(document)
]
RUN = [block for block in BLOCKS if not block.reason]
# from photographs to an exported student: tests/test_own_images.py runs these
[OWN_COMMANDS] = {tuple(block.commands) for block in RUN if any("configs/images/" in line for line in block.commands)}
[OWN_EXAMPLE] = {block.text for block in RUN if block.language == "python" and "timm:" in block.text}
OF_METHODS = {line for block in RUN if block.document in METHOD_PAGES for line in block.commands}
COMMANDS = [*dict.fromkeys(line for block in RUN for line in block.commands if line not in OWN_COMMANDS)]
FIRST: dict[str, str] = {}  # the document in which an example first appears and is run
for block in RUN:
    if block.language == "python" and block.text != OWN_EXAMPLE:
        FIRST.setdefault(block.text, block.document)
EXAMPLES = {name: [text for text, document in FIRST.items() if document == name] for name in DOCUMENTS}


def arguments(command: str) -> list[str]:
    """Return the arguments of an ``hsakd`` command."""
    program, *words = shlex.split(command)
    assert program == "hsakd", f"it cannot be run, so a comment has to say why: {command}"
    return words


def test_documented_configs_exist_and_counts_hold() -> None:
    named = {path for text in DOCUMENTS.values() for path in re.findall(r"configs/[\w/-]+\.yaml", text)}
    assert len(named) > 20
    assert [path for path in named if not (REPOSITORY / path).is_file()] == []
    stated = dict(re.findall(r"`hsakd fit --config (configs/\S+)` \| (\d+) \|", DOCUMENTS["docs/recipes.md"]))
    recipes = REPOSITORY.glob("configs/*/*.yaml")
    of_the_paper = [path for path in recipes if path.parent.name not in ("digits", "images", "trainer")]
    assert sum(map(int, stated.values())) == len(of_the_paper)
    for path, count in stated.items():
        folder, kind = (REPOSITORY / path).parent, "_".join(Path(path).name.split("_")[:2])
        kind = kind if kind.startswith(("teacher", "student")) else kind.partition("_")[0]
        assert len(list(folder.glob(f"{kind}_*.yaml"))) == int(count), path


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documented_blocks_are_run_or_marked(name: str) -> None:
    blocks = [block for block in BLOCKS if block.document == name]
    assert 2 * len(blocks) == len(re.findall(r"^ *```", DOCUMENTS[name], re.MULTILINE))
    assert {block.language for block in blocks} <= {"bash", "python", "yaml", "csv", "text", "bibtex"}
    for block in blocks:
        assert not block.reason or block.language in ("bash", "python"), block
        for command in block.commands:
            assert block.reason or arguments(command)
            if command.startswith("make "):  # CI begins and ends with these
                assert command.split("#")[0].strip() in (REPOSITORY / ".ci" / "run").read_text()
        for path in re.findall(r"[\w.]+/[\w./]+\.\w+|\.ci/run", block.reason):
            assert (REPOSITORY / path).is_file(), block.reason
    assert sum(bool(block.reason) for block in BLOCKS) < len(RUN) / 2


def on_less_data(command: str, less: list[str]) -> list[str]:
    """Return the arguments of a command that runs on little data, in this process, with further options."""
    words = arguments(command)
    splits = {"validate": ["val"], "test": ["test"], "predict": ["predict"]}
    limits = [f"--trainer.limit_{split}_batches=1" for split in splits.get(words[0], ["train", "val", "test"])]
    if words[0] not in splits:
        limits += ["--trainer.max_epochs=2" if "--ckpt_path last" in command else "--trainer.max_epochs=1"]
    if words[0] == "export":  # on pictures instead of the whole test split
        return [*words, "--images", "photos"]
    if words[0] == "bench" and "--list" not in words:
        if "--seeds" in words:
            position = words.index("--seeds")
            del words[position : position + 2]
        if command in OF_METHODS:  # tests/test_methods.py trains every method
            return [*words, "--list"]
        return [*words, *less, *limits, "--seeds=0", *([] if "--dry-run" in words else ["--task=1"])]  # one of its runs
    return [*words, *less, *limits] if "--config" in words else words


def write_tables() -> None:
    """Write the documented tables to the files that the pages name."""
    for block in BLOCKS:
        if block.language == "csv":
            (name,) = re.findall(r"`(\w+\.csv)`", DOCUMENTS[block.document].partition(block.text)[0])
            Path(name).write_text(block.text)


@pytest.mark.slow
def test_documented_commands_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cifar_mini: Path,
    teacher_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    (tmp_path / teacher_file.name).symlink_to(teacher_file)
    (tmp_path / "photos").mkdir()
    for picture in ("one", "two"):
        write_png(torch.randint(0, 256, (3, 48, 40), dtype=torch.uint8), f"photos/{picture}.png")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (method,) = (text for text in EXAMPLES["docs/your-method.md"] if "class Regressed" in text)
    (tmp_path / "mine.py").write_text(method.partition("\n\n\nmodule =")[0])
    write_tables()
    less = f"--data.init_args.root {cifar_mini} --data.init_args.batch_size 4 --data.init_args.num_workers 0"
    less += " --trainer.accelerator cpu --trainer.precision 32-true"
    for command in COMMANDS:
        main(on_less_data(command, less.split()))
    student = tmp_path / "runs/cifar100/student_joint_wrn_40_2-wrn_16_2"
    assert len((student / "rows.jsonl").read_text().splitlines()) == 4  # the first run, and three seeds
    assert "</html>" in Path("report.html").read_text() and "<svg" in Path("curves.svg").read_text()
    assert next((tmp_path / "runs/cifar100/baseline_wrn_16_2").rglob("events.out.tfevents*"))
    for run in ("cifar100/teacher_joint_wrn_40_2", "cifar100/student_joint_wrn_40_2-wrn_16_2", "seed1"):
        assert (tmp_path / "runs" / run / "last.ckpt").is_file()
    assert "photos/one.png" in next((tmp_path / "runs").rglob("predictions.csv")).read_text()
    assert "photos/one.png" in Path("predictions/predictions.csv").read_text()
    assert {path.name for path in Path("student").iterdir()} >= {"model.safetensors", "model.pt2", "README.md"}
    for method in ("dkd", "regressed"):
        assert (tmp_path / f"runs/classic/{method}_wrn_40_2-wrn_16_2/seed0/test.json").is_file()
    assert "test/acc" in capsys.readouterr().out


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run the examples of a document in order and return the names that they define."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    monkeypatch.setattr(pl, "Trainer", partial(pl.Trainer, fast_dev_run=1, accelerator="cpu", logger=False))

    def run(name: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for text in EXAMPLES[name]:
            exec(compile(text, name, "exec"), found)
        return found

    return run


SHOWN = {"docs/index.md", "docs/your-network.md", "docs/your-method.md"}  # their results are checked below


@pytest.mark.parametrize("name", [name for name, texts in EXAMPLES.items() if texts and name not in SHOWN])
def test_documented_examples_run(example: Any, name: str) -> None:
    assert set(example(name)) > {"__builtins__"}


def test_start_page_example_gives_stated_shapes(example: Any) -> None:
    found = example("docs/index.md")
    assert [tuple(joint.shape) for joint in found["output"].joint_logits] == [(2, 400)] * 3
    assert len(found["output"].features) == 3 and found["output"].embedding.shape == (2, 128)


def test_method_page_examples_give_stated_terms(example: Any) -> None:
    found = example("docs/your-method.md")
    batch = torch.randn(4, 3, 16, 16), torch.arange(4)
    terms = found["student"].losses(batch)
    assert set(terms) == set(found["student"].loss_weights) >= {"loss_attention"}
    assert set(found["module"].losses(batch)) == {"loss_ce", "loss_kd", "loss_regressed"}
    assert found["module"].regressor.weight.grad.abs().sum() > 0


def test_network_page_examples_give_stated_shapes(example: Any) -> None:
    found = example("docs/your-network.md")
    assert len(found["network"](torch.randn(2, 3, 64, 64)).joint_logits) == 3
    assert found["logits"].shape == (2, 10)


@pytest.mark.parametrize("in_parts", [False, True])
def test_documented_backbone_loads_by_import_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cifar_mini: Path, in_parts: bool
) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (text,) = (text for text in EXAMPLES["docs/your-network.md"] if "class MobileNetV3Small" in text)
    (tmp_path / "mine.py").write_text(text)
    (block,) = (block.text for block in BLOCKS if block.language == "yaml")
    backbone = {"class_path": "mine.MobileNetV3Small", "init_args": {"num_classes": 100}}
    parts = {"network": {"class_path": "hsakd_pl.networks.HSAKDNet", "init_args": {"backbone": backbone}}}
    config = {
        "model": {"class_path": "hsakd_pl.TeacherModule", "init_args": parts if in_parts else yaml.safe_load(block)},
        "data": {"class_path": "hsakd_pl.CIFAR100DataModule", "init_args": {"root": str(cifar_mini), "batch_size": 4}},
        "trainer": {"fast_dev_run": True, "accelerator": "cpu", "default_root_dir": str(tmp_path)},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", str(tmp_path / "config.yaml")])
