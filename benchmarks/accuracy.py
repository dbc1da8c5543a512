"""Tables of docs/results.md and docs/verdicts.md, made from the sweeps in benchmarks/results/accuracy.

    ckdsnn sweep components --set seeds=30 --out runs/components      # or any other grid
    python benchmarks/accuracy.py take runs/components                # keeps its tables, and what they were made with
    python benchmarks/accuracy.py tables                              # rewrites the tables of the documents
    python benchmarks/accuracy.py tables --check                      # status 1 where they are not those of the CSVs
    python benchmarks/accuracy.py figure                              # draws accuracy against minutes on CIFAR

A table stands between `<!-- RECIPE: GRID -->` and `<!-- end -->`, the verdicts between `<!-- verdicts -->` and
`<!-- end -->`, the paper's tables on CIFAR after `<!-- cifar -->`; a grid without results is "not run".
"""

from __future__ import annotations

import argparse
import re
import shlex
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import accuracy_figure
from kept import CANVAS, NOT_RUN, RESULTS, ROOT, SHARED, Values, environment, place, read_csv, read_runs, settings, take
from matplotlib.figure import Figure
from verdicts import verdicts

from ckdsnn.analysis.style import write_figure
from ckdsnn.checkpoint import write_text_atomically
from ckdsnn.cli.arguments import positive
from ckdsnn.demo.report import gain, seeds_to_show
from ckdsnn.sweep.grid import load_grid
from ckdsnn.sweep.metrics import METRICS, teacher_column
from ckdsnn.sweep.table import spread

DOCUMENTS = (ROOT / "docs" / "results.md", ROOT / "docs" / "verdicts.md")
IMAGE = ROOT / "docs" / "images" / "accuracy_minutes.png"
# What the paper prints for the same cells: CIFAR-100, ResNet-19, T = 1, the best epoch on the test set, one seed.
PUBLISHED = {
    "scaling": {"softmax": "79.11", "z-score": "76.48", "none": "75.56", "l2": "74.78"},
    "stage": {"last": "79.11", "second last": "up to 78.25", "third last": "77.01"},
}
# And for SAMD + NLD with ResNet-19, by recipe of its grid `headline`.
HEADLINE = {
    "cifar10_resnet19_t1": "96.11",
    "cifar100_resnet19_t1": "79.11",
    "cifar10_resnet19_t1_fast": "96.11",
    "cifar10_resnet19_t4_fast": "97.81",
    "cifar100_resnet19_t1_fast": "79.11",
    "cifar100_resnet19_t4_fast": "83.88",
}
# The paper's tables on CIFAR: what each shows, its recipe (ResNet-19), its grid.
CIFAR = (
    ("CIFAR-10: settings of the recipe, on held-out training images", "cifar10_resnet19_t1_fast", "recipe_selection"),
    ("CIFAR-100: settings of the recipe, on held-out training images", "cifar100_resnet19_t1_fast", "recipe_selection"),
    ("CIFAR-10, T = 1", "cifar10_resnet19_t1_fast", "headline"),
    ("CIFAR-10, T = 1, a teacher a seed", "cifar10_resnet19_t1_fast", "components"),
    ("CIFAR-10, T = 2", "cifar10_resnet19_t2_fast", "headline"),
    ("CIFAR-10, T = 4", "cifar10_resnet19_t4_fast", "headline"),
    ("CIFAR-100, T = 1", "cifar100_resnet19_t1_fast", "headline"),
    ("CIFAR-100, T = 2", "cifar100_resnet19_t2_fast", "headline"),
    ("CIFAR-100, T = 4", "cifar100_resnet19_t4_fast", "headline"),
    ("CIFAR-10, T = 1, the paper's own schedule", "cifar10_resnet19_t1", "headline"),
    ("CIFAR-100, T = 1, the paper's own schedule", "cifar100_resnet19_t1", "headline"),
    ("CIFAR-100, T = 1: what each term adds", "cifar100_resnet19_t1_fast", "components"),
    ("CIFAR-100, T = 1: scaling of the maps", "cifar100_resnet19_t1_fast", "scaling"),
    ("CIFAR-100, T = 1: common range of the maps (SAMD alone)", "cifar100_resnet19_t1_fast", "normalisation"),
    ("CIFAR-100, T = 1: stages", "cifar100_resnet19_t1_fast", "stage"),
    ("CIFAR-100, T = 1: noise of NLD (NLD alone)", "cifar100_resnet19_t1_fast", "noise"),
    ("CIFAR-100, T = 1: distribution of the noise", "cifar100_resnet19_t1_fast", "distribution"),
    ("CIFAR-100, T = 1: strength of the noise", "cifar100_resnet19_t1_fast", "lambda"),
    ("CIFAR-100, T = 1: weights of SAMD (beta) and NLD (gamma)", "cifar100_resnet19_t1_fast", "beta_gamma"),
    ("CIFAR-100, T = 1: other methods", "cifar100_resnet19_t1_fast", "baselines"),
    ("CIFAR-100, T = 4: methods that need time steps", "cifar100_resnet19_t4_fast", "baselines"),
)
MATRIX = 20  # a grid over two numbers with more cells than this is shown as a matrix of means
# Grids that are about the noise have what it does to the KL beside what they are compared by.
NOISE = ("test/kl", "test/kl_noisy", "test/noise_strength")
BESIDE = dict.fromkeys(("noise", "distribution", "learned_strength", "lambda"), NOISE)


