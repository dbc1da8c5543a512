"""`ckdsnn sweep`'s options and exit status. PyTorch is imported after they are read."""

from __future__ import annotations

import argparse
import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ckdsnn.cli.arguments import positive
from ckdsnn.cli.stopping import Terminated, until_stopped
from ckdsnn.sweep.worker import OPTION, run_command, work

if TYPE_CHECKING:
    from ckdsnn.sweep.plan import Plan
    from ckdsnn.sweep.run import Outcome

PACKAGED = Path(__file__).parent.parent / "grids"


def build_parser() -> argparse.ArgumentParser:
    """The options of `ckdsnn sweep`."""
    names = ", ".join(sorted(path.stem for path in PACKAGED.glob("*.yaml")))
    parser = argparse.ArgumentParser(
        prog="ckdsnn sweep",
        allow_abbrev=False,
        description="Run every cell of a grid with every seed, and make one table of it. Interrupted, the same command "
        "continues: what is finished is kept, what was running goes on from its checkpoint.",
        epilog=f"Packaged grids: {names}. See docs/sweeps.md.",
    )
    parser.add_argument(
        "grids",
        metavar="GRID",
        nargs="+",
        help="a YAML file, or the name of a packaged grid; several are one after another",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=None,
        help="folder of the sweep (default: runs/sweep/GRID); of several grids: OUT/GRID each, and OUT/teachers",
    )
    parser.add_argument(
        "--teachers",
        type=Path,
        default=None,
        metavar="DIR",
        help="folder of the trained teachers; sweeps that name the same one share teachers of the same recipe and seed "
        "(default: OUT/teachers)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace recipe, seeds, baseline, metric, teacher or teacher_seed of the grids, or give all cells an "
        "option of the recipe (data.root=DATA); may be repeated",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="CELL",
        help="run these cells of the grids, by label or coordinate, and leave the others as they are; may be repeated",
    )
    parser.add_argument("--dry_run", action="store_true", help="list the runs and what is left of them, and end")
    parser.add_argument(
        "--processes", type=positive, default=None, help="runs at a time (default: one a core, or --per_gpu a GPU)"
    )
    parser.add_argument("--per_gpu", type=positive, default=None, help="runs that share a GPU (default: 1)")
    parser.add_argument(
        "--slurm",
        action="store_true",
        help="submit the runs to Slurm as job arrays, and end; needs pip install 'ckd-kernels[slurm]'. The same "
        "command again submits what failed, and makes the table",
    )
    parser.add_argument(
        "--slurm_set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a parameter of submitit's: partition, timeout_min, gpus_per_node, cpus_per_task, mem_gb, "
        "array_parallelism; may be repeated",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs the sweep; returns the exit status: 0, 1 (a run failed, or the grid is impossible), 130, 143."""
    if (sys.argv[2:] if arguments is None else arguments) == [OPTION]:
        return work(run_command)
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.slurm and (options.processes or options.per_gpu):
        parser.error("--processes and --per_gpu are for this machine: with --slurm say what a run gets by --slurm_set")
    if options.slurm_set and not options.slurm:
        parser.error("--slurm_set is only used with --slurm")
    names = [Path(grid).stem for grid in options.grids]
    if len(set(names)) < len(names):
        parser.error(f"two grids have the same name: {' '.join(names)}")
    several = len(names) > 1
    out: Path = options.out or (Path("runs/sweep") if several else Path("runs/sweep") / names[0])
    if several and "teachers" in names:
        parser.error("a grid named teachers would have the folder of the teachers: rename it")

    def say(what_happened: str) -> None:
        print(
            f"\n{what_happened}: what is finished in {out} is kept, the same command goes on from there",
            file=sys.stderr,
        )

    return until_stopped(lambda: _guarded(options, out), say)


def _guarded(options: argparse.Namespace, out: Path) -> int:
    from ckdsnn.cli.failure import words_for

    try:
        return _run(options, out)
    except Exception as error:
        words = words_for(error, out)
        if words is None:
            raise
        print(f"ckdsnn sweep: error: {words}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace, out: Path) -> int:
    from ckdsnn.run_folder import alone_in, check_writable
    from ckdsnn.sweep.grid import load_grid
    from ckdsnn.sweep.plan import make_plan
    from ckdsnn.sweep.run import places, run_jobs, visible_gpus
    from ckdsnn.sweep.shared import jobs_of, share_runs

    check_writable(out)
    teachers: Path = options.teachers or out / "teachers"
    check_writable(teachers)
    plans = []
    for name in options.grids:
        grid = load_grid(name, options.set)
        plans.append(make_plan(grid, out / grid.name if len(options.grids) > 1 else out, teachers))
    _check_only(plans, options.only)
    plans = [replace(plan, only=frozenset(options.only)) for plan in plans]
    if len(plans) > 1:
        plans = share_runs(plans)
    for plan in plans:
        plan.check_folders()
    jobs = jobs_of(plans)
    if options.dry_run:
        listed: set[Path] = set()
        for plan in plans:
            _list(plan, listed)
        if len(plans) > 1:
            print(f"all grids: {sum(not job.finished for job in jobs)} of {len(jobs)} runs are left")
        return 0
    with contextlib.ExitStack() as held:
        for folder in dict.fromkeys([out, *(plan.out for plan in plans)]):
            held.enter_context(alone_in(folder, "sweep"))
        for plan in plans:
            plan.write_recipes()
        if options.slurm:
            from ckdsnn.sweep.slurm import submit

            print(submit(plans, out, options.slurm_set))
            for plan in plans:
                _show_tables(plan)
            return 0
        on_cpu = all(plan.on_cpu for plan in plans)
        gpus = [] if on_cpu else visible_gpus()
        if options.per_gpu and not gpus:
            why = "all recipes ask for the CPU" if on_cpu else "no GPU is visible here"
            print(f"--per_gpu is not used: {why}", file=sys.stderr)
        at = places(options.processes, gpus, options.per_gpu or 1)
        from ckdsnn.sweep.output import write_tables
        from ckdsnn.sweep.progress import Progress

        try:
            with Progress("sweep " + " ".join(plan.grid.name for plan in plans), jobs, len(at)) as progress:
                outcome = run_jobs(jobs, at, progress.end, watch=progress.watch)
        except (KeyboardInterrupt, Terminated):
            for plan in plans:
                write_tables(plan)
            raise
        for plan in plans:
            _show_tables(plan)
    return say_failed(outcome, len(jobs))


def _check_only(plans: list[Plan], names: list[str]) -> None:
    from ckdsnn.sweep.grid import GridError

    cells = [cell for plan in plans for cell in plan.grid.cells]
    known = list(dict.fromkeys(text for cell in cells for text in (cell.label, *cell.coordinates.values())))
    if unknown := [name for name in names if name not in known]:
        raise GridError(f"--only {unknown[0]}: there is no such cell; cells: {', '.join(known)}")


def say_failed(outcome: Outcome, count: int) -> int:
    """Says which of `count` runs failed, and why; returns the exit status."""
    for folder, why in outcome.failed.items():
        print(f"\nfailed: {folder}: {why}", file=sys.stderr)
    if outcome.failed:
        print(f"\n{len(outcome.failed)} of {count} runs failed; the same command tries them again", file=sys.stderr)
    return 1 if outcome.failed else 0


def _list(plan: Plan, listed: set[Path]) -> None:
    """Prints the runs of a grid; `listed` are the folders of those that earlier grids have."""
    for job in plan.jobs:
        state = "finished" if job.finished else "goes on" if job.started else "to run"
        if job.folder in listed:
            state = "shared"
        listed.add(job.folder)
        print(f"{state:<9} {job.name}  ({job.folder})")
    for cell in plan.grid.cells:
        print(f"{cell.label}: " + (", ".join(f"{key}={value}" for key, value in cell.options.items()) or "the recipe"))
    left = sum(not job.finished for job in plan.jobs)
    print(
        f"{len(plan.grid.cells)} cells x {len(plan.grid.seeds)} seeds and {len(plan.teachers)} teachers: "
        f"{left} of {len(plan.jobs)} runs are left"
    )


def _show_tables(plan: Plan) -> None:
    from ckdsnn.sweep.output import write_figures, write_tables
    from ckdsnn.sweep.table import text_table

    rows = write_tables(plan)
    names = "".join(f", {path.name}" for path in write_figures(plan, rows))
    print(f"{text_table(plan.grid, rows)}\n\n{plan.out}: table.csv, table.md, runs.csv{names}")
