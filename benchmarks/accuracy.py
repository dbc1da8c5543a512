"""Accuracy of the methods on real images: what docs/results.md holds.

    python benchmarks/accuracy.py digits runs/accuracy
    python benchmarks/accuracy.py cifar10 runs/accuracy --data DATA

Every training is a call of the command `ckdsnn`, printed as it starts, in `runs/accuracy/STUDY/METHOD/seedN`. Finished
ones are not repeated. At the end: a table in Markdown, and every number in `runs/accuracy/STUDY.json`. Validation and
test accuracies are those of the last epoch; nothing is selected on either.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import shlex
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from ckdsnn.checkpoint import provenance


def ckd(preset: str, **samd: str) -> dict[str, str]:
    options = {"preset": preset} | ({"samd": samd} if samd else {})
    return {"--model.method.name": "ckd", "--model.method.options": json.dumps(options)}


def plain(name: str) -> dict[str, str]:
    return {"--model.method.name": name, "--model.method.options": "{}"}


METHODS = {
    "ce": plain("ce"),
    "kd": plain("kd"),
    "ckd, released-code": ckd("released-code"),
    # `default` and `paper` are the same but for the normalisation of the maps.
    **{f"ckd, {name}": ckd("default", normalisation=name) for name in ("none", "minmax", "zscore")},
}


class Table(NamedTuple):
    """Rows of one table, in the order in which they are printed; gains are over the first."""

    rows: tuple[str, ...]
    seeds: int


NORMALISATIONS = Table(("ckd, none", "ckd, minmax", "ckd, zscore"), seeds=5)
STUDIES = {
    "digits": [NORMALISATIONS],
    "cifar10": [Table(("ce", "kd", "ckd, minmax", "ckd, none", "ckd, released-code"), seeds=3), NORMALISATIONS],
}
RECIPES = {"digits": "digits", "cifar10": "cifar10_small"}


def run(arguments: list[str]) -> None:
    """One command, as if it were typed."""
    import torch

    from ckdsnn import cli

    torch.set_num_threads(1)
    print(f"ckdsnn {shlex.join(arguments)}", flush=True)
    if status := cli.main(arguments):
        raise SystemExit(status)


def teacher_seed(study: str, seed: int) -> int:
    """One teacher for all on CIFAR-10, where it costs as much as five students; else one a seed."""
    return 0 if study == "cifar10" else seed


def train_teacher(study: str, out: Path, seed: int, shared: list[str]) -> None:
    folder = out / "teacher" / f"seed{seed}"
    larger = [] if study == "digits" else ["--data.train_samples", "null", "--data.batch_size", "100"]
    run(["teacher", *shared, *larger, "--seed_everything", str(seed), "--out", str(folder)])


def train_student(study: str, out: Path, name: str, seed: int, shared: list[str]) -> dict[str, float]:
    folder = out / name.replace(", ", "-") / f"seed{seed}"
    teacher = out / "teacher" / f"seed{teacher_seed(study, seed)}" / "teacher" / "last.ckpt"
    options = [part for pair in METHODS[name].items() for part in pair]
    arguments = [*shared, *options, "--model.teacher.checkpoint", str(teacher)]
    arguments += ["--seed_everything", str(seed), "--out", str(folder)]
    if not (folder / "test.json").exists():
        run(["fit", *arguments])
        run(["test", *arguments])
    metrics = json.loads((folder / "test.json").read_text())["metrics"]
    accuracies = {"validation": last_validation(folder), "test": metrics["test/accuracy"]}
    return {part: round(100 * value, 2) for part, value in accuracies.items()} | {
        "firing_rate": round(metrics["test/firing_rate"], 4)
    }


def last_validation(folder: Path) -> float:
    """Of the last epoch; every time that the training went on, it began another log."""
    rows = [row for path in (folder / "logs").glob("*/metrics.csv") for row in csv.DictReader(path.open())]
    return max((int(row["epoch"]), float(row["val/accuracy"])) for row in rows if row.get("val/accuracy"))[1]


def spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"


def markdown(table: Table, cells: dict[tuple[str, int], dict[str, float]]) -> str:
    """Accuracies in percent, mean ± standard deviation over seeds; gains are paired by seed."""
    first, *_ = table.rows
    heads = ["method", "validation", f"gain over {first}", "test", f"gain over {first}", "firing rate"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in table.rows:
        columns = [name]
        for part in ("validation", "test"):
            values, others = ([cells[row, seed][part] for seed in range(table.seeds)] for row in (name, first))
            gains = [value - other for value, other in zip(values, others, strict=True)]
            columns += [spread(values), "" if name == first else spread(gains)]
        rate = statistics.fmean(cells[name, seed]["firing_rate"] for seed in range(table.seeds))
        lines.append(f"| {' | '.join([*columns, f'{rate:.3f}'])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", help="folder that holds cifar-10-batches-py")
    parser.add_argument("--processes", type=int, default=2, help="trainings at a time, a thread each")
    options = parser.parse_args()
    shared = ["--config", RECIPES[options.study]] + (["--data.root", options.data] if options.data else [])
    out = options.out / options.study
    tables = STUDIES[options.study]
    # Seed by seed, so that an interrupted study has its first seeds whole.
    wanted = dict.fromkeys(
        (name, seed)
        for seed in range(max(table.seeds for table in tables))
        for table in tables
        if seed < table.seeds
        for name in table.rows
    )
    with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool:
        teachers = sorted({teacher_seed(options.study, seed) for _, seed in wanted})
        for made in [pool.submit(train_teacher, options.study, out, seed, shared) for seed in teachers]:
            made.result()
        cells = {key: pool.submit(train_student, options.study, out, *key, shared) for key in wanted}
        results = {key: cell.result() for key, cell in cells.items()}
    written = [{"method": name, "seed": seed, **result} for (name, seed), result in results.items()]
    (options.out / f"{options.study}.json").write_text(
        json.dumps({"results": written, "versions": provenance()["versions"]}, indent=1)
    )
    for table in tables:
        print(f"\n{table.seeds} seeds\n\n{markdown(table, results)}")


if __name__ == "__main__":
    main()
