"""A plain loop, the library's bare loop and its whole fit, side by side: they take turns, so noise hits all alike."""

from collections.abc import Iterator
from typing import Any

from benchmarks.cases import Case
from benchmarks.loops import BareLoop, Phases, fit
from benchmarks.measurement import COUNTED_STEPS, Measurement, drive
from benchmarks.meter import Meter
from benchmarks.plain import PlainLoop
from benchmarks.settings import Settings
from hsakd_pl.errors import UsageError


def compare(case: Case, settings: Settings) -> dict[str, Any]:
    """Measure a case: a summary of each loop, and how many times as fast as the plain loop ours are.

    Raises UsageError where the steps do not fit into one epoch: between two of them the fit validates.
    """
    meter, data = Meter(settings.torch_device), settings.data_module()
    asked = 1 + settings.warmup + COUNTED_STEPS + settings.blocks * settings.steps
    if asked > (full := len(data.splits["train"].targets) // settings.batch_size):
        raise UsageError(f"{asked} steps are asked for, an epoch has {full}: lower --steps, --blocks or --batch-size")
    plain, step, whole = (Measurement(meter, settings.batch_size) for _ in range(3))

    meter.restart_peak()
    plain_loop = PlainLoop(case, data, settings.torch_device)
    drive(plain.opening(settings.warmup), plain_loop.step)
    meter.restart_peak()
    bare_loop = BareLoop(case, data, settings)
    drive(step.opening(settings.warmup), bare_loop.step)

    def phases() -> Iterator[None]:
        yield from whole.opening(settings.warmup)
        for _ in range(settings.blocks):
            drive(plain.block(settings.steps), plain_loop.step)
            drive(step.block(settings.steps), bare_loop.step)
            yield from whole.block(settings.steps)

    meter.restart_peak()
    fit(case, settings, Phases(phases()))
    return {
        "plain": plain.summary(),
        "step": step.summary(),
        "fit": whole.summary(),
        "step_times_as_fast": plain.median_ms / step.median_ms,
        "fit_times_as_fast": plain.median_ms / whole.median_ms,
    }
