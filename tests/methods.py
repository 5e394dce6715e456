"""Every method on a pair of small networks for the digits."""

from typing import Any

import torch

from hsakd_pl import HSAKDModule, methods

SAMPLES = 1257  # of the digits' training split
PAIR: dict[str, Any] = {"network": "resnet8", "teacher": "resnet14", "teacher_weights": "random", "image_size": 16}
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
    "crd": (methods.CRDModule, {**PAIR, "samples": SAMPLES, "negatives": 64}, {"ce", "kd", "crd"}),
    "sskd": (
        methods.SSKDModule,
        {**PAIR, "projection_weights": "random"},
        {"ce", "kd", "transformed_kd", "contrast"},
    ),
    "sskd1": (
        methods.SSKDProjectionModule,
        {"network": "resnet14", "weights": "random", "image_size": 16},
        {"contrast"},
    ),
    "dkd": (methods.DKDModule, PAIR, {"ce", "kd", "dkd"}),
    "dist": (methods.DISTModule, PAIR, {"ce", "kd", "dist"}),
    "standardized": (methods.StandardizedKDModule, PAIR, {"ce", "kd"}),
    "reviewkd": (methods.ReviewKDModule, PAIR, {"ce", "kd", "reviewkd"}),
    "dml": (methods.DMLModule, {"networks": ["resnet8", "resnet14"]}, {"ce", "kd"}),
}
# those whose loss compares the images of a batch: on several devices, of each one's part
OF_A_BATCH = {"sp", "cc", "rkd", "pkt", "dist", "sskd", "sskd1"}


def make_method(name: str, **options: Any) -> HSAKDModule:
    """A module of 10 classes, with the same weights at every call."""
    torch.manual_seed(0)
    module, own, _ = METHODS[name]
    return module(**{**own, "num_classes": 10, "lr": 0.001, **options})
