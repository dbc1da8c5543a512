"""Figures of the demo: saliency maps side by side, accuracies, training curves."""

from __future__ import annotations

from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from ckdsnn.analysis.style import STYLE
from ckdsnn.demo.report import Cells, Spread
from ckdsnn.demo.settings import STUDENTS, TEACHER, DemoSettings

# Okabe and Ito's palette: told apart with any colour vision.
COLOURS = {"ce": "#999999", "kd": "#E69F00", "samd": "#56B4E9", "nld": "#009E73", "samd_nld": "#D55E00"}
RIGHT, WRONG = "#1a7f37", "#b3261e"


class MapRow(NamedTuple):
    """One row of the figure of maps: a name, maps [N, h, w] to lay over the images, and predictions [N]."""

    name: str
    maps: Tensor
    predictions: Tensor


def maps_figure(images: Tensor, targets: Tensor, corners: Tensor, side: int, rows: list[MapRow]) -> Figure:
    """Input, teacher CAM and student SAMs of the same samples, one sample a column.

    Args:
        images: [N, 1, H, W].
        targets: int64 [N].
        corners: int64 [N, 2], row and column of the box that holds the digit; `side` is its side in pixels.
        rows: maps to draw under the inputs; each is scaled to its own range.
    """
    count, size = len(images), images.shape[-1]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.25 * count + 1.9, 1.42 * (len(rows) + 1) + 0.75), layout="constrained")
        axes = figure.subplots(len(rows) + 1, count, squeeze=False)
        for column in range(count):
            _image(axes[0, column], images[column, 0], corners[column], side)
            axes[0, column].set_title(f"digit {int(targets[column])}", loc="center", fontweight="normal")
        _row_name(axes[0, 0], "input\n(box: the digit)")
        for line, row in zip(axes[1:], rows, strict=True):
            _row_name(line[0], row.name)
            fine = F.interpolate(row.maps[:, None].float(), size=(size, size), mode="bilinear", align_corners=False)
            for column, (axis, heat) in enumerate(zip(line, fine[:, 0], strict=True)):
                _image(axis, images[column, 0], corners[column], side)
                heat = heat - heat.amin()
                axis.imshow((heat / heat.amax().clamp_min(1e-12)).numpy(), cmap="inferno", alpha=0.62, vmin=0, vmax=1)
                right = row.predictions[column] == targets[column]
                axis.set_xlabel(
                    f"says {int(row.predictions[column])}", color=RIGHT if right else WRONG, fontsize=9, labelpad=2
                )
        figure.suptitle("Where teacher and students look (bright: most)", x=0.01, ha="left", fontweight="bold")
        return figure


def _image(axis: Axes, image: Tensor, corner: Tensor, side: int) -> None:
    axis.imshow(image.numpy(), cmap="gray", interpolation="nearest")
    row, column = (int(value) - 0.5 for value in corner)
    axis.add_patch(Rectangle((column, row), side, side, fill=False, edgecolor="#4fc3f7", linewidth=1.0))
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)


def _row_name(axis: Axes, name: str) -> None:
    axis.set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8)


def accuracy_figure(summary: dict[str, dict[str, Any]]) -> Figure:
    """Bars of test accuracy and of the paired gain over CE, with standard deviations and every seed as a dot."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        keys = list(STUDENTS)
        _bars(left, keys, [summary[key]["accuracy"] for key in keys], summary)
        teacher = Spread.of(summary[TEACHER]["accuracy"])
        left.axvline(teacher.mean, color="black", linestyle="--", linewidth=1)
        left.annotate(
            f"ANN teacher {teacher.show('.1f')}",
            (teacher.mean, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(-4, 3),
            textcoords="offset points",
            ha="right",
        )
        left.set_xlim(0, 100)
        left.set_xlabel("test accuracy at the last epoch, % (dots: seeds)")
        gains = [key for key in keys if summary[key]["gain"] is not None]
        _bars(right, gains, [summary[key]["gain"] for key in gains], summary, form="+.1f")
        right.axvline(0, color="black", linewidth=1)
        right.set_xlabel("gain over CE with the same seed, points")
        return figure


def _bars(
    axis: Axes, keys: list[str], values: list[list[float]], summary: dict[str, dict[str, Any]], form: str = ".1f"
) -> None:
    spreads = [Spread.of(v) for v in values]
    axis.barh(
        range(len(keys)),
        [s.mean for s in spreads],
        xerr=None if spreads[0].std is None else [s.std for s in spreads],
        color=[COLOURS[key] for key in keys],
        height=0.62,
        capsize=4,
        error_kw={"elinewidth": 1.2},
    )
    for position, points in enumerate(values):
        if len(points) > 1:
            axis.plot(points, [position + 0.2] * len(points), "o", color="black", markersize=3, alpha=0.55)
    labels = [f"{summary[key]['label']}\n{s.show(form)}" for key, s in zip(keys, spreads, strict=True)]
    axis.set_yticks(range(len(keys)), labels)
    axis.tick_params(axis="y", length=0)
    axis.invert_yaxis()


def curves_figure(cells: Cells, settings: DemoSettings) -> Figure:
    """Accuracy on training and validation digits over the epochs: mean over seeds, band of one standard deviation."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.8), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        titles = {"train": f"{settings.student_samples} training digits", "validation": "300 validation digits"}
        for axis, (part, title) in zip(axes, titles.items(), strict=True):
            for key, student in STUDENTS.items():
                curves = np.array([cells[seed, key][f"{part}_curve"] for seed in range(settings.seeds)])
                epochs, runs = curves[0, :, 0], 100 * curves[:, :, 1]
                mean = runs.mean(0)
                marker = "" if part == "train" else "o"
                axis.plot(epochs, mean, marker=marker, markersize=4, color=COLOURS[key], label=student.label)
                if settings.seeds > 1:
                    band = runs.std(0, ddof=1)
                    axis.fill_between(epochs, mean - band, mean + band, color=COLOURS[key], alpha=0.13, linewidth=0)
            axis.set_title(title)
            axis.set_xlabel("epoch")
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.grid(alpha=0.25)
            axis.margins(x=0.01)
        axes[0].set_ylabel("accuracy, %")
        axes[0].set_ylim(0, 101)
        axes[1].legend(loc="best", frameon=False)
        return figure
