"""Print the losses of 20 training steps of every module and method, to compare two commits digit by digit.

    OMP_NUM_THREADS=1 python scripts/losses.py > before.json      # at the earlier commit
    OMP_NUM_THREADS=1 python scripts/losses.py > after.json       # at the later one, on the same machine
    cmp before.json after.json

Each module is trained on the embedded digits with seed 0: in float64 without, and in float32 with, everything that
only makes training faster.
"""

import json
import logging
import sys
import warnings
from typing import Any

import pytorch_lightning as pl
import torch

from hsakd_pl import (
    BaselineModule,
    DigitsDataModule,
    HSAKDModule,
    LinearProbeModule,
    MutualModule,
    StudentModule,
    TeacherModule,
    methods,
)

STEPS = 20
PAIR = {"network": "resnet8", "teacher": "resnet14", "teacher_weights": "random"}
PEERS = {"networks": ["resnet8", "resnet14"]}
SIZE = {"image_size": 16}  # the embedded digits have 16 x 16 pixels

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
    """Train one module for two epochs of ten batches of 16 images and return its losses and validation metrics."""
    module_class, options = MODULES[name]
    pl.seed_everything(0)
    module = module_class(**options, num_classes=10, lr=0.001, fast=fast)
    recorder = StepLosses()
    trainer = pl.Trainer(
        max_epochs=2,
        limit_train_batches=STEPS // 2,
        limit_val_batches=2,
        num_sanity_val_steps=0,
        precision=precision,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[recorder],
    )
    trainer.fit(module, DigitsDataModule(batch_size=16, num_workers=0))
    return {"losses": recorder.losses, "metrics": recorder.metrics}


def main() -> None:
    """Print one JSON object: module -> precision -> losses and metrics."""
    warnings.simplefilter("ignore")
    for logger in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    torch.use_deterministic_algorithms(True, warn_only=True)
    recorded = {}
    for name in sys.argv[1:] or MODULES:
        recorded[name] = {
            "float64": step_losses(name, "64-true", fast=False),
            "float32": step_losses(name, "32-true", fast=True),
        }
    print(json.dumps(recorded, indent=1))


if __name__ == "__main__":
    main()
