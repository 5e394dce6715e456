"""The summary of a run before it starts and after it ends, in a few aligned lines each."""

import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only

from hsakd_pl.cpu.kinds import bf16_advice, find_cpu
from hsakd_pl.cpu.threads import describe_threads
from hsakd_pl.data import FeatureDataModule, ImageDataModule
from hsakd_pl.errors import counted
from hsakd_pl.fast.kernels.library import library, why_missing
from hsakd_pl.files.escaping import for_terminal
from hsakd_pl.files.weights import WeightFile
from hsakd_pl.modules import HSAKDModule
from hsakd_pl.networks import Network
from hsakd_pl.networks.cost import multiply_adds
from hsakd_pl.networks.network import Classifier

# What the C kernels compute, by precision
KERNELS = {
    "32-true": "3x3 convolutions by Winograd's algorithm, norms joined with ReLUs",
    "bf16-mixed": "norms joined with ReLUs",
}


Count = Callable[[Network, int], int]  # of multiply-adds, for images of a size


class Introduction(pl.Callback):
    """Print networks, data, device and folder before a fit.

    Args:
        count: function that counts the multiply-adds of a network; one that another callback uses too may keep them.
    """

    def __init__(self, count: Count = multiply_adds) -> None:
        self.count = count

    @rank_zero_only
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(pl_module, HSAKDModule):
            print(aligned(introduction(trainer, pl_module, self.count)), flush=True)


def aligned(lines: Iterable[tuple[str, str]]) -> str:
    """Format lines of a name, of at most eight letters, and a text."""
    return "\n".join(f"{name:9} {for_terminal(text)}" for name, text in lines)


def introduction(trainer: pl.Trainer, module: HSAKDModule, count: Count = multiply_adds) -> list[tuple[str, str]]:
    """Return networks with their sizes, data with counts, device and precision, epochs and batch, and the folder."""
    data = getattr(trainer, "datamodule", None)
    images = data.images if isinstance(data, FeatureDataModule) else data
    lines = _describe_networks(module, getattr(images, "image_size", None), count)
    if isinstance(images, ImageDataModule):
        lines.append(("data", _describe_data(images)))
    length = _describe_length(trainer)
    batch_size = getattr(data, "batch_size", "of the loader")
    lines += _describe_device(trainer, module)
    lines.append(("training", f"{length}, batch {batch_size}, seed {os.environ.get('PL_GLOBAL_SEED')}"))
    lines.append(("folder", trainer.default_root_dir))
    return lines


def _describe_device(trainer: pl.Trainer, module: HSAKDModule) -> list[tuple[str, str]]:
    """Return the devices and the precision; of a CPU also threads, kernels, and a better precision that is not used."""
    device = module.device
    details: list[str] = []
    if device.type == "cpu":
        cpu = find_cpu()
        name = f"{cpu.model} ({cpu.kind.name}), {describe_threads()}"
        details.append(_describe_operators(trainer, module))
        if trainer.precision == "32-true" and not _has_fixed_precision(trainer):
            details += filter(None, [bf16_advice(cpu.kind)])
    else:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    line = ("device", f"{trainer.world_size} x {name}, precision {trainer.precision}")
    return [line, *(("", detail) for detail in details)]


def _has_fixed_precision(trainer: pl.Trainer) -> bool:
    """Return True if a callback computes in one precision alone, as training for int8 does."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    return any(hasattr(callback, "needed_precision") for callback in callbacks)


def _describe_operators(trainer: pl.Trainer, module: HSAKDModule) -> str:
    """Return which operators a fit on a CPU uses, and why not the faster ones."""
    if not module.fast:
        reason = "fast is off"
    elif torch.are_deterministic_algorithms_enabled():
        reason = "trainer.deterministic rules out sums that depend on the number of threads"
    elif trainer.precision not in KERNELS:
        reason = f"the C kernels compute in {' and '.join(KERNELS)}"
    elif library() is None:
        reason = why_missing()
    else:
        return f"C kernels: {KERNELS[trainer.precision]}"
    return f"PyTorch's operators alone: {reason}"


def _describe_length(trainer: pl.Trainer) -> str:
    """Return the number of epochs or steps of a fit, whichever limits it."""
    limits = [] if trainer.max_epochs == -1 else [counted(trainer.max_epochs or 0, "epoch")]
    if trainer.max_steps != -1:
        steps = counted(trainer.max_steps, "step")
        limits.append(f"at most {steps}" if limits else steps)
    return ", ".join(limits) or "unlimited epochs"


def _describe_networks(module: HSAKDModule, image_size: int | None, count: Count) -> list[tuple[str, str]]:
    names = module.hparams.get("networks") or [module.hparams.get("network")] * len(module.networks)
    networks = Counter[str]()
    for name, network in zip(names, module.networks, strict=True):
        title = network.name or name or type(network.without_branches).__name__  # with what the method has added
        networks[f"{title}: {_sizes(network, image_size, count)}"] += 1
    lines = [("network", f"{number} x {text}" if number > 1 else text) for text, number in networks.items()]
    trained = set(module.modules())
    for frozen in module.frozen:
        if frozen.network not in trained:
            name = module.hparams.get("teacher") or type(frozen.network).__name__
            if not isinstance(frozen.network, Network):
                lines.append(("frozen", type(frozen.network).__name__))
                continue
            teacher_size = image_size if frozen.adapter is None else frozen.adapter.image_size or image_size
            lines.append(("teacher", f"{name}: {_sizes(frozen.network, teacher_size, count)}"))
    if "teacher_weights" in module.weight_files:
        lines.append(("", describe_file(module.weight_files["teacher_weights"])))
    return lines


def _describe_data(images: ImageDataModule) -> str:
    counts = []
    for name, split in images.splits.items():
        if name != "val" or split is not images.splits.get("test"):
            counts.append(f"{len(split.targets):,} {name}")
    size = images.image_size
    classes = counted(images.num_classes, "class")
    return f"{type(images).__name__}: {', '.join(counts)} images, {size} x {size}, {classes}"


def describe_file(file: WeightFile) -> str:
    """Return the path of a weight file, the start of its hash, and the accuracy that it states."""
    facts = [file.path]
    if file.sha256 is not None:
        facts.append(f"sha256 {file.sha256[:12]}")
    if file.accuracy is not None:
        facts.append(f"{100 * file.accuracy:.2f} %")
    return ", ".join(facts)


def _sizes(network: Network, image_size: int | None, count: Count) -> str:
    sizes = _size(network.without_branches, image_size, count)
    if len(network.branches):
        sizes += f"; with {counted(len(network.branches), 'branch')} {_size(network, image_size, count)}"
    return sizes


def _size(network: Network, image_size: int | None, count: Count) -> str:
    size = f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.2f} M parameters"
    if image_size is None or isinstance(network, Classifier):  # which may not work on another device
        return size
    return f"{size}, {count(network, image_size) / 1e6:,.1f} M multiply-adds"


def conclusion(folder: str | Path, result: str | None, commands: list[str]) -> str:
    """Return the end of a fit in a few lines: its result, the files in its folder, and commands to run next."""
    lines = [] if result is None else [("result", result)]
    files = sorted(path.name for path in Path(folder).glob("[!.]*"))
    lines.append(("files", f"{folder}: {', '.join(files)}"))
    for number, command in enumerate(commands):
        lines.append(("" if number else "next", command))
    return aligned(lines)
