"""Figures of a sweep: bars, lines over one number, a heat map over two."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ckdsnn.analysis.style import GREY, PALETTE, SKY, STYLE, write_figure
from ckdsnn.sweep.grid import Grid
from ckdsnn.sweep.table import Row, spread

MARKERS = "os^Dv<>P"


def write_plots(grid: Grid, rows: Sequence[Row], out: Path) -> list[Path]:
    """Draws what the dimensions of the grid allow; returns the files, `bars.png` first."""
    shown = [row for row in rows if row.values]
    if not shown:
        return []
    made: list[tuple[str, Figure]] = [("bars.png", bars(grid, shown))]
    numeric = numeric_dimensions(grid)
    if len(numeric) == 1:
        made.append(("line.png", line(grid, shown, numeric[0])))
    elif len(numeric) == 2:
        made.append(("heatmap.png", heat_map(grid, shown, numeric[0], numeric[1])))
    paths = []
    for name, figure in made:
        write_figure(figure, out / name)
        paths.append(out / name)
    return paths


def numeric_dimensions(grid: Grid) -> list[str]:
    """The dimensions along which all cells have numbers, and not all the same."""
    numeric = []
    for dimension in grid.cells[0].coordinates:
        values = [cell.values.get(dimension) for cell in grid.cells]
        if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values) and len(set(values)) > 1:
            numeric.append(dimension)
    return numeric


NAMES = {"time_steps": "time steps T", "strength": "strength of the noise, lambda"}


def _name(dimension: str) -> str:
    end = dimension.rsplit(".", 1)[-1]
    return NAMES[end] if end in NAMES else dimension.removeprefix("model.").removeprefix("method.options.")


def _footer(grid: Grid, rows: Sequence[Row], what: str) -> str:
    counts = {len(row.values) for row in rows}
    many = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else str(*counts)
    return f"{grid.name}: {what}; {many} seed{'' if counts == {1} else 's'}"


def bars(grid: Grid, rows: Sequence[Row]) -> Figure:
    """A bar a cell: the mean, one standard deviation, and a dot a seed."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 1.2 + 0.42 * len(rows)), layout="constrained")
        axis = figure.subplots()
        spreads = [spread(list(row.values.values())) for row in rows]
        baselines = {row.baseline for row in rows}
        colours = [GREY if row.cell.label in baselines else SKY for row in rows]
        positions = range(len(rows))
        axis.barh(
            positions,
            [mean for mean, _ in spreads],
            xerr=[deviation or 0.0 for _, deviation in spreads],
            color=colours,
            height=0.66,
            error_kw={"elinewidth": 1.2, "capsize": 3},
        )
        for position, row in zip(positions, rows, strict=True):
            values = list(row.values.values())
            if len(values) > 1:
                axis.plot(values, [position] * len(values), "o", color="black", markersize=3, alpha=0.5)
        form = ".1f" if grid.metric.percent else grid.metric.form
        axis.set_yticks(
            positions,
            [
                f"{row.cell.label}   {mean:{form}}" + ("" if deviation is None else f" ± {deviation:{form}}")
                for row, (mean, deviation) in zip(rows, spreads, strict=True)
            ],
        )
        axis.invert_yaxis()
        axis.tick_params(axis="y", length=0)
        everything = [value for row in rows for value in row.values.values()]
        low, high = _limits(everything, [m - (d or 0) for m, d in spreads], [m + (d or 0) for m, d in spreads])
        axis.set_xlim(low, high)
        cut = "" if low == 0 else "; the axis does not start at 0"
        axis.set_xlabel(grid.metric.axis + cut)
        what = "mean, standard deviation, a dot a seed"
        axis.set_title(_footer(grid, rows, what + (", baseline in grey" if baselines != {None} else "")))
        return figure


def _limits(values: list[float], lows: list[float], highs: list[float]) -> tuple[float, float]:
    """From 0, or where that would hide the differences, from below the lowest value."""
    low, high = min(values + lows), max(values + highs)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    if low < 0:
        return low - room, max(0.0, high) + room
    return (0.0 if low < 0.6 * high else max(0.0, low - 3 * room)), high + room


