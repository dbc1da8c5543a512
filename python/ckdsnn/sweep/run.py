"""Runs jobs, as many at a time as the machine has places for; stopping loses nothing that is finished or saved."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ckdsnn.checkpoint import RunError
from ckdsnn.cli.stages import own_command
from ckdsnn.sweep.plan import Job

LOG = "sweep.log"  # in a run's folder: what its commands said
LOOK_EVERY = 0.02  # seconds; far below what a run takes to start
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Place:
    """Where one run at a time can be.

    Attributes:
        environment: that its processes get in addition: their share of the cores, their GPU.
        hidden: variables of this process that they do not get.
    """

    environment: dict[str, str]
    hidden: tuple[str, ...] = ()


def places(processes: int | None, gpus: Sequence[str], per_gpu: int) -> list[Place]:
    """The places of this machine.

    Args:
        processes: at a time; None: one a core, or `per_gpu` a GPU.
        gpus: as CUDA_VISIBLE_DEVICES names them; empty: runs are on the CPU.
        per_gpu: runs that share a GPU.

    Example:
        >>> from ckdsnn.sweep.run import places
        >>> [place.environment["CUDA_VISIBLE_DEVICES"] for place in places(None, ["0", "1"], per_gpu=2)]
        ['0', '1', '0', '1']
    """
    cores = len(os.sched_getaffinity(0))
    if gpus:
        count = len(gpus) * per_gpu if processes is None else processes
        devices: list[dict[str, str]] = [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} for i in range(count)]
    else:
        # On a machine with GPUs whose recipes ask for the CPU, none is to be taken.
        devices = [{"CUDA_VISIBLE_DEVICES": ""}] * (cores if processes is None else processes)
    share = str(max(1, cores // len(devices)))
    return [Place({"OMP_NUM_THREADS": share, "MKL_NUM_THREADS": share, **device}) for device in devices]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()  # of those that are visible
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]


@dataclass
class Running:
    """A run in a process."""

    job: Job
    place: Place
    process: subprocess.Popen[bytes]
    stage: int
    before: float  # seconds of earlier sweeps
    started: float


@dataclass
class Outcome:
    """What became of the jobs that were run.

    Attributes:
        done: now finished.
        failed: folder of a job -> why, in its last words.
        status: folder of a job that failed -> exit status of its process, where one was started.
    """

    done: list[Job] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    status: dict[str, int] = field(default_factory=dict)


def run_jobs(
    jobs: Sequence[Job],
    at: Sequence[Place],
    report: Callable[[Job, str | None], None],
    command: Sequence[str] | None = None,
    patience: float = 120.0,
    running: list[Running] | None = None,
) -> Outcome:
    """Runs every job that is not finished, after the one that it needs.

    A job that fails does not stop the others, but those that need it.

    Args:
        jobs: in the order in which they should start.
        at: where they run; one at a time each.
        report: called with every job that comes to its end and why it failed (None: it did not).
        command: that runs a stage, followed by the stage's arguments; None: `ckdsnn`.
        patience: seconds that a stopped run has to save what it has, before it is killed.
        running: filled with what runs, for a signal handler that has to stop it.

    Raises:
        BaseException: what interrupted it, after all runs have stopped.
    """
    outcome = Outcome()
    command = own_command() if command is None else list(command)
    waiting = [job for job in jobs if not job.finished]
    free, running = list(at), [] if running is None else running
    try:
        while waiting or running:
            unfinished = {job.folder for job in waiting} | {run.job.folder for run in running}
            for job in list(waiting):
                if job.needs is not None and str(job.needs) in outcome.failed:
                    waiting.remove(job)
                    _end(job, f"it needs {job.needs}, which failed", outcome, report)
                elif free and job.needs not in unfinished:
                    waiting.remove(job)
                    try:
                        running.append(_start(job, free.pop(0), command))
                    except (OSError, RunError) as error:  # its folder cannot be made, no process can be started
                        free = [place for place in at if all(place is not run.place for run in running)]
                        _end(job, str(error), outcome, report)
            for run in [run for run in running if run.process.poll() is not None]:
                if run.process.returncode == 0 and run.stage + 1 < len(run.job.stages):
                    run.stage += 1
                    run.process = _process(run.job, run.stage, run.place, command)
                    continue
                running.remove(run)
                free.append(run.place)
                why = _why(run)
                if why is not None:
                    outcome.status[str(run.job.folder)] = run.process.returncode
                try:
                    run.job.write_record(_seconds(run), finished=why is None)
                except RunError as error:  # no space left: the same command tries it again
                    why = str(error)
                _end(run.job, why, outcome, report)
            time.sleep(LOOK_EVERY)
    finally:
        stop(running, patience)
    return outcome


def _end(job: Job, why: str | None, outcome: Outcome, report: Callable[[Job, str | None], None]) -> None:
    if why is None:
        outcome.done.append(job)
    else:
        outcome.failed[str(job.folder)] = why
    report(job, why)


def _seconds(run: Running) -> float:
    return run.before + time.monotonic() - run.started


def _start(job: Job, place: Place, command: list[str]) -> Running:
    before = job.seconds
    job.write_record(before, finished=False)
    (job.folder / LOG).write_bytes(b"")
    return Running(job, place, _process(job, 0, place, command), 0, before, time.monotonic())


def _process(job: Job, stage: int, place: Place, command: list[str]) -> subprocess.Popen[bytes]:
    with (job.folder / LOG).open("ab") as log:
        return subprocess.Popen(
            [*command, *job.stages[stage]],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**{k: v for k, v in os.environ.items() if k not in place.hidden}, **place.environment},
            start_new_session=True,  # a terminal's interrupt is for the sweep, which then stops its runs one by one
            preexec_fn=_end_with_parent,
        )


_libc = ctypes.CDLL(None, use_errno=True)


def _end_with_parent() -> None:
    """A run whose sweep was killed stops as if it had been told to, and saves what it has."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    # Where the sweep's own parent ignores them, as a shell's background does, a run would inherit it.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm warns all processes of a job; the sweep's own answers


def _why(run: Running) -> str | None:
    """Why a run failed; None: it did not."""
    status = run.process.returncode
    if status == 0 and run.job.metrics():
        return None
    if status < 0:
        said = f"ended by {signal.Signals(-status).name}"
    else:
        said = f"exit status {status}" if status else f"no {run.job.result or 'validation accuracy in its log'}"
    return f"{said}: {last_words(run.job)}"


def last_words(job: Job, lines: int = 5) -> str:
    """The last lines of a run's log, without what a progress bar overwrote."""
    try:
        with (job.folder / LOG).open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - 4096))
            text = log.read().decode(errors="replace")
    except OSError:
        return "it left no log"
    shown = [re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line).rsplit("\r", 1)[-1] for line in text.split("\n")]
    return "\n".join([line for line in shown if line.strip()][-lines:]) or "it said nothing"


def stop(running: Sequence[Running], patience: float) -> None:
    """Ends all runs: they are told to save and stop, and killed where that takes too long or somebody insists."""
    for run in running:
        run.process.terminate()
    deadline = time.monotonic() + patience
    try:
        while any(run.process.poll() is None for run in running) and time.monotonic() < deadline:
            time.sleep(LOOK_EVERY)
    finally:  # also at a second interrupt
        for run in running:
            if run.process.poll() is None:
                _kill(run.process)
        for run in running:
            with contextlib.suppress(RunError):  # on a full disk; the run goes on from its checkpoint all the same
                run.job.write_record(_seconds(run), finished=False)


def _kill(process: subprocess.Popen[Any]) -> None:
    """With the processes that it has started itself."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
