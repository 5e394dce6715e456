"""Test the embedded digits."""

import torch

from hsakd_pl.data import DigitsDataModule
from hsakd_pl.data.augment import normalise


def test_digits_splits_have_published_sizes() -> None:
    data = DigitsDataModule(root="anywhere")
    data.setup()
    train, test = data.splits["train"], data.splits["test"]
    assert train.images.shape == (1257, 3, 16, 16) and test.images.shape == (540, 3, 16, 16)
    assert train.images.dtype == torch.uint8 and train.images.max() == 255 and train.images.min() == 0
    assert (train.images[:, :1] == train.images).all()
    assert torch.bincount(train.targets).float().std() < 4 and len(data.class_names) == data.num_classes == 10
    normalised = normalise(train.images, *(torch.tensor(each)[:, None, None] for each in (data.mean, data.std)))
    assert abs(normalised.mean()) < 1e-3 and abs(normalised.std() - 1) < 1e-3


def test_digits_are_shifted_but_not_flipped() -> None:
    data = DigitsDataModule(batch_size=1257, seed=0)
    data.setup("fit")
    [(images, labels)] = data.train_dataloader()
    padded = torch.nn.functional.pad(data.splits["train"].images, (2,) * 4)
    order = torch.cat(list(data.train_dataloader().sampler))
    assert torch.equal(labels, data.splits["train"].targets[order])
    shifts = [(top, left) for top in range(5) for left in range(5)]
    candidates = torch.stack([padded[order, :, top : top + 16, left : left + 16] for top, left in shifts])
    assert (candidates == images).flatten(2).all(2).any(0).all()
