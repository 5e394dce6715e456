"""Random numbers that depend on (seed, epoch, sample) alone, so that a resumed run draws the same ones."""

import numpy as np
import torch

# Independent streams of one seed
SHUFFLING = 0
AUGMENTATION = 1
CONTRAST = 2  # negatives of contrastive methods
STRONG_VIEW = 3  # the second, strongly augmented view of an image
UNLABELLED = 4  # order and augmentation of unlabelled images


def derive_seed(seed: int, *key: int) -> int:
    """Return an independent seed for each key, such as (stream, epoch, sample)."""
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1)[0])


def seeded_generator(seed: int, *key: int) -> torch.Generator:
    """Return a CPU generator for ``seed`` and a key; its numbers do not depend on the device of the images."""
    return torch.Generator().manual_seed(derive_seed(seed, *key))
