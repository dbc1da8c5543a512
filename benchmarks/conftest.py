"""Benchmarks: `pytest benchmarks/`, or only ours against the floor: `pytest benchmarks/ -k "ours or floor"`.

Contestants of one group (shape, dtype, work) run in interleaved rounds in one process and are reported
through pytest-benchmark (--benchmark-json and --benchmark-compare work); a table of ratios closes the run, and
`python -m benchmarks.report` makes more of it.  Ratios of one run can be compared, times of different runs cannot.
"""

from __future__ import annotations

import dataclasses
import platform
import statistics
from collections.abc import Callable
from typing import Any

import cpuinfo
import pytest
import torch
from peers import Unavailable
from racing import Call, convolution_share, keep_freed_memory, peak_bytes, race
from report import HEADINGS, LEGEND, Result, Run, columns

import ckd_kernels

Build = Callable[[str], Call]  # a contestant's name -> what it does in a round


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full-width",
        action="store_true",
        help="training steps of ResNet-19 at full width, batch 8 (default: a quarter of the width, batch 16)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")
    keep_freed_memory()


def environment() -> dict[str, Any]:
    """What decides how fast things are."""
    facts = ckd_kernels.build_info()["compiled"] or {}
    found = {
        "cpu": cpuinfo.get_cpu_info().get("brand_raw", platform.processor()),
        "threads": torch.get_num_threads(),
        "instruction set of our kernels": facts.get("cpu_level_in_use"),
        "compiler": facts.get("compiler"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "ckd-kernels": ckd_kernels.__version__,
    }
    if torch.cuda.is_available():
        found |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "nvcc": facts.get("nvcc")}
    return found


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info["ckd"] = environment()


RACES: dict[str, dict[str, Result]] = {}  # group -> contestant -> result
TIMES: dict[str, dict[str, list[float]]] = {}
ABSENT: dict[str, dict[str, str]] = {}  # group -> contestant -> why it cannot run

_clock = 0.0


def recorded_time() -> float:
    """The clock of pytest-benchmark: it stands still but for the rounds that were timed in the race."""
    return _clock


@pytest.fixture(scope="session")
def size(request: pytest.FixtureRequest) -> dict[str, float]:
    """Of the network in training steps."""
    full = request.config.getoption("--full-width")
    return {"width": 1.0 if full else 0.25, "batch": 8 if full else 16, "time_steps": 4}


@pytest.fixture
def enter(request: pytest.FixtureRequest, benchmark) -> Callable[..., None]:
    """Enters this test's contestant in the race of its group, which the first of the group's tests runs for all.

    ``enter(build, elements=None, floor_bytes=None, split=False, **facts)``: the elements of the input and the bytes
    that the op has to move, where there is a floor; whether to measure the convolutions' share; and what the test's
    parameters do not say of shape, dtype and work.
    """
    name = request.node.callspec.params["contestant"]
    group = group_name(request.node)

    def run(build: Build, *, split: bool = False, **facts: Any) -> None:
        global _clock
        if group not in RACES:
            rivals = [i for i in request.session.items if group_name(i) == group]
            hold_race(rivals, build, split=split, **facts)
        if name in ABSENT[group]:
            pytest.skip(ABSENT[group][name])
        rounds = iter(TIMES[group][name])

        def replay() -> None:
            global _clock
            _clock += next(rounds)

        benchmark.group = group
        measured_again = ("median", "low", "high", "rounds")  # by pytest-benchmark, from the replay
        result = dataclasses.asdict(RACES[group][name])
        benchmark.extra_info.update({k: v for k, v in result.items() if k not in measured_again})
        benchmark.pedantic(replay, rounds=len(TIMES[group][name]))

    return run


def hold_race(rivals: list[pytest.Item], build: Build, *, split: bool, **facts: Any) -> None:
    """Times all contestants of a group."""
    group, parameters = group_name(rivals[0]), dict(rivals[0].callspec.params)
    parameters.pop("contestant")
    described = {k: str(v).removeprefix("torch.") for k, v in parameters.items()}
    calls, ABSENT[group] = {}, {}
    for name in (i.callspec.params["contestant"] for i in rivals):
        try:
            calls[name] = build(name)
        except Unavailable as reason:
            ABSENT[group][name] = str(reason)
    TIMES[group] = race(calls, parameters["device"])
    RACES[group] = {}
    for name, call in calls.items():
        low, median, high = statistics.quantiles(TIMES[group][name], n=4)
        RACES[group][name] = Result(
            op=rivals[0].originalname.removeprefix("test_"),
            contestant=name,
            median=median,
            low=low,
            high=high,
            rounds=len(TIMES[group][name]),
            peak_bytes=peak_bytes(call, parameters["device"]),
            convolution=convolution_share(call, parameters["device"]) if split else None,
            **(described | facts),
        )


def group_name(item: pytest.Item) -> str:
    parameters = {k: v for k, v in item.callspec.params.items() if k != "contestant"}
    return f"{item.originalname.removeprefix('test_')} " + " ".join(
        str(v).removeprefix("torch.") for v in parameters.values()
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=recorded_time))


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not RACES:
        return
    write = terminalreporter.write_line
    terminalreporter.section(f"ratios of medians, {torch.get_num_threads()} threads")
    widths = [max(len(heading) + 2, 11) for heading in HEADINGS]
    widths[1] = 18
    write(" " * 26 + "".join(f"{h:>{w}}" for h, w in zip(HEADINGS, widths, strict=True)))
    run = Run({}, [result for race in RACES.values() for result in race.values()])
    for group in run.groups().values():
        write(group[0].title)
        for result in group:
            cells = zip(columns(result, group), widths, strict=True)
            write(f"  {result.contestant:24}" + "".join(f"{cell:>{width}}" for cell, width in cells))
    absent = {f"{name}: {why}" for names in ABSENT.values() for name, why in names.items()}
    for line in (*sorted(absent), "", *LEGEND.replace("*", "").splitlines()):
        write(line)
