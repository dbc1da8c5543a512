"""What the benchmarks of the GPU share: calls that take turns as CUDA graphs, a time box, rows kept as they come.

On a CPU the same calls are timed one by one, so that the scripts can be tried without a GPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ckd_kernels import build_info

ROUNDS, REPEATS = 7, 10

Call = Callable[[int], object]  # works on the i-th set of buffers


class Timing(NamedTuple):
    """One call's time."""

    microseconds: float  # median of the rounds
    spread: float  # half the distance between the quartiles, over the median
    captured: bool  # as a CUDA graph: the device's own time; else with what the host adds

    def row(self) -> dict[str, Any]:
        return {
            "microseconds": round(self.microseconds, 2),
            "spread": round(self.spread, 4),
            "captured": self.captured,
        }


def summary(microseconds: Sequence[float], captured: bool = False) -> Timing:
    """Of the rounds of one call."""
    low, median, high = statistics.quantiles(microseconds, n=4)
    return Timing(median, (high - low) / 2 / median, captured)


def buffer_sets(bytes_moved: int, device: str) -> int:
    """How many sets of buffers calls must rotate among so that none finds its own in the cache."""
    if device == "cpu":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return min(REPEATS, max(1, -(-3 * cache // bytes_moved)))


def race(calls: dict[str, Call], device: str) -> dict[str, Timing | str]:
    """Every call's time, or why it failed; each round runs every one of them ``REPEATS`` times."""
    runs: dict[str, tuple[Callable[[], object], bool]] = {}
    result: dict[str, Timing | str] = {}
    for name, call in calls.items():
        try:
            call(0)
            wait(device)
            runs[name] = _prepared(call, device)
        except Exception as error:
            result[name] = describe(error)
    times: dict[str, list[float]] = {name: [] for name in runs}
    gc.collect()
    for _ in range(1 + ROUNDS):
        for name, (run, _) in list(runs.items()):
            try:
                times[name].append(_microseconds(run, device) / REPEATS)
            except Exception as error:
                result[name] = describe(error)
                del runs[name]
    return result | {name: summary(times[name][1:], captured) for name, (_, captured) in runs.items()}


def run_once(calls: dict[str, Call]) -> None:
    """Compiles what the calls need."""
    for name, call in calls.items():
        try:
            call(0)
        except Exception as error:
            print(f"{name}: {describe(error)}", flush=True)


def describe(error: Exception) -> str:
    """One line."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]


def _prepared(call: Call, device: str) -> tuple[Callable[[], object], bool]:
    def one_by_one() -> None:
        for i in range(REPEATS):
            call(i)

    if device == "cpu":
        return one_by_one, False
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call(0)
        call(1)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            one_by_one()
    except Exception:
        # Some calls wait for the device, which no graph can hold.
        torch.cuda.synchronize()
        call(0)
        return one_by_one, False
    return graph.replay, True


def _microseconds(run: Callable[[], object], device: str) -> float:
    if device == "cpu":
        begin = time.perf_counter()
        run()
        return (time.perf_counter() - begin) * 1e6
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3


def wait(device: str) -> None:
    """Until the device has done all that it was given."""
    if device != "cpu":
        torch.cuda.synchronize()


def peak_bytes(call: Callable[[], object], device: str) -> int | None:
    """The most memory of the GPU that a call holds at once beyond what was there before it."""
    if device == "cpu":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def channels_last(x: Tensor) -> Tensor:
    """[T, B, C, ...] with channels innermost in memory."""
    return x.movedim(2, -1).contiguous().movedim(-1, 2)


class Results:
    """Rows and the facts of the machine, in a JSON file that is whole after every `add`; a warm-up writes none."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.path: Path | None = options.results if options.warm_up is None else None
        device = options.device
        name = torch.cuda.get_device_name() if device != "cpu" else "cpu"
        self.machine = {"device": name, "torch": torch.__version__, "build": build_info()}
        self.rows: list[dict[str, Any]] = []
        self.add([])

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        self.rows += rows
        if self.path is None:
            return
        text = json.dumps({"machine": self.machine, "rows": self.rows}, indent=1)
        new = self.path.with_name(self.path.name + ".new")
        new.write_text(text)
        os.replace(new, self.path)


def arguments(description: str, seconds: float) -> argparse.ArgumentParser:
    """The options that every one of these scripts has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="JSON file to write")
    parser.add_argument(
        "--device",
        choices=["cuda", "cpu"],
        default="cuda",
        help="cpu: small sizes and few backends, to try the script (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=seconds,
        help="no case is begun after so many; what is left out is written as such (default: %(default)s)",
    )
    parser.add_argument(
        "--warm-up",
        metavar="I/N",
        type=_share,
        help="only compile what the I-th of N parts of the cases needs, which PyTorch and Triton keep on disk; N "
        "processes side by side make the later run short",
    )
    return parser


def _share(text: str) -> tuple[int, int]:
    try:
        part, parts = (int(number) for number in text.split("/"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 2/6") from None
    if not 1 <= part <= parts:
        raise argparse.ArgumentTypeError(f"{text!r} must be between 1/{parts} and {parts}/{parts}")
    return part, parts


def run_cases(
    cases: Sequence[Any], measure: Callable[[Any, bool], list[dict[str, Any]]], options: argparse.Namespace
) -> None:
    """Measures case after case until the time is over; rows say what failed and what was left out.

    Args:
        cases: in the order in which they are worth knowing.
        measure: case, whether it is only to be compiled -> its rows.
        options: of `arguments`.
    """
    torch.manual_seed(0)
    results = Results(options)
    if options.warm_up is not None:
        part, parts = options.warm_up
        cases = cases[part - 1 :: parts]
    begin = time.monotonic()
    for case in cases:
        if time.monotonic() - begin > options.seconds:
            print(f"not measured, the time was over: {case}", flush=True)
            results.add([{"case": str(case), "not_measured": f"the {options.seconds:g} seconds were over"}])
            continue
        try:
            results.add(measure(case, options.warm_up is not None))
        except Exception as error:
            print(f"{case} failed: {describe(error)}", flush=True)
            results.add([{"case": str(case), "failed": describe(error)}])
        if options.device == "cuda":
            # What graphs of this case have held.
            torch.cuda.empty_cache()
