"""Files that are written whole or not at all, and files of tensors that are read without trusting them."""

from __future__ import annotations

import os
import secrets
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
    refused.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is no file of `torch.save` (of PyTorch 1.6 or later), is corrupted, cut short, or holds objects.
    """
    with open(path, "rb") as file:
        try:
            _verify(file)
            file.seek(0)
            return torch.load(file, map_location=map_location, weights_only=True)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{error}; it is corrupted, cut short or no file of torch.save") from error
        except Exception as error:
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            if "weights_only" in first_line:  # PyTorch goes on with advice on how to run the code in the file
                first_line = "it holds other objects than tensors and plain values, which could run code"
            raise ValueError(first_line) from error


def _verify(file: BinaryIO) -> None:
    """Raises BadZipFile unless all checksums fit, and ValueError where reading would take more than the file's size."""
    size = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is compressed, as torch.save writes no file")
        if sum(entry.file_size for entry in entries) > size:
            raise ValueError("its parts overlap, as torch.save writes no file")
        if (broken := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"the checksum of {broken} does not fit")
