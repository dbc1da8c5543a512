"""Benchmarks: `pytest benchmarks/`, or only ours against the floor: `pytest benchmarks/ -k "ours or floor"`.

Contestants of one group (shape, dtype, work) run in interleaved rounds in one process and are reported
through pytest-benchmark (--benchmark-json and --benchmark-compare work); a table of ratios closes the run.  Ratios
of one run can be compared, times of different runs cannot.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from racing import Call, keep_freed_memory, peak_bytes, race

Build = Callable[[str], Call]  # a contestant's name -> what it does in a round


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")
    keep_freed_memory()


class Score(NamedTuple):
    seconds: list[float]
    peak: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, over the median."""
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / 2 / self.median


SCORES: dict[str, dict[str, Score]] = {}  # group -> contestant -> score

_clock = 0.0


def recorded_time() -> float:
    """The clock of pytest-benchmark: it stands still but for the rounds that were timed in the race."""
    return _clock


@pytest.fixture
def enter(request: pytest.FixtureRequest, benchmark) -> Callable[[Build], None]:
    """Enters this test's contestant in the race of its group, which the first of the group's tests runs for all."""
    parameters = dict(request.node.callspec.params)
    name = parameters.pop("contestant")
    group = group_name(request.node)

    def run(build: Build) -> None:
        global _clock
        if group not in SCORES:
            rivals = [i for i in request.session.items if group_name(i) == group]
            calls = {i.callspec.params["contestant"]: build(i.callspec.params["contestant"]) for i in rivals}
            times = race(calls, parameters["device"])
            SCORES[group] = {n: Score(times[n], peak_bytes(calls[n], parameters["device"])) for n in calls}
        score = SCORES[group][name]
        rounds = iter(score.seconds)

        def replay() -> None:
            global _clock
            _clock += next(rounds)

        benchmark.group = group
        benchmark.extra_info["peak_bytes"] = score.peak
        benchmark.pedantic(replay, rounds=len(score.seconds))

    return run


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
    if not SCORES:
        return
    write = terminalreporter.write_line
    terminalreporter.section(f"ratios of medians, {torch.get_num_threads()} threads")
    write(f"{'':24}{'median ms':>12}{'± half IQR':>12}{'/ floor':>10}{'/ ours':>10}{'peak MB':>10}")
    for group, scores in SCORES.items():
        write(group)
        floor, ours = (
            scores.get("floor"),
            min((s for n, s in scores.items() if n.startswith("ours")), key=lambda s: s.median, default=None),
        )
        for name, score in scores.items():
            over_floor = f"{score.median / floor.median:.2f}" if floor else ""
            over_ours = f"{score.median / ours.median:.2f}" if ours else ""
            write(
                f"  {name:22}{score.median * 1e3:12.2f}{score.spread:12.1%}{over_floor:>10}{over_ours:>10}"
                f"{score.peak / 1e6:10.1f}"
            )
