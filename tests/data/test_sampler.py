"""Test each device's share of global batches, and that the order depends only on seed and epoch."""

import math
from itertools import chain

import pytest
import torch

from hsakd_pl.data.sampler import GlobalBatchSampler
from hsakd_pl.errors import UsageError


def batches(epoch: int = 0, **arguments) -> list[list[int]]:
    sampler = GlobalBatchSampler(**arguments)
    sampler.set_epoch(epoch)
    found = [batch.tolist() for batch in sampler]
    assert len(found) == len(sampler)
    return found


def test_sampler_visits_each_sample_once_and_keeps_last_batch() -> None:
    found = batches(num_samples=103, batch_size=10, shuffle=True, seed=0)
    assert [len(batch) for batch in found] == [10] * 10 + [3]
    assert sorted(chain(*found)) == list(range(103)) != list(chain(*found))


def test_sample_order_differs_by_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        return tuple(chain(*batches(epoch, num_samples=50, batch_size=8, shuffle=True, seed=seed)))

    orders = [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9
    torch.manual_seed(1)
    assert order(1, 2) == orders[5]


@pytest.mark.parametrize("num_samples", [1, 3, 8, 15, 16, 17, 29, 32])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_samplers_of_all_devices_partition_global_batches(num_samples: int, world_size: int) -> None:
    def of_rank(rank: int, shuffle: bool) -> list[list[int]]:
        return batches(num_samples=num_samples, batch_size=8, shuffle=shuffle, seed=5, rank=rank, world_size=world_size)

    training = [of_rank(rank, shuffle=True) for rank in range(world_size)]
    whole = batches(num_samples=num_samples, batch_size=8, shuffle=True, seed=5)
    lengths = {tuple(len(batch) for batch in rank) for rank in training}
    assert len(lengths) == 1 and all(min(length) >= 1 for length in lengths)
    for number, batch in enumerate(whole):  # the same global batches, whatever the number of devices
        union = [index for rank in training for index in rank[number]]
        assert set(batch) <= set(union) and len(union) == math.ceil(len(batch) / world_size) * world_size

    evaluation = [of_rank(rank, shuffle=False) for rank in range(world_size)]
    assert len({len(rank) for rank in evaluation}) == 1
    assert sorted(index for rank in evaluation for batch in rank for index in batch) == list(range(num_samples))
    if num_samples >= world_size:
        assert all(batch for rank in evaluation for batch in rank)


def test_batch_size_not_divisible_by_devices_raises() -> None:
    with pytest.raises(UsageError, match=r"batch_size=10 .* 4 devices \(world size\).* multiple of 4"):
        GlobalBatchSampler(100, 10, shuffle=True, seed=0, rank=0, world_size=4)