def command(grid: str, runs: Values, results: Path) -> str:
    """What runs the grid again, with the settings and seeds that it was run with."""
    said = settings(grid, results)
    seeds = sorted({seed for values in runs.values() for seed in values})
    if seeds and tuple(seeds) != load_grid(grid).seeds:
        said = [*said, f"seeds={len(seeds) if seeds == list(range(len(seeds))) else seeds}"]
    return " ".join([f"ckdsnn sweep {grid}", *(f"--set {shlex.quote(setting)}" for setting in said)])


def table(grid: str, results: Path = RESULTS) -> str:
    """The command and the table of a grid in Markdown."""
    runs = read_runs(grid, load_grid(grid).metric.key, results)
    if not runs:
        return f"`{command(grid, runs, results)}`: {NOT_RUN}\n"
    rows = read_csv(results / grid / "table.csv")
    coordinates = list(load_grid(grid).cells[0].coordinates)
    if grid == "demo_settings":
        lines = _settings(runs)
    elif len(coordinates) == 2 and len(rows) > MATRIX and grid not in BESIDE:
        lines = _matrix(rows, coordinates)
    else:
        lines = _rows(grid, rows, results)
    ruled = [lines[0], [":---"] + ["---:"] * (len(lines[0]) - 1), *lines[1:]]
    body = "\n".join("| " + " | ".join(line) + " |" for line in ruled)
    return f"```sh\n{command(grid, runs, results)}\n```\n\n{body}\n"


def cifar(results: Path = RESULTS) -> str:
    """A section a table of `CIFAR` that was run, and a list of those that were not."""
    made, missing = [], []
    for title, recipe, grid in CIFAR:
        where = place(recipe, results)
        if runs := read_runs(grid, load_grid(grid).metric.key, where):
            made.append(f"### {title}\n\n{table(grid, where)}")
        else:
            missing.append(f"| {title} | `{command(grid, runs, where)}` |\n")
    if missing:
        made.append("".join([f"| {NOT_RUN} | command |\n|---|---|\n", *missing]))
    return "\n".join(made)


