"""Use a network of any package as an encoder: find its embedding, its tokens and its last map by name."""

from collections.abc import Iterable, Mapping
from math import isqrt
from typing import Any

import torch.nn as nn
from torch import Tensor

from hsakd_pl.errors import UsageError, counted
from hsakd_pl.networks.network import Classifier, Network, NetworkOutput, outputs_of_copy, set_channels

PARTS = ("pooled", "class_token", "patch_mean")  # embeddings, in the order in which they are preferred
# Names of the same in the outputs of DINOv2 and DINOv3 (torch.hub) and of transformers
NAMES = {
    "x_norm_clstoken": "class_token",
    "x_norm_patchtokens": "patches",
    "last_hidden_state": "features",
    "pooler_output": "pooled",
    "image_embeds": "pooled",
}
USUAL_PREFIXES = (0, 1, 5, 2)  # tokens before the patches: none, the class, 4 registers, another class
TRIED_SIZES = (32, 224, 64, 256, 384, 518)  # sides of images on which a network of unknown size is tried


class Encoder(Classifier):
    """Any ``nn.Module`` as a network whose output is an embedding (B, D), with its last map if it has one.

    The module is one of timm's, returns what DINOv2 or a model of transformers returns, or an embedding (B, D), a map
    (B, C, H, W), or tokens (B, T, D) whose number before the patches ``num_prefix_tokens`` states, if not the usual
    one. It has these parts, by name:

    - ``pooled``: what the module pools itself, for example timm's ``forward_head(pre_logits=True)``; of a map its mean;
    - ``class_token``: the first of the tokens before the patches;
    - ``patch_mean``: the mean over the tokens of the patches;
    - ``map``: the map (B, C, H, W), or the tokens of the patches as one.

    Args:
        network: the module.
        part: part that is the embedding; None for the first of the former three that there is.
        image_size: side of the images in pixels; None if it is unknown.
        channels: number of channels of the images.

    Raises UsageError for a module with other outputs, for a part that it does not have, and for channels that it does
    not take.
    """

    def __init__(
        self, network: nn.Module, part: str | None = None, image_size: int | None = None, channels: int = 3
    ) -> None:
        super().__init__(network, num_classes=2)
        self.part = part
        set_channels(self, channels, type(network).__name__)
        output = shapes_of(self, image_size)
        self.num_classes = output.logits.shape[1]

    def forward(self, images: Tensor) -> Tensor:
        return self.outputs(images).logits

    def outputs(self, images: Tensor) -> NetworkOutput:
        parts = parts_of(self.network, images)
        feature_map = parts.get("map")
        found = [name for name in PARTS if name in parts]
        part = self.part or found[0]
        if part not in found:
            raise UsageError(
                f"teacher_embedding: {type(self.network).__name__} has no {part}: choose {' or '.join(found)}"
            )
        features = [] if feature_map is None else [feature_map]
        return NetworkOutput(parts[part], [], features, parts[part], feature_map)


def shapes_of(network: Network, image_size: int | None) -> NetworkOutput:
    """Return a network's outputs for one image without values, of the given size or of the first that it accepts.

    Raises UsageError if it takes none.
    """
    reason = ""
    for size in TRIED_SIZES if image_size is None else [image_size]:
        output = _outputs_or_reason(network, size)
        if not isinstance(output, str):
            return output
        reason = output
    tried = "the usual sizes" if image_size is None else f"{image_size} x {image_size} pixels"
    raise UsageError(
        f"teacher_size: the teacher takes no images of {counted(network.in_channels, 'channel')} and {tried} "
        f"({reason}): set teacher_size to the side in pixels, or channels to the number of channels"
    )


def _outputs_or_reason(network: Network, image_size: int) -> NetworkOutput | str:
    """Return a network's outputs for one image, or what it raises."""
    try:
        return outputs_of_copy(network, image_size)
    except UsageError:
        raise
    except Exception as error:  # a network can raise anything for images of another size
        return f"{type(error).__name__}: {' '.join(str(error).split()):.150}"


