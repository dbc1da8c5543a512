"""Accuracy against minutes, of the kept runs on CIFAR: what docs/images/accuracy_minutes.png shows."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import yaml  # type: ignore[import-untyped]
from figure_labels import Labels
from kept import RESULTS, SHARED, environment, place, read_csv, settings
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ckdsnn.analysis.style import BLACK, BLUE, GREEN, GREY, ORANGE, PALETTE, PINK, SKY, STYLE, VERMILION
from ckdsnn.sweep.grid import load_grid
from ckdsnn.sweep.table import spread

GRIDS = ("headline", "components")  # whose cells are drawn
DATA = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
SINGLE = {"ce": "CE", "kd": "KD", "ckd": "SAMD + NLD"}  # cells that runs of these methods are, which no sweep has made
COLOURS = {
    "CE": GREY,
    "CE, smoothed labels": BLACK,
    "KD": BLUE,
    "SAMD": ORANGE,
    "NLD": SKY,
    "SAMD + KD": PINK,
    "SAMD + NLD": VERMILION,
    "SAMD + NLD, as printed": GREEN,
}
PUBLISHED = "published SAMD + NLD, 400 epochs, best epoch on test"


@dataclass(frozen=True)
class Method:
    """The finished runs of a cell.

    Attributes:
        recipe: by which folder it is kept.
        data: name of the data set.
        time_steps: T.
        label: of the cell.
        epochs: of a student.
        points: a run's minutes on one GPU, without its teacher's, and its test accuracy in percent.
        timing: what the minutes are, and of which GPU.
        teacher: what is said of its teachers' accuracy, and the accuracy in percent; None: it has none.
    """

    recipe: str
    data: str
    time_steps: int
    label: str
    epochs: int
    points: tuple[tuple[float, float], ...]
    timing: str
    teacher: tuple[str, float] | None


def methods(tables: Iterable[tuple[str, str]], results: Path = RESULTS) -> list[Method]:
    """What is kept of `GRIDS`. Of a cell that several have with as many epochs, the one with most runs counts; of those
    the first: of `headline`, of `components`, of runs that no sweep has made.

    Args:
        tables: recipes and grids.
        results: folder of the digits' grids, beside which those of other recipes lie.
    """
    tables = list(tables)
    found: dict[tuple[str, int, str, int], Method] = {}
    recipes = dict.fromkeys(recipe for recipe, _ in tables)
    sources = [
        _of_sweep(grid, place(recipe, results)) for grid in GRIDS for recipe in recipes if (recipe, grid) in tables
    ]
    sources += [_of_single_runs(place(recipe, results)) for recipe in recipes]
    for method in (method for source in sources for method in source):
        key = method.data, method.time_steps, method.label, method.epochs
        if key not in found or len(method.points) > len(found[key].points):
            found[key] = method
    return list(found.values())


def _of_sweep(grid: str, folder: Path) -> Iterator[Method]:
    path = folder / grid / "runs.csv"
    if not path.exists():
        return
    made_with = environment(grid, folder)
    together = made_with.get(SHARED, 1)
    timing = "wall time of a run" + (f" / {together} runs that share the GPU" if together > 1 else "")
    everything = [row for row in read_csv(path) if row["finished"] == "True"]
    runs: dict[str, list[dict[str, str]]] = {}
    for row in everything:
        runs.setdefault(row["label"], []).append(row)
    recipes = {cell.label: cell.recipe for cell in load_grid(grid, settings(grid, folder)).cells}
    teachers = {row["seed"]: 100 * float(row["teacher_accuracy"]) for row in everything if row["teacher_accuracy"]}
    for label, rows in runs.items():
        points = tuple((float(row["seconds"]) / 60 / together, 100 * float(row["test/accuracy"])) for row in rows)
        taught = any(row["teacher_accuracy"] for row in rows)
        teacher = _teacher("test", list(teachers.values())) if taught else None
        yield _method(folder.name, recipes[label], label, points, _timing(made_with, timing), teacher)


def _of_single_runs(folder: Path) -> Iterator[Method]:
    """Of METHOD/seedK and teacher/seedK, which say no time: their epochs take what `environment.json` says."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*/seed*/test.json")):
        found.setdefault(path.parts[-3], []).append(path.parent)
    if not found:
        return
    made_with = json.loads((folder / "environment.json").read_text())
    validations = [
        [100 * float(row["val/accuracy"]) for row in read_csv(log) if row["val/accuracy"]][-1]
        for log in sorted(folder.glob("teacher/seed*/metrics.csv"))
    ]
    teacher = _teacher("validation", validations) if validations else None
    for name, runs in found.items():
        recipe = yaml.safe_load((runs[0] / "config.yaml").read_text())
        minutes = recipe["trainer"]["max_epochs"] * made_with["seconds an epoch"][name] / 60
        tests = [json.loads((run / "test.json").read_text())["metrics"]["test/accuracy"] for run in runs]
        points = tuple((minutes, 100 * test) for test in tests)
        timing = _timing(made_with, "epochs × seconds an epoch")
        yield _method(folder.name, recipe, SINGLE[name], points, timing, None if name == "ce" else teacher)


