"""A sweep on a Slurm cluster: submitit submits its runs as job arrays, Slurm does the rest."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from ckdsnn.checkpoint import RunError, write_text_atomically
from ckdsnn.cli.stopping import TERMINATED
from ckdsnn.sweep.plan import Job, Plan
from ckdsnn.sweep.run import LOG, Place, Running, run_jobs, stop
from ckdsnn.sweep.shared import jobs_of

QUEUE = "jobs.json"  # in the folder of submitit's files: run folder -> job of Slurm
TO_SAVE = 60.0  # seconds that a run has after Slurm's warning, which comes 90 seconds before the end
# What submitit knows for all clusters; everything else is Slurm's.
GENERAL = ("timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node", "name")
FIXED = ("nodes", "tasks_per_node", "ntasks_per_node", "dependency")


@dataclass
class Task:
    """What a job of Slurm does: one run of the sweep, which goes on where the job before it was preempted."""

    job: Job
    running: list[Running] = field(default_factory=list)

    def __call__(self) -> str:
        """Runs it; returns what became of it.

        Raises:
            RunError: it failed.
        """
        threads = os.environ.get("SLURM_CPUS_PER_TASK", "1")
        # The run is a job of one task, and Lightning, which looks for Slurm, is not to take it for one of several.
        hidden = tuple(name for name in os.environ if name.startswith("SLURM_"))
        place = Place({"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}, hidden)
        job = replace(self.job, needs=None)  # Slurm started this one after it
        outcome = run_jobs([job], [place], lambda job, why: None, patience=TO_SAVE, running=self.running)
        why = outcome.failed.get(str(job.folder))
        if why is None:
            return "finished"
        if outcome.status[str(job.folder)] in (TERMINATED, -signal.SIGTERM) and _requeued():
            return "preempted"
        raise RunError(f"{job.name}: {why}")

    def checkpoint(self) -> Any:
        """Called by submitit when Slurm's warning comes, before it puts the job into the queue again."""
        from submitit.helpers import DelayedSubmission

        stop(self.running, TO_SAVE)
        return DelayedSubmission(Task(self.job))


def _requeued() -> bool:
    """Puts this job into the queue again, unless it was cancelled."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    name = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")
    state = subprocess.run(["scontrol", "show", "job", "-o", name], capture_output=True, text=True)
    if not any(f"JobState={alive}" in state.stdout for alive in ("RUNNING", "PREEMPTED")):
        return False
    return subprocess.run(["scontrol", "requeue", name], capture_output=True).returncode == 0


def parameters(settings: Sequence[str], *, on_cpu: bool) -> dict[str, Any]:
    """submitit's parameters from `KEY=VALUE`.

    Raises:
        RunError: no KEY=VALUE, or one that the sweep sets itself.

    Example:
        >>> from ckdsnn.sweep.slurm import parameters
        >>> parameters(["partition=short", "timeout_min=30"], on_cpu=True)
        {'timeout_min': 30, 'cpus_per_task': 1, 'slurm_partition': 'short'}
    """
    made: dict[str, Any] = {"timeout_min": 12 * 60, "cpus_per_task": 1 if on_cpu else 4}
    if not on_cpu:
        made["gpus_per_node"] = 1
    for setting in settings:
        key, given, text = setting.partition("=")
        if not given or not key or key in FIXED:
            why = "is set by the sweep: a run is one task" if key in FIXED else "must be KEY=VALUE"
            raise RunError(f"--slurm_set {setting}: {why}")
        made[key if key in GENERAL else "slurm_" + key.removeprefix("slurm_")] = yaml.safe_load(text)
    return made


def submit(plans: Sequence[Plan], out: Path, settings: Sequence[str]) -> str:
    """Submits what is neither finished nor in the queue: an array of the teachers, and one of the students after it.

    Args:
        plans: of one grid or several, which may share teachers.
        out: folder of the sweep.
        settings: see :func:`parameters`.

    Returns:
        What was done, in words.

    Raises:
        RunError: Slurm or submitit is not there, or refuses.
    """
    if find_spec("submitit") is None:
        raise RunError("--slurm needs submitit: install it with pip install 'ckd-kernels[slurm]'")
    for program in ("sbatch", "squeue", "scontrol"):
        if shutil.which(program) is None:
            raise RunError(f"--slurm: there is no {program} here: run it where jobs are submitted, or without --slurm")
    import submitit

    wanted = parameters(settings, on_cpu=all(plan.on_cpu for plan in plans))
    folder, runs = out / "slurm", jobs_of(plans)
    known = _read_queue(folder)
    alive = _in_queue()
    queued = {run: job for run, job in known.items() if job in alive}
    missing = [job for job in runs if not job.finished and str(job.folder) not in queued]
    again = sum(bool(job.record()) for job in missing)
    teachers = {str(teacher.folder) for plan in plans for teacher in plan.teachers}
    submitted: list[str] = []
    awaited = {job.partition("_")[0] for run, job in queued.items() if run in teachers}
    first = [job for job in missing if str(job.folder) in teachers]
    for jobs in (first, [job for job in missing if job not in first]):
        if not jobs:
            continue
        # With the same Python and packages as this process.
        executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=1000)
        try:
            executor.update_parameters(**{"name": "-".join(["sweep", *(plan.grid.name for plan in plans)]), **wanted})
            more: dict[str, Any] = {"requeue": True}
            if awaited and any(job.needs is not None for job in jobs):
                more["dependency"] = "afterany:" + ":".join(sorted(awaited))  # a run says itself what it lacks
            executor.update_parameters(slurm_additional_parameters=more)
            with executor.batch():
                made = [executor.submit(Task(job)) for job in jobs]
        except (NameError, TypeError, ValueError, RuntimeError, submitit.core.utils.FailedJobError) as error:
            raise RunError(f"--slurm: {' '.join(str(error).split())}") from error
        known |= {str(job.folder): one.job_id for job, one in zip(jobs, made, strict=True)}
        write_text_atomically(json.dumps(known, indent=1), folder / QUEUE)
        submitted.append(made[0].job_id.partition("_")[0])
        awaited.add(submitted[-1])
    done = sum(job.finished for job in runs)
    text = f"{done} of {len(runs)} runs are finished, {len(queued)} are in the queue, {len(missing)} submitted"
    if again:
        text += f" ({again} of them had been started before; their last words are in {LOG} of their folders)"
    if submitted:
        text += f": jobs {', '.join(submitted)}"
    return text + ("" if done == len(runs) else "; the same command later makes the table") + "\n"


def _read_queue(folder: Path) -> dict[str, str]:
    try:
        content = json.loads((folder / QUEUE).read_text())
    except (OSError, ValueError):
        return {}
    return {str(run): str(job) for run, job in content.items()} if isinstance(content, dict) else {}


def _in_queue() -> set[str]:
    """The jobs that Slurm has not ended yet."""
    asked = subprocess.run(["squeue", "-h", "-r", "-o", "%i"], capture_output=True, text=True)
    if asked.returncode:
        said = " ".join(asked.stderr.split()) or f"squeue ended with status {asked.returncode}"
        raise RunError(f"--slurm: Slurm does not answer: {said}")
    return set(asked.stdout.split())
