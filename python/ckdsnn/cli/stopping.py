"""How a run says that it was stopped: exit statuses as a shell's, and a line on what to do next."""

from __future__ import annotations

import sys
from pathlib import Path

INTERRUPTED = 130  # 128 + SIGINT
TERMINATED = 143  # 128 + SIGTERM


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
