"""What the demo's numbers show and what they do not, in words."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from ckdsnn.sweep.table import Difference, Row, paired_difference

OURS, BASELINES = "SAMD + NLD", ("CE", "KD")
# `runs.csv` of `ckdsnn sweep demo --set seeds=30`: what 30 seeds of the same setting gave.
REFERENCE = Path(__file__).with_name("seeds30.csv")

Accuracies = Mapping[str, Mapping[int, float]]  # by cell and seed, in percent


def read_reference(path: Path = REFERENCE) -> Accuracies | None:
    """Test accuracies of the runs that ship with the package; None: none do."""
    if not path.exists():
        return None
    found: dict[str, dict[int, float]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["label"], {})[int(row["seed"])] = 100 * float(row["test/accuracy"])
    return found


def gain(of: Accuracies, baseline: str, cell: str = OURS) -> Difference:
    """Of a cell over a baseline, paired by seed."""
    difference = paired_difference(of[cell], of[baseline], lower=False)
    if difference is None:
        raise ValueError(f"{cell} and {baseline} have no seed in common")
    return difference


def seeds_to_show(difference: Difference, most: int = 1000) -> int | None:
    """How many seeds it takes to show a difference of that size: that many have a 95 % confidence interval without 0 if
    they come out as the ones that are known; None: more than `most`, or there is none.

    Example:
        >>> from ckdsnn.sweep.table import Difference
        >>> seeds_to_show(Difference(mean=5.0, half_width=1.0, ahead=30, n=30))
        4
    """
    from scipy.stats import t

    if difference.half_width is None or difference.mean <= 0:
        return None
    deviation = difference.half_width / float(t.ppf(0.975, difference.n - 1)) * difference.n**0.5
    for n in range(2, most + 1):
        if float(t.ppf(0.975, n - 1)) * deviation / n**0.5 < difference.mean:
            return n
    return None


def first_line(seeds: int, reference: Accuracies | None) -> str:
    """What so many seeds can show, as the runs say that ship with the package."""
    if reference is None:
        return ""
    said = []
    for baseline in BASELINES:
        difference = gain(reference, baseline)
        needed = seeds_to_show(difference)
        can = "can" if needed is not None and needed <= seeds else "cannot"
        takes = "" if can == "can" else f", it takes {needed}" if needed else ", nor can a thousand"
        said.append(
            f"{can} show that {OURS} is ahead of {baseline} ({difference.n} seeds: {_shown(difference)}{takes})"
        )
    return f"{seeds} seed{'s' if seeds > 1 else ''} {said[0]}, and {said[1]}."


def statement(rows: Sequence[Row], reference: Accuracies | None, *, quick: bool) -> str:
    """What the numbers of this run show and what they do not.

    Args:
        rows: of the table; all cells of the demo.
        reference: accuracies of the runs that ship with the package.
        quick: whether the run was a shortened one.
    """
    run = {row.cell.label: row.values for row in rows}
    seeds = len(run[OURS])
    lines = ["Test accuracy at the last epoch, mean ± standard deviation; differences are paired by seed (points)."]
    lines += [f"In this run {OURS} is {_shown(gain(run, b))} over {b}: {_verdict(gain(run, b))}." for b in BASELINES]
    if reference is not None:
        lines.append(first_line(seeds, reference))
    if quick:
        lines.append("This was a shortened run: it shows that everything works, its accuracies mean nothing.")
    return "\n".join(lines)


def _shown(difference: Difference) -> str:
    if difference.half_width is None:
        return f"{difference.mean:+.1f}"
    low, high = difference.mean - difference.half_width, difference.mean + difference.half_width
    return f"{difference.mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def _verdict(difference: Difference) -> str:
    if difference.half_width is None:
        return "one seed shows no difference"
    if abs(difference.mean) > difference.half_width:
        return "the 95 % confidence interval is without 0"
    return "not shown, the 95 % confidence interval has 0 in it"
