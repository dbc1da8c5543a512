"""A process that trains cells of the demo for another one."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckdsnn import deferred

if TYPE_CHECKING:
    from ckdsnn.demo.settings import DemoSettings

# Set in the workers only, by `start`.
_events: Any = None
_stop: Any = None


class Stopped(Exception):
    """The demo was interrupted."""


def start(events: Any, stop: Any) -> None:
    """What a worker does first: before the modules are imported that take long.

    Args:
        events: queue of what is to be shown.
        stop: event; when it is set, what is running ends.
    """
    global _events, _stop
    _events, _stop = events, stop
    deferred.install()
    import torch

    torch.set_num_threads(1)  # one process a core
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """A worker whose parent was killed would train on, and then wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def run_cell(out: Path, seed: int, key: str, settings: DemoSettings) -> dict[str, Any]:
    """Trains a cell, see `ckdsnn.demo.cells.train_cell`."""
    from ckdsnn.demo.cells import train_cell

    def report(epochs: int, metrics: dict[str, float]) -> None:
        if _stop.is_set():
            raise Stopped
        if metrics:
            _events.put(((seed, key), epochs, metrics))

    return train_cell(out, seed, key, settings, report)
