#!/usr/bin/env bash
# Which elements dropout drops depends on the memory format, not on the values and the seed alone. A network with
# nn.Dropout between convolutions gives another loss in channels_last than in PyTorch's own format, with equal weights,
# images and seed, while nn.Dropout2d, F.alpha_dropout and torch.bernoulli drop the same elements in both.
# Most people expect channels_last to change speed and rounding only, and one seed to mean one mask.
# torch 2.15.0, CPU, 2026-12-01
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q uv
env/bin/python -m uv pip install -q --python env/bin/python torch==2.15.0
OMP_NUM_THREADS=1 env/bin/python - <<'PROGRAM'
import torch
import torch.nn.functional as F
from torch import nn

FUNCTIONS = {
    "dropout": lambda maps: F.dropout(maps, 0.5),
    "dropout2d": lambda maps: F.dropout2d(maps, 0.5),
    "alpha_dropout": lambda maps: F.alpha_dropout(maps, 0.5),
    "bernoulli": lambda maps: torch.bernoulli(maps * 0.5),
    "rand_like": torch.rand_like,
}
maps = torch.ones(2, 3, 4, 4)


def seeded(function, values):
    torch.manual_seed(0)
    return function(values)


def loss(layer, memory_format, training):
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), layer, nn.Conv2d(8, 4, 3)).double().train(training)
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    network, images = (part.to(memory_format=memory_format) for part in (network, images))
    return seeded(lambda batch: float(network(batch).square().mean().detach()), images)


print("torch", torch.__version__)
same = {}
for name, function in FUNCTIONS.items():
    other = seeded(function, maps.contiguous(memory_format=torch.channels_last))
    same[name] = torch.equal(seeded(function, maps), other)
    print(f"{name:14} the same in both formats: {same[name]}")
assert same == {name: name not in ("dropout", "rand_like") for name in FUNCTIONS}
for layer in (nn.Dropout(0.5), nn.Dropout2d(0.5)):
    for training in (False, True):
        losses = [loss(layer, each, training) for each in (torch.contiguous_format, torch.channels_last)]
        print(f"{layer}, training {training}: loss {losses[0]:.6f} and {losses[1]:.6f}")
        differs = abs(losses[0] - losses[1]) > 1e-6
        assert differs == (training and isinstance(layer, nn.Dropout))
PROGRAM
