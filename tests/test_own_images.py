"""Test the README's path from six classes of photographs to a student that runs without this package."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
from huggingface_hub import constants
from safetensors.torch import save_file
from small import needs_onnx
from test_export import ALONE
from test_readme import OWN_COMMANDS, OWN_EXAMPLE, REPOSITORY, arguments

from hsakd_pl.cli.main import main

pytestmark = needs_onnx
timm = pytest.importorskip("timm", reason="timm is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
CLASSES = 6
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMALL = ["--trainer.accelerator", "cpu", "--data.num_workers", "0", "--data.batch_size", "8", "--data.image_size", "64"]
SHORT = ["--trainer.max_epochs", "1", "--trainer.num_sanity_val_steps", "0", "--trainer.limit_train_batches", "4"]
SLOW = ["--model.lr", "0.001"]  # for initial weights
LESS = {"fit": [*SMALL, *SHORT, *SLOW], "test": SMALL}

# What a phone or a server does with the exported graph: the card's own lines, with onnxruntime, NumPy and PIL
CARD = """
import re
blocks = re.findall("```python\\n(.*?)```", open("README.md").read(), re.S)
[lines] = (block for block in blocks if "onnxruntime" in block)
exec(lines)
"""


@pytest.fixture
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unpack: Callable[[str], Path]) -> Path:
    """Create a working folder with photos of mixed sizes in six classes, and weights in the cache of the hub's client.

    The weights are timm's initial ones instead of the published ones, since tests have no network.
    """
    monkeypatch.chdir(tmp_path)
    imagenet_mini = unpack("imagenet-mini.tar.gz") / "imagenet-mini"
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    for split in ("train", "val"):
        for folder in sorted((imagenet_mini / split).iterdir())[:CLASSES]:
            target = tmp_path / "photos" / split / folder.name
            target.mkdir(parents=True)
            for image in sorted(folder.iterdir())[:8]:
                shutil.copy(image, target)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("tf_efficientnet_lite0", "lcnet_050"):
        model = timm.create_model(name)
        repository = tmp_path / "cache" / f"models--{model.pretrained_cfg['hf_hub_id'].replace('/', '--')}"
        (repository / "snapshots" / COMMIT).mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(COMMIT)
        save_file(model.state_dict(), repository / "snapshots" / COMMIT / "model.safetensors")
    return tmp_path / "photos"


@pytest.mark.slow
def test_commands_turn_photographs_into_a_standalone_graph(
    photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in OWN_COMMANDS:
        words = arguments(command)
        if words[0] == "export":  # only the run is needed from here on, and for int8 the images
            shutil.rmtree("runs/images/teacher")
            shutil.rmtree("cache")
        if words[0] == "predict":
            shutil.rmtree(photographs / "train")
        main(words + LESS.get(words[0], []))
    names = sorted(path.name for path in (photographs / "val").iterdir())
    assert json.loads(Path("exported/config.json").read_text())["class_names"] == names
    files = {path.name for path in Path("exported").iterdir()}
    assert files >= {"model.safetensors", "model.pt2", "model.onnx", "model.int8.onnx", "README.md", "config.json"}
    rows = [json.loads(line) for line in Path("predictions.jsonl").read_text().splitlines()]
    assert len(rows) == len(list(photographs.rglob("*.JPEG")))
    assert {row["class"] for row in rows} <= {*names} and not any("error" in row for row in rows)
    test = json.loads(Path("runs/images/student/test.json").read_text())
    assert {"ensemble", "early_exit", "cascade"} <= test.keys()
    assert "predictions are in predictions.csv" in capsys.readouterr().out
    shutil.copy(rows[0]["image"], "exported/picture.jpg")
    environment = {"PATH": os.environ["PATH"]}
    alone = [sys.executable, "-c", ALONE.format(refused=("torch", "hsakd_pl", "pytorch_lightning")) + CARD]
    done = subprocess.run(alone, cwd="exported", env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, rows[0]["class"]), done.stderr


@pytest.mark.slow
def test_python_example_trains_on_photographs_in_ten_lines(
    photographs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len([line for line in OWN_EXAMPLE.splitlines() if line and "import" not in line]) <= 10
    less = {"accelerator": "cpu", "limit_train_batches": 1, "limit_val_batches": 1, "num_sanity_val_steps": 0}
    trainer = partial(pl.Trainer, logger=False, enable_progress_bar=False, **less)
    monkeypatch.setattr(pl, "Trainer", lambda max_epochs: trainer(max_epochs=1))
    assert "image_size=224" in OWN_EXAMPLE  # a step of 64 views of that size takes long on a CPU
    exec(compile(OWN_EXAMPLE.replace("image_size=224", "image_size=64"), "README.md", "exec"), {})
    names = sorted(path.name for path in (photographs / "val").iterdir())
    assert str(names) in capsys.readouterr().out
    assert {path.name for path in Path("exported").iterdir()} >= {"model.onnx", "model.pt2", "README.md"}
