"""The folder of a run: one training at a time, on a disk that takes it, without what a killed one left."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ckdsnn.checkpoint import RunError, load_run, write_text_atomically

LOCK = ".lock"


@contextlib.contextmanager
def alone_in(folder: Path, what: str) -> Iterator[None]:
    """Holds `folder` for the length of the block, and removes what an earlier holder that was killed left half-written.

    The lock goes with the process, however that ends. On file systems without locks there is none.

    Args:
        folder: made where it is missing.
        what: runs in it, for the message, e.g. "training".

    Raises:
        RunError: somebody else holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "an unknown process"
            raise RunError(
                f"another {what} is running in {folder} ({holder}): wait for it, or name another folder with --out"
            ) from None
        except OSError:  # a file system that knows no locks
            pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        remove_leftovers(folder)
        yield


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files that processes which were killed left in `folder` itself."""
    for path in folder.glob(".*.tmp"):  # as the functions name them that replace a file atomically
        if path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)


def forget_logs(folder: Path, step: int) -> None:
    """Takes from the tables in `folder` what was logged after the checkpoint that a run goes on from: those steps come
    again, and would be there twice.

    Args:
        folder: with `version_*/metrics.csv`.
        step: optimiser steps that the checkpoint has behind it.
    """
    for path in sorted(folder.glob("version_*/metrics.csv")):
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows, names = list(reader), reader.fieldnames
        kept = [row for row in rows if int(row["step"]) < step]
        if names is not None and len(kept) < len(rows):
            text = io.StringIO()
            writer = csv.DictWriter(text, names)
            writer.writeheader()
            writer.writerows(kept)
            write_text_atomically(text.getvalue(), path)


def check_writable(folder: Path) -> None:
    """Raises RunError unless files can be made in `folder`, or it can be made itself."""
    nearest = folder.absolute()
    while not nearest.exists() and not nearest.is_symlink():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise RunError(f"--out {folder}: {nearest} is not a folder: name another one")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise RunError(f"--out {folder}: {nearest} is read-only: change its permissions, or name another folder")


def check_finished(checkpoint: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Raises RunError unless the training that wrote `checkpoint` to `path` has come to its end.

    `best.ckpt` is from its middle; the `last.ckpt` beside it knows.
    """
    last = Path(path).with_name("last.ckpt")
    if checkpoint["ckdsnn"].get("finished", True):
        return
    if last != Path(path) and last.exists() and load_run(last)["ckdsnn"].get("finished", True):
        return
    raise RunError(
        f"teacher.checkpoint {path} is of an unfinished training (step {checkpoint.get('global_step', 'unknown')}): go "
        "on with it by `ckdsnn teacher` and the options that it was started with, or take it as it is with "
        "--model.teacher.unfinished true"
    )
