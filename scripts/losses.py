"""Print the losses of 20 training steps of every module and method, to compare two commits digit by digit.

    OMP_NUM_THREADS=1 python scripts/losses.py > before.json      # at the earlier commit
    OMP_NUM_THREADS=1 python scripts/losses.py > after.json       # at the later one, on the same machine
    cmp before.json after.json

Each module is trained on generated images with seed 0: in float64 without, and in float32 with, everything that only
makes training faster. Names of modules limit the output to these.

    OMP_NUM_THREADS=1 python scripts/losses.py --record           # all modules, or those that are named

writes the losses in float64 to tests/regression/losses.json, one line per module, with which the tests compare them:
run it after adding a method, and after a change that is meant to alter results.
"""

import argparse
import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from hsakd_pl import (
    BaselineModule,
    EmbeddingModule,
    HSAKDModule,
    LinearProbeModule,
    MutualModule,
    StudentModule,
    TeacherModule,
    methods,
)
from hsakd_pl.data import ImageDataModule, Split
from hsakd_pl.data.augment import PadCropFlip
from hsakd_pl.files import replacing

RECORDING = Path(__file__).parents[1] / "tests" / "regression" / "losses.json"
STEPS = 20
BATCH_SIZE = 8
PAIR = {"network": "resnet8", "teacher": "resnet14", "teacher_weights": "random"}
PEERS = {"networks": ["resnet8", "resnet14"]}
SIZE = {"image_size": 8}

MODULES: dict[str, tuple[type[HSAKDModule], dict[str, Any]]] = {
    "baseline": (BaselineModule, {"network": "resnet8"}),
    "baseline_warmup": (BaselineModule, {"network": "resnet8", "warmup_epochs": 2, "nesterov": False}),
    "teacher_joint": (TeacherModule, {"network": "resnet8"}),
    "teacher_frozen": (TeacherModule, {"network": "resnet8", "freeze_backbone": True, "weights": "random"}),
    "teacher_colours": (TeacherModule, {"network": "resnet8", "transforms": "colours"}),
    "student": (StudentModule, PAIR),
    "student_class_kd": (StudentModule, {**PAIR, "joint_kd_weight": 0.0, "transform_images": False}),
    "mutual": (MutualModule, PEERS),
    "mutual_three": (MutualModule, {"networks": ["resnet8", "resnet8", "resnet14"]}),
    "mutual_mean": (MutualModule, PEERS | {"target": "mean"}),
    "mutual_min": (MutualModule, PEERS | {"target": "min"}),
    "embedding": (EmbeddingModule, PAIR | SIZE | {"teacher_mean": "data", "map_weight": 1.0}),
    "probe": (LinearProbeModule, {"network": "resnet8", "weights": "random"}),
    "kd": (methods.KDModule, PAIR | SIZE),
    "fitnet": (methods.FitNetModule, PAIR | SIZE),
    "at": (methods.AttentionModule, PAIR | SIZE),
    "sp": (methods.SimilarityModule, PAIR | SIZE),
    "cc": (methods.CorrelationModule, PAIR | SIZE),
    "vid": (methods.VIDModule, PAIR | SIZE),
    "rkd": (methods.RKDModule, PAIR | SIZE),
    "pkt": (methods.PKTModule, PAIR | SIZE),
    "crd": (methods.CRDModule, PAIR | SIZE | {"negatives": 64}),
    "sskd": (methods.SSKDModule, PAIR | SIZE | {"projection_weights": "random"}),
    "sskd_projection": (methods.SSKDProjectionModule, {"network": "resnet14", "weights": "random"} | SIZE),
    "dkd": (methods.DKDModule, PAIR | SIZE),
    "dist": (methods.DISTModule, PAIR | SIZE),
    "standardized": (methods.StandardizedKDModule, PAIR | SIZE),
    "reviewkd": (methods.ReviewKDModule, PAIR | SIZE),
    "ttm": (methods.TTMModule, PAIR | SIZE),
    "wttm": (methods.WTTMModule, PAIR | SIZE),
    "rld": (methods.RLDModule, PAIR | SIZE),
    "nkd": (methods.NKDModule, PAIR | SIZE),
    "ldrld": (methods.LDRLDModule, PAIR | SIZE),
    "abkd": (methods.ABKDModule, PAIR | SIZE),
    "standardized_abkd": (methods.StandardizedABKDModule, PAIR | SIZE),
    "normkd": (methods.NormKDModule, PAIR | SIZE),
    "ctkd": (methods.CTKDModule, PAIR | SIZE),
    "sdd": (methods.SDDModule, PAIR | SIZE),
    "sdd_dkd": (methods.SDDDKDModule, PAIR | SIZE),
    "catkd": (methods.CATKDModule, PAIR | SIZE),
    "mlkd": (methods.MLKDModule, PAIR | SIZE),
    "crld": (methods.CRLDModule, PAIR | SIZE),
    "wkd": (methods.WKDModule, PAIR | SIZE | {"feature_weight": 0.1}),
    "simkd": (methods.SimKDModule, PAIR | SIZE),
    "srrl": (methods.SRRLModule, PAIR | SIZE),
    "dml": (methods.DMLModule, PEERS),
}


