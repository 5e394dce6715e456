"""ImageNet's input beside its step: how many images a second are read and decoded, and how many a step takes."""

import time
from itertools import chain, count, islice
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.utilities.data import suggested_max_num_workers

from benchmarks.cases import Case
from benchmarks.loops import BareLoop
from benchmarks.measurement import Measurement, drive
from benchmarks.meter import Meter
from benchmarks.settings import Settings
from hsakd_pl import ImageNetDataModule
from hsakd_pl.data.base import MAX_DEFAULT_WORKERS

CASE = Case("student", ("resnet34_imagenet", "resnet18_imagenet"))
IN_ADVANCE = 2  # batches that a DataLoader lets each worker make ahead


def input_rate(data: ImageNetDataModule, workers: int, warmup: int, steps: int, meter: Meter) -> float:
    """Images a second out of the loader alone, epoch after epoch.

    What workers made in advance, while the loader started, is not counted.
    """
    loader = data.train_dataloader()
    batches = chain.from_iterable(loader for _ in count())
    for _ in islice(batches, max(warmup, 1, IN_ADVANCE * workers)):
        pass
    meter.synchronize()
    start = time.perf_counter()
    images = sum(len(labels) for _, labels in islice(batches, steps))
    meter.synchronize()
    return images / (time.perf_counter() - start)


def limit(settings: Settings, root: str, workers: int | None, decode_on_device: bool) -> dict[str, Any]:
    """Measure both on the class folders in ``root`` and name the slower one.

    ``workers``: processes that decode, or only read where ``decode_on_device``; None takes as many as a fit on one
    device would.
    """
    used = min(MAX_DEFAULT_WORKERS, suggested_max_num_workers(1)) if workers is None else workers
    data = ImageNetDataModule(root, decode_on_device=decode_on_device, batch_size=settings.batch_size, num_workers=used)
    data.trainer = pl.Trainer(logger=False, enable_checkpointing=False, **settings.trainer_config)
    data.setup("fit")
    meter = Meter(settings.torch_device)
    loaded = input_rate(data, used, settings.warmup, settings.steps, meter)
    step = Measurement(meter, settings.batch_size)
    loop = BareLoop(CASE, data, settings)
    drive(step.opening(settings.warmup), loop.step)
    drive(step.block(settings.steps), loop.step)
    trained = step.summary()["images_per_second"]
    return {
        "case": CASE.name,
        "workers": used,
        "decode_on_device": decode_on_device,
        "loader_images_per_second": loaded,
        "step_images_per_second": trained,
        "limit": "loader" if loaded < trained else "step",
    }
