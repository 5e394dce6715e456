"""Modes of layers in a fit."""

import torch.nn as nn


def set_train_modes(network: nn.Module) -> None:
    """Call ``train`` of the layers in training mode that override it, to freeze norms for example.

    Training loops call it before the first step; Lightning does not, since it keeps the modes of all layers. Layers in
    eval mode stay in it.
    """
    overriding = [layer for layer in network.modules() if layer.training and type(layer).train is not nn.Module.train]
    if not overriding:
        return
    in_eval_mode = [layer for layer in network.modules() if not layer.training]
    for layer in overriding:
        layer.train()
    for layer in in_eval_mode:
        layer.training = False