class GeneratedDataModule(ImageDataModule):
    """Random images of 8 x 8 pixels, which depend on no other package than PyTorch."""

    num_classes = 10
    image_size = 8
    mean = std = (0.5, 0.5, 0.5)
    train_transform = PadCropFlip(padding=1)

    def read(self, train: bool) -> Split:
        generator = torch.Generator().manual_seed(int(train))
        shape = (BATCH_SIZE * STEPS // 2, 3, self.image_size, self.image_size)
        images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        return Split(images, torch.arange(len(images)) % self.num_classes)


class StepLosses(pl.Callback):
    """Record the loss of every training step and the validation metrics of every epoch."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.metrics: list[dict[str, float]] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(outputs["loss"].item())

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.metrics.append({name: float(metric) for name, metric in trainer.callback_metrics.items() if "val" in name})


def step_losses(name: str, precision: Any, fast: bool) -> dict[str, Any]:
    """Train one module for two epochs of ten batches of 8 images and return its losses and validation metrics."""
    module_class, options = MODULES[name]
    pl.seed_everything(0)
    module = module_class(**options, num_classes=10, lr=0.001, fast=fast)
    recorder = StepLosses()
    trainer = pl.Trainer(
        max_epochs=2,
        limit_train_batches=STEPS // 2,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        precision=precision,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[recorder],
    )
    trainer.fit(module, GeneratedDataModule(batch_size=BATCH_SIZE, num_workers=0))
    return {"losses": recorder.losses, "metrics": recorder.metrics}


def recorded_losses() -> dict[str, list[float]]:
    """Return the losses in float64 that are recorded for each module, by its name."""
    recorded: dict[str, list[float]] = json.loads(RECORDING.read_text())
    return recorded


def record(losses: Mapping[str, list[float]]) -> None:
    """Add the losses of modules to the recording, or replace them; modules that no longer exist are removed."""
    known = recorded_losses() if RECORDING.exists() else {}
    known |= losses
    lines = [f"{json.dumps(name)}: {json.dumps(known[name])}" for name in MODULES if name in known]
    with replacing(RECORDING) as file:
        file.write("{\n" + ",\n".join(lines) + "\n}\n")


def main() -> None:
    """Print one JSON object: module -> precision -> losses and metrics; or record the losses in float64."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"one of {', '.join(MODULES)} (default: all)")
    parser.add_argument("--record", action="store_true", help=f"write the losses in float64 to {RECORDING.name}")
    options = parser.parse_args()
    unknown = [name for name in options.modules if name not in MODULES]
    if unknown:
        parser.error(f"{', '.join(unknown)}: choose from {', '.join(MODULES)}")
    names = options.modules or list(MODULES)
    warnings.simplefilter("ignore")
    for logger in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    torch.use_deterministic_algorithms(True, warn_only=True)
    in_float64 = {name: step_losses(name, "64-true", fast=False) for name in names}
    if options.record:
        record({name: [round(loss, 9) for loss in run["losses"]] for name, run in in_float64.items()})
        return
    in_float32 = {name: step_losses(name, "32-true", fast=True) for name in names}
    print(json.dumps({name: {"float64": in_float64[name], "float32": in_float32[name]} for name in names}, indent=1))


if __name__ == "__main__":
    main()