def _rows(grid: str, rows: list[dict[str, str]], results: Path) -> list[list[str]]:
    baselines = dict.fromkeys(row["baseline"] for row in rows if row["baseline"])
    to = f"difference to {next(iter(baselines))}" if len(baselines) == 1 else "difference to the baseline"
    published = PUBLISHED.get(grid, {})
    if grid == "headline" and results.name in HEADLINE:
        published = {"SAMD + NLD, as printed": HEADLINE[results.name]}
    metric = load_grid(grid).metric
    form = metric.form
    heads = ["cell", metric.heading, "n", f"{to}, 95 % CI", metric.count]
    heads += [f"teacher {metric.of_teacher.heading}", "firing rate", _minutes(grid, results)]
    beside = [(METRICS[key], read_runs(grid, key, results)) for key in BESIDE.get(grid, ())]
    heads += [other.heading for other, _ in beside]
    heads += ["paper's" if results.name.startswith("cifar") else "paper's (CIFAR-100)"] if published else []
    lines = []
    for row in rows:
        deviation = f" ± {float(row['std']):{form}}" if row["std"] else ""
        interval = f" [{float(row['low']):+{form}}, {float(row['high']):+{form}}]" if row["low"] else ""
        line = [
            row["label"],
            f"{float(row['mean']):{form}}{deviation}" if row["mean"] else NOT_RUN,
            row["n"],
            f"{float(row['difference']):+{form}}{interval}" if row["difference"] else "",
            f"{row['ahead']} of {row['pairs']}" if row["ahead"] else "",
            f"{float(teacher):.1f}" if (teacher := row[teacher_column(metric.of_teacher.key)]) else "",
            f"{float(row['firing_rate']):.3f}" if row["firing_rate"] else "",
            # On the canvas, runs share the machine with each other and with whatever else it does.
            f"{float(row['seconds']) / 60:.1f}" if row["seconds"] and results.name not in CANVAS else "",
            *(_spread(list(runs.get(row["label"], {}).values()), other.form) for other, runs in beside),
        ]
        lines.append(line + ([published.get(row["label"].rpartition("=")[2], "")] if published else []))
    kept = [i for i in range(len(heads)) if any(line[i] for line in lines)]
    return [[line[i] for i in kept] for line in [heads, *lines]]


def _minutes(grid: str, results: Path) -> str:
    together = environment(grid, results).get(SHARED, 1)
    return f"minutes, {together} runs on a GPU" if together > 1 else "minutes"


def _spread(values: list[float], form: str) -> str:
    if not values:
        return ""
    mean, deviation = spread(values)
    return f"{mean:{form}}" + ("" if deviation is None else f" ± {deviation:{form}}")


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


def rewritten(text: str, results: Path = RESULTS) -> str:
    """A document with the tables that the CSVs give."""
    makers: dict[str, Callable[[str], str]] = {
        r"(\w+: \w+)": lambda what: table(what.partition(": ")[2], place(what.partition(": ")[0], results)),
        r"(verdicts)": lambda _: verdicts(results),
        r"(cifar)": lambda _: cifar(results),
    }
    for what, make in makers.items():
        pattern = re.compile(rf"(<!-- {what} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = pattern.sub(lambda found, make=make: f"{found[1]}\n{make(found[2])}\n{found[3]}", text)  # type: ignore[misc]
    return text


def figure(results: Path = RESULTS) -> Figure:
    """Accuracy against minutes, of the tables of `CIFAR` that were run, beside the published numbers.

    Raises:
        SystemExit: none was.
    """
    found = accuracy_figure.methods([(recipe, grid) for _, recipe, grid in CIFAR], results)
    if not found:
        raise SystemExit(f"nothing to draw: no run of {' or '.join(accuracy_figure.GRIDS)} on CIFAR is kept")
    return accuracy_figure.draw(found, HEADLINE)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="what", required=True)
    taking = parts.add_parser("take", help="keep the tables of sweeps")
    taking.add_argument(
        "folders",
        nargs="+",
        type=Path,
        help="of a sweep: that one alone, also where other sweeps' folders lie in it; "
        "a folder that is no sweep's but holds some (--out of several grids): all of them",
    )
    taking.add_argument("--processor", help="that the runs were made on (default: this one's, if they were made here)")
    taking.add_argument(
        "--per_gpu", type=positive, help="runs that shared a GPU, as in the sweep's command (default: 1)"
    )
    making = parts.add_parser("tables", help="rewrite the tables of the documents")
    making.add_argument("--check", action="store_true", help="write nothing; status 1 where a document differs")
    drawing = parts.add_parser("figure", help="draw accuracy against minutes of the kept runs on CIFAR")
    drawing.add_argument("--out", type=Path, default=IMAGE, help="PNG file (default: the documents' one)")
    options = parser.parse_args()
    if options.what == "take":
        take(options.folders, processor=options.processor, per_gpu=options.per_gpu)
        return 0
    if options.what == "figure":
        write_figure(figure(), options.out)
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
