"""What came out of a sweep: mean, deviation and paired differences over seeds, as text, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ckdsnn.sweep.grid import Cell, Grid
from ckdsnn.sweep.metrics import teacher_column
from ckdsnn.sweep.plan import Student


class Difference(NamedTuple):
    """Of a cell and its baseline, paired by seed.

    Attributes:
        mean: over the seeds that both have.
        half_width: of its 95 % confidence interval by Student's t; None for a single seed.
        ahead: seeds with a better value than the baseline's.
        n: seeds that both have.
    """

    mean: float
    half_width: float | None
    ahead: int
    n: int


@dataclass(frozen=True)
class Row:
    """One cell of the table.

    Attributes:
        cell: of the grid.
        values: of the metric, by seed; a share is in percent.
        difference: to the baseline; None: it is the baseline, or nothing is there to compare.
        baseline: label of the cell that it is compared with.
        firing_rate, seconds: by seed, where known.
        teacher: what its teachers reach by seed, see :attr:`ckdsnn.sweep.metrics.Metric.of_teacher`.
    """

    cell: Cell
    values: dict[int, float]
    difference: Difference | None
    baseline: str | None
    firing_rate: dict[int, float]
    seconds: dict[int, float]
    teacher: dict[int, float]


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float], *, lower: bool) -> Difference | None:
    """The difference of `values` to `baseline` over the seeds that both have; None: there is none.

    Args:
        values, baseline: by seed.
        lower: whether a lower value is the better one.

    Example:
        >>> from ckdsnn.sweep.table import paired_difference
        >>> d = paired_difference({0: 3.0, 1: 5.0, 2: 4.0}, {0: 2.0, 1: 2.0, 2: 2.0}, lower=False)
        >>> f"{d.mean:.2f} ± {d.half_width:.2f}, {d.ahead} of {d.n}"
        '2.00 ± 2.48, 3 of 3'
    """
    differences = [values[seed] - baseline[seed] for seed in values if seed in baseline]
    n = len(differences)
    if not n:
        return None
    ahead = sum(d < 0 if lower else d > 0 for d in differences)
    half_width = None
    if n > 1:
        from scipy.stats import t  # takes a second to import

        half_width = float(t.ppf(0.975, n - 1)) * statistics.stdev(differences) / n**0.5
    return Difference(statistics.fmean(differences), half_width, ahead, n)


def summarise(grid: Grid, students: Sequence[Student]) -> list[Row]:
    """A row a cell, of the students that are finished; a cell whose runs have no such metric is empty (without a
    teacher, there is no KL to it).

    Raises:
        ValueError: no run has such a metric.
    """
    metric, of_teacher = grid.metric, grid.metric.of_teacher
    found: dict[str, dict[str, dict[int, float]]] = {
        cell.label: {"values": {}, "firing_rate": {}, "seconds": {}, "teacher": {}} for cell in grid.cells
    }
    measured = {student.job: student.job.metrics() for student in students if student.job.finished}
    if measured and not any(metric.key in metrics for metrics in measured.values()):
        job = next(iter(measured))
        names = ", ".join(measured[job])
        raise ValueError(f"metric {metric.key!r} is in no run: {job.result or job.folder} has {names}")
    for student in students:
        metrics, of = measured.get(student.job, {}), found[student.cell.label]
        if metric.key not in metrics:
            continue
        of["values"][student.seed] = metric.scale * metrics[metric.key]
        of["seconds"][student.seed] = student.job.seconds
        if "test/firing_rate" in metrics:
            of["firing_rate"][student.seed] = metrics["test/firing_rate"]
        if student.teacher is not None and of_teacher.key in (teacher := student.teacher.metrics()):
            of["teacher"][student.seed] = of_teacher.scale * teacher[of_teacher.key]
    rows = []
    for cell in grid.cells:
        of, other = found[cell.label], grid.baseline_of(cell)
        difference = None
        if other is not None:
            difference = paired_difference(of["values"], found[other.label]["values"], lower=bool(metric.lower))
        rows.append(
            Row(
                cell,
                of["values"],
                difference,
                None if other is None else other.label,
                of["firing_rate"],
                of["seconds"],
                of["teacher"],
            )
        )
    return rows


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (None for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def _show(values: Mapping[int, float], form: str) -> str:
    if not values:
        return ""
    mean, deviation = spread(list(values.values()))
    return f"{mean:{form}}" + ("" if deviation is None else f" ± {deviation:{form}}")


def _cells_of(grid: Grid, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the table as text; columns in which nothing stands are left out."""
    form = grid.metric.form
    heads = ["cell", grid.metric.heading, "n", f"difference to {grid.baseline}, 95 % CI", grid.metric.count]
    heads += [f"teacher {grid.metric.of_teacher.heading}", "firing rate", "time s"]
    lines = []
    for row in rows:
        d, difference, ahead = row.difference, "", ""
        if d is not None:
            interval = ""
            if d.half_width is not None:
                interval = f" [{d.mean - d.half_width:+{form}}, {d.mean + d.half_width:+{form}}]"
            difference, ahead = f"{d.mean:+{form}}{interval}", f"{d.ahead} of {d.n}"
        numbers = [_show(row.values, form), str(len(row.values)), difference, ahead]
        firing = {} if grid.metric.key == "test/firing_rate" else row.firing_rate
        numbers += [_show(row.teacher, ".1f"), _show(firing, ".3f"), _show(row.seconds, ".0f")]
        lines.append([row.cell.label, *numbers])
    kept = [i for i in range(len(heads)) if i < 3 or any(line[i] for line in lines)]
    return [heads[i] for i in kept], [[line[i] for i in kept] for line in lines]


