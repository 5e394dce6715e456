"""Provide every method with a pair of small networks, on the CIFAR-100 cut if its folder is set, or on the digits."""

import os
from typing import Any

import torch
from torch import Tensor

from hsakd_pl import CIFAR100DataModule, DigitsDataModule, HSAKDModule, methods
from hsakd_pl.data import ImageDataModule
from hsakd_pl.methods.crd import Negatives

CUT = "HSAKD_CIFAR100_CUT"  # environment variable with the folder of the cut, which processes started by a test inherit

PAIR: dict[str, Any] = {"network": "resnet8", "teacher": "resnet14", "teacher_weights": "random"}
# Class, options and loss terms of each method
METHODS: dict[str, tuple[type[HSAKDModule], dict[str, Any], set[str]]] = {
    "kd": (methods.KDModule, PAIR, {"ce", "kd"}),
    "fitnet": (methods.FitNetModule, PAIR, {"ce", "kd", "fitnet"}),
    "at": (methods.AttentionModule, PAIR, {"ce", "kd", "at"}),
    "sp": (methods.SimilarityModule, PAIR, {"ce", "kd", "sp"}),
    "cc": (methods.CorrelationModule, PAIR, {"ce", "kd", "cc"}),
    "vid": (methods.VIDModule, PAIR, {"ce", "kd", "vid"}),
    "rkd": (methods.RKDModule, PAIR, {"ce", "kd", "rkd"}),
    "pkt": (methods.PKTModule, PAIR, {"ce", "kd", "pkt"}),
    "crd": (methods.CRDModule, PAIR | {"negatives": 64}, {"ce", "kd", "crd"}),
    "sskd": (
        methods.SSKDModule,
        PAIR | {"projection_weights": "random"},
        {"ce", "kd", "transformed_kd", "contrast"},
    ),
    "sskd1": (methods.SSKDProjectionModule, {"network": "resnet14", "weights": "random"}, {"contrast"}),
    "dkd": (methods.DKDModule, PAIR, {"ce", "kd", "dkd"}),
    "dist": (methods.DISTModule, PAIR, {"ce", "kd", "dist"}),
    "standardized": (methods.StandardizedKDModule, PAIR, {"ce", "kd"}),
    "reviewkd": (methods.ReviewKDModule, PAIR, {"ce", "kd", "reviewkd"}),
    "ttm": (methods.TTMModule, PAIR, {"ce", "kd", "ttm"}),
    "wttm": (methods.WTTMModule, PAIR, {"ce", "kd", "wttm"}),
    "rld": (methods.RLDModule, PAIR, {"ce", "kd", "rld"}),
    "nkd": (methods.NKDModule, PAIR, {"ce", "kd", "nkd"}),
    "ldrld": (methods.LDRLDModule, PAIR, {"ce", "kd", "ldrld"}),
    "abkd": (methods.ABKDModule, PAIR, {"ce", "kd", "abkd"}),
    "standardized_abkd": (methods.StandardizedABKDModule, PAIR, {"ce", "kd", "abkd"}),
    "normkd": (methods.NormKDModule, PAIR, {"ce", "kd"}),
    "ctkd": (methods.CTKDModule, PAIR, {"ce", "kd", "ctkd"}),
    "sdd": (methods.SDDModule, PAIR, {"ce", "kd", "sdd"}),
    "sdd_dkd": (methods.SDDDKDModule, PAIR, {"ce", "kd", "sdd_dkd"}),
    "catkd": (methods.CATKDModule, PAIR, {"ce", "kd", "catkd"}),
    "dml": (methods.DMLModule, {"networks": ["resnet8", "resnet14"]}, {"ce", "kd"}),
    "mlkd": (methods.MLKDModule, PAIR, {"ce", "kd", "cc", "bc"}),
    "crld": (methods.CRLDModule, PAIR | {"weak_threshold": 0.05, "strong_threshold": 0.05}, {"ce", "kd", "cross"}),
    "wkd": (
        methods.WKDModule,
        PAIR | {"feature_weight": 0.1},
        {"ce", "kd", "wkd_target", "wkd_transport", "wkd_feature"},
    ),
    "simkd": (methods.SimKDModule, PAIR, {"ce", "kd", "simkd"}),
    "srrl": (methods.SRRLModule, PAIR, {"ce", "kd", "srrl"}),
}
# Methods whose module adds nothing but a loss of outputs or features to that of KD
ONLY_A_LOSS = [
    "at",
    "sp",
    "rkd",
    "pkt",
    "dkd",
    "dist",
    "standardized",
    "ttm",
    "wttm",
    "rld",
    "nkd",
    "ldrld",
    "abkd",
    "standardized_abkd",
    "normkd",
    "sdd",
    "sdd_dkd",
    "catkd",
]
# Methods whose loss compares the images of a batch: on several devices, each compares its own part
OF_A_BATCH = {"sp", "cc", "rkd", "pkt", "dist", "sskd", "sskd1", "mlkd"}


def make_data(**options: Any) -> ImageDataModule:
    """Return the CIFAR-100 cut, or the digits."""
    return CIFAR100DataModule(os.environ[CUT], **options) if CUT in os.environ else DigitsDataModule(**options)


def prepared(module: Any, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Return a batch for a step without a trainer, after giving the module what it takes from the data in a fit."""
    if module.needs_strong_view:
        return torch.cat([images, images.flip(3)]), labels
    if module.needs_indices:
        module.contrast.resize(100)
        module.drawn = Negatives(torch.arange(100) % 10, 64, seed=0)
        return images, labels, torch.arange(len(labels))
    if isinstance(module, methods.WKDModule):
        module.cost = 1 - torch.eye(module.num_classes)
    return images, labels


def make_method(name: str, **options: Any) -> HSAKDModule:
    """Return a module for `make_data`, with the same weights at every call."""
    torch.manual_seed(0)
    module, method_options, _ = METHODS[name]
    data = make_data()
    defaults: dict[str, Any] = {"num_classes": data.num_classes, "lr": 0.001}
    if "networks" not in method_options:
        defaults["image_size"] = data.image_size
    return module(**(defaults | method_options | options))
