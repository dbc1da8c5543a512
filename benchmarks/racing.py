"""Contestants that take turns: each round times every one of them once, so that all see the same machine.

The floor is a copy between buffers that exist already, of the bytes that the operation has to move: `clone` allocates,
and fresh memory can read three times slow.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import random
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
OURS = {"cpu": ["ours-cpu"], "cuda": ["ours-cuda", "ours-triton"]}  # contestants by device
ROUNDS = 31
FEWEST_ROUNDS = 3  # of a contestant that does not fit the time
SECONDS = 0.8  # one contestant's share in one race

Call = Callable[[], object]


def keep_freed_memory() -> None:
    """Tells glibc's malloc not to return memory to the system.

    By default every tensor of more than 32 MB is fresh memory from the kernel, zeroed page by page as it is first
    touched, which takes longer than any of the operations here.  A training process that runs for a while reuses its
    memory, with glibc's threshold adapted or another allocator, and so does this.  The same for a whole
    process: MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=-1 (some libraries only honour it when set from outside).
    """
    mmap_max, trim_threshold = -4, -1  # malloc.h
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, -1)


def race(calls: dict[str, Call], device: str) -> dict[str, list[float]]:
    """Seconds of every call, in rounds; the first call of each is not counted.

    Every round has an order of its own, the same in every run: what a call finds in the caches is what the call before
    it left there.  A contestant whose calls are long runs in fewer rounds.
    """
    first = {}
    for name, call in calls.items():
        call()
        first[name] = _seconds(call, device)
    rounds = {name: int(min(ROUNDS, max(FEWEST_ROUNDS, SECONDS / seconds))) for name, seconds in first.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    gc.disable()
    try:
        for i in range(ROUNDS):
            for name, call in random.Random(i).sample(list(calls.items()), len(calls)):
                # Rounds of the slow ones are spread over the whole race.
                if i * rounds[name] // ROUNDS != (i + 1) * rounds[name] // ROUNDS:
                    times[name].append(_seconds(call, device))
    finally:
        gc.enable()
    return times


def _seconds(call: Call, device: str) -> float:
    if device == "cuda":
        # The device's own clock, with the cache flushed as a network's other layers would.
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def convolution_share(call: Call, device: str) -> float:
    """The convolutions' part of the time of a call, forward and backward, with what they do to their inputs."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    call()
    with torch.profiler.profile(activities=activities) as profile:
        call()
    averages = profile.key_averages()
    kind = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    total = sum(getattr(event, kind) for event in averages)
    kind = kind.removeprefix("self_")
    # Not aten::conv2d, which under autocast is recorded a second time inside of itself.
    keys = ("aten::convolution", "aten::convolution_backward")
    return sum(getattr(event, kind) for event in averages if event.key in keys) / total


def peak_bytes(call: Call, device: str) -> int:
    """The most memory that a call holds at once beyond what was there before it, another call having gone before."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        # What the measured call frees of an earlier one, such as gradients, the profiler must have seen made.
        call()
        with torch.profiler.record_function("between the calls"):
            pass
        call()
    events = sorted(profile.events(), key=lambda e: e.time_range.end)
    begin = next(i for i, event in enumerate(events) if event.name == "between the calls")
    return max(itertools.accumulate((event.self_cpu_memory_usage for event in events[begin:]), initial=0))


def copies(pairs: Sequence[tuple[Tensor, Tensor]]) -> Call:
    """Copies each source into its destination."""

    def copy() -> None:
        for source, destination in pairs:
            destination.copy_(source)

    return copy


def floor(x: Tensor, *, tensors: int) -> Call:
    """A copy of the bytes that an operation has to move.

    Args:
        tensors: what it reads and writes, in tensors of x's size, 1 to 8: a copy of one is 2.
    """
    buffers = [torch.ones_like(x).view(-1) for _ in range(4 if tensors > 2 else 2)]
    pairs = [(buffers[i % len(buffers)], buffers[j % len(buffers)]) for i, j in ((0, 1), (2, 3), (0, 3), (2, 1))]
    pairs = pairs[: (tensors + 1) // 2]
    if tensors % 2:
        source, destination = pairs.pop()
        half = x.numel() // 2
        pairs.append((source[:half], destination[:half]))
    return copies(pairs)
