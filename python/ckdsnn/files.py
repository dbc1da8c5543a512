"""Files that are written whole or not at all, and files of tensors that are read without trusting them."""

from __future__ import annotations

import os
import pickle
import re
import secrets
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a new file that takes the place of `path` when the block ends, and is gone when it fails.

    Whoever reads `path` sees the old file or the whole new one. As with every new file, the umask decides who may read
    it.

    Raises:
        OSError: the file cannot be written; `path` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not of the tempfile module, whose files are for their owner alone whatever the umask.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_tensors(path: str | os.PathLike[str], map_location: Any = "cpu") -> Any:
    """What `torch.save` wrote: tensors and plain values, without running code from the file.

    `torch.load` does not look at the checksums that the file carries; here, a file of which a bit has changed is
    refused. (Files of PyTorch before 1.6 have none.)

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is no file of `torch.save`, is corrupted, cut short, or holds objects.
    """
    with open(path, "rb") as file:
        try:
            if file.read(2) == b"PK":
                _verify(file)
            file.seek(0)
            with warnings.catch_warnings():
                # What it says of a pickle that torch.save has not written, before it refuses it.
                warnings.filterwarnings("ignore", message="Detected pickle protocol")
                return torch.load(file, map_location=map_location, weights_only=True)
        except pickle.UnpicklingError as error:  # whose text is advice on how to run the code in the file
            named = re.search(r"GLOBAL (\S{1,100})", str(error))
            raise ValueError(
                f"it holds {named[1]!r}, and only tensors and plain values are read"
                if named
                else "it is no file of torch.save"
            ) from error
        except Exception as error:
            raise ValueError((str(error).strip() or type(error).__name__).splitlines()[0]) from error


def _verify(file: BinaryIO) -> None:
    """Raises an exception unless all checksums of a zip file fit, or where it would take more memory than its size."""
    size = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is compressed, as no file of torch.save is")
        if sum(entry.file_size for entry in entries) > size:
            raise ValueError("its parts overlap, as in no file of torch.save")
        if (broken := archive.testzip()) is not None:
            raise ValueError(f"the checksum of {broken} does not fit")
