"""Modes of layers in a fit."""

from typing import Any

import pytorch_lightning as pl
import torch.nn as nn

from hsakd_pl.networks import Classifier


class OwnModes(pl.Callback):
    """Call ``train`` of the layers in training mode that override it, before the first step and after each validation.

    Training loops do so, and such layers freeze their norms there, for example, or undo what they prepared for an
    evaluation. Lightning leaves it out: it sets the attribute ``training`` of all layers as it was. Layers in eval mode
    stay in it.
    """

    def __init__(self) -> None:
        self.is_due = True

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.is_due = True

    on_validation_end = on_fit_start

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if self.is_due:
            for network in module.networks:
                call_train(network)
        self.is_due = False


def call_train(network: nn.Module) -> None:
    """Call ``train`` of the layers in training mode that override it; layers in eval mode stay in it."""
    overriding = [layer for layer in network.modules() if layer.training and _overrides_train(layer)]
    in_eval_mode = [part for layer in overriding for part in layer.modules() if not part.training]
    for layer in overriding:
        layer.train()
    for part in in_eval_mode:
        part.training = False


def _overrides_train(layer: nn.Module) -> bool:
    return type(layer).train is not nn.Module.train and not isinstance(layer, Classifier)
