"""`ckdsnn distill`: teacher, student and test, each a process of its own."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

from ckdsnn.cli.stopping import say_how_to_go_on

# `teacher`, but where the method needs none, none is trained: somebody who gives that command itself wants one.
TEACHER = "teacher_if_needed"
STAGES = (TEACHER, "fit", "test")
WORDS = {signal.SIGTERM: "terminated", signal.SIGINT: "interrupted"}


def own_command() -> list[str]:
    """How this command is started. By its script where it is installed: `python -m` would put the working folder before
    what is installed, and the packages of a source tree are not compiled."""
    script = shutil.which("ckdsnn", path=str(Path(sys.executable).parent))
    return [sys.executable, script] if script else [sys.executable, "-m", "ckdsnn"]


def distill(options: list[str], command: list[str] | None = None) -> int:
    """Teacher, student and test, each a process: where Lightning starts processes for several devices, it starts them
    with the command of the process that it finds itself in.

    A stage that fails, or that a signal stops, is the last one.

    Args:
        options: of every stage.
        command: that runs a stage, followed by its name and the options; None: this one.

    Returns:
        The exit status: that of the last stage, or 128 and the number of the signal that stopped it.
    """
    for stage in STAGES:
        status = _run([*(own_command() if command is None else command), stage, *options])
        if status:
            return status
    return 0


def _run(command: list[str]) -> int:
    """The exit status of a process that gets the signals that are meant for this one."""
    # A signal that whoever started this ignores, as shells do with the interrupts of background jobs, is the child's to
    # ignore, too.
    stops = {s for s in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(s) != signal.SIG_IGN}
    watched = {*stops, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    try:
        # Without the mask, which it would inherit.
        child = subprocess.Popen(command, preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, before))
        stopped_by = 0
        while child.poll() is None:
            try:
                # The limit is for programs with threads, where another one may take the signal of a child's end.
                info = signal.sigtimedwait(watched, 1.0)
            except KeyboardInterrupt:  # and Python brings one back to this thread
                stopped_by = signal.SIGINT
                continue
            if info is None or info.si_signo == signal.SIGCHLD:
                continue
            stopped_by = info.si_signo
            # A terminal's interrupt (which comes from the kernel) goes to the child, too; that of a process does not.
            if info.si_signo == signal.SIGTERM or info.si_code <= 0:
                child.send_signal(info.si_signo)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if child.returncode < 0:  # without a word
        killer = signal.Signals(-child.returncode)
        say_how_to_go_on(WORDS.get(killer, f"the process was ended by {killer.name}"))
    if stopped_by:
        if child.returncode == 0:  # the stage was done by then, and has said nothing of the rest
            say_how_to_go_on(WORDS[signal.Signals(stopped_by)])
        return 128 + stopped_by
    return child.returncode if child.returncode >= 0 else 128 - child.returncode
