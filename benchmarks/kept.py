"""What is kept of sweeps in benchmarks/results/accuracy/RECIPE/GRID: tables, runs, and what they were made with."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import re
import shutil
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cpuinfo
import yaml  # type: ignore[import-untyped]
from kept_runs import keep_run

from ckdsnn.checkpoint import write_text_atomically
from ckdsnn.sweep.grid import GRIDS, SETTINGS, load_grid
from ckdsnn.sweep.metrics import METRICS

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "accuracy" / "digits"  # of other recipes beside it
CANVAS = ("digits", "digits_dense")  # recipes whose grids are kept there

PLACES = {"data.root": "DATA", "model.teacher.checkpoint": "TEACHER"}

NOT_RUN = "not run"
SHARED = "runs at a time on a GPU"  # in environment.json, where there were several

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


def place(recipe: str, results: Path = RESULTS) -> Path:
    """Where grids with that recipe are kept."""
    return results if recipe in CANVAS else results.parent / recipe


def environment(grid: str, results: Path) -> dict[str, Any]:
    """What a kept grid was made with; {}: nobody has said it."""
    path = results / grid / "environment.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return known


def settings(grid: str, results: Path) -> list[str]:
    """What `--set` says where the grid is run as the kept one was, but for the seeds; of one that is not kept, what it
    takes for the recipe of that folder."""
    if "settings" in (known := environment(grid, results)):
        return [str(setting) for setting in known["settings"]]
    if results.name in CANVAS:
        return []
    recipe = [f"recipe={results.name}"] if load_grid(grid).content["recipe"] != results.name else []
    return [*recipe, "data.root=DATA"]


def _changed(grid: str, content: dict[str, Any]) -> list[str]:
    """What `--set` has made of a packaged grid, but for the seeds and places of this machine."""
    packaged = load_grid(grid).content
    made = {k: content.get(k) for k in SETTINGS if k != "seeds" and content.get(k) != packaged.get(k)}
    before = packaged.get("options") or {}
    made |= {k: v for k, v in (content.get("options") or {}).items() if k not in before or before[k] != v}
    made = {key.replace("data.init_args.", "data."): value for key, value in made.items()}
    made |= {key: told for key, told in PLACES.items() if key in made}
    return [f"{key}={value if isinstance(value, str) else _inline(value)}" for key, value in made.items()]


def _inline(value: Any) -> str:
    """As YAML in a line, without the mark of a document's end."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6)
    return text.removesuffix("...\n").strip()


def take(
    folders: list[Path], results: Path = RESULTS, processor: str | None = None, per_gpu: int | None = None
) -> None:
    """Keeps the tables of sweeps, by recipe and grid, and of CIFAR every run, too, without the names of paths and
    machines. Which they are, the grid beside the table says; where none is, the folder is named as its grid. Nothing is
    kept where one of them is refused.

    Args:
        folders: of a sweep, which is that sweep alone, also where other sweeps' folders lie in it; or a folder that is
            no sweep's but holds some, which is all of them.
        results: where they are kept.
        processor: that the runs were made on; None: this one's, if they were made here.
        per_gpu: runs that shared a GPU; None: each had one of its own, or none.

    Raises:
        SystemExit: a folder holds no sweep; it is no packaged grid's, or several grids'; its table is of another metric
            than the grid's; it has a cell that the packaged grid has not; two would be kept in the same place.
    """
    sweeps: dict[Path, tuple[Path, str, dict[str, Any]]] = {}
    for part in dict.fromkeys(part for folder in folders for part in _sweeps(folder)):
        grid, content = _grid(part)
        kept = place(Path(content["recipe"]).stem, results) / grid
        if kept in sweeps:
            raise SystemExit(f"{sweeps[kept][0]} and {part} are both {grid} with {content['recipe']}: take one of them")
        sweeps[kept] = part, grid, content
    for kept, (part, grid, content) in sweeps.items():
        # The canvas has hundreds of runs of a minute, which the command beside their table makes again.
        singly = Path(content["recipe"]).stem not in CANVAS
        run_with = {"settings": _changed(grid, content)} | ({SHARED: per_gpu} if per_gpu else {})
        _keep(part, kept, processor, run_with, singly)
        print(kept)


