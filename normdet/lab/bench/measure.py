"""Measure time, memory and bytes kept for backward, the same way for every provider."""

import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

Step = Callable[[], object]


def interleaved(
    steps: Mapping[str, Step], device: str, seconds: float, warmup: int = 2, least: int = 5
) -> dict[str, list[float]]:
    """Times in ms of each step, measured in turn so that a busy moment affects all of them.

    Args:
        seconds: how long to measure, for each step.
        warmup: rounds that are not counted.
        least: the fewest rounds that are counted.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    flush = torch.empty(64 << 20, device=device) if device == "cuda" else None
    for step in steps.values():  # compile, allocate, warm up
        for _ in range(warmup):
            step()
    end = time.perf_counter() + seconds * len(steps)
    while time.perf_counter() < end or len(next(iter(times.values()))) < least:
        for name, step in steps.items():
            if flush is not None:
                flush.zero_()  # 256 MB, so that nothing of the last round stays in the L2 cache
            times[name].append(_time(step, device))
    return times


def _time(step: Step, device: str) -> float:
    if device == "cuda":
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop)
    start = time.perf_counter()
    step()
    return (time.perf_counter() - start) * 1e3


def quartiles(times: list[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile."""
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return low, median, high


def kept_bytes(forward: Callable[[], Tensor], own: list[Tensor]) -> int:
    """Bytes that `forward` keeps for backward, with inputs and without the parameters `own`."""
    storages = {}
    parameters = {p.untyped_storage().data_ptr() for p in own}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        storages[storage.data_ptr()] = (storage.nbytes(), t)  # keep t, so that no address recurs
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output = forward()
    del output
    return sum(size for address, (size, _) in storages.items() if address not in parameters)


def peak_bytes(step: Step, device: str) -> int:
    """The peak memory of tensors in a step beyond the memory before it.

    On CUDA the allocator counts. On the CPU torch's profiler does; it sees each allocation and
    release of a tensor, but not a library's scratch memory (such as oneDNN's), nor the release of
    tensors from before.
    """
    if device != "cuda":
        return _allocated(step)[0]
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def held_bytes(forward: Callable[[], Tensor], device: str) -> int:
    """The memory of tensors that remain after `forward` with its output, mostly for backward.

    Unlike :func:`kept_bytes` it uses no hooks, so it also works for code with saved-tensor hooks.
    """
    if device != "cuda":
        return _allocated(forward)[1]
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    output = forward()
    held = torch.cuda.memory_allocated() - before
    del output
    return held


def _allocated(call: Callable[[], object]) -> tuple[int, int]:
    """Bytes of CPU tensors allocated in `call`: the peak, and those at its end with the result."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        result = call()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    del result
    return peak, total


def copy_bandwidth(device: str) -> float:
    """This machine's memory bandwidth, from copying 256 MB: bytes read and written per ms."""
    source = torch.ones(64 << 20, device=device)
    target = torch.empty_like(source)
    times = interleaved({"copy": lambda: target.copy_(source)}, device, 1.0)["copy"]
    return 2 * source.nbytes / quartiles(times)[0]


def machine(device: str) -> str:
    """The processor's or GPU's own name."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    found = cpuinfo.exists() and re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text())
    return found[1].strip() if found else platform.processor() or platform.machine()


def slug(text: str) -> str:
    """`text` as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
