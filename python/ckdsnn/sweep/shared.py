"""What several grids of one command have in common, such as teachers and baselines: it is run once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ckdsnn.configuration import as_plain
from ckdsnn.losses import METHODS
from ckdsnn.sweep.plan import Job, Plan


def jobs_of(plans: Sequence[Plan]) -> list[Job]:
    """The runs of several grids, one grid after another; what they share is there once."""
    made: dict[Path, Job] = {}
    for job in (job for plan in plans for job in plan.jobs):
        if job.folder not in made or made[job.folder].result is None:  # where one grid tests it, it is tested
            made[job.folder] = job
    return list(made.values())


def share_runs(plans: Sequence[Plan]) -> list[Plan]:
    """The plans of several grids, in which a run that an earlier grid has too, under whatever label, is that one's."""
    known: dict[str, tuple[str, Job]] = {}
    made = []
    for plan in plans:
        students = []
        for student in plan.students:
            fingerprint = student.job.fingerprint
            model, tested = fingerprint["model"], student.job.result is not None
            # An option that is written out means the same as one that is left at its default.
            options = as_plain(METHODS.options(model["method"]["name"], model["method"]["options"]))
            method = {"name": model["method"]["name"], "options": options}
            what = [{**fingerprint, "model": {**model, "method": method}}, tested]
            grid, job = known.setdefault(json.dumps(what, sort_keys=True), (plan.grid.name, student.job))
            students.append(replace(student, job=job, grid=None if grid == plan.grid.name else grid))
        made.append(replace(plan, students=tuple(students)))
    return made
