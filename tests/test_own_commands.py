"""Test the commands of docs/your-network.md with a network like AlexNet, which is flattened by ``view``."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from small import error_of, needs_onnx
from torchvision.io import write_png

from hsakd_pl import create_network
from hsakd_pl.cli.main import main
from hsakd_pl.records.formats import read_row

PAGE = Path(__file__).parents[1] / "docs" / "your-network.md"
[BLOCK] = re.findall(r"```bash\n(.*?mine\.AlexNet.*?)```", PAGE.read_text(), re.DOTALL)
COMMANDS = re.sub(r"\\\n *", "", BLOCK).splitlines()

MINE = """
import torch
from torch import nn


class AlexNet(nn.Module):
    def __init__(self, num_classes=1000):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Linear(32 * 2 * 2, 64), nn.ReLU(inplace=True), nn.Linear(64, num_classes)
        )

    def forward(self, x):
        x = self.avgpool(self.features(x))
        x = x.view(x.size(0), 32 * 2 * 2)
        return self.classifier(x)


class Counted(AlexNet):
    def __init__(self, n_classes):
        super().__init__(n_classes)


class Deep(AlexNet):
    def __init__(self, depth, num_classes):
        super().__init__(num_classes)


def nothing(num_classes):
    return "a network"


number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    Path("mine.py").write_text(MINE)
    return tmp_path


@needs_onnx
@pytest.mark.slow
def test_own_network_is_fitted_tested_exported_and_predicts_by_the_documented_commands(folder: Path) -> None:
    torch.save(create_network("resnet20", 10, branches=False).state_dict(), "teacher.pth")
    Path("photos").mkdir()
    for picture in ("one", "two"):
        write_png(torch.randint(0, 256, (3, 40, 48), dtype=torch.uint8), f"photos/{picture}.png")
    less = {
        "fit": "--trainer.max_epochs 1 --trainer.limit_train_batches 2 --trainer.limit_val_batches 1 "
        "--trainer.accelerator cpu",
        "test": "--trainer.limit_test_batches 1",
    }
    assert [shlex.split(command)[1] for command in COMMANDS] == ["fit", "test", "export", "predict"]
    for command in COMMANDS:
        _, name, *words = shlex.split(command)
        main([name, *words, *shlex.split(less.get(name, ""))])
    assert 0 <= read_row(Path("runs/alexnet/result.json"))["last_val_acc"] <= 1
    assert {path.name for path in Path("exported").iterdir()} >= {"model.safetensors", "model.pt2", "model.onnx"}
    assert len(Path("predictions.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mine.Counted", r"missing a required argument: 'n_classes'|unexpected keyword argument 'num_classes'"),
        ("mine.Deep", "missing a required argument: 'depth'"),
        ("mine.nothing", "returns str: name a class or function"),
        ("mine.number", "3 is not a callable object"),
    ],
)
def test_class_that_num_classes_does_not_build_is_refused_in_one_sentence(
    name: str, reason: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", "hsakd_pl.BaselineModule", "--model.init_args.network", name]
    options += ["--data", "hsakd_pl.DigitsDataModule", "--trainer.logger", "false"]
    message = error_of(capsys, lambda: main(["fit", *options]))
    assert name in message
    assert re.search(reason, message)
