"""Runs jobs, as many at a time as the machine has places for; stopping loses nothing that is finished or saved."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ckdsnn.checkpoint import RunError
from ckdsnn.cli.stages import own_command
from ckdsnn.sweep.plan import Job
from ckdsnn.sweep.worker import DONE, OPTION

LOG = "sweep.log"  # in a run's folder: what its commands said
LOOK_EVERY = 1.0  # seconds between two looks at what runs; a run that ends is seen at once
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


class Worker:
    """A process in which runs of one place follow each other, see `ckdsnn.sweep.worker`.

    Args:
        place: where it is.
        command: that starts it.
        log: for what it says before the first run.
    """

    def __init__(self, place: Place, command: Sequence[str], log: Path) -> None:
        self.place = place
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                bufsize=0,
                env={**{k: v for k, v in os.environ.items() if k not in place.hidden}, **place.environment},
                start_new_session=True,  # a terminal's interrupt is for the sweep, which then stops its runs one by one
                preexec_fn=_end_with_parent,
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._tasks, self.answers = self.process.stdin, self.process.stdout

    def run(self, arguments: Sequence[str], log: Path) -> None:
        """Starts a command."""
        task = json.dumps({"arguments": list(arguments), "log": str(log)})
        with contextlib.suppress(BrokenPipeError):  # it has ended, which is seen where its answer is
            self._tasks.write(task.encode() + b"\n")

    def status(self) -> int | None:
        """Of the command: 0 where it has succeeded, the process's own where that has ended, None: it runs."""
        if select.select([self.answers], [], [], 0)[0] and self.answers.readline() == DONE:
            return 0
        return self.process.poll()

    def finish(self) -> None:
        """Ends the process where no command runs."""
        with contextlib.suppress(BrokenPipeError):
            self._tasks.close()


@dataclass
class Running:
    """A run in a process."""

    job: Job
    worker: Worker
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
    watch: Callable[[Sequence[Running]], None] = lambda running: None,
) -> Outcome:
    """Runs every job that is not finished, after the one that it needs.

    A job that fails does not stop the others, but those that need it.

    Args:
        jobs: in the order in which they should start.
        at: where they run; one at a time each, in one process after another that succeeded.
        report: called with every job that comes to its end and why it failed (None: it did not).
        command: that starts a worker; None: `ckdsnn`.
        patience: seconds that a stopped run has to save what it has, before it is killed.
        running: filled with what runs, for a signal handler that has to stop it.
        watch: called now and then with what runs.

    Raises:
        BaseException: what interrupted it, after all runs have stopped.
    """
    outcome = Outcome()
    command = [*own_command(), "sweep", OPTION] if command is None else list(command)
    waiting = [job for job in jobs if not job.finished]
    free: list[Place | Worker] = list(at)
    running = [] if running is None else running
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
                        running.append(_start(job, free[0], command))
                        del free[0]
                    except (OSError, RunError) as error:  # its folder cannot be made, no process can be started
                        _end(job, str(error), outcome, report)
            watch(running)
            select.select([run.worker.answers for run in running], [], [], LOOK_EVERY if running else 0)
            for run, status in [(run, run.worker.status()) for run in running]:
                if status is not None:
                    _go_on(run, status, running, free, outcome, report)
    finally:
        idle = [worker for worker in free if isinstance(worker, Worker)]
        for worker in idle:
            worker.finish()
        stop(running, patience)
        for worker in idle:
            _wait(worker.process, patience)
    return outcome


def _go_on(
    run: Running,
    status: int,
    running: list[Running],
    free: list[Place | Worker],
    outcome: Outcome,
    report: Callable[[Job, str | None], None],
) -> None:
    """After a command of a run: the next one, or the run's end."""
    if status == 0 and run.stage + 1 < len(run.job.stages):
        run.stage += 1
        run.worker.run(run.job.stages[run.stage], run.job.folder / LOG)
        return
    running.remove(run)
    ended = run.worker.process.poll() is not None
    free.append(run.worker.place if ended else run.worker)
    why = _why(run.job, status)
    if why is not None:
        outcome.status[str(run.job.folder)] = status
    try:
        run.job.write_record(_seconds(run), finished=why is None)
    except RunError as error:  # no space left: the same command tries it again
        why = str(error)
    _end(run.job, why, outcome, report)


def _end(job: Job, why: str | None, outcome: Outcome, report: Callable[[Job, str | None], None]) -> None:
    if why is None:
        outcome.done.append(job)
    else:
        outcome.failed[str(job.folder)] = why
    report(job, why)


def _seconds(run: Running) -> float:
    return run.before + time.monotonic() - run.started


def _start(job: Job, at: Place | Worker, command: list[str]) -> Running:
    before = job.seconds
    job.write_record(before, finished=False)
    log = job.folder / LOG
    log.write_bytes(b"")
    worker = at if isinstance(at, Worker) else Worker(at, command, log)
    worker.run(job.stages[0], log)
    return Running(job, worker, 0, before, time.monotonic())


_libc = ctypes.CDLL(None, use_errno=True)


def _end_with_parent() -> None:
    """A run whose sweep was killed stops as if it had been told to, and saves what it has."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    # Where the sweep's own parent ignores them, as a shell's background does, a run would inherit it.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm warns all processes of a job; the sweep's own answers


def _why(job: Job, status: int) -> str | None:
    """Why a run failed; None: it did not."""
    if status == 0 and job.metrics():
        return None
    if status < 0:
        said = f"ended by {signal.Signals(-status).name}"
    else:
        said = f"exit status {status}" if status else f"no {job.result or 'validation accuracy in its log'}"
    return f"{said}: {last_words(job)}"


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
        run.worker.finish()
        run.worker.process.terminate()
    deadline = time.monotonic() + patience
    try:
        for run in running:
            _wait(run.worker.process, deadline - time.monotonic())
    finally:  # also at a second interrupt
        for run in running:
            _wait(run.worker.process, 0.0)
        for run in running:
            with contextlib.suppress(RunError):  # on a full disk; the run goes on from its checkpoint all the same
                run.job.write_record(_seconds(run), finished=False)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    """For its end; after that time it is killed, with the processes that it has started itself."""
    try:
        process.wait(max(0.0, seconds))
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
