"""What the kept sweeps say about the claims: docs/verdicts.md is made of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from claims import CLAIMS, Claim, Comparison
from kept import NOT_RUN, RESULTS, read_runs
from scipy.stats import t

from ckdsnn.sweep.metrics import METRICS
from ckdsnn.sweep.table import Difference, paired_difference

LEVEL = 0.05  # of a comparison alone, as that of its 95 % interval, and of a claim that holds for some


@dataclass(frozen=True)
class Finding:
    """What a comparison came to.

    Attributes:
        comparison: of two cells.
        difference: paired by seed.
        holds, contradicts: p-values, two-sided: below 0.05 where the whole 95 % interval is on the claim's side, or
            against it.
    """

    comparison: Comparison
    difference: Difference
    holds: float
    contradicts: float

    @property
    def said(self) -> str:
        """Of this comparison alone."""
        return "holds" if self.holds < LEVEL else "does not" if self.contradicts < LEVEL else "not shown"


def difference(comparison: Comparison, results: Path = RESULTS) -> Difference | None:
    """Of two cells, paired by seed; None: not run, or no seed is common."""
    runs = read_runs(comparison.grid, comparison.metric, results)
    if comparison.cell not in runs or comparison.baseline not in runs:
        return None
    lower = bool(METRICS[comparison.metric].lower)
    return paired_difference(runs[comparison.cell], runs[comparison.baseline], lower=lower)


def judge(comparison: Comparison, found: Difference, claim: Claim) -> Finding:
    """What a difference says about a claim, by Student's t."""
    if found.half_width is None:  # one seed says nothing
        return Finding(comparison, found, 1.0, 1.0)
    margin = claim.sign * found.mean if claim.within is None else claim.within - abs(found.mean)
    error = found.half_width / float(t.ppf(1 - LEVEL / 2, found.n - 1))
    if error == 0:
        return Finding(comparison, found, float(margin <= 0), float(margin >= 0))
    holds, contradicts = (min(1.0, 2 * float(t.sf(side * margin / error, found.n - 1))) for side in (1, -1))
    return Finding(comparison, found, holds, contradicts)


def holm(findings: list[Finding]) -> list[Finding]:
    """Those that hold although so many were compared, by Holm's correction: where none is true, the chance that any of
    them holds is at most 5 %."""
    kept: list[Finding] = []
    for number, finding in enumerate(sorted(findings, key=lambda finding: finding.holds)):
        if finding.holds * (len(findings) - number) >= LEVEL:
            break
        kept.append(finding)
    return [finding for finding in findings if finding in kept]


def findings(claim: Claim, results: Path = RESULTS) -> list[Finding]:
    """Of the comparisons that were run."""
    known = [(c, difference(c, results)) for c in claim.comparisons]
    return [judge(comparison, found, claim) for comparison, found in known if found is not None]


def verdict(claim: Claim, found: list[Finding]) -> str:
    """On a claim, by what its comparisons came to."""
    if not found:
        return f"**{NOT_RUN}** ({', '.join(dict.fromkeys(f'`{c.grid}`' for c in claim.comparisons))})"
    lacking = len(claim.comparisons) - len(found)
    but = f" ({lacking} of {len(claim.comparisons)} comparisons not run)" if lacking else ""
    said = {finding.said for finding in found}
    if len(said) == 1:  # all of them have to show it, so none can by chance what the others do not
        return f"**{said.pop()}**{but}"
    some = [finding.comparison.condition for finding in holm(found)]
    return (f"**holds if**: {', '.join(some)}" if some else "**not shown**") + but


def _rows(number: int, claim: Claim, found: list[Finding]) -> list[list[str]]:
    """A row a comparison; the claim stands in the first one."""
    together = len({finding.said for finding in found}) == 1
    corrected = found if together else holm(found)
    rows = []
    for finding in found:
        metric, d = METRICS[finding.comparison.metric], finding.difference
        form = "+.1f" if metric.percent else "+.3f"
        interval = "" if d.half_width is None else f" [{d.mean - d.half_width:{form}}, {d.mean + d.half_width:{form}}]"
        said = finding.said
        if said == "holds" and finding not in corrected:
            said = "alone, not among so many"
        name = f"{number}. {claim.words}" if not rows else ""
        compared = finding.comparison.words()
        if finding.comparison.metric != "test/accuracy":
            compared = f"{metric.words}: {compared}"
        unit = f" {metric.unit}" if metric.unit == "nats" else ""
        shown = [f"{d.mean:{form}}{interval}{unit}", f"{d.ahead} of {d.n}", said, f"`{finding.comparison.grid}`"]
        rows.append([name, compared, *shown])
    return rows


def verdicts(results: Path = RESULTS) -> str:
    """All claims as a table in Markdown, a line each, and after it their evidence, a line a comparison."""
    known = [(number, claim, findings(claim, results)) for number, claim in enumerate(CLAIMS, 1)]
    lines = ["| claim | verdict |", "|:---|:---|"]
    lines += [f"| {number}. {claim.words} | {verdict(claim, found)} |" for number, claim, found in known]
    lines += ["", "The evidence:", ""]
    lines += ["| claim | comparison | paired difference [95 % CI] | seeds ahead | shows | grid |"]
    lines += ["|:---|:---|---:|---:|:---|:---|"]
    lines += [f"| {' | '.join(row)} |" for entry in known for row in _rows(*entry)]
    return "\n".join(lines) + "\n"