def _sweeps(folder: Path) -> list[Path]:
    """The folder, if it is a sweep's; else the sweeps' folders in it."""
    found = [path.parent for path in sorted(folder.rglob("table.csv"))]
    taken = [part for part in found if not any(parent in found for parent in part.parents)]
    if not taken:
        raise SystemExit(f"{folder} holds no sweep: there is no table.csv in it; give the --out of one that was run")
    for part in (part for part in found if part not in taken):
        print(f"{part} lies in another sweep's folder and is not taken: name it, too, if it is meant", file=sys.stderr)
    return taken


def _grid(part: Path) -> tuple[str, dict[str, Any]]:
    """Of a sweep's folder: the packaged grid's name, and the content that it was run with."""
    files = sorted(part.glob("*.yaml"))
    if len(files) > 1:
        raise SystemExit(f"{part} is of several grids, {', '.join(f.name for f in files)}: remove those of the others")
    grid = files[0].stem if files else part.name
    if not (GRIDS / f"{grid}.yaml").exists():
        raise SystemExit(f"{part}: there is no packaged grid {grid}: name the folder as its grid")
    packaged = load_grid(grid)
    metric = packaged.metric.key
    if any(row.get("metric") != metric for row in read_csv(part / "table.csv")):
        raise SystemExit(f"{part}/table.csv is not of {metric}: make it again with the command of the sweep")
    other = {row["label"] for row in read_csv(part / "runs.csv")} - {cell.label for cell in packaged.cells}
    if other:
        names = ", ".join(map(repr, sorted(other)))
        raise SystemExit(f"{part}: the packaged grid {grid} has no cell {names}: add it there")
    return grid, yaml.safe_load(files[0].read_text()) if files else packaged.content


def _keep(part: Path, kept: Path, processor: str | None, run_with: dict[str, Any], singly: bool) -> None:
    runs = read_csv(part / "runs.csv")
    unfinished = [row for row in runs if row["finished"] != "True"]
    if unfinished:
        print(f"{part}: {len(unfinished)} runs are not finished", file=sys.stderr)
    kept.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(part / "table.csv", kept / "table.csv")
    for row in runs:
        row["folder"] = _folder(row["folder"])
    text = io.StringIO()
    writer = csv.DictWriter(text, runs[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(runs)
    write_text_atomically(text.getvalue(), kept / "runs.csv")
    seconds = [float(row["seconds"]) for row in runs if row["finished"] == "True"]
    tests = [part / row["folder"] / "test.json" for row in runs]
    made_with = {**_made_with(part, tests, processor), **run_with}
    made_with["seconds a run"] = round(statistics.fmean(seconds), 1) if seconds else None
    write_text_atomically(json.dumps(made_with, indent=1) + "\n", kept / "environment.json")
    for row in runs if singly else []:
        if row["finished"] == "True" and not row["folder"].startswith(".."):
            keep_run(part / row["folder"], row["folder"], kept / row["folder"], made_with.get("platform"))


def _folder(written: str) -> str:
    """Of a run, in that of its sweep: CELL/seedK, or ../GRID/CELL/seedK where it is another grid's. Older versions
    wrote whole paths, and shared no runs."""
    parts = Path(written).parts
    return "/".join(["..", *parts[-3:]] if parts[0] == ".." else parts[-2:])


def _made_with(part: Path, tests: list[Path], processor: str | None) -> dict[str, Any]:
    """Versions and machine of the runs with these results; {}: none is there."""
    known = [json.loads(path.read_text()) for path in tests if path.exists()]
    found = [{key: test.get(key) for key in ("versions", "platform")} for test in known]
    if not found:
        return {}
    if any(other != found[0] for other in found):
        print(f"{part}: its runs were made with several versions or machines; the first one is kept", file=sys.stderr)
    versions, where = found[0]["versions"] or {}, str(found[0]["platform"])
    if processor is None and where == platform.platform():
        cores = len(os.sched_getaffinity(0))
        model = " ".join(cpuinfo.get_cpu_info().get("brand_raw", "a processor").split())
        processor = f"{cores} core{'s' if cores > 1 else ''} of {model}"
    elif processor is None:
        print(f"{part}: its runs were made elsewhere: say on what by --processor", file=sys.stderr)
    # Of "Linux-6.1.0-company-x86_64-with-glibc2.36" the system and the architecture.
    kind = " ".join([where.partition("-")[0], *re.findall("x86_64|aarch64|arm64|ppc64le|riscv64", where)[:1]])
    return {
        "versions": {name: version for name, version in versions.items() if version != "not installed"},
        "platform": kind if processor is None else f"{kind}, {processor}",
    }
