"""The figure of gradient errors."""

from __future__ import annotations

from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ckdsnn.analysis.gradient import angle, cosine, full_width
from ckdsnn.analysis.gradient_report import GradientReport, mean_and_error
from ckdsnn.analysis.style import BLUE, GREEN, GREY, ORANGE, STYLE, VERMILION

PURPLE, SKY = "#CC79A7", "#56B4E9"
COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, GREY, "black", "#7F5F00")
MARKERS = "osD^vPX*h"
MAPS = {
    "SAM": (GREEN, "o"),
    "Grad-CAM, surrogate": (BLUE, "s"),
    "Grad-CAM, finite difference": (ORANGE, "D"),
    "Grad-CAM, smoothed": (VERMILION, "^"),
}


def gradient_figure(report: GradientReport) -> Figure:
    """Surrogates by their width; time steps; how the references depend on their step or noise, and repeat; and the
    agreement of all maps with the teacher's, where there is one.  Bars are standard errors over the samples."""
    with matplotlib.rc_context(STYLE):
        count = 5 if report.teacher is not None else 4
        columns = 3 if count == 5 else 2
        figure = Figure(figsize=(4.9 * columns, 8.4), layout="constrained")
        axes = figure.subplots(2, columns).flatten().tolist()
        _widths(axes[0], report)
        _time_steps(axes[1], report)
        _sizes(axes[2], report)
        _draws(axes[3], report)
        if report.teacher is not None:
            _teacher(axes[4], report)
        for axis in axes[count:]:
            axis.axis("off")
            _words(axis, report)
        return figure


def _line(axis: Axes, points: dict[float, Any], colour: str, marker: str, name: str, **style: Any) -> None:
    """Means with their standard errors over the samples."""
    numbers = [mean_and_error(values) for values in points.values()]
    errors = [error or 0.0 for _, error in numbers]
    axis.errorbar(list(points), [mean for mean, _ in numbers], errors, color=colour, marker=marker, markersize=5,
                  linewidth=1.4, capsize=2.5, label=name, **style)  # fmt: skip


def _degrees(first: Tensor, second: Tensor) -> Tensor:
    return angle(cosine(first, second))


def _angles(axis: Axes) -> None:
    axis.set_ylabel("angle between channel weights, degrees")
    axis.set_ylim(bottom=0)


def _legend(axis: Axes, **where: Any) -> None:
    axis.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), **where)


def _log(axis: Axes, ticks: list[float]) -> None:
    axis.set_xscale("log")
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()


def _widths(axis: Axes, report: GradientReport) -> None:
    looked = report.looked[report.shown_steps]
    reference = looked.smoothed[report.sigma].weights
    names = list(dict.fromkeys(surrogate.name for surrogate in looked.surrogates))
    for number, name in enumerate(names):
        of_name = {full_width(s): _degrees(w, reference) for s, w in looked.surrogates.items() if s.name == name}
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        _line(axis, dict(sorted(of_name.items())), colour, marker, name.replace("_", " "))
    best = angle(torch.tensor(looked.smoothed[report.sigma].ceiling())).item()
    axis.axhline(best, color=GREY, linestyle=":", label="best that can be seen")
    widths = [full_width(surrogate) for surrogate in looked.surrogates]
    ticks = [tick for tick in (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30) if min(widths) / 2 < tick < 2 * max(widths)]
    _log(axis, ticks)
    axis.set_xlabel("full width at half maximum of the surrogate, units of the potential")
    _angles(axis)
    axis.set_title(f"surrogates against smoothed, σ {report.sigma:g}, T {report.shown_steps}")
    _legend(axis, ncols=4)


def _time_steps(axis: Axes, report: GradientReport) -> None:
    first = next(iter(report.looked.values()))
    shades = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY)
    for number, (kind, size) in enumerate(first.references()):
        points = {
            float(steps): _degrees(looked.own, looked.references()[kind, size])
            for steps, looked in report.looked.items()
        }
        name = f"difference, step {size:g}" if kind == "difference" else f"smoothed, σ {size:g}"
        place = list(getattr(first, "differences" if kind == "difference" else "smoothed")).index(size)
        _line(axis, points, shades[place % len(shades)], MARKERS[number % len(MARKERS)], name,
              linestyle="--" if kind == "difference" else "-")  # fmt: skip
    _log(axis, [float(steps) for steps in report.looked])
    axis.set_xlabel("time steps T")
    _angles(axis)
    axis.set_title(f"the network's own surrogate ({report.own.name.replace('_', ' ')} {report.own.alpha:g})")
    _legend(axis, ncols=2)


def _sizes(axis: Axes, report: GradientReport) -> None:
    """How much the references say the same."""
    looked = report.looked[report.shown_steps]
    smoothed = looked.smoothed[report.sigma].weights
    _line(axis, {h: _degrees(looked.own, w) for h, w in looked.differences.items()}, BLUE, "s", "surrogate")
    _line(axis, {h: _degrees(smoothed, w) for h, w in looked.differences.items()}, VERMILION, "^",
          f"smoothed, σ {report.sigma:g}", linestyle="--")  # fmt: skip
    _log(axis, list(looked.differences))
    axis.set_xlabel("step of the finite difference, in spikes")
    _angles(axis)
    axis.set_title(f"against finite differences, T {report.shown_steps}")
    _legend(axis, ncols=2)


def _draws(axis: Axes, report: GradientReport) -> None:
    looked = report.looked[report.shown_steps]
    for number, (sigma, smoothed) in enumerate(looked.smoothed.items()):
        points: dict[float, Any] = {float(n): values for n, values in smoothed.repeatability().items()}
        _line(axis, points, COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)], f"σ {sigma:g}")
    _log(axis, [float(n) for n in smoothed.repeatability()])
    axis.set_xlabel("draws of the noise")
    axis.set_ylabel("cosine of two independent estimates")
    axis.set_title(f"the smoothed gradient converges, T {report.shown_steps}")
    axis.set_ylim(top=1.02)
    _legend(axis, ncols=3)


def _teacher(axis: Axes, report: GradientReport) -> None:
    for name, (colour, marker) in MAPS.items():
        points: dict[float, Any] = {
            float(steps): report.agreement_with_teacher(report.maps(steps)[name])["correlation"]
            for steps in report.looked
        }
        _line(axis, points, colour, marker, name)
    _log(axis, [float(steps) for steps in report.looked])
    axis.axhline(0, color=GREY, linewidth=0.8)
    axis.set_xlabel("time steps T")
    axis.set_ylabel("correlation of maps")
    axis.set_title("agreement with the teacher's Grad-CAM")
    _legend(axis, ncols=2)


def _words(axis: Axes, report: GradientReport) -> None:
    count = len(report.samples)
    words = (
        f"n = {count} test sample{'s' if count > 1 else ''}\nbars: ± 1 standard error over them\n\n"
        "0°: the same channel weights but for a factor\n90°: nothing in common\n\n"
        f"maps on the left: finite difference of step {report.step:g},\nsmoothed with σ {report.sigma:g}"
    )
    axis.text(0.05, 0.9, words, va="top", fontsize=10, transform=axis.transAxes, linespacing=1.5)