def text_table(grid: Grid, rows: Sequence[Row]) -> str:
    """For the terminal."""
    heads, lines = _cells_of(grid, rows)
    widths = [max(len(line[i]) for line in [heads, *lines]) for i in range(len(heads))]

    def line(cells: list[str]) -> str:
        numbers = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return "  ".join([cells[0].ljust(widths[0]), *numbers]).rstrip()

    return "\n".join([line(heads), "-" * len(line(heads)), *map(line, lines)])


def markdown_table(grid: Grid, rows: Sequence[Row]) -> str:
    """For a document."""
    heads, lines = _cells_of(grid, rows)
    ruled = [heads, [":---"] + ["---:"] * (len(heads) - 1), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in ruled) + "\n"


def csv_table(grid: Grid, rows: Sequence[Row]) -> str:
    """The table with full precision: a row a cell, the coordinates in columns of their own."""
    dimensions = list(grid.cells[0].coordinates)
    heads = [
        "label",
        *dimensions,
        "metric",
        "n",
        "mean",
        "std",
        "baseline",
        "difference",
        "low",
        "high",
        "ahead",
        "pairs",
    ]
    lines: list[list[object]] = [[*heads, teacher_column(grid.metric.of_teacher.key), "firing_rate", "seconds"]]
    for row in rows:
        mean, deviation = spread(list(row.values.values())) if row.values else (None, None)
        d = row.difference
        compared: list[float | None] = [None] * 5
        if d is not None:
            interval = [None] * 2 if d.half_width is None else [d.mean - d.half_width, d.mean + d.half_width]
            compared = [d.mean, *interval, d.ahead, d.n]
        others = [spread(list(v.values()))[0] if v else None for v in (row.teacher, row.firing_rate, row.seconds)]
        line: list[object] = [row.cell.label, *row.cell.coordinates.values(), grid.metric.key]
        line += [len(row.values), mean, deviation, row.baseline]
        lines.append([*line, *compared, *others])
    return _csv(lines)


def csv_runs(grid: Grid, students: Sequence[Student]) -> str:
    """Every run: cell, seed, state, seconds, all metrics of its test and its last validation, and of its teacher's."""
    metrics = [student.job.metrics() if student.job.finished else {} for student in students]
    teachers = [student.teacher.metrics() if student.teacher is not None else {} for student in students]
    names = list(dict.fromkeys(name for found in metrics for name in found))
    of_teachers = list(dict.fromkeys(name for found in teachers for name in found))
    lines: list[list[object]] = [["label", *grid.cells[0].coordinates, "seed", "finished", "seconds", *names]]
    lines[0] += [*map(teacher_column, of_teachers), "folder"]
    for student, found, teacher in zip(students, metrics, teachers, strict=True):
        line: list[object] = [student.cell.label, *student.cell.coordinates.values(), student.seed]
        line += [student.job.finished, round(student.job.seconds, 2), *(found.get(name) for name in names)]
        lines.append([*line, *(teacher.get(name) for name in of_teachers), student.folder])
    return _csv(lines)


def _csv(lines: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()
