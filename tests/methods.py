"""Every method on a pair of small networks, for the CIFAR-100 cut, or where that is missing for the digits."""

import os
from typing import Any

import torch

from hsakd_pl import CIFAR100DataModule, DigitsDataModule, HSAKDModule, methods
from hsakd_pl.data import ImageDataModule

CUT = "HSAKD_CIFAR100_CUT"  # environment variable with the folder of the cut, also for the processes that a test starts

PAIR: dict[str, Any] = {"network": "resnet8", "teacher": "resnet14", "teacher_weights": "random"}
# class, options, and the terms of its loss
METHODS: dict[str, tuple[type[HSAKDModule], dict[str, Any], set[str]]] = {
    "kd": (methods.KDModule, PAIR, {"ce", "kd"}),
    "fitnet": (methods.FitNetModule, PAIR, {"ce", "kd", "fitnet"}),
    "at": (methods.AttentionModule, PAIR, {"ce", "kd", "at"}),
    "sp": (methods.SimilarityModule, PAIR, {"ce", "kd", "sp"}),
    "cc": (methods.CorrelationModule, PAIR, {"ce", "kd", "cc"}),
    "vid": (methods.VIDModule, PAIR, {"ce", "kd", "vid"}),
    "rkd": (methods.RKDModule, PAIR, {"ce", "kd", "rkd"}),
    "pkt": (methods.PKTModule, PAIR, {"ce", "kd", "pkt"}),
    "crd": (methods.CRDModule, {**PAIR, "negatives": 64}, {"ce", "kd", "crd"}),
    "sskd": (
        methods.SSKDModule,
        {**PAIR, "projection_weights": "random"},
        {"ce", "kd", "transformed_kd", "contrast"},
    ),
    "sskd1": (methods.SSKDProjectionModule, {"network": "resnet14", "weights": "random"}, {"contrast"}),
    "dkd": (methods.DKDModule, PAIR, {"ce", "kd", "dkd"}),
    "dist": (methods.DISTModule, PAIR, {"ce", "kd", "dist"}),
    "standardized": (methods.StandardizedKDModule, PAIR, {"ce", "kd"}),
    "reviewkd": (methods.ReviewKDModule, PAIR, {"ce", "kd", "reviewkd"}),
    "dml": (methods.DMLModule, {"networks": ["resnet8", "resnet14"]}, {"ce", "kd"}),
}
# those whose loss compares the images of a batch: on several devices, of each one's part
OF_A_BATCH = {"sp", "cc", "rkd", "pkt", "dist", "sskd", "sskd1"}


def make_data(**options: Any) -> ImageDataModule:
    """The cut, or the digits."""
    return CIFAR100DataModule(os.environ[CUT], **options) if CUT in os.environ else DigitsDataModule(**options)


def make_method(name: str, **options: Any) -> HSAKDModule:
    """A module for these data, with the same weights at every call."""
    torch.manual_seed(0)
    module, own, _ = METHODS[name]
    data = make_data()
    size = {} if "networks" in own else {"image_size": data.image_size}
    return module(**{"num_classes": data.num_classes, **size, "lr": 0.001, **own, **options})
