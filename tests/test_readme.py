"""The README's commands and examples run as they stand, only on less data."""

import re
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from torchvision.io import write_png

from hsakd_pl.networks import registry
from hsakd_pl.runs.cli import main

REPOSITORY = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
EVERY_COMMAND = [line for language, block in BLOCKS if language == "bash" for line in block.splitlines()]
EVERY_EXAMPLE = [block for language, block in BLOCKS if language == "python"]
# from photographs to an exported student: tests/test_own_images.py runs these
OWN_COMMANDS = [block.splitlines() for language, block in BLOCKS if language == "bash" and "timm:" in block]
[OWN_EXAMPLE] = (block for block in EVERY_EXAMPLE if "timm:" in block)
COMMANDS = [command for command in EVERY_COMMAND if command not in OWN_COMMANDS[0]]
EXAMPLES = [block for block in EVERY_EXAMPLE if block != OWN_EXAMPLE]
MAKE = ["make quickstart", "make test"]  # run by .ci/run itself


def test_every_configuration_exists_and_is_as_frequent_as_stated() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    named = re.findall(r"configs/[\w/-]+\.yaml", readme)
    assert len(named) > 20
    assert [path for path in named if not (REPOSITORY / path).is_file()] == []
    stated = dict(re.findall(r"`python main.py fit --config (configs/\S+)` \| (\d+) \|", readme))
    recipes = REPOSITORY.glob("configs/*/*.yaml")
    of_the_paper = [path for path in recipes if path.parent.name not in ("digits", "images", "trainer")]
    assert sum(map(int, stated.values())) == len(of_the_paper)
    for path, count in stated.items():
        folder, kind = (REPOSITORY / path).parent, "_".join(Path(path).name.split("_")[:2])
        kind = kind if kind.startswith(("teacher", "student")) else kind.partition("_")[0]
        assert len(list(folder.glob(f"{kind}_*.yaml"))) == int(count), path


def test_every_command_is_run() -> None:
    assert len(COMMANDS) > 5
    assert [command for command in EVERY_COMMAND if not command.startswith("python main.py ")] == MAKE
    assert len(OWN_COMMANDS) == 1 and len(OWN_COMMANDS[0]) + len(COMMANDS) == len(EVERY_COMMAND)
    for command in MAKE:
        assert command in (REPOSITORY / ".ci" / "run").read_text()


@pytest.mark.slow
def test_commands(
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
    write_png(torch.randint(0, 256, (3, 48, 40), dtype=torch.uint8), "photos/one.png")
    less = f"--data.init_args.root {cifar_mini} --data.init_args.batch_size 4 --data.init_args.num_workers 0"
    less += " --trainer.accelerator cpu --trainer.precision 32-true --trainer.num_sanity_val_steps 0"
    less += "".join(f" --trainer.limit_{split}_batches 1" for split in ("train", "val", "test", "predict"))
    for command in COMMANDS:
        if command not in MAKE:
            epochs = 2 if "--ckpt_path last" in command else 1
            options = [*less.split(), f"--trainer.max_epochs={epochs}"]
            words = shlex.split(command)[2:]
            main(words if words[0] == "report" else [*words, *options])
    student = tmp_path / "runs/cifar100/student_joint_wrn_40_2-wrn_16_2"
    assert len((student / "rows.jsonl").read_text().splitlines()) == 4  # the first run, and three seeds
    assert "</html>" in Path("report.html").read_text() and "<svg" in Path("curves.svg").read_text()
    assert next((tmp_path / "runs/cifar100/baseline_wrn_16_2").rglob("events.out.tfevents*"))
    for run in ("cifar100/teacher_joint_wrn_40_2", "cifar100/student_joint_wrn_40_2-wrn_16_2", "seed1"):
        assert (tmp_path / "runs" / run / "last.ckpt").is_file()
    assert "photos/one.png" in next((tmp_path / "runs").rglob("predictions.csv")).read_text()
    assert "test/acc" in capsys.readouterr().out


def test_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    monkeypatch.setattr(pl, "Trainer", partial(pl.Trainer, fast_dev_run=1, accelerator="cpu", logger=False))
    found: dict[str, Any] = {"images": torch.randn(2, 3, 32, 32)}
    for example in EXAMPLES:
        exec(compile(example, "README.md", "exec"), found)
    assert [tuple(joint.shape) for joint in found["output"].joint_logits] == [(2, 400)] * 3
    assert len(found["output"].features) == 3 and found["output"].embedding.shape == (2, 128)
    batch = torch.randn(4, 3, 16, 16), torch.arange(4)
    terms = found["student"].losses(batch)
    assert set(terms) == set(found["student"].loss_weights) >= {"loss_attention"}
    assert len(found["network"](torch.randn(2, 3, 64, 64)).joint_logits) == 3


@pytest.mark.parametrize("in_parts", [False, True])
def test_a_backbone_by_import_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cifar_mini: Path, in_parts: bool
) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    monkeypatch.syspath_prepend(tmp_path)
    (example,) = (block for block in EXAMPLES if "class MobileNetV3Small" in block)
    (tmp_path / "mine.py").write_text(example)
    (block,) = (block for language, block in BLOCKS if language == "yaml")
    backbone = {"class_path": "mine.MobileNetV3Small", "init_args": {"num_classes": 100}}
    parts = {"network": {"class_path": "hsakd_pl.networks.HSAKDNet", "init_args": {"backbone": backbone}}}
    config = {
        "model": {"class_path": "hsakd_pl.TeacherModule", "init_args": parts if in_parts else yaml.safe_load(block)},
        "data": {"class_path": "hsakd_pl.CIFAR100DataModule", "init_args": {"root": str(cifar_mini), "batch_size": 4}},
        "trainer": {"fast_dev_run": True, "accelerator": "cpu", "default_root_dir": str(tmp_path)},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", str(tmp_path / "config.yaml")])
