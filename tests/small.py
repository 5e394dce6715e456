"""Provide small modules of every kind, a batch, silent trainers and runs of the command line."""

import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hsakd_pl import BaselineModule, HSAKDModule, LinearProbeModule, MutualModule, StudentModule, TeacherModule
from hsakd_pl.cli.main import main
from hsakd_pl.export.formats import ONNX_MINIMUM_TORCH
from hsakd_pl.fast.compiled import MINIMUM_TORCH
from hsakd_pl.fast.kernels.library import library
from hsakd_pl.files import replacing
from hsakd_pl.modules.frozen import Frozen
from hsakd_pl.networks import create_network
from hsakd_pl.records.curves import Epochs, save_curves
from hsakd_pl.records.formats import read_history

CLASSES = 4
BATCH = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(CLASSES)

needs_kernel = pytest.mark.skipif(library() is None, reason="no C compiler with OpenMP, or a CPU without AVX2")
needs_compile = pytest.mark.skipif(
    torch.__version__ < MINIMUM_TORCH, reason=f"the option compile needs PyTorch {MINIMUM_TORCH} or newer"
)

needs_onnx = pytest.mark.skipif(
    torch.__version__ < ONNX_MINIMUM_TORCH, reason=f"the format onnx needs PyTorch {ONNX_MINIMUM_TORCH} or newer"
)

TEACHER = {"teacher": "resnet14", "teacher_weights": "random"}
# Class, networks and loss terms of each kind
MODULES: dict[str, tuple[type[HSAKDModule], dict[str, Any], list[str]]] = {
    "baseline": (BaselineModule, {"network": "resnet8"}, ["ce"]),
    "teacher": (TeacherModule, {"network": "resnet8"}, ["ce", "joint_ce"]),
    "student": (StudentModule, {"network": "resnet8", **TEACHER}, ["ce", "kd", "joint_kd"]),
    "mutual": (MutualModule, {"networks": ["resnet8", "resnet14"]}, ["ce", "joint_ce", "kd", "joint_kd"]),
    "probe": (LinearProbeModule, {"network": "resnet8", "weights": "random"}, ["ce"]),
}


def make(kind: str, built: bool = False, **options: Any) -> HSAKDModule:
    """Return a module of 4 classes, from network names or built networks, with the same weights at every call."""
    torch.manual_seed(0)
    module, networks, _ = MODULES[kind]
    if built:
        networks = {key: _build(name) for key, name in networks.items() if not key.endswith("weights")}
    return module(**(networks | {"num_classes": CLASSES} | options))


def _build(name: str | list[str]) -> Any:
    return create_network(name, CLASSES) if isinstance(name, str) else [_build(peer) for peer in name]


def loader(images: Tensor = BATCH[0]) -> DataLoader[tuple[Tensor, ...]]:
    """Return a loader of two batches of two images."""
    return DataLoader(TensorDataset(images, BATCH[1]), batch_size=2)


def trainer(folder: Path | None = None, max_epochs: int = 1, **options: Any) -> pl.Trainer:
    """Return a silent CPU trainer that writes ``last.ckpt`` to ``folder``, or nothing without a folder."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    if folder is not None:
        last = ModelCheckpoint(folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
        options["callbacks"] = [*options.get("callbacks", []), last]
    quiet["enable_checkpointing"] = folder is not None
    return pl.Trainer(max_epochs=max_epochs, accelerator="cpu", **(quiet | options))


class Losses(pl.Callback):
    """Record the loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: HSAKDModule, outputs: Any, *_: Any) -> None:
        self.values.append(float(outputs["loss"]))


class Asked:
    """Count the batches that teachers compute."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches = 0
        compute = Frozen.__call__

        def counted(teacher: Frozen, images: Tensor) -> Any:
            self.batches += 1
            return compute(teacher, images)

        monkeypatch.setattr(Frozen, "__call__", counted)

    def since_last(self) -> int:
        batches, self.batches = self.batches, 0
        return batches


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``changes`` at every depth."""
    nested = {key: merged(base[key], changes[key]) for key in base.keys() & changes if isinstance(base[key], dict)}
    return base | changes | nested


def run(command: str, *options: str, module: str = "BaselineModule", **changes: Any) -> Path:
    """Run a command on a small configuration with ``changes`` and return the folder of its output."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    folder = Path("runs", module)
    config = {
        "model": {"class_path": f"hsakd_pl.{module}", "init_args": {"lr": 0.01}},
        "data": {"class_path": "hsakd_pl.DigitsDataModule", "init_args": {"num_workers": 0}},
        "trainer": {"max_epochs": 1, "limit_train_batches": 2, "accelerator": "cpu", **quiet},
    }
    config["trainer"]["default_root_dir"] = str(folder)
    if module != "MutualModule":
        config["model"]["init_args"]["network"] = "resnet8"
    Path("config.yaml").write_text(json.dumps(merged(config, changes)))
    main([command, "--config", "config.yaml", *options])
    return folder


PICTURES: dict[tuple[Any, ...], bytes] = {}  # by what decides how the curves of a run are drawn


def save_similar_curves(runs: Mapping[str, Sequence[Epochs]], path: Path) -> None:
    """Save the curves of a run, or those of an earlier run with as many epochs, the same metrics and usual values."""
    [rows] = runs[""]
    usual = all(abs(value) < 1000 for row in rows for value in row.values())
    kind = len(rows), frozenset(name for row in rows for name in row)
    if usual and kind in PICTURES:
        with replacing(path, "wb") as file:
            file.write(PICTURES[kind])
        return
    save_curves(runs, path)
    if usual:
        PICTURES[kind] = path.read_bytes()


def history(folder: str | Path) -> list[dict[str, float]]:
    """Return what a run logged, by epoch."""
    return read_history(Path(folder, "metrics.csv"))


def error_of(capsys: pytest.CaptureFixture[str], command: Callable[[], Any]) -> str:
    """Return the message of a command that ends with status 2 and one short error, without traceback or usage."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        command()
    assert end.value.code == 2
    printed = capsys.readouterr().err
    before, message = printed.rsplit("error: ", 1)
    assert not [word for word in ("Traceback", "usage:", "error:") if word in before]
    assert len(message) < 1000
    return message.strip()


def with_statistics(network: nn.Module, spread: float = 0.5) -> nn.Module:
    """Move the statistics and weights of every norm away from their initial zeros and ones; return the network."""
    generator = torch.Generator().manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight.data, layer.running_var):
                tensor.uniform_(1 - spread, 1 + spread, generator=generator)
            for tensor in (layer.bias.data, layer.running_mean):
                tensor.normal_(0, 0.1, generator=generator)
    return network.eval()


def norms(network: nn.Module) -> int:
    """Return the number of batch norms in a network."""
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())


def grown_by(action: Callable[[], object]) -> int:
    """Return the peak memory of this process during ``action``, in MiB above its current memory."""

    def memory(kind: str) -> int:
        [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind)]
        return int(line.split()[1]) // 1024

    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory("VmRSS")
    action()
    return memory("VmHWM") - before


def documented(data_module: str) -> list[list[str]]:
    """Return the arguments of the commands that ``docs/your-data.md`` shows for a data module."""
    page = (Path(__file__).resolve().parents[1] / "docs" / "your-data.md").read_text()
    blocks = [
        block for block in re.findall(r"^```bash\n(.*?)^```$", page, re.DOTALL | re.MULTILINE) if data_module in block
    ]
    [commands] = [re.sub(r"\\\n *", "", block).splitlines() for block in blocks]
    return [shlex.split(command)[1:] for command in commands]
