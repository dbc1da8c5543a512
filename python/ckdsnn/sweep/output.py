"""What a sweep writes when its runs have ended: tables and figures of what is finished."""

from __future__ import annotations

from pathlib import Path

from ckdsnn.checkpoint import write_text_atomically
from ckdsnn.sweep.plan import Plan
from ckdsnn.sweep.table import Row, csv_runs, csv_table, markdown_table, summarise


def write_tables(plan: Plan) -> list[Row]:
    """Writes `table.csv`, `table.md` and `runs.csv` into the folder of the sweep; returns the rows."""
    rows = summarise(plan.grid, plan.students)
    write_text_atomically(csv_runs(plan.grid, plan.students), plan.out / "runs.csv")
    write_text_atomically(csv_table(plan.grid, rows), plan.out / "table.csv")
    write_text_atomically(markdown_table(plan.grid, rows), plan.out / "table.md")
    return rows


def write_figures(plan: Plan, rows: list[Row]) -> list[Path]:
    """Draws the rows into the folder of the sweep; returns the files."""
    from ckdsnn.sweep.plots import write_plots  # Matplotlib takes a while to import

    return write_plots(plan.grid, rows, plan.out)
