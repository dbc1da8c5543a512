"""Which errors are told in one line, and in which words."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException

from ckdsnn.checkpoint import RunError

REMEDIES = {
    errno.ENOENT: "check the path",
    errno.ENOSPC: "make room, then give the same command again",
    errno.EDQUOT: "make room in your quota, then give the same command again",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), then give the same command again",
    errno.EROFS: "name another folder",
    errno.EACCES: "change its permissions, or name another one",
    errno.EPERM: "change its permissions, or name another one",
    errno.ENOTDIR: "name another folder",
    errno.EISDIR: "name a file",
    errno.EEXIST: "name another folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENOMEM: "free some memory, or train in smaller batches",
    errno.EPIPE: "whoever read the output has ended; redirect it into a file",
    errno.EIO: "the disk may be failing; name a folder on another one",
    errno.ESTALE: "the network file system was lost; give the same command again",
}


def words_for(error: BaseException, out: Path | None = None) -> str | None:
    """What the user is told of `error`; None: it comes from elsewhere and keeps its traceback, for somebody to find it.

    Of an error and its causes the words of the outermost count that this distribution chose, for they name what the
    user has given. After those, what the operating system refused is told with its path and a remedy.

    Args:
        error: that ended the run.
        out: the run's folder, where an error of the operating system names no path.
    """
    for cause in _causes(error, meant=True):
        if isinstance(cause, RunError) or (_is_ours(cause) and isinstance(cause, EXPLAINED)):
            return str(cause)
        if isinstance(cause, MisconfigurationException):  # Lightning's, of an option of its trainer
            return "trainer: " + " ".join(str(cause).split())
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in REMEDIES:
            path = cause.filename if cause.filename is not None else f"a file of the run in {out}" if out else "a file"
            if cause.errno == errno.EPIPE:
                path = "standard output"
            return f"{os.fsdecode(path)}: {os.strerror(cause.errno)}: {REMEDIES[cause.errno]}"
    return None


EXPLAINED = (ValueError, TypeError, ImportError, FileNotFoundError)


def _causes(error: BaseException, *, meant: bool = False) -> Iterator[BaseException]:
    """`error`, what caused it, and so on; with `meant` only what was named as the cause (`raise ... from`)."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        implied = None if meant or cause.__suppress_context__ else cause.__context__
        cause = cause.__cause__ or implied


def _is_ours(error: BaseException) -> bool:
    """Whether a check of this distribution raised `error`: its words tell the user what to do."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals["__name__"].split(".")[0] in ("ckdsnn", "ckd_kernels")