def _teacher(images: str, accuracies: list[float]) -> tuple[str, float]:
    """What is written at the line of a sweep's teachers, by their accuracies a seed, and where it is."""
    many = len(set(accuracies))
    name = "ANN teacher" if many == 1 else f"{many} ANN teachers, mean"
    mean = statistics.fmean(accuracies)
    return f"{name}{' on held-out training images' if images == 'validation' else ''}: {mean:.2f}", mean


def _timing(made_with: Mapping[str, Any], how: str) -> str:
    gpu = re.search(r"NVIDIA (\w+)", str(made_with.get("platform")))
    return f"one {gpu[1] if gpu else 'GPU'}\n({how})"


def _method(
    name: str,
    recipe: Mapping[str, Any],
    label: str,
    points: tuple[tuple[float, float], ...],
    timing: str,
    teacher: tuple[str, float] | None,
) -> Method:
    data = DATA[recipe["data"]["init_args"]["name"]]
    steps = int(recipe["model"]["network"]["options"]["time_steps"])
    return Method(name, data, steps, label, int(recipe["trainer"]["max_epochs"]), points, timing, teacher)


def draw(found: list[Method], published: Mapping[str, str]) -> Figure:
    """A panel a data set and T, T = 1 first: a dot a run, the mean and one standard deviation of a cell with its name.

    Args:
        found: at least one.
        published: accuracies of SAMD + NLD in percent, by recipe.
    """
    names = list(DATA.values())
    panels = sorted({(m.time_steps, names.index(m.data)) for m in found})
    with matplotlib.rc_context(STYLE):
        columns = min(2, len(panels))
        rows = math.ceil(len(panels) / columns)
        figure = Figure(figsize=(5.2 * columns, 4.1 * rows + 0.4), layout="constrained", facecolor="white")
        axes = iter(figure.subplots(rows, columns, squeeze=False).flat)
        drawn = []
        for steps, data in panels:
            axis = next(axes)
            here = [m for m in found if (m.time_steps, m.data) == (steps, names[data])]
            drawn.append((axis, here, _panel(axis, here, published)))
            if axis.get_subplotspec().is_first_col():
                axis.set_ylabel("test accuracy at the last epoch, %")
        for axis in axes:  # those that are left
            axis.set_axis_off()
        kinds = [
            Line2D([], [], marker="o", linestyle="", color=BLACK, markersize=5, alpha=0.55, label="a seed"),
            Line2D(
                [],
                [],
                marker="D",
                linestyle="",
                color=BLACK,
                markersize=6.5,
                label="mean at median time; bar: deviation",
            ),
        ]
        figure.legend(handles=kinds, loc="outside lower center", ncols=2, frameon=False)
        figure.draw_without_rendering()  # the axes have their places now
        for axis, here, lines in drawn:
            _label(axis, here, lines)
    return figure


