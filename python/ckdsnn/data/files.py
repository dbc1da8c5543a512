"""Files that others have written: regular ones, inside of their folder, and no larger than they can be."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path


def read_file(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes; a pipe or a device is never waited for.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no regular file, is larger, or cannot be read.

    Example:
        >>> Path("hello.txt").write_text("hello")
        5
        >>> read_file(Path("hello.txt"), limit=100)
        b'hello'
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"{path} is no regular file: remove it, or put a copy of its content there")
            if status.st_size > limit:
                raise ValueError(
                    f"{path} has {status.st_size:,} bytes, more than the {limit:,} that are read: remove it"
                )
            return file.read(status.st_size)  # no more, should it be growing
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error


def class_folders(folder: Path, expected: str) -> list[str]:
    """Names of the folders in `folder`, in alphabetical order, hidden ones left out.

    Args:
        folder: a folder with a folder for each class.
        expected: what should be there, for the message.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no folders.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing: {expected}")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise ValueError(f"{folder} holds no folders: {expected}")
    return names


def list_files(folder: Path, suffixes: frozenset[str], root: Path, *, follow_symlinks: bool) -> list[Path]:
    """The files under `folder` whose names end in one of `suffixes`, in the order of their paths; nothing is opened.

    Args:
        folder: searched with all folders below it; hidden files and folders are left out.
        suffixes: in lower case, with the dot.
        root: folder of the data set, which symbolic links must not leave.
        follow_symlinks: links may lead anywhere.

    Raises:
        ValueError: something of such a name is no regular file, or a link leads out of `root`, or to nothing.
    """
    found: list[str] = []
    pending, seen = [os.fspath(folder)], set()
    while pending:
        current = pending.pop()
        real = check_inside(current, root, follow_symlinks=follow_symlinks)  # of the folder of the class as well
        if real in seen:  # a link to a folder above it
            continue
        seen.add(real)
        try:
            with os.scandir(current) as scanned:
                entries = [entry for entry in scanned if not entry.name.startswith(".")]
        except OSError as error:
            raise ValueError(f"{current} cannot be read: {error.strerror or error}") from error
        for entry in entries:
            if _is(os.DirEntry.is_dir, entry):
                pending.append(entry.path)
            elif os.path.splitext(entry.name)[1].lower() in suffixes:
                if not _is(os.DirEntry.is_file, entry):
                    raise ValueError(f"{entry.path} is no regular file, or a link to nothing: remove it")
                if entry.is_symlink():
                    check_inside(entry.path, root, follow_symlinks=follow_symlinks)
                found.append(entry.path)
    return [Path(path) for path in sorted(found, key=lambda path: path.split(os.sep))]


def _is(kind: Callable[[os.DirEntry], bool], entry: os.DirEntry) -> bool:
    try:
        return kind(entry)
    except OSError:  # a link in a circle
        return False


def check_inside(path: str | Path, root: str | Path, *, follow_symlinks: bool) -> str:
    """Where `path` really is.

    Raises:
        ValueError: that is outside of `root`, and `follow_symlinks` does not allow it.
    """
    real = os.path.realpath(path)
    home = os.path.join(os.path.realpath(root), "")
    if not follow_symlinks and not os.path.join(real, "").startswith(home):
        raise ValueError(
            f"{path} leads to {real}, out of the data set's folder {home}: put the files there, or set follow_symlinks "
            "to true if you trust the data"
        )
    return real
