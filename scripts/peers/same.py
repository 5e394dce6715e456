"""Say whether two checkpoints hold the same weights, bit by bit: same.py FIRST SECOND."""

import sys

import torch


def weights(path):
    checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    for key in ("state_dict", "model_state_dict", "train_model", "ema", "model"):
        if isinstance(checkpoint, dict) and checkpoint.get(key) is not None:
            checkpoint = checkpoint[key]
    return checkpoint if isinstance(checkpoint, dict) else checkpoint.state_dict()


first, second = (weights(path) for path in sys.argv[1:])
assert first.keys() == second.keys() and len(first) > 1, (len(first), len(second))
tensors = [name for name in first if torch.is_tensor(first[name])]
equal = sum(torch.equal(first[name], second[name]) for name in tensors)
print(f"{equal} of {len(tensors)} tensors are equal, bit by bit")
