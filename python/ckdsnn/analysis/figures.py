"""Figures of saliency maps and of logits."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from ckdsnn.analysis.agreement import enlarged
from ckdsnn.analysis.maps import Smoothing, StudentMaps, TeacherMaps
from ckdsnn.analysis.style import BLUE, ORANGE, SKY, STYLE


def picture(image: Tensor, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> Tensor:
    """What is drawn of an image [C, H, W] or frames [T, C, H, W]: [H, W, 3] in colours, or [H, W] in grey, in [0, 1].

    Colours need three channels, and `mean` and `std` if they were normalised by them. Frames are added up over time,
    other channels over channels.

    Example:
        >>> picture(torch.tensor([[[0.0, 2.0]], [[0.0, 4.0]]]))  # two channels: 0 and 6, from black to white
        tensor([[0., 1.]])
    """
    image = image.float().sum(0) if image.dim() == 4 else image.float()
    if len(image) == 3:
        if mean is not None and std is not None:
            image = image * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
        return image.clamp(0, 1).permute(1, 2, 0)
    grey = image.sum(0)
    return (grey - grey.amin()) / (grey.amax() - grey.amin()).clamp_min(1e-12)


def maps_figure(
    pictures: Sequence[Tensor],
    titles: Sequence[str],
    rows: Sequence[tuple[str, Tensor, Sequence[str]]],
    boxes: tuple[Tensor, int] | None = None,
) -> Figure:
    """Pictures above, and below them one row for each kind of map, laid over the pictures; a sample a column.

    Args:
        pictures: see :func:`picture`, N of them.
        titles: of the columns.
        rows: name, maps [N, h, w] (each drawn from its own minimum to its own maximum), and a word under each.
        boxes: upper left corners int64 [N, 2] and side of the squares to outline.
    """
    count = len(pictures)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.3 * count + 2.7, 1.45 * (len(rows) + 1) + 0.6), layout="constrained")
        axes = figure.subplots(len(rows) + 1, count, squeeze=False)
        for column in range(count):
            _picture(axes[0, column], pictures[column], boxes, column)
            axes[0, column].set_title(titles[column], loc="center", fontweight="normal", fontsize=9)
        _row_name(axes[0, 0], "input" if boxes is None else "input\n(box: the object)")
        shades = None
        for line, (name, maps, words) in zip(axes[1:], rows, strict=True):
            _row_name(line[0], name)
            for column, axis in enumerate(line):
                shown = pictures[column]
                _picture(axis, shown, boxes, column)
                heat = enlarged(maps[column : column + 1], (shown.shape[0], shown.shape[1]))[0]
                heat = (heat - heat.amin()) / (heat.amax() - heat.amin()).clamp_min(1e-12)
                shades = axis.imshow(heat.numpy(), cmap="inferno", alpha=0.65, vmin=0, vmax=1)
                axis.set_xlabel(words[column], fontsize=8, labelpad=2)
        if shades is not None:
            bar = figure.colorbar(shades, ax=axes[1:, :], shrink=0.6, aspect=30, ticks=[0, 1])
            bar.set_ticklabels(["least", "most"])
            bar.set_label("saliency, each map by its own range")
        return figure


def _picture(axis: Axes, shown: Tensor, boxes: tuple[Tensor, int] | None, place: int) -> None:
    axis.imshow(shown.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    if boxes is not None:
        row, column = (float(value) - 0.5 for value in boxes[0][place])
        axis.add_patch(Rectangle((column, row), boxes[1], boxes[1], fill=False, edgecolor=SKY, linewidth=1.2))
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)


def _row_name(axis: Axes, name: str) -> None:
    axis.set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8)


def side_by_side(
    teacher: TeacherMaps,
    students: Sequence[StudentMaps],
    shown: Sequence[int],
    pictures: Sequence[Tensor],
    class_names: Sequence[str] | None,
    boxes: tuple[Tensor, int] | None,
) -> Figure:
    """Input, teacher CAM, student SAM and student Grad-CAM; of several students, SAM and Grad-CAM of each in turn.

    Args:
        shown: indices of the samples.
        pictures: of those.
        class_names: None: numbers.
        boxes: of all samples that the teacher has seen.
    """
    places = torch.tensor([teacher.indices.tolist().index(index) for index in shown])

    def named(label: int) -> str:
        name = str(label) if class_names is None else class_names[label]
        return name if len(name) <= 14 else name[:12] + "..."

    def says(logits: Tensor) -> list[str]:
        right = logits[places].argmax(1) == teacher.targets[places]
        return [
            f"{'✓' if ok else '✗'} says {named(label)}"
            for ok, label in zip(right.tolist(), logits[places].argmax(1).tolist(), strict=True)
        ]

    rows = [("teacher\nCAM", teacher.maps[places], says(teacher.logits))]
    several = len(students) > 1
    for kind, what in (("sam", "SAM"), ("grad_cam", "Grad-CAM")):
        for student in students:
            title = f"student\n{what}" + (f"\n{student.label}" if several else "")
            rows.append((title, getattr(student, kind)[places], says(student.logits)))
    titles = [
        f"sample {index}\n{named(label)}" for index, label in zip(shown, teacher.targets[places].tolist(), strict=True)
    ]
    return maps_figure(pictures, titles, rows, None if boxes is None else (boxes[0][places], boxes[1]))


def logits_figure(smoothing: Smoothing) -> Figure:
    """Histograms of logits (above) and of entropies (below) of student and teacher, without and with noise."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 6.4), layout="constrained")
        axes = figure.subplots(2, 2, sharex="row")
        for column, name in enumerate(("student", "teacher")):
            pairs = smoothing.logits(name), smoothing.entropies(name)
            for axis, (before, after), unit in zip(
                axes[:, column],
                pairs,
                ("logit less the mean over classes", "entropy, nats (lines: means)"),
                strict=True,
            ):
                _histograms(axis, before, after, means=unit.startswith("entropy"))
                axis.set_xlabel(unit)
            axes[0, column].set_title(f"{name}: logits")
            axes[1, column].set_title(f"{name}: entropy of softmax(z / {smoothing.options.temperature:g})")
        for line, unit in zip(axes, ("logits", "samples"), strict=True):
            line[0].set_ylabel(f"share of {unit}, %")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
        return figure


def _histograms(axis: Axes, before: Tensor, after: Tensor, *, means: bool) -> None:
    both = torch.cat([before.flatten(), after.flatten()]).numpy()
    bins = np.linspace(both.min(), max(both.max(), both.min() + 1e-6), 41).tolist()
    for values, colour, name in ((before, ORANGE, "without noise"), (after, BLUE, "with noise")):
        flat = values.flatten().numpy()
        share = np.full(len(flat), 100 / len(flat))
        fill = name == "without noise"
        axis.hist(flat, bins, weights=share, color=colour, histtype="stepfilled" if fill else "step",
                  alpha=0.5 if fill else 1.0, linewidth=1.6, label=name)  # fmt: skip
        if means:
            axis.axvline(flat.mean(), color=colour, linestyle="-" if fill else "--", linewidth=1.4)