def _colour(label: str) -> str:
    return COLOURS.get(label, PALETTE[sum(label.encode()) % len(PALETTE)])


def _panel(axis: Axes, here: list[Method], published: Mapping[str, str]) -> dict[str, float]:
    """Draws dots, means and lines; returns the lines by what is written at them."""
    lines = {f"{PUBLISHED}: {published[m.recipe]}": float(published[m.recipe]) for m in here if m.recipe in published}
    teachers = dict.fromkeys(m.teacher for m in here if m.teacher)
    for teacher in teachers:
        of = sorted({m.epochs for m in here if m.teacher == teacher})
        which = f" (students of {' and '.join(map(str, of))} epochs)" if len(teachers) > 1 else ""
        lines[teacher[0] + which] = teacher[1]
    for text, accuracy in lines.items():
        colour, dashes = (VERMILION, (4, 3)) if text.startswith(PUBLISHED) else (BLACK, (1.5, 2))
        axis.axhline(accuracy, color=colour, linewidth=1, dashes=dashes, zorder=1)
    for method in here:
        minutes, accuracies = zip(*method.points, strict=True)
        one = len(minutes) == 1  # nothing else is drawn of it
        seeds: dict[str, Any] = {
            "markersize": 6.5 if one else 5,
            "alpha": 1 if one else 0.55,
            "markeredgewidth": 0,
            "zorder": 2,
        }
        axis.plot(minutes, accuracies, "o", color=_colour(method.label), label=method.label, **seeds)
        if not one:
            x, mean, deviation = _middle(method)
            colour = _colour(method.label)
            axis.errorbar(x, mean, yerr=deviation, color=colour, elinewidth=1.2, capsize=3, zorder=3)
            axis.plot(x, mean, "D", color=colour, markersize=6.5, markeredgecolor="white", zorder=4)
    measured = [accuracy for method in here for _, accuracy in method.points] + list(lines.values())
    room = 0.12 * (max(measured) - min(measured)) or 1.0
    axis.set_ylim(min(measured) - room, max(measured) + room)
    axis.set_xlim(0, 1.7 * max(minutes for method in here for minutes, _ in method.points))
    epochs = sorted({method.epochs for method in here})
    axis.set_title(f"{here[0].data}, T = {here[0].time_steps}" + (f", {epochs[0]} epochs" if len(epochs) == 1 else ""))
    axis.set_xlabel("minutes of a student's run on " + "; ".join(dict.fromkeys(method.timing for method in here)))
    axis.grid(alpha=0.25)
    return lines


def _label(axis: Axes, here: list[Method], lines: Mapping[str, float]) -> None:
    """Writes at the means and lines of a panel what they are."""
    labels = Labels(axis)
    for accuracy in lines.values():
        labels.avoid((0, accuracy), (axis.get_xlim()[1], accuracy), margin=1)
    for method in here:
        for minutes, accuracy in method.points:
            labels.avoid((minutes, accuracy), (minutes, accuracy), margin=2)
        x, mean, deviation = _middle(method)
        labels.avoid((x, mean - deviation), (x, mean + deviation), margin=4)
    # Lines first: there are two places for each, methods have many.
    for text, accuracy in sorted(lines.items(), key=lambda line: -line[1]):
        labels.write(text, (0, accuracy), [(4, 8), (4, -8)], fontsize=9)
    several = len({method.epochs for method in here}) > 1
    for method in sorted(here, key=lambda method: -_middle(method)[1]):
        x, mean, _ = _middle(method)
        name = f"{method.label} {mean:.2f}" + (f" ({method.epochs} epochs)" if several else "")
        labels.write(name, (x, mean), fontsize=10, color=_colour(method.label))


def _middle(method: Method) -> tuple[float, float, float]:
    """Mean minutes, mean accuracy and its deviation, 0 of one run."""
    mean, deviation = spread([accuracy for _, accuracy in method.points])
    return statistics.median(minutes for minutes, _ in method.points), mean, deviation or 0.0
