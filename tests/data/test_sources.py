"""Test that batches depend only on seed, epoch and index, and that errors name a broken image."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import programs
import pytest
import torch
from torchvision.transforms.v2.functional import to_pil_image

from hsakd_pl.data.augment import PadCropFlip, random_resized_crop
from hsakd_pl.data.limits import PixelBudget
from hsakd_pl.data.loader import Batch, ResumableLoader
from hsakd_pl.data.sampler import GlobalBatchSampler
from hsakd_pl.data.sources import AugmentedBatches, ResidentTensors, TransformedBatches, WorkerBatches
from hsakd_pl.data.splits import Split
from hsakd_pl.errors import UsageError

IMAGES = torch.randint(256, (20, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(20)


def loader(in_workers: bool, num_workers: int = 0, seed: int = 0) -> ResumableLoader:
    sampler = GlobalBatchSampler(20, 6, shuffle=True, seed=seed)
    if not in_workers:
        source = ResidentTensors(IMAGES, LABELS)
        augmented = AugmentedBatches(source, PadCropFlip(2), 20, seed, torch.device("cpu"))
        return ResumableLoader(augmented, sampler)
    budget = PixelBudget(between_processes=num_workers > 0)
    batches = TransformedBatches(Split(IMAGES, LABELS), random_resized_crop(16), 16, seed, budget=budget)
    return ResumableLoader(WorkerBatches(batches, num_workers, False), sampler)


def epoch_of(source: ResumableLoader, epoch: int) -> list[Batch]:
    source.sampler.set_epoch(epoch)
    return list(source)


def equal(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)
    )


@pytest.mark.parametrize("in_workers", [False, True])
def test_epoch_is_repeatable_and_differs_from_others(in_workers: bool) -> None:
    source = loader(in_workers)
    first = epoch_of(source, 0)
    assert [len(labels) for _, labels in first] == [6, 6, 6, 2]
    assert sorted(torch.cat([labels for _, labels in first]).tolist()) == list(range(20))
    assert not equal(first, epoch_of(source, 1))
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert equal(first, epoch_of(source, 0))
    assert torch.equal(state, torch.get_rng_state())  # the global generator is untouched
    assert not equal(first, epoch_of(loader(in_workers, seed=1), 0))


def test_persistent_workers_match_main_process() -> None:
    alone, workers = loader(True), loader(True, num_workers=2)
    next(iter(workers))  # an abandoned epoch has no effect
    for epoch in (0, 1, 3):
        assert equal(epoch_of(alone, epoch), epoch_of(workers, epoch))


@pytest.mark.parametrize("in_workers", [False, True])
def test_loader_state_counts_batches_of_its_epoch(in_workers: bool) -> None:
    source = loader(in_workers)
    source.sampler.set_epoch(4)
    iterator = iter(source)
    next(iterator), next(iterator)
    state = source.state_dict()
    assert state == {"epoch": 4, "batches": 2, "num_samples": 20, "batch_size": 6, "seed": 0, "mixed_chunks": 0}
    rest = list(iterator)

    resumed = loader(in_workers)
    resumed.load_state_dict(state)
    unused = iter(resumed)  # Lightning makes iterators that it never uses, and before it sets the epoch
    assert equal(epoch_of(resumed, 4), rest)
    assert len(epoch_of(resumed, 4)) == 4
    del unused

    finished = loader(in_workers)
    finished.load_state_dict({"epoch": 4, "batches": 4})
    assert equal(epoch_of(finished, 5), epoch_of(loader(in_workers), 5))


def test_workers_of_a_loader_in_a_cycle_end_at_once() -> None:
    cycle: dict[str, Any] = {"loader": loader(True, num_workers=2)}
    cycle["itself"] = cycle
    epoch_of(cycle["loader"], 0)
    workers = multiprocessing.active_children()
    assert len(workers) >= 2
    start = time.monotonic()
    del cycle
    gc.collect()
    assert time.monotonic() - start < 5  # PyTorch's own: 5 s for each worker
    assert not any(worker.is_alive() for worker in workers)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_undecodable_image_raises_naming_file(tmp_path: Path, num_workers: int) -> None:
    good, broken = tmp_path / "good.png", tmp_path / "broken.png"
    to_pil_image(IMAGES[0]).save(good)
    broken.write_bytes(good.read_bytes()[:60])
    batches = TransformedBatches(Split([str(good), str(broken)], torch.arange(2)), random_resized_crop(16), 16, 0)
    source = WorkerBatches(batches, num_workers, pin_memory=False)
    with pytest.raises(UsageError) as error:
        list(source.make_batches(0, [torch.tensor([0, 1])]))
    assert str(broken) in str(error.value) and "Traceback" not in str(error.value)


def test_empty_index_list_gives_empty_batch() -> None:
    for made_in_workers in (False, True):
        [(images, labels)] = loader(made_in_workers).source.make_batches(0, [torch.arange(0)])
        assert images.shape == (0, 3, 16, 16) and labels.shape == (0,)


@pytest.fixture(params=["fork", "forkserver"])
def start_method(request: pytest.FixtureRequest) -> Iterator[str]:
    """Start processes in the way that is Python's default on Linux until 3.13, and since 3.14."""
    method = multiprocessing.get_start_method()
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(method, force=True)


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the sender of a signal is not known")
@pytest.mark.usefixtures("start_method")
def test_only_the_main_process_ends_workers() -> None:
    before = set(multiprocessing.active_children())
    epoch = iter(loader(True, num_workers=1))
    next(epoch)
    [worker] = set(multiprocessing.active_children()) - before
    for name in ("INT", "TERM"):  # as a terminal or a scheduler sends them to all processes
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    worker.join(0.5)
    assert worker.is_alive()
    worker.terminate()
    worker.join(20)
    assert worker.exitcode == 0


def be_killed() -> None:
    """Let a fork server start a worker, note its process in the file that is named, and end without any cleaning up."""
    assert multiprocessing.get_start_method() == "forkserver"
    epoch = iter(loader(True, num_workers=1))
    next(epoch)
    [worker] = multiprocessing.active_children()
    Path(sys.argv[1]).write_text(str(worker.pid))
    os.kill(os.getpid(), signal.SIGKILL)


def test_workers_end_with_a_killed_main_process(tmp_path: Path) -> None:
    assert programs.run(be_killed, str(tmp_path / "worker")).returncode == -signal.SIGKILL
    worker = Path("/proc", (tmp_path / "worker").read_text())
    deadline = time.monotonic() + programs.PATIENCE
    while worker.exists():
        assert time.monotonic() < deadline, "the worker outlives the run"
        time.sleep(0.1)