def _groups(rows: Sequence[Row], numeric: Sequence[str]) -> dict[str, list[Row]]:
    """Rows that agree in all dimensions but the numeric ones, by what they agree in."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        rest = [text for key, text in row.cell.coordinates.items() if key not in numeric]
        groups.setdefault(", ".join(rest), []).append(row)
    return groups


def _number(dimension: str) -> Callable[[Row], float]:
    return lambda row: float(row.cell.values[dimension])


def line(grid: Grid, rows: Sequence[Row], dimension: str) -> Figure:
    """The mean over a number, with a band of one standard deviation; a line for every value of other dimensions."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axis = figure.subplots()
        groups = _groups(rows, [dimension])
        for number, (label, members) in enumerate(groups.items()):
            members = sorted(members, key=_number(dimension))
            x = [_number(dimension)(row) for row in members]
            spreads = [spread(list(row.values.values())) for row in members]
            mean = np.array([m for m, _ in spreads])
            band = np.array([d or 0.0 for _, d in spreads])
            colour = PALETTE[number % len(PALETTE)]
            axis.plot(x, mean, marker=MARKERS[number % len(MARKERS)], markersize=5, color=colour, label=label or None)
            axis.fill_between(x, mean - band, mean + band, color=colour, alpha=0.15, linewidth=0)
        ticks = sorted({_number(dimension)(row) for row in rows})
        # Steps that grow by factors lie evenly on a logarithmic axis.
        if ticks[0] > 0 and ticks[-1] / ticks[0] >= 8:
            axis.set_xscale("log")
            axis.minorticks_off()
        _space_ticks(axis, ticks)
        axis.set_xlabel(_name(dimension))
        axis.set_ylabel(grid.metric.axis)
        axis.grid(alpha=0.25)
        axis.set_title(_footer(grid, rows, "mean, band of one standard deviation"))
        if len(groups) > 1:
            axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        return figure


def _space_ticks(axis: Axes, ticks: list[float]) -> None:
    """A tick at every value, and its number where there is room for it."""
    positions = np.log(ticks) if axis.get_xscale() == "log" else np.array(ticks)
    room = 0.06 * (positions[-1] - positions[0])
    last, labels = -np.inf, []
    for position, tick in zip(positions, ticks, strict=True):
        fits = position - last >= room
        labels.append(f"{tick:g}" if fits else "")
        last = position if fits else last
    axis.set_xticks(ticks, labels)


def heat_map(grid: Grid, rows: Sequence[Row], down: str, across: str) -> Figure:
    """The mean over two numbers, one panel for every value of other dimensions; what is ahead is bright."""
    groups = _groups(rows, [down, across])
    ys = sorted({_number(down)(row) for row in rows})
    xs = sorted({_number(across)(row) for row in rows})
    means = [statistics.fmean(row.values.values()) for row in rows]
    low, high = min(means), max(means)
    form = ".1f" if grid.metric.percent else grid.metric.form
    with matplotlib.rc_context(STYLE):
        width = 1.6 + len(groups) * (1.0 + 0.75 * len(xs))
        figure = Figure(figsize=(max(6.5, width), 1.8 + 0.55 * len(ys)), layout="constrained")
        axes = figure.subplots(1, len(groups), squeeze=False)[0]
        for axis, (label, members) in zip(axes, groups.items(), strict=True):
            field = np.full((len(ys), len(xs)), np.nan)
            for row in members:
                place = ys.index(_number(down)(row)), xs.index(_number(across)(row))
                field[place] = mean = statistics.fmean(row.values.values())
                bright = high == low or ((mean - low) / (high - low) >= 0.5) != bool(grid.metric.lower)
                axis.text(place[1], place[0], f"{mean:{form}}", ha="center", va="center", color="k" if bright else "w")
            colours = "cividis_r" if grid.metric.lower else "cividis"
            image = axis.imshow(field, cmap=colours, vmin=low, vmax=high, aspect="auto", origin="lower")
            axis.set_xticks(range(len(xs)), [f"{x:g}" for x in xs])
            axis.set_yticks(range(len(ys)), [f"{y:g}" for y in ys])
            axis.set_xlabel(_name(across))
            axis.set_ylabel(_name(down))
            if label:
                axis.set_title(label)
        figure.colorbar(image, ax=list(axes), label=grid.metric.axis)
        figure.suptitle(_footer(grid, rows, "mean"), x=0.01, ha="left")
        return figure
