"""Numbers of the demo: mean and deviation over seeds, paired gains, the table and what may be said about it."""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple

from ckdsnn.demo.settings import STUDENTS, TEACHER, DemoSettings

Cells = dict[tuple[int, str], dict[str, Any]]


class Spread(NamedTuple):
    """Mean and sample standard deviation over seeds (None for a single seed)."""

    mean: float
    std: float | None

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def show(self, form: str) -> str:
        return format(self.mean, form) + (f" ± {self.std:{form.lstrip('+')}}" if self.std is not None else "")


def summarise(cells: Cells, settings: DemoSettings) -> dict[str, dict[str, Any]]:
    """Per method: test accuracy (%) at the last epoch, gain over CE (points) with the same seed, firing rate, seconds.

    Args:
        cells: results by (seed, "teacher" or a key of STUDENTS); complete.
        settings: says how many seeds there are.
    """
    seeds = range(settings.seeds)
    summary: dict[str, dict[str, Any]] = {}
    for key in (TEACHER, *STUDENTS):
        accuracy = [100 * cells[seed, key]["test_accuracy"] for seed in seeds]
        entry: dict[str, Any] = {
            "label": "ANN teacher" if key == TEACHER else STUDENTS[key].label,
            "accuracy": accuracy,
            "seconds": [cells[seed, key]["seconds"] for seed in seeds],
            "gain": None,
            "firing_rate": None,
        }
        if key != TEACHER:
            entry["firing_rate"] = [cells[seed, key]["firing_rate"] for seed in seeds]
        if key not in (TEACHER, "ce"):
            entry["gain"] = [
                a - 100 * cells[seed, "ce"]["test_accuracy"] for seed, a in zip(seeds, accuracy, strict=True)
            ]
        summary[key] = entry
    return summary


def table(summary: dict[str, dict[str, Any]]) -> str:
    """The summary as a text table."""
    seeds = len(next(iter(summary.values()))["accuracy"])
    head = ["", "test accuracy %", "gain over CE", "seeds better", "firing rate", "time s"]
    rows = []
    for entry in summary.values():
        gain, rate = entry["gain"], entry["firing_rate"]
        rows.append(
            [
                entry["label"],
                Spread.of(entry["accuracy"]).show(".1f"),
                Spread.of(gain).show("+.1f") if gain else "",
                f"{sum(g > 0 for g in gain)} of {seeds}" if gain else "",
                Spread.of(rate).show(".3f") if rate else "",
                Spread.of(entry["seconds"]).show(".0f"),
            ]
        )
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(row: list[str]) -> str:
        numbers = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        return "  ".join([row[0].ljust(widths[0]), *numbers]).rstrip()

    rule = "-" * len(line(head))
    return "\n".join([line(head), rule, line(rows[0]), rule, *map(line, rows[1:])])


def statement(summary: dict[str, dict[str, Any]], settings: DemoSettings) -> str:
    """What the numbers of this run show and what they do not, in words."""
    seeds = settings.seeds
    ours, kd = summary["samd_nld"]["accuracy"], summary["kd"]["accuracy"]
    over_ce = Spread.of(summary["samd_nld"]["gain"])
    over_kd = Spread.of([a - b for a, b in zip(ours, kd, strict=True)])
    count = f"{seeds} seed" + ("s" if seeds > 1 else "")
    lines = [
        f"Test accuracy at the last epoch, mean ± standard deviation over {count}; gains are paired by seed (points).",
        f"In this run SAMD + NLD is {over_ce.show('+.1f')} over CE and {over_kd.show('+.1f')} over KD.",
        "This run does not show that SAMD + NLD beats KD: with so few seeds one seed can reverse any difference here.",
        "Ten seeds of a prototype of this setting gave SAMD + NLD over CE +4.7 ± 2.8 (ahead in all ten) but over KD",
        "only +1.4 ± 3.7 (p = .27): there the gain over CE is established, the gain over KD is not. The setting was",
        "chosen, out of six, because SAMD + NLD did best in it on validation data, so it favours the method.",
    ]
    if settings.student_epochs < DemoSettings.student_epochs:
        lines.append("This was a shortened run: it shows that everything works, its accuracies mean nothing.")
    return "\n".join(lines)
