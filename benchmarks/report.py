"""Tables and plots of a benchmark run, and a comparison with an earlier one."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent / "results"
STORED = "benchmarks.json"
# A ratio needs something to divide by: the copy, or else the modules that ours stand for.
BASELINES = ("floor", "paper", "spikingjelly")

DESCRIPTION = """\
Turns what pytest-benchmark wrote into Markdown and plots:

  pytest benchmarks/ --benchmark-json=run.json
  python -m benchmarks.report run.json

writes benchmarks/results/<machine>/: report.md (tables, and the environment that was measured), over_floor_*.png (time
over the floor by shape), roofline_*.png (bandwidth reached, under the roof that the copies make) and benchmarks.json
(the same numbers, to compare with).  A run may come in parts, e.g. one file an op; of a group that is in several files
the last one counts.

  python -m benchmarks.report run.json --compare

writes nothing.  It divides the time of each of our own contestants by the floor of its group (where a group has no
floor, by the paper's modules or SpikingJelly's), does the same with the stored run of this machine, and ends with exit
code 1 where a ratio has grown by more than --tolerance, 25 % if not said otherwise.  Ratios, unlike times, can be
compared between runs; between machines neither can, but for what is far off:

  python -m benchmarks.report run.json --compare benchmarks/results/*/benchmarks.json --tolerance 150

compares with the largest ratio of these runs.  Exit code 2: nothing to compare, or a file that holds no benchmarks.
"""


@dataclass(frozen=True)
class Result:
    """One contestant in one group; the group is all that races in turns: same op, device, shape, dtype and work."""

    op: str
    device: str
    shape: str
    dtype: str
    work: str
    contestant: str
    median: float  # seconds
    low: float  # first and third quartile
    high: float
    rounds: int
    peak_bytes: int
    elements: int | None = None  # of the input, time steps included
    floor_bytes: int | None = None  # that the op has to move
    convolution: float | None = None  # share of the time that convolutions take, forward and backward

    @property
    def group(self) -> tuple[str, ...]:
        return (self.op, self.device, self.shape, self.dtype, self.work)

    @property
    def title(self) -> str:
        return " ".join(self.group)


@dataclass(frozen=True)
class Run:
    environment: dict[str, Any]
    results: list[Result]

    def groups(self) -> dict[tuple[str, ...], list[Result]]:
        groups: dict[tuple[str, ...], list[Result]] = {}
        for result in self.results:
            groups.setdefault(result.group, []).append(result)
        return groups


class Unreadable(Exception):
    """A file that holds no benchmarks."""


def read(paths: Sequence[Path]) -> Run:
    """The run in one or several files: of pytest-benchmark, or as :func:`store` writes them.

    Raises:
        Unreadable: a file that is missing or holds something else.
    """
    environment: dict[str, Any] = {}
    groups: dict[tuple[str, ...], list[Result]] = {}
    for path in paths:
        try:
            data = json.loads(path.read_text())
            if "benchmarks" in data:
                part = Run(data["machine_info"]["ckd"], [_measured(b) for b in data["benchmarks"]])
            else:
                part = Run(data["environment"], [Result(**row) for row in data["results"]])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Unreadable(
                f"{path} holds no benchmarks ({type(error).__name__}: {error}); make one with "
                "pytest benchmarks/ --benchmark-json=run.json"
            ) from error
        if environment and part.environment != environment:
            raise Unreadable(f"{path} was measured in another environment than the file before it; report them apart")
        environment = part.environment
        groups |= part.groups()
    return Run(environment, [result for group in groups.values() for result in group])


def _measured(benchmark: dict[str, Any]) -> Result:
    stats = benchmark["stats"]
    times = {"median": stats["median"], "low": stats["q1"], "high": stats["q3"], "rounds": stats["rounds"]}
    return Result(**benchmark["extra_info"], **times)


def baseline(group: Iterable[Result]) -> Result | None:
    """What the group's times are divided by."""
    by_name = {result.contestant: result for result in group}
    return next((by_name[name] for name in BASELINES if name in by_name), None)


def fastest_of_ours(group: Iterable[Result]) -> Result | None:
    """The contestant of this project that took the least time."""
    return min((r for r in group if r.contestant.startswith("ours")), key=lambda r: r.median, default=None)


# Tables


def columns(result: Result, group: Sequence[Result]) -> list[str]:
    """What the tables say of a contestant; the terminal and the report have the same."""
    base, ours = baseline(group), fastest_of_ours(group)
    cells = [
        f"{result.median * 1e3:.2f}",
        f"{result.low * 1e3:.2f}–{result.high * 1e3:.2f}",
        f"{result.median / base.median:.2f}" if base else "",
        f"{result.median / ours.median:.2f}" if ours else "",
        f"{result.peak_bytes / 1e6:.1f}",
    ]
    if result.elements and result.floor_bytes and base:
        must = result.floor_bytes / result.elements
        cells += [
            f"{must:.3g}",
            f"{must * result.median / base.median:.3g}",
            f"{base.median / result.median:.0%}",
        ]
    else:
        cells += ["", "", ""]
    return [*cells, "" if result.convolution is None else f"{result.convolution:.0%}"]


HEADINGS = (
    "median ms",
    "quartiles ms",
    "/ baseline",
    "/ ours",
    "peak MB",
    "B/el-step",
    "worth",
    "of floor",
    "conv",
)

LEGEND = f"""\
Medians and quartiles of interleaved rounds in one process.  *Baseline* is the first of {", ".join(BASELINES)} that the
group has; the floor is a copy, between buffers that exist, of the bytes that the op has to move.  *ours* is the fastest
of ours.  *Peak* is the most memory that one call held beyond what was there before it.  *B/el-step* is the bytes that
have to be moved for each element and time step, *worth* how many a copy moves in the time that this contestant took,
*of floor* the part of the copy's speed that it reached.  *Conv* is the convolutions' share of the time."""


def markdown(run: Run, plots: Sequence[str] = ()) -> str:
    """The report."""
    lines = ["# Benchmarks", "", LEGEND, "", "## Environment", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in run.environment.items()]
    ops: dict[tuple[str, str], list[list[Result]]] = {}
    for group in run.groups().values():
        ops.setdefault(group[0].group[:2], []).append(group)
    for (op, device), groups in ops.items():
        lines += ["", f"## {op}, {device}"]
        lines += [f"\n![{name}]({name})" for name in plots if name.endswith(f"_{op}_{device}.png")]
        for group in groups:
            lines += ["", f"**{', '.join(group[0].group[2:])}**", ""]
            used = [i for i in range(len(HEADINGS)) if any(columns(r, group)[i] for r in group)]
            lines += [
                "| contestant | " + " | ".join(HEADINGS[i] for i in used) + " |",
                "|---|" + "---:|" * len(used),
            ]
            for result in group:
                cells = columns(result, group)
                lines.append(f"| {result.contestant} | " + " | ".join(cells[i] for i in used) + " |")
    return "\n".join(lines) + "\n"


# Plots


def plot(run: Run, folder: Path) -> list[str]:
    """Writes the plots of every op that has a floor; returns their names."""
    import matplotlib

    matplotlib.use("agg")
    # The same numbers make the same file.
    matplotlib.rcParams |= {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}
    ops: dict[tuple[str, str], list[list[Result]]] = {}
    for group in run.groups().values():
        base = baseline(group)
        if base and base.floor_bytes:
            ops.setdefault(group[0].group[:2], []).append(group)
    names = []
    for (op, device), groups in ops.items():
        for kind, draw in (("over_floor", _over_floor), ("roofline", _roofline)):
            name = f"{kind}_{op}_{device}.png"
            figure = draw(f"{op}, {device}", groups)
            figure.savefig(folder / name, dpi=110, metadata={"Software": None})
            names.append(name)
    return names


def _over_floor(title: str, groups: list[list[Result]]) -> Any:
    """Time over the floor (log), a row for each group, a dot with its quartiles for each contestant."""
    figure, axes, colours = _axes(title, groups, (8, 1.2 + 0.28 * len(groups)))
    for row, group in enumerate(groups):
        base = baseline(group)
        assert base is not None
        for result in group:
            if result.contestant in colours:
                low, middle, high = (t / base.median for t in (result.low, result.median, result.high))
                axes.plot([low, high], [row, row], color=colours[result.contestant], linewidth=1)
                axes.plot(middle, row, "o", color=colours[result.contestant], markersize=4)
    axes.axvline(1, color="black", linewidth=0.8)
    _logarithmic(axes, "x")
    axes.set_yticks(range(len(groups)), [", ".join(group[0].group[2:]) for group in groups])
    axes.invert_yaxis()
    axes.set_xlabel("time over a copy of the same bytes")
    return figure


def _roofline(title: str, groups: list[list[Result]]) -> Any:
    """Bandwidth over the bytes that have to be moved; the roof is what the copies reach."""
    figure, axes, colours = _axes(title, groups, (8, 4))
    roof = []
    for group in groups:
        for result in group:
            assert result.floor_bytes is not None
            point = result.floor_bytes / 1e6, result.floor_bytes / result.median / 1e9
            if result.contestant in colours:
                axes.plot(*point, "o", color=colours[result.contestant], markersize=4)
            else:
                roof.append(point)
    axes.plot(*zip(*sorted(roof), strict=True), color="black", linewidth=1)
    _logarithmic(axes, "x")
    _logarithmic(axes, "y")
    axes.set_xlabel("MB that the op has to move (line: a copy)")
    axes.set_ylabel("these MB over the time, GB/s")
    return figure


def _axes(title: str, groups: list[list[Result]], size: tuple[float, float]) -> tuple[Any, Any, dict[str, Any]]:
    """Figure, axes, and a colour for each contestant but the floor."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    names = dict.fromkeys(r.contestant for group in groups for r in group if r.contestant != "floor")
    colours = {name: colormaps["tab10"](i % 10) for i, name in enumerate(names)}
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.grid(alpha=0.25)
    for name, colour in colours.items():
        axes.plot([], [], "o", color=colour, markersize=4, label=name)
    figure.legend(loc="outside right upper", frameon=False)
    return figure, axes, colours


def _logarithmic(axes: Any, which: str) -> None:
    """A logarithmic scale with 1, 2, 5, 10, ... written out."""
    from matplotlib.ticker import LogLocator, NullLocator

    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


# Storing and comparing


def machine_name(environment: dict[str, Any]) -> str:
    """A folder name for the processor, or the GPU where one was measured."""
    words = environment.get("gpu") or f"{environment['cpu']} {environment['threads']} threads"
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", words.lower())).strip("-")


def store(run: Run, folder: Path) -> None:
    """Writes plots, report and numbers; each file is there in whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    plots = plot(run, folder)
    rows = ",\n".join(json.dumps({k: v for k, v in asdict(r).items() if v is not None}) for r in run.results)
    numbers = f'{{"environment": {json.dumps(run.environment, indent=1)},\n"results": [\n{rows}\n]}}\n'
    for name, text in (("report.md", markdown(run, plots)), (STORED, numbers)):
        (folder / f"{name}.new").write_text(text)
        os.replace(folder / f"{name}.new", folder / name)


@dataclass(frozen=True)
class Change:
    """A ratio to the baseline, then and now."""

    title: str
    before: float
    now: float

    @property
    def growth(self) -> float:
        return self.now / self.before - 1

    def exceeds(self, tolerance: float) -> bool:
        return self.growth > tolerance and not math.isclose(self.growth, tolerance, rel_tol=1e-6)  # the limit passes


def compare(run: Run, stored: Sequence[Run]) -> list[Change]:
    """How the ratios of our contestants have changed, the worst first; of several stored runs the largest counts."""
    changes, then = [], [_ratios(one) for one in stored]
    for title, ratio in _ratios(run).items():
        if before := [ratios[title] for ratios in then if title in ratios]:
            changes.append(Change(title, max(before), ratio))
    return sorted(changes, key=lambda change: -change.growth)


def _ratios(run: Run) -> dict[str, float]:
    ratios = {}
    for group in run.groups().values():
        base = baseline(group)
        for result in group:
            if base and result.contestant.startswith("ours"):
                ratios[f"{result.title} {result.contestant}"] = result.median / base.median
    return ratios


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", type=Path, nargs="+", help="JSON of pytest-benchmark; one file or a run in parts")
    parser.add_argument("--machine", help="name of the folder in benchmarks/results (default: after processor or GPU)")
    parser.add_argument("--out", type=Path, default=ROOT, help="where these folders are (default: %(default)s)")
    parser.add_argument(
        "--compare",
        type=Path,
        nargs="*",
        metavar="STORED",
        help=f"compare with these files (default: {STORED} of the machine's folder), write nothing",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=25.0,
        metavar="PERCENT",
        help="by how much a ratio may grow, with --compare (default: %(default)g)",
    )
    options = parser.parse_args(arguments)
    if not 0 <= options.tolerance < math.inf:
        parser.error(f"--tolerance must be a percentage of 0 or more, got {options.tolerance}")
    try:
        run = read(options.results)
        folder = options.out / (options.machine or machine_name(run.environment))
        if options.compare is None:
            store(run, folder)
            print(f"{len(run.results)} results in {len(run.groups())} groups written to {folder}")
            return 0
        stored = [read([path]) for path in options.compare or [folder / STORED]]
    except Unreadable as error:
        print(error, file=sys.stderr)
        return 2
    if not (changes := compare(run, stored)):
        print("the runs have nothing in common, so nothing was compared", file=sys.stderr)
        return 2
    worse = [change for change in changes if change.exceeds(options.tolerance / 100)]
    print(
        f"{len(changes)} of {len(_ratios(run))} ratios compared, {len(worse)} have grown by more than "
        f"{options.tolerance:g} %; the largest changes:"
    )
    for change in worse or changes[:5]:
        print(f"  {change.title}: {change.before:.2f} -> {change.now:.2f} ({change.growth:+.0%})")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
