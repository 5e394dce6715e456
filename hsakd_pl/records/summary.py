"""What a run is about to do, and what has come of it, in a few aligned lines each."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only

from hsakd_pl.data import FeatureDataModule, ImageDataModule
from hsakd_pl.files.weights import WeightFile
from hsakd_pl.modules import HSAKDModule
from hsakd_pl.networks import Network
from hsakd_pl.networks.cost import multiply_adds
from hsakd_pl.networks.network import Classifier


class Introduction(pl.Callback):
    """Prints, before a fit, its networks, data, device and folder."""

    @rank_zero_only
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(pl_module, HSAKDModule):
            print(aligned(introduction(trainer, pl_module)), flush=True)


def aligned(lines: Iterable[tuple[str, str]]) -> str:
    """Join names and what stands beside them; no name is longer than eight letters."""
    return "\n".join(f"{name:9} {text}" for name, text in lines)


def introduction(trainer: pl.Trainer, module: HSAKDModule) -> list[tuple[str, str]]:
    """Name networks with their sizes, data with counts, device and precision, epochs and batch, and the folder."""
    data = getattr(trainer, "datamodule", None)
    images = data.images if isinstance(data, FeatureDataModule) else data
    size = getattr(images, "image_size", None)
    names = module.hparams.get("networks") or [module.hparams.get("network")] * len(module.networks)
    found = zip(names, module.networks, strict=True)
    networks = Counter(
        f"{name or type(network.without_branches).__name__}: {_sizes(network, size)}" for name, network in found
    )
    lines = [("network", f"{count} x {text}" if count > 1 else text) for text, count in networks.items()]
    for teacher in (frozen.network for frozen in module.teachers):
        lines += [("teacher", f"{module.hparams.get('teacher') or type(teacher).__name__}: {_sizes(teacher, size)}")]
    if "teacher_weights" in module.weight_files:
        lines += [("", describe_file(module.weight_files["teacher_weights"]))]
    if isinstance(images, ImageDataModule):
        splits, test = images.splits, images.splits.get("test")
        listed = [name for name, split in splits.items() if name != "val" or split is not test]
        counts = ", ".join(f"{len(splits[name].targets):,} {name}" for name in listed)
        lines += [("data", f"{type(images).__name__}: {counts} images, {size} x {size}, {images.num_classes} classes")]
    cuda = module.device.type == "cuda"
    device = torch.cuda.get_device_name(module.device) if cuda else f"{module.device.type}, {os.cpu_count()} cores"
    lines += [("device", f"{trainer.world_size} x {device}, precision {trainer.precision}")]
    length = f"{trainer.max_epochs} epochs" if (trainer.max_epochs or -1) > 0 else "epochs without end"
    length += f", at most {trainer.max_steps:,} steps" if trainer.max_steps > 0 else ""
    batch = getattr(data, "batch_size", "as the loader has it")
    lines += [("training", f"{length}, batch {batch}, seed {os.environ.get('PL_GLOBAL_SEED')}")]
    return [*lines, ("folder", trainer.default_root_dir)]


def describe_file(file: WeightFile) -> str:
    """Return the path of a weight file, the start of its hash, and the accuracy that it states."""
    facts = [file.path]
    if file.sha256 is not None:
        facts.append(f"sha256 {file.sha256[:12]}")
    if file.accuracy is not None:
        facts.append(f"{100 * file.accuracy:.2f} %")
    return ", ".join(facts)


def _sizes(network: Network, image_size: int | None) -> str:
    alone, branches = _size(network.without_branches, image_size), len(network.branches)
    return f"{alone}; with {branches} branches {_size(network, image_size)}" if branches else alone


def _size(network: Network, image_size: int | None) -> str:
    size = f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.2f} M parameters"
    if image_size is None or isinstance(network, Classifier):  # which may not work on another device
        return size
    return f"{size}, {multiply_adds(network, image_size) / 1e6:,.1f} M multiply-adds"


def conclusion(trainer: pl.Trainer, best: float | None, best_epoch: int | None, commands: list[str]) -> str:
    """Name the result of a fit, its best epoch, what lies in its folder, and what to run next."""
    folder, lines = Path(trainer.default_root_dir), []
    if (last := trainer.callback_metrics.get("val/acc")) is not None and best is not None:
        found = f"{100 * last:.2f} % after epoch {trainer.current_epoch}, the last; best {100 * best:.2f} %"
        lines += [("result", f"{found} (epoch {best_epoch})" if best_epoch else found)]
    lines += [("files", f"{folder}: {', '.join(sorted(path.name for path in folder.glob('[!.]*')))}")]
    return aligned([*lines, *(("" if number else "next", command) for number, command in enumerate(commands))])
