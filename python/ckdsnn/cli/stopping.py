"""How a run says that it was stopped: exit statuses as a shell's, and a line on what to do next."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

INTERRUPTED = 130  # 128 + SIGINT
TERMINATED = 143  # 128 + SIGTERM


class Terminated(BaseException):
    """SIGTERM came: what is running stops as at an interrupt."""


def _terminate(number: int, frame: Any) -> NoReturn:
    raise Terminated


def until_stopped(work: Callable[[], int], say: Callable[[str], None]) -> int:
    """What `work` returns, or the status of the signal that stopped it, after `say("interrupted")` or
    `say("terminated")`."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        return work()
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except Terminated:
        say("terminated")
        return TERMINATED
    finally:
        signal.signal(signal.SIGTERM, before)


def say_how_to_go_on(what_happened: str, checkpoint: Path | None = None) -> None:
    """Prints what the user can do after a run was stopped.

    Args:
        what_happened: "interrupted" or "terminated".
        checkpoint: what a training goes on from, if it is there; None: nothing is lost that takes long.
    """
    if checkpoint is None:
        then = "give the same command again"
    elif checkpoint.exists():
        then = f"the same command goes on from {checkpoint}"
    else:
        then = "nothing was saved yet, the same command starts again"
    print(f"\n{what_happened}: {then}", file=sys.stderr, flush=True)
