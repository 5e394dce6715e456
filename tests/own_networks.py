"""Networks as people write them, in the shapes that the package has to take: every function returns a fresh one.

``scripts/networks.py`` tries them all. Those in ``REFUSED`` return something other than logits.
"""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import parametrizations, parametrize, prune

from hsakd_pl.networks import StagedBackbone

CLASSES = 4
SIDE = 32  # of the images that networks with flattened maps are made for
WIDTH = 16

Make = Callable[[], nn.Module]
OWN: dict[str, Make] = {}
REFUSED = ("dict output", "tuple output", "list output", "object output", "auxiliary logits")


def own(name: str) -> Callable[[Any], Any]:
    """List a class, or a function, that makes a network of ``CLASSES`` classes."""

    def listed(make: Any) -> Any:
        OWN[name] = make
        return make

    return listed


def conv(in_channels: int, out_channels: int, stride: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, **options)


def block(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    convolution = conv(in_channels, out_channels, stride, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


class Pooled(nn.Module):
    """Classify the averages of maps; subclasses change a part."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, WIDTH, 2)
        self.body = self.make_body()
        self.fc = nn.Linear(WIDTH, CLASSES)

    def make_body(self) -> nn.Module:
        return nn.Sequential(block(WIDTH, WIDTH), block(WIDTH, WIDTH, 2))

    def features(self, images: Tensor) -> Tensor:
        return self.body(self.stem(images))

    def forward(self, images: Tensor) -> Any:
        return self.fc(self.features(images).mean((2, 3)))


# Flattened maps: made for images of one size


@own("view")
class Viewed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = conv(3, 8, 2)
        self.conv2 = conv(8, WIDTH, 2)
        self.fc1 = nn.Linear(WIDTH * (SIDE // 4) ** 2, 32)
        self.fc2 = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        x = x.view(x.size(0), -1)
        return self.fc2(F.relu(self.fc1(x)))


@own("view to a fixed width")
class ViewedByWidth(Viewed):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        return self.fc2(F.relu(self.fc1(x.view(-1, self.fc1.in_features))))


@own("flatten")
def flattened() -> nn.Module:
    return nn.Sequential(block(3, 8, 4), nn.Flatten(), nn.Linear(8 * (SIDE // 4) ** 2, CLASSES))


@own("features and classifier")
class AlexNetLike(nn.Module):
    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__()
        self.features = nn.Sequential(conv(3, WIDTH, 2), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        hidden = nn.Linear(WIDTH * (SIDE // 4) ** 2, 32)
        self.classifier = nn.Sequential(nn.Dropout(), hidden, nn.ReLU(inplace=True), nn.Linear(32, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.classifier(x.view(x.size(0), -1))


@own("n_classes")
class CalledOtherwise(AlexNetLike):
    def __init__(self, n_classes: int = CLASSES) -> None:
        super().__init__(num_classes=n_classes)


@own("LeNet")
class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = torch.flatten(x, 1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


@own("perceptron")
def perceptron() -> nn.Module:
    hidden = nn.Linear(3 * SIDE * SIDE, 32)
    return nn.Sequential(nn.Flatten(), hidden, nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, CLASSES))


# Lists, nesting, sharing


@own("list of layers")
class Listed(Pooled):
    def make_body(self) -> nn.Module:
        return nn.ModuleList([block(WIDTH, WIDTH) for _ in range(3)])

    def features(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for layer in self.body:
            x = x + layer(x)
        return x


@own("dict of layers")
class Keyed(Pooled):
    def make_body(self) -> nn.Module:
        return nn.ModuleDict({"local": block(WIDTH, WIDTH), "wide": nn.Conv2d(WIDTH, WIDTH, 5, padding=2)})

    def features(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        return sum(layer(x) for layer in self.body.values())


@own("nested Sequential")
def nested() -> nn.Module:
    body = nn.Sequential(nn.Sequential(block(3, 8, 2), nn.Sequential(block(8, WIDTH, 2))), block(WIDTH, WIDTH))
    return nn.Sequential(body, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, CLASSES)))


@own("shared layers")
class Shared(Pooled):
    def features(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for _ in range(3):
            x = self.body[0](x)
        return x


@own("tied weights")
class Tied(Pooled):
    def __init__(self) -> None:
        super().__init__()
        self.body[1][0].weight = self.body[0][0].weight


@own("residual blocks")
class Residual(Pooled):
    def features(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        return F.relu(self.body(x) + F.avg_pool2d(x, 2), inplace=True)


@own("dense connections")
class Dense(Pooled):
    def __init__(self) -> None:
        super().__init__()
        self.grow = conv(WIDTH, 8)
        self.fc = nn.Linear(WIDTH + 8, CLASSES)

    def features(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        return torch.cat((x, self.grow(F.relu(x))), 1)


@own("channel attention")
class Excited(Pooled):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(WIDTH, 4, 1), nn.SiLU(), nn.Conv2d(4, WIDTH, 1))

    def features(self, images: Tensor) -> Tensor:
        x = super().features(images)
        return x * self.gate(x).sigmoid()


@own("depthwise convolutions")
class Depthwise(Pooled):
    def make_body(self) -> nn.Module:
        return nn.Sequential(conv(WIDTH, WIDTH, groups=WIDTH), nn.BatchNorm2d(WIDTH), nn.Conv2d(WIDTH, WIDTH, 1))


@own("channel shuffle")
class Shuffled(Pooled):
    def make_body(self) -> nn.Module:
        return nn.Sequential(conv(WIDTH, WIDTH, groups=4), nn.ChannelShuffle(4), conv(WIDTH, WIDTH, groups=4))


@own("wrapped like DataParallel")
class Wrapper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.module = Pooled()

    def forward(self, *inputs: Tensor, **options: Any) -> Tensor:
        return self.module(*inputs, **options)


# Dropout and chance


@own("functional dropout")
class DroppedByFunction(Pooled):
    def forward(self, images: Tensor) -> Tensor:
        features = F.dropout(self.features(images).mean((2, 3)), 0.3, training=self.training)
        return self.fc(features)


@own("dropped channels")
class DroppedChannels(Pooled):
    def make_body(self) -> nn.Module:
        return nn.Sequential(block(WIDTH, WIDTH), nn.Dropout2d(0.2), block(WIDTH, WIDTH))


@own("stochastic depth")
class Stochastic(Pooled):
    def features(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        if self.training and torch.rand(()) < 0.5:
            return x
        return self.body(x)


# Weights that are computed


@own("old weight_norm")
class OldWeightNorm(Pooled):
    def make_body(self) -> nn.Module:
        return nn.Sequential(torch.nn.utils.weight_norm(conv(WIDTH, WIDTH)), nn.BatchNorm2d(WIDTH), nn.ReLU())


@own("weight_norm")
class WeightNorm(Pooled):
    def make_body(self) -> nn.Module:
        return nn.Sequential(parametrizations.weight_norm(conv(WIDTH, WIDTH)), nn.BatchNorm2d(WIDTH), nn.ReLU())


@own("spectral_norm")
class SpectralNorm(Pooled):
    def make_body(self) -> nn.Module:
        return nn.Sequential(parametrizations.spectral_norm(conv(WIDTH, WIDTH)), nn.ReLU())


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return (weight + weight.flip(3)) / 2


@own("own parametrization")
class Parametrized(Pooled):
    def __init__(self) -> None:
        super().__init__()
        parametrize.register_parametrization(self.body[0][0], "weight", Symmetric())


@own("pruned")
class Pruned(Pooled):
    def __init__(self) -> None:
        super().__init__()
        prune.l1_unstructured(self.body[0][0], "weight", amount=0.5)


class StandardizedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


@own("standardized weights")
class Standardized(Pooled):
    def make_body(self) -> nn.Module:
        return nn.Sequential(StandardizedConv(WIDTH, WIDTH, 3, padding=1), nn.GroupNorm(4, WIDTH), nn.ReLU())


@own("cosine classifier")
class Cosine(Pooled):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(WIDTH, CLASSES, bias=False)
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, images: Tensor) -> Tensor:
        embedding = F.normalize(self.features(images).mean((2, 3)), dim=1)
        return self.scale * F.linear(embedding, F.normalize(self.fc.weight, dim=1))


# Norms


@own("BatchNorm without statistics")
class WithoutStatistics(Pooled):
    def make_body(self) -> nn.Module:
        return nn.Sequential(conv(WIDTH, WIDTH), nn.BatchNorm2d(WIDTH, track_running_stats=False), nn.ReLU())


@own("BatchNorm without weights")
class WithoutWeights(Pooled):
    def make_body(self) -> nn.Module:
        return nn.Sequential(conv(WIDTH, WIDTH), nn.BatchNorm2d(WIDTH, affine=False), nn.ReLU())


@own("norm before convolution")
class PreActivated(Pooled):
    def make_body(self) -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(WIDTH), nn.ReLU(), conv(WIDTH, WIDTH))


@own("GroupNorm")
class GroupNormed(Pooled):
    def make_body(self) -> nn.Module:
        return nn.Sequential(conv(WIDTH, WIDTH), nn.GroupNorm(4, WIDTH), nn.GELU())


@own("LayerNorm and InstanceNorm")
class LayerNormed(Pooled):
    def make_body(self) -> nn.Module:
        return nn.Sequential(conv(WIDTH, WIDTH), nn.InstanceNorm2d(WIDTH, affine=True), nn.GELU())

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(F.layer_norm(self.features(images).mean((2, 3)), (WIDTH,)))


# The input


@own("in-place ReLU on the input")
class ChangesInput(Pooled):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(F.relu(images, inplace=True))


@own("normalises in place")
class NormalisesInPlace(Pooled):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6])[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.sub_(self.mean).div_(0.25))


@own("tensors made in forward")
class Made(Pooled):
    def forward(self, images: Tensor) -> Tensor:
        side = images.shape[-1]
        ramp = torch.linspace(-1, 1, side).expand(len(images), 1, side, side)
        return super().forward(images * torch.full((1, 3, 1, 1), 0.5) + ramp)


@own("control flow on values")
class ByValue(Pooled):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images / 255 if images.max() > 100 else images)


# Other layers


@own("LSTM head")
class Recurrent(Pooled):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        rows = self.features(images).mean(3).transpose(1, 2)
        outputs, _ = self.lstm(rows)
        return self.fc(outputs[:, -1])


@own("multi-head attention")
class Attentive(Pooled):
    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.pool(self.features(images)).flatten(2).transpose(1, 2)
        attended, _ = self.attention(tokens, tokens, tokens)
        return self.fc((tokens + attended).mean(1))


@own("transformer encoder")
class Encoder(Attentive):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True), 2)
        del self.attention

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.pool(self.features(images)).flatten(2).transpose(1, 2)
        return self.fc(self.encoder(tokens).mean(1))


@own("vision transformer")
class Patches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 8, 8)
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (SIDE // 8) ** 2 + 1, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.token.expand(len(images), -1, -1), tokens), 1) + self.positions
        query, key, value = self.qkv(self.norm(tokens)).chunk(3, -1)
        weights = (query @ key.transpose(1, 2) / math.sqrt(WIDTH)).softmax(-1)
        return self.head((tokens + weights @ value)[:, 0])


@own("1-d token mixer")
class Mixer(Patches):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv1d((SIDE // 8) ** 2, (SIDE // 8) ** 2, 1)
        self.channels = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))
        del self.token, self.positions, self.qkv

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = tokens + self.mix(self.norm(tokens))
        return self.head((tokens + self.channels(tokens)).mean(1))


@own("5-D weights")
class Volumes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, WIDTH, 3, stride=(1, 2, 2), padding=1)
        self.norm = nn.BatchNorm3d(WIDTH)
        self.fc = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(images[:, None])).relu().mean((2, 3, 4)))


@own("complex weights")
class Spectrum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Parameter(torch.randn(3, SIDE, SIDE // 2 + 1, dtype=torch.complex64))
        self.fc = nn.Linear(3 * 16, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        filtered = torch.fft.irfft2(torch.fft.rfft2(images) * self.filters)
        return self.fc(F.adaptive_avg_pool2d(filtered, 4).flatten(1))


@own("float64")
class Doubled(nn.Module):
    """Compute in double precision whatever the images are, and return float32."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(block(3, WIDTH, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, CLASSES))
        self.body.double()

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images.to(self.body[-1].weight.dtype)).float()


@own("hooks")
class Hooked(Pooled):
    def __init__(self) -> None:
        super().__init__()
        self.body[0][0].register_forward_hook(halved)


def halved(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output / 2


# With stages, from which branches are made


class Staged(StagedBackbone):
    """Have three stages and a branch after each."""

    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__(conv(3, WIDTH), (WIDTH, 16, 24, 32), (1, 1, 2, 2), num_classes)

    def make_stage(self, stage: int, in_channels: int, stride: int) -> nn.Module:
        return block(in_channels, self.channels[stage], stride)

    def make_head(self, num_outputs: int) -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(self.channels[-1], num_outputs))


OWN["stages"] = Staged


@own("stages with weight_norm")
class StagedWeightNorm(Staged):
    def make_stage(self, stage: int, in_channels: int, stride: int) -> nn.Module:
        channels = self.channels[stage]
        return nn.Sequential(
            parametrizations.weight_norm(conv(in_channels, channels, stride)), nn.GroupNorm(4, channels)
        )


# Other outputs than logits


@own("dict output")
class Dict(Pooled):
    def forward(self, images: Tensor) -> Any:
        return {"logits": super().forward(images)}


@own("tuple output")
class Pair(Pooled):
    def forward(self, images: Tensor) -> Any:
        features = self.features(images)
        return self.fc(features.mean((2, 3))), features


@own("list output")
class OneOfAList(Pooled):
    def forward(self, images: Tensor) -> Any:
        return [super().forward(images)]


@own("object output")
class Object(Pooled):
    def forward(self, images: Tensor) -> Any:
        return SimpleNamespace(logits=super().forward(images))


@own("auxiliary logits")
class Auxiliary(Pooled):
    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Any:
        logits = super().forward(images)
        return (logits, self.auxiliary(self.stem(images).mean((2, 3)))) if self.training else logits