def parts_of(network: Any, images: Tensor) -> dict[str, Tensor]:
    """Return the named parts of a module's output for images (B, C, S, S); see :class:`Encoder`."""
    if not hasattr(network, "forward_features"):
        return named_parts(network(images), network)
    features = network.forward_features(images)
    parts = named_parts(features, network)
    if hasattr(network, "forward_head"):
        parts["pooled"] = network.forward_head(features, pre_logits=True)
    return parts


def named_parts(output: Any, network: nn.Module) -> dict[str, Tensor]:
    """Return the parts in an output, a tensor or a mapping; raises UsageError for any other."""
    if isinstance(output, Tensor):
        return parts_of_tensor(output, network)
    parts: dict[str, Tensor] = {}
    for name, value in output.items() if isinstance(output, Mapping) else ():
        kind = NAMES.get(name)
        if kind is None or not isinstance(value, Tensor):
            continue
        if kind == "features":
            parts = parts_of_tensor(value, network) | parts
        elif kind == "patches":
            parts |= parts_of_patches(value)
        else:
            parts[kind] = value.flatten(1)
    if not any(part in parts for part in PARTS):
        raise _unknown(network, f"{type(output).__name__}{_names_in(output)}")
    return parts


def parts_of_tensor(output: Tensor, network: nn.Module) -> dict[str, Tensor]:
    """Return the parts of an embedding (B, D), of tokens (B, T, D), or of a map (B, C, H, W)."""
    if output.dim() == 2:
        return {"pooled": output}
    if output.dim() == 4:
        channels_last = str(getattr(network, "output_fmt", "")).endswith("NHWC")  # timm's Swin
        feature_map = output.permute(0, 3, 1, 2) if channels_last else output
        return {"pooled": feature_map.mean((2, 3)), "map": feature_map}
    if output.dim() != 3:
        raise _unknown(network, f"a tensor {tuple(output.shape)}")
    prefix = prefix_tokens(network, output.shape[1])
    parts = parts_of_patches(output[:, prefix:])
    if prefix:
        parts["class_token"] = output[:, 0]
    return parts


def parts_of_patches(patches: Tensor) -> dict[str, Tensor]:
    """Return the mean over patches (B, T, D), and the patches as a map (B, D, H, W) if they are a square."""
    parts = {"patch_mean": patches.mean(1)}
    side = isqrt(patches.shape[1])
    if side * side == patches.shape[1]:
        parts["map"] = patches.transpose(1, 2).unflatten(2, (side, side))
    return parts


def prefix_tokens(network: nn.Module, count: int) -> int:
    """Return the number of tokens before the patches: as the module states, or that leaves a square of ``count``."""
    stated = getattr(network, "num_prefix_tokens", None)  # of timm
    registers = getattr(getattr(network, "config", None), "num_register_tokens", None)  # of transformers
    if isinstance(stated, int):
        return stated
    if isinstance(registers, int):
        return 1 + registers
    squares = [prefix for prefix in USUAL_PREFIXES if isqrt(max(count - prefix, 0)) ** 2 == count - prefix > 0]
    if not squares:
        raise UsageError(
            f"teacher: {type(network).__name__} returns {count} tokens, and the number of those before the patches is "
            "unknown: set its attribute num_prefix_tokens"
        )
    return squares[0]


def _names_in(output: Any) -> str:
    names: Iterable[Any] = output if isinstance(output, Mapping) else ()
    return f" of {', '.join(f'{name!s:.40}' for name in names)}"[:200] if names else ""


def _unknown(network: nn.Module, description: str) -> UsageError:
    return UsageError(
        f"teacher: {type(network).__name__} returns {description}: wrap it in a module that returns an embedding "
        "(B, D), a map (B, C, H, W) or tokens (B, T, D)"
    )
