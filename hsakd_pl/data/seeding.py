"""Random numbers out of (seed, epoch, sample) alone: a resumed run draws what it would have drawn."""

import numpy as np
import torch

# Streams of one seed: shuffling, for example, must not share numbers with augmentation.
ORDER = 0
AUGMENTATION = 1
CONTRAST = 2  # what a contrastive method draws


def derive_seed(seed: int, *key: int) -> int:
    """Mix ``seed`` with a key such as (stream, epoch, sample); different keys give unrelated seeds."""
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1)[0])


def seeded_generator(seed: int, *key: int) -> torch.Generator:
    """CPU generator for ``seed`` and a key; the same numbers whatever device the images are on."""
    return torch.Generator().manual_seed(derive_seed(seed, *key))
