"""Tables of docs/results.md and docs/verdicts.md, made from the sweeps in benchmarks/results/accuracy/digits.

    ckdsnn sweep components --set seeds=30 --out runs/components      # or any other grid
    python benchmarks/accuracy.py take runs/components                # keeps its table.csv and runs.csv
    python benchmarks/accuracy.py tables                              # rewrites the tables of the documents
    python benchmarks/accuracy.py tables --check                      # status 1 where they are not those of the CSVs

A table stands between `<!-- digits: GRID -->` and `<!-- end -->`, the verdicts between `<!-- verdicts -->` and
`<!-- end -->`; a grid without results is "not run".
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from claims import CLAIMS, Claim, Comparison

from ckdsnn.checkpoint import write_text_atomically
from ckdsnn.demo.report import gain, seeds_to_show
from ckdsnn.sweep.grid import GRIDS, load_grid
from ckdsnn.sweep.metrics import METRICS, teacher_column
from ckdsnn.sweep.table import Difference, paired_difference

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "accuracy" / "digits"
DOCUMENTS = (ROOT / "docs" / "results.md", ROOT / "docs" / "verdicts.md")
NOT_RUN = "not run"
# What the paper prints for the same cells: CIFAR-100, ResNet-19, T = 1, the best epoch on the test set, one seed.
PUBLISHED = {
    "scaling": {"softmax": "79.11", "z-score": "76.48", "none": "75.56", "l2": "74.78"},
    "stage": {"last": "79.11", "second last": "up to 78.25", "third last": "77.01"},
}
MATRIX = 20  # a grid over two numbers with more cells than this is shown as a matrix of means

Values = Mapping[str, Mapping[int, float]]  # by cell and seed


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_runs(grid: str, metric: str = "test/accuracy", results: Path = RESULTS) -> Values:
    """The metric of every finished run, shares in percent; {} where the grid was not run."""
    found: dict[str, dict[int, float]] = {}
    path = results / grid / "runs.csv"
    for row in read_csv(path) if path.exists() else []:
        if row["finished"] == "True" and row.get(metric):
            found.setdefault(row["label"], {})[int(row["seed"])] = METRICS[metric].scale * float(row[metric])
    return found


def command(grid: str, runs: Values) -> str:
    """What runs the grid again, with the seeds that it was run with."""
    seeds = sorted({seed for values in runs.values() for seed in values})
    if tuple(seeds) == load_grid(grid).seeds:
        return f"ckdsnn sweep {grid}"
    return f"ckdsnn sweep {grid} --set seeds={len(seeds) if seeds == list(range(len(seeds))) else seeds}".replace(
        " ,", ","
    )


def table(grid: str, results: Path = RESULTS) -> str:
    """The command and the table of a grid in Markdown."""
    runs = read_runs(grid, load_grid(grid).metric.key, results)
    if not runs:
        return f"`ckdsnn sweep {grid}`: {NOT_RUN}\n"
    rows = read_csv(results / grid / "table.csv")
    coordinates = list(load_grid(grid).cells[0].coordinates)
    if grid == "demo_settings":
        lines = _settings(runs)
    elif len(coordinates) == 2 and len(rows) > MATRIX:
        lines = _matrix(rows, coordinates)
    else:
        lines = _rows(grid, rows)
    ruled = [lines[0], [":---"] + ["---:"] * (len(lines[0]) - 1), *lines[1:]]
    body = "\n".join("| " + " | ".join(line) + " |" for line in ruled)
    return f"```sh\n{command(grid, runs)}\n```\n\n{body}\n"


def _rows(grid: str, rows: list[dict[str, str]]) -> list[list[str]]:
    baselines = dict.fromkeys(row["baseline"] for row in rows if row["baseline"])
    to = f"difference to {next(iter(baselines))}" if len(baselines) == 1 else "difference to the baseline"
    published = PUBLISHED.get(grid, {})
    metric = load_grid(grid).metric
    heads = ["cell", metric.heading, "n", f"{to}, 95 % CI", metric.count]
    heads += [f"teacher {metric.of_teacher.heading}", "firing rate"]
    heads += ["paper's (CIFAR-100)"] if published else []
    lines = []
    for row in rows:
        deviation = f" ± {float(row['std']):.2f}" if row["std"] else ""
        interval = f" [{float(row['low']):+.2f}, {float(row['high']):+.2f}]" if row["low"] else ""
        line = [
            row["label"],
            f"{float(row['mean']):.2f}{deviation}" if row["mean"] else NOT_RUN,
            row["n"],
            f"{float(row['difference']):+.2f}{interval}" if row["difference"] else "",
            f"{row['ahead']} of {row['pairs']}" if row["ahead"] else "",
            f"{float(teacher):.1f}" if (teacher := row[teacher_column(metric.of_teacher.key)]) else "",
            f"{float(row['firing_rate']):.3f}" if row["firing_rate"] else "",
        ]
        lines.append(line + ([published.get(row["label"].rpartition("=")[2], "")] if published else []))
    kept = [i for i in range(len(heads)) if any(line[i] for line in lines)]
    return [[line[i] for i in kept] for line in [heads, *lines]]


def _settings(runs: Values) -> list[list[str]]:
    """A row a setting of the canvas: how far SAMD + NLD is ahead of CE and KD, and how many seeds can show that."""
    lines = [["setting", "n", "CE %", "KD %", "SAMD + NLD %", "over CE, 95 % CI", "seeds", "over KD, 95 % CI", "seeds"]]
    for setting in dict.fromkeys(label.rpartition(", name=")[0] for label in runs):
        cells = {name: runs.get(f"{setting}, name={name}", {}) for name in ("CE", "KD", "SAMD + NLD")}
        if not all(cells.values()):
            continue
        line = [setting, str(len(cells["CE"])), *(f"{statistics.fmean(v.values()):.2f}" for v in cells.values())]
        for baseline in ("CE", "KD"):
            found = gain(cells, baseline)
            half = found.half_width or float("nan")
            needed = seeds_to_show(found)
            line += [f"{found.mean:+.2f} [{found.mean - half:+.2f}, {found.mean + half:+.2f}]", str(needed or "-")]
        lines.append(line)
    return lines


def _matrix(rows: list[dict[str, str]], coordinates: list[str]) -> list[list[str]]:
    down, across = coordinates
    columns = list(dict.fromkeys(row[across] for row in rows))
    corner = f"{down.rpartition('.')[2]} down, {across.rpartition('.')[2]} across; n {rows[0]['n']}"
    lines = [[corner, *columns]]
    for value in dict.fromkeys(row[down] for row in rows):
        cells = {row[across]: row for row in rows if row[down] == value}
        shown = [f"{float(cells[c]['mean']):.2f} ± {float(cells[c]['std'] or 0):.2f}" for c in columns]
        lines.append([value, *shown])
    return lines


def difference(comparison: Comparison, results: Path = RESULTS) -> Difference | None:
    """Of two cells, paired by seed; None: not run, or no seed is common."""
    runs = read_runs(comparison.grid, comparison.metric, results)
    if comparison.cell not in runs or comparison.baseline not in runs:
        return None
    lower = bool(METRICS[comparison.metric].lower)
    return paired_difference(runs[comparison.cell], runs[comparison.baseline], lower=lower)


def holds(found: Difference, claim: Claim) -> str:
    """What one comparison says about a claim: holds, does not, not shown."""
    half = float("inf") if found.half_width is None else found.half_width
    low, high = claim.sign * found.mean - half, claim.sign * found.mean + half
    if claim.within is not None:
        return (
            "holds"
            if -claim.within < low and high < claim.within
            else "does not"
            if low > 0 or high < 0
            else "not shown"
        )
    return "holds" if low > 0 else "does not" if high < 0 else "not shown"


def verdict(claim: Claim, results: Path = RESULTS) -> tuple[str, str]:
    """The verdict on a claim, and its evidence."""
    known = [(c, d) for c in claim.comparisons if (d := difference(c, results)) is not None]
    if not known:
        return NOT_RUN, ", ".join(dict.fromkeys(f"`{c.grid}`" for c in claim.comparisons))
    said = {c: holds(d, claim) for c, d in known}
    evidence = "; ".join(f"{c.words()} {_shown(d, c)} (`{c.grid}`)" for c, d in known)
    if lacking := len(claim.comparisons) - len(known):
        evidence += f"; {lacking} not run"
    kinds = set(said.values())
    if len(kinds) == 1:
        return kinds.pop(), evidence
    if "holds" not in kinds:
        return "not shown", evidence
    return "holds if: " + ", ".join(c.condition for c, what in said.items() if what == "holds"), evidence


def _shown(found: Difference, comparison: Comparison) -> str:
    form = "+.3f" if comparison.metric.endswith("firing_rate") else "+.1f"
    interval = ""
    if found.half_width is not None:
        interval = f" [{found.mean - found.half_width:{form}}, {found.mean + found.half_width:{form}}]"
    return f"{found.mean:{form}}{interval}, {found.ahead} of {found.n}"


def verdicts(results: Path = RESULTS) -> str:
    """All claims as a table in Markdown."""
    lines = ["| claim | verdict | evidence: paired difference [95 % CI], seeds ahead |", "|:---|:---|:---|"]
    for claim in CLAIMS:
        said, evidence = verdict(claim, results)
        lines.append(f"| {claim.words} | **{said}** | {evidence} |")
    return "\n".join(lines) + "\n"


def rewritten(text: str, results: Path = RESULTS) -> str:
    """A document with the tables that the CSVs give."""
    makers: dict[str, Callable[[str], str]] = {
        r"digits: (\w+)": lambda grid: table(grid, results),
        r"(verdicts)": lambda _: verdicts(results),
    }
    for what, make in makers.items():
        pattern = re.compile(rf"(<!-- {what} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = pattern.sub(lambda found, make=make: f"{found[1]}\n{make(found[2])}\n{found[3]}", text)  # type: ignore[misc]
    return text


def take(folders: list[Path], results: Path = RESULTS) -> None:
    """Keeps the tables of sweeps, by the name of their folder, which is that of their grid."""
    for folder in folders:
        for part in [path.parent for path in sorted(folder.rglob("table.csv"))]:
            if not (GRIDS / f"{part.name}.yaml").exists():
                raise SystemExit(f"{part}: there is no packaged grid {part.name}: name the folder as its grid")
            unfinished = [row for row in read_csv(part / "runs.csv") if row["finished"] != "True"]
            if unfinished:
                print(f"{part}: {len(unfinished)} runs are not finished", file=sys.stderr)
            (results / part.name).mkdir(parents=True, exist_ok=True)
            for name in ("table.csv", "runs.csv"):
                shutil.copyfile(part / name, results / part.name / name)
            if test := next(part.rglob("test.json"), None):
                kept = {
                    key: value for key, value in json.loads(test.read_text()).items() if key in ("versions", "platform")
                }
                seconds = statistics.fmean(float(row["seconds"]) for row in read_csv(part / "runs.csv"))
                kept["seconds a run"] = round(seconds, 1)
                write_text_atomically(json.dumps(kept, indent=1) + "\n", results / part.name / "environment.json")
            print(f"{results / part.name}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="what", required=True)
    taking = parts.add_parser("take", help="keep the tables of sweeps, of all below a folder")
    taking.add_argument("folders", nargs="+", type=Path)
    making = parts.add_parser("tables", help="rewrite the tables of the documents")
    making.add_argument("--check", action="store_true", help="write nothing; status 1 where a document differs")
    options = parser.parse_args()
    if options.what == "take":
        take(options.folders)
        return 0
    status = 0
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        new = rewritten(text)
        if new == text:
            continue
        if options.check:
            print(f"{path} is not what the CSVs give: run python benchmarks/accuracy.py tables", file=sys.stderr)
            status = 1
        else:
            write_text_atomically(new, path)
    return status


if __name__ == "__main__":
    sys.exit(main())
