"""Test what needs an NVIDIA GPU (``make gpu``): CUDA graphs, no host syncs, bf16, NCCL, nvJPEG, memory."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from small import Losses, make

from benchmarks.__main__ import main as benchmarks
from hsakd_pl import DigitsDataModule, HSAKDModule, ImageNetDataModule
from hsakd_pl.records.watched import Watched

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU: make gpu"),
]
KINDS = ("baseline", "teacher", "student", "mutual", "probe")


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Disable TF32 and reset compiled code."""
    torch._dynamo.reset()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
    torch.set_float32_matmul_precision(before)


def on_gpu(**options: Any) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "num_sanity_val_steps": 0}
    return pl.Trainer(accelerator="gpu", devices=1, **{"enable_checkpointing": False, **quiet, **options})


def losses(module: HSAKDModule, steps: int = 20, batch_size: int = 32, **options: Any) -> torch.Tensor:
    """Return the loss of each step of a fit on the digits."""
    kept = Losses()
    run = on_gpu(max_steps=steps, callbacks=[kept, *options.pop("callbacks", [])], limit_val_batches=2, **options)
    run.fit(module, datamodule=DigitsDataModule(batch_size=batch_size))
    return torch.tensor(kept.values)


def module(kind: str, **options: Any) -> HSAKDModule:
    return make(kind, num_classes=10, lr=options.pop("lr", 1e-4), **options)


@pytest.mark.parametrize("kind", KINDS)
def test_fast_fit_on_gpu_equals_plain_fit(kind: str) -> None:
    torch.testing.assert_close(losses(module(kind)), losses(module(kind, fast=False)), rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", ["student", "mutual"])
def test_compiled_step_replays_cuda_graphs_and_equals_eager(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    replayed: list[int] = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda self: replayed.append(1) or replay(self))
    found = losses(module(kind, compile=True))
    assert len(replayed) >= 20  # forward and backward of most of the steps; the first ones warm up and record
    torch.testing.assert_close(found, losses(module(kind)), rtol=1e-4, atol=0)


def test_compiled_run_resumes_at_last_smaller_batch(tmp_path: Path) -> None:
    """Train on 1,257 images in batches of 32: the last batch of an epoch has 9."""
    whole = losses(module("student", compile=True), steps=44)
    saved = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=39, save_top_k=-1)
    losses(module("student", compile=True), steps=39, callbacks=[saved], enable_checkpointing=True)
    kept = Losses()
    run = on_gpu(max_steps=44, callbacks=[kept], limit_val_batches=2)
    run.fit(module("student", compile=True), DigitsDataModule(batch_size=32), ckpt_path=tmp_path / "step=39.ckpt")
    torch.testing.assert_close(torch.tensor(kept.values), whole[39:], rtol=1e-4, atol=0)


class Strict(pl.Callback):
    """Raise if the host waits for the GPU inside training steps or validation batches."""

    def __init__(self, after: int) -> None:
        self.after, self.steps = after, 0

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("error" if trainer.global_step >= self.after else "default")

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps += torch.cuda.get_sync_debug_mode() == 2
        torch.cuda.set_sync_debug_mode("default")

    def on_validation_batch_start(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")

    def on_validation_batch_end(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("kind", "compiled"), [*((kind, False) for kind in KINDS), ("student", True)])
def test_training_step_never_synchronises_with_gpu(kind: str, compiled: bool) -> None:
    strict = Strict(after=8)  # compiling and recording may synchronise
    try:
        run = on_gpu(max_steps=20, limit_val_batches=2, callbacks=[strict], precision="bf16-mixed")
        run.fit(module(kind, compile=compiled), datamodule=DigitsDataModule(batch_size=32))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert strict.steps == 12


def test_bf16_losses_on_gpu_stay_near_float32() -> None:
    """Compare with float32: bf16 differs less from it than three seeds of float32 differ from each other."""

    def curve(seed: int, precision: str, **options: Any) -> torch.Tensor:
        pl.seed_everything(seed)
        student = make("student", num_classes=10, lr=0.01, **options)
        return losses(student, steps=64, precision=precision).view(8, 8).mean(1)

    seeds = torch.stack([curve(seed, "32-true") for seed in range(3)])
    spread = seeds.max(0).values - seeds.min(0).values
    for compiled in (False, True):
        deviation = (curve(0, "bf16-mixed", compile=compiled) - seeds[0]).abs()
        assert (deviation <= spread.clamp(min=0.05)).all(), (compiled, deviation, spread)


def test_nccl_on_one_gpu_equals_single_process(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29571", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    class Backend(pl.Callback):
        def on_train_start(self, *_: Any) -> None:
            backends.append(torch.distributed.get_backend())

    backends: list[str] = []
    try:
        found = losses(module("student"), strategy="ddp", callbacks=[Backend()])
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    assert backends == ["nccl"]
    torch.testing.assert_close(found, losses(module("student")), rtol=1e-4, atol=0)


def test_nvjpeg_decoding_matches_pil(unpack: Callable[[str], Path]) -> None:
    images = []
    for on_device in (False, True):
        data = ImageNetDataModule(
            unpack("imagenet-mini.tar.gz") / "imagenet-mini",
            batch_size=20,
            image_size=64,
            num_workers=0,
            decode_on_device=on_device,
        )
        data.trainer = on_gpu()
        data.setup("test")
        batch, labels = next(iter(data.test_dataloader()))
        images.append((batch.to("cuda").float(), torch.as_tensor(labels)))
    assert torch.equal(images[0][1], images[1][1])
    difference = (images[0][0] - images[1][0]).abs()
    assert difference.mean() < 2 and (difference > 24).float().mean() < 0.01  # grey levels of 256


def test_peak_gpu_memory_is_below_plain_loop(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    loops = ["--loops", "plain", "fit-bf16-compiled", "--rounds", "1", "--warmup", "5"]
    benchmarks(["student:wrn_40_2-wrn_16_2", "--device", "cuda", *loops, "--out", str(results)])
    ((_, row),) = json.loads(results.read_text()).items()
    assert row["fit-bf16-compiled"]["peak_memory_bytes"] < row["plain"]["peak_memory_bytes"]


def test_watched_loss_does_not_synchronise_gpu() -> None:
    watched, arrived = Watched(), list[tuple[int, float]]()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(3):
            watched.begin(step, torch.full((), float(step), device="cuda"))
            arrived += watched.arrived()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [*arrived, *watched.arrived(wait=True)] == [(0, 0.0), (1, 1.0), (2, 2.0)]
