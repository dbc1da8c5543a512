"""Figures of the demo: accuracies, training curves, and where teacher and students look."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import Any, cast

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ckdsnn.analysis.figures import maps_figure, picture
from ckdsnn.analysis.style import GREEN, GREY, ORANGE, SKY, STYLE, VERMILION
from ckdsnn.cli.opened import open_run
from ckdsnn.data import DigitsCanvas
from ckdsnn.demo.report import OURS, Accuracies, gain
from ckdsnn.losses import grad_cam_closed_form
from ckdsnn.sweep.plan import Job, Plan
from ckdsnn.sweep.table import Row, spread

COLOURS = (GREY, ORANGE, SKY, GREEN, VERMILION)  # of the cells
SAMPLES = 8  # columns of the figure of maps


def accuracy_figure(rows: Sequence[Row], reference: Accuracies | None) -> Figure:
    """Bars of test accuracy and of the gain over CE with the same seed, every seed as a dot.

    Args:
        rows: of the table, the first one CE.
        reference: of the runs that ship with the package: beside this run's gains, their mean and its confidence
            interval.
    """
    run = {row.cell.label: row.values for row in rows}
    first, *others = run
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        _bars(left, list(run), [list(values.values()) for values in run.values()], COLOURS, ".1f")
        if teachers := next((list(row.teacher.values()) for row in rows if row.teacher), []):
            mean, _ = spread(teachers)
            left.axvline(mean, color="black", linestyle="--", linewidth=1)
            left.annotate(
                f"ANN teacher {mean:.1f}",
                (mean, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(-4, 3),
                textcoords="offset points",
                ha="right",
            )
        left.set_xlim(0, 100)
        left.set_xlabel("test accuracy at the last epoch, % (dots: seeds)")
        gains = [[run[cell][seed] - run[first][seed] for seed in run[cell]] for cell in others]
        _bars(right, others, gains, COLOURS[1:], "+.1f")
        right.axvline(0, color="black", linewidth=1)
        right.set_xlabel(f"gain over {first} with the same seed, points")
        if reference is not None:
            known = [gain(reference, first, cell) for cell in others]
            right.errorbar(
                [difference.mean for difference in known],
                [place - 0.2 for place in range(len(known))],
                xerr=[difference.half_width or 0.0 for difference in known],
                fmt="D",
                color="black",
                markersize=4,
                capsize=3,
                label=f"{known[0].n} seeds, mean and 95 % interval",
            )
            figure.legend(loc="outside lower right", frameon=False)
        return figure


def _bars(axis: Axes, names: Sequence[str], values: Sequence[list[float]], colours: Sequence[str], form: str) -> None:
    spreads = [spread(v) for v in values]
    axis.barh(
        range(len(names)),
        [mean for mean, _ in spreads],
        xerr=None if spreads[0][1] is None else [deviation or 0.0 for _, deviation in spreads],
        color=list(colours),
        height=0.62,
        capsize=4,
        error_kw={"elinewidth": 1.2},
    )
    for position, points in enumerate(values):
        if len(points) > 1:
            axis.plot(points, [position + 0.2] * len(points), "o", color="black", markersize=3, alpha=0.55)
    shown = [f"{mean:{form}}" + ("" if d is None else f" ± {d:.1f}") for mean, d in spreads]
    axis.set_yticks(range(len(names)), [f"{name}\n{text}" for name, text in zip(names, shown, strict=True)])
    axis.tick_params(axis="y", length=0)
    axis.invert_yaxis()


def curve(job: Job, metric: str) -> tuple[list[int], list[float]]:
    """Epochs and what the logs of a run have of a metric; every time that it goes on, it begins another log."""
    found: dict[int, float] = {}
    for path in sorted((job.run_folder / "logs").glob("version_*/metrics.csv"), key=lambda path: path.stat().st_mtime):
        with path.open(newline="") as file:
            found |= {int(row["epoch"]) + 1: float(row[metric]) for row in csv.DictReader(file) if row.get(metric)}
    return sorted(found), [found[epoch] for epoch in sorted(found)]


def curves_figure(plan: Plan) -> Figure:
    """Accuracy on training and validation digits over the epochs: mean over seeds, band of one standard deviation."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.8), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        samples = plan.grid.cells[0].recipe["data"]["init_args"]["train_samples"]
        titles = {"train": f"{samples} training digits", "val": "300 validation digits"}
        for axis, (part, title) in zip(axes, titles.items(), strict=True):
            for cell, colour in zip(plan.grid.cells, COLOURS, strict=True):
                curves = [curve(student.job, f"{part}/accuracy") for student in plan.students if student.cell is cell]
                epochs, runs = curves[0][0], 100 * np.array([values for _, values in curves])
                mean = runs.mean(0)
                marker = "" if part == "train" else "o"
                axis.plot(epochs, mean, marker=marker, markersize=4, color=colour, label=cell.label)
                if len(runs) > 1:
                    band = runs.std(0, ddof=1)
                    axis.fill_between(epochs, mean - band, mean + band, color=colour, alpha=0.13, linewidth=0)
            axis.set_title(title)
            axis.set_xlabel("epoch")
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.grid(alpha=0.25)
            axis.margins(x=0.01)
        axes[0].set_ylabel("accuracy, %")
        axes[0].set_ylim(0, 101)
        axes[1].legend(loc="best", frameon=False)
        return figure


@torch.no_grad()
def maps_of(plan: Plan) -> Figure:
    """Where the teacher and two students of the first seed look: the first test digit of each of the first classes."""
    jobs = {student.cell.label: student for student in plan.students if student.seed == plan.grid.seeds[0]}
    teacher_job = jobs[OURS].teacher
    assert teacher_job is not None
    rows: list[tuple[str, Any, Any]] = []
    for cell in ("CE", OURS):
        teacher = str(teacher_job.run_folder / "last.ckpt")
        run = open_run(jobs[cell].job.folder, teacher=teacher, device="cpu")
        data = cast(DigitsCanvas, run.data)
        data.setup("test")
        images, targets, *_ = data.arrays("test")
        chosen = torch.tensor([int((targets == digit).nonzero()[0]) for digit in range(SAMPLES)])
        images, targets = images[chosen], targets[chosen]

        def says(logits: torch.Tensor, targets: torch.Tensor = targets) -> list[str]:
            answers = logits.argmax(1)
            return [
                f"{'✓' if a == t else '✗'} says {a}" for a, t in zip(answers.tolist(), targets.tolist(), strict=True)
            ]

        if not rows:
            assert run.teacher is not None
            seen = run.teacher(images)
            cam = grad_cam_closed_form(seen.features[run.teacher.num_stages], seen.classifier_weight, targets)
            rows.append(("ANN teacher\nGrad-CAM", cam, says(seen.logits)))
        answer = run.network(images)
        rows.append((f"SNN, {cell}\nspike map", answer.sams[run.network.num_stages], says(answer.logits)))
    corners, side = data.test_boxes()
    titles = [f"digit {target}" for target in targets.tolist()]
    return maps_figure([picture(image) for image in images], titles, rows, (corners[chosen], side))
