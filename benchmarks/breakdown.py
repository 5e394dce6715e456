"""Where the time of a step goes, by torch.profiler: kernels on a GPU, operators on a CPU."""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch._C._autograd import DeviceType
from torch.autograd.profiler_util import EventList, FunctionEvent
from torch.profiler import ProfilerActivity, profile

from benchmarks.cases import Case
from benchmarks.loops import BareLoop, Phases, fit
from benchmarks.measurement import drive
from benchmarks.meter import Meter
from benchmarks.plain import PlainLoop
from benchmarks.settings import Settings

# A name belongs to the first category whose pattern is found in it. An operator on a CPU whose own name is too general
# (every addition is aten::add_) takes the category of the innermost range around it that is in RANGES.
CATEGORIES = {
    "loss": r"softmax|nll_|kl_div|cross_entropy|topk|xlogy",
    "normalisation": r"batch_norm|bn_(fw|bw)|batchnorm|norm_kernel",
    "optimizer": r"multi_tensor_apply|sgd|_foreach|Optimizer",
    "convolution": r"conv|cudnn|cutlass|implicit_gemm|fprop|dgrad|wgrad|winograd|xmma|nchwToNhwc|nhwcToNchw",
    "linear layers and pooling": r"linear|addmm|aten::mm|gemm|gemv|pool|aten::mean|mean_dim|MeanOps|splitK",
    "casts and copies": r"_to_copy|copy|memcpy|memset|contiguous|aten::clone|aten::to|bfloat16",
    "data and rotations": r"DataLoader|rot90|flip|aten::index|gather|_pad|aten::stack|aten::cat|CatArray|randperm",
    "activations and sums": r"relu|threshold|aten::add|clamp|hardtanh|CUDAFunctor_add|elementwise|aten::sum|reduce_",
}
RANGES = {"optimizer": r"^Optimizer\.", "data and rotations": r"^enumerate\(DataLoader\)"}
OTHER = "other"
BACKWARD = "autograd::engine::evaluate_function"  # what PyTorch calls the range of one gradient


def category(name: str, ranges: tuple[str, ...] = ()) -> str:
    """Of a kernel or operator, ``ranges`` being the names around it from the inside out."""
    for outer in ranges:
        for found, pattern in RANGES.items():
            if re.search(pattern, outer):
                return found
    return next((found for found, pattern in CATEGORIES.items() if re.search(pattern, name, re.IGNORECASE)), OTHER)


def _ranges(event: FunctionEvent, backward: list[float]) -> Iterator[str]:
    """Names around an operator, from its own outwards, without ranges that go on to a later gradient.

    A fit runs forward and backward inside ``optimizer.step``, and only what comes after them is the update.
    ``backward``: when each gradient begins, sorted.
    """
    inner: FunctionEvent | None = event
    later = bisect_right(backward, event.time_range.start)
    while inner is not None and (later == len(backward) or backward[later] > inner.time_range.end):
        yield inner.name
        inner = inner.cpu_parent


def idle_share(spans: list[tuple[float, float]]) -> float:
    """Part of the time between the first start and the last end in which none of the spans (start, end) runs."""
    spans, busy, reached = sorted(spans), 0.0, float("-inf")
    for start, end in spans:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return 1 - busy / (reached - spans[0][0])


def summarise(events: EventList, steps: int, cuda: bool) -> dict[str, Any]:
    """Milliseconds a step of each category, how many kernels (operators) a step, and the GPU's idle share."""
    milliseconds: Counter[str] = Counter()
    names: Counter[str] = Counter()
    spans = []
    ranges = {event.name for event in events if event.device_type == DeviceType.CPU}
    backward = sorted(event.time_range.start for event in events if event.name.startswith(BACKWARD))
    for event in events:
        on_cpu = event.device_type == DeviceType.CPU
        if on_cpu == cuda or (cuda and event.name in ranges):  # the GPU repeats the ranges around its kernels
            continue
        time = 1e-3 * (event.self_cpu_time_total if on_cpu else event.time_range.elapsed_us()) / steps
        inside = [*_ranges(event, backward)] if on_cpu else [event.name]
        if not inside:
            continue  # what happens in a whole step between its operators
        milliseconds[category(inside[0], tuple(inside))] += time
        names[event.name] += time
        spans.append((event.time_range.start, event.time_range.end))
    counted = [event for event in events if event.name.startswith("aten::")] if not cuda else spans
    return {
        "per_step": len(counted) / steps,
        "milliseconds": {name: milliseconds[name] for name in (*CATEGORIES, OTHER)},
        "idle_share": idle_share(spans) if cuda and spans else None,
        "longest": [{"name": name, "milliseconds": time} for name, time in names.most_common(25)],
    }


def breakdown(case: Case, settings: Settings) -> dict[str, Any]:
    """Profile ``settings.steps`` steps of a case after the warm-up, in each of the loops."""
    meter, data, found = Meter(settings.torch_device), settings.data_module(), {}
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if meter.cuda else [])]

    def phases(loop: str) -> Iterator[None]:
        for _ in range(1 + settings.warmup):
            yield
        meter.synchronize()
        with profile(activities=activities) as profiler:
            for _ in range(settings.steps):
                yield
            meter.synchronize()
        found[loop] = summarise(profiler.events(), settings.steps, meter.cuda)

    drive(phases("plain"), PlainLoop(case, data, settings.torch_device).step)
    drive(phases("step"), BareLoop(case, data, settings).step)
    fit(case, settings, Phases(phases("fit")))
    return found
