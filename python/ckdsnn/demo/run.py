"""The demo from the first training to the figures: the packaged grid `demo`, and a page that says what came out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from ckdsnn.analysis.style import write_figure
from ckdsnn.cli.stopping import Terminated
from ckdsnn.demo.figures import accuracy_figure, curves_figure, maps_of
from ckdsnn.demo.report import first_line, read_reference, statement
from ckdsnn.run_folder import alone_in, check_writable
from ckdsnn.sweep.command import say_failed
from ckdsnn.sweep.grid import Grid, load_grid
from ckdsnn.sweep.output import write_tables
from ckdsnn.sweep.plan import Job, make_plan
from ckdsnn.sweep.progress import Progress
from ckdsnn.sweep.run import places, run_jobs
from ckdsnn.sweep.table import text_table

# Two epochs each: shows that everything works.
QUICK = (
    "seeds=1",
    "trainer.max_epochs=2",
    "trainer.check_val_every_n_epoch=1",
    "teacher={data.train_samples: null, data.batch_size: 64, model.teacher.epochs: 2}",
)


def demo_grid(seeds: int | None = None, *, quick: bool = False) -> Grid:
    """The grid `demo`.

    Args:
        seeds: how many, from 0 on; None: as the grid has it, and one where it is quick.
        quick: two epochs each.

    Example:
        >>> [cell.label for cell in demo_grid().cells], demo_grid(quick=True).seeds
        (['CE', 'KD', 'SAMD', 'NLD', 'SAMD + NLD'], (0,))
    """
    settings = [*(QUICK if quick else ()), *([] if seeds is None else [f"seeds={seeds}"])]
    return load_grid("demo", settings)


def delete_trainings(jobs: Iterable[Job]) -> None:
    """Deletes the folders of runs that have begun; whatever else lies beside them stays."""
    for job in jobs:
        if job.record() or job.started:
            shutil.rmtree(job.folder)


def run_demo(
    out: Path, *, seeds: int | None = None, quick: bool = False, processes: int | None = None, fresh: bool = False
) -> int:
    """Trains what is missing, prints table and statement, and writes tables and figures.

    Args:
        out: folder of the sweep; the figures are in `figures/`.
        seeds: see :func:`demo_grid`.
        quick: see :func:`demo_grid`.
        processes: trainings at a time; None: one for each core this process may use.
        fresh: delete its earlier trainings first.

    Returns:
        The exit status: 1 where a training failed.
    """
    started = time.perf_counter()
    check_writable(out)
    grid = demo_grid(seeds, quick=quick)
    plan = make_plan(grid, out)
    with alone_in(out, "demo"):
        if fresh:
            delete_trainings(plan.jobs)
        plan.check_folders()
        plan.write_recipes()
        reference = read_reference()
        if not quick and (said := first_line(len(grid.seeds), reference)):
            print(said, flush=True)
        at = places(processes, [], 1)
        try:
            with Progress("demo", plan.jobs, len(at)) as progress:
                outcome = run_jobs(plan.jobs, at, progress.end, watch=progress.watch)
        except (KeyboardInterrupt, Terminated):
            write_tables(plan)
            raise
        rows = write_tables(plan)
    if outcome.failed:
        return say_failed(outcome, len(plan.jobs))
    figures = out / "figures"
    write_figure(accuracy_figure(rows, None if quick else reference), figures / "accuracy.png")
    write_figure(curves_figure(plan), figures / "curves.png")
    write_figure(maps_of(plan), figures / "maps.png")
    print(f"\n{text_table(grid, rows)}\n\n{statement(rows, None if quick else reference, quick=quick)}\n")
    print(f"{time.perf_counter() - started:.0f} s; tables in {out / 'table.csv'} and runs.csv, figures in {figures}")
    return 0
