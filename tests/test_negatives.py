"""Test that negatives are of other classes, distinct if there are enough, and equal for all numbers of devices."""

import pytest
import torch

from hsakd_pl.methods.crd import Negatives

LABELS = torch.arange(100) % 7
INDICES = torch.tensor([0, 93, 14, 50])


@pytest.mark.parametrize("count", [1, 30, 85, 500])
def test_negatives_have_other_classes_and_are_distinct_if_possible(count: int) -> None:
    own, drawn = Negatives(LABELS, count, seed=1).draw(INDICES, epoch=2, step=3).split([1, count], 1)
    assert torch.equal(own[:, 0], INDICES) and drawn.shape == (4, count)
    assert bool((LABELS[drawn] != LABELS[INDICES, None]).all())
    if count <= 85:
        assert all(len(row.unique()) == count for row in drawn)


def test_negatives_depend_on_seed_epoch_and_step_only() -> None:
    keys = [(1, 0, 0), (1, 0, 1), (1, 1, 0), (2, 0, 0)]
    drawn = [Negatives(LABELS, 20, seed).draw(INDICES, epoch, step) for seed, epoch, step in keys]
    assert torch.equal(drawn[0], Negatives(LABELS, 20, 1).draw(INDICES, 0, 0))
    assert not any(torch.equal(drawn[0], other) for other in drawn[1:])


def test_negatives_of_two_devices_match_one_device() -> None:
    whole = Negatives(LABELS, 20, seed=1).draw(INDICES, 0, 0)
    for rank in (0, 1):
        assert torch.equal(Negatives(LABELS, 20, 1, rank, 2).draw(INDICES[rank::2], 0, 0), whole[rank::2])


def test_negatives_are_drawn_uniformly() -> None:
    negatives = Negatives(LABELS, 20, seed=1)
    drawn = torch.cat([negatives.draw(INDICES[:1], 0, step)[:, 1:] for step in range(1000)]).flatten()
    frequency = drawn.bincount(minlength=100)[LABELS[0] != LABELS] / 1000
    assert frequency.mean() == pytest.approx(20 / 85, rel=1e-3)
    assert frequency.std() < 0.03
