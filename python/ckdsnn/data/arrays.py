"""Files of numpy arrays whose shapes and types are looked at before anything is read; nothing is unpickled."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ckdsnn.data.files import read_file

LARGEST_FILE = 2**30  # bytes
LARGEST_SIDE = 2048  # pixels; the largest event cameras have 1280
MOST_ARRAYS = 100
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # those of numpy; others have no bound on what comes out


class Header(NamedTuple):
    """What an array will be."""

    shape: tuple[int, ...]
    dtype: np.dtype
    columns_first: bool


class ArrayFile:
    """The content of a `.npy` or `.npz` file.

    Args:
        raw: all of it.

    Attributes:
        headers: shape and type of each array, by name; that of a `.npy` file is named "".

    Raises:
        ValueError: it is no such file, or has arrays of anything but bool, integers and floating-point numbers.

    Example:
        >>> np.savez("frames.npz", frames=np.zeros((4, 2, 8, 8), np.uint8))
        >>> file = ArrayFile(open("frames.npz", "rb").read())
        >>> file.headers["frames"].shape, file.read("frames").dtype
        ((4, 2, 8, 8), dtype('uint8'))
    """

    def __init__(self, raw: bytes) -> None:
        self._raw = io.BytesIO(raw)
        self._archive: zipfile.ZipFile | None = None
        try:
            if raw.startswith(b"PK"):
                if raw.count(b"PK\1\2") > MOST_ARRAYS:  # before zipfile makes an object of each entry
                    raise ValueError(f"it has more than {MOST_ARRAYS} arrays")
                self._archive = zipfile.ZipFile(self._raw)
                members = self._archive.infolist()
                if any(member.compress_type not in _METHODS for member in members):
                    raise ValueError("it is an archive, but none that numpy writes")
                names = [member.filename.removesuffix(".npy") for member in members]
            else:
                names = [""]
            self.headers = {name: self._header(name) for name in names}
        except Exception as error:  # zip and header parsers raise errors of many types
            first_line = (str(error) or type(error).__name__).splitlines()[0]  # then numpy advises to trust the file
            raise ValueError(f"it is no file of numpy arrays: {first_line}") from error

    def _open(self, name: str) -> IO[bytes]:
        if self._archive is not None:
            return self._archive.open(f"{name}.npy")
        self._raw.seek(0)
        return self._raw

    def _header(self, name: str) -> Header:
        stream = self._open(name)
        if name:
            with stream:
                return _parse(stream)
        return _parse(stream)

    def read(self, name: str) -> np.ndarray:
        """The array `name`, read-only; takes the memory that its header says.

        Raises:
            ValueError: the file holds less or more than its header says, or is damaged.
        """
        shape, dtype, columns_first = self.headers[name]
        size = math.prod(shape) * dtype.itemsize
        try:
            stream = self._open(name)
            _parse(stream)
            content = stream.read(size)
            if len(content) != size or stream.read(1):  # which also makes an archive compare its checksum
                raise ValueError(f"its array {list(shape)} of {dtype} has another size than its content")
        except Exception as error:
            raise ValueError(str(error)) from error
        flat = np.frombuffer(content, dtype) if size else np.empty(0, dtype)
        return flat.reshape(shape, order="F" if columns_first else "C")


def _parse(stream: IO[bytes]) -> Header:
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):  # 3.0 is for names of fields alone
        raise ValueError("it has an array of a type with fields, or of an unknown version")
    read: Any = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, columns_first, dtype = read(stream)
    if dtype.kind not in "buif" or dtype.itemsize > 8:
        raise ValueError(f"it has an array of {str(dtype)[:100]}, and only bool, integers and floating-point are read")
    if any(isinstance(side, bool) or side < 0 for side in shape):
        raise ValueError("it has an array of a negative size")
    return Header(shape, dtype, bool(columns_first))


def read_frames(path: Path, time_steps: int) -> Tensor:
    """The frames of one recording, float32 [T, 2, H, W], event counts by polarity.

    Args:
        path: `.npy`, or `.npz` with one array or one named "frames".
        time_steps: T that is expected.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a finite array of that form, of bool, integers or floating-point numbers; or larger than 2048
            pixels a side. Found before the array is read, where it can be.
    """
    raw = read_file(path, LARGEST_FILE)
    try:
        file = ArrayFile(raw)
        names = list(file.headers)
        if len(names) != 1 and "frames" not in names:
            raise ValueError(f"its arrays are {', '.join(names[:9])}, none of them named frames")
        name = "frames" if "frames" in names else names[0]
        shape = file.headers[name].shape
        if len(shape) != 4 or shape[:2] != (time_steps, 2):
            raise ValueError(
                f"it holds an array {list(shape)}, expected [T={time_steps}, 2, H, W]: integrate the events into "
                f"{time_steps} frames, or set time_steps"
            )
        if not all(0 < side <= LARGEST_SIDE for side in shape[2:]):
            raise ValueError(f"its frames have {shape[2]} x {shape[3]} pixels, up to {LARGEST_SIDE} a side are read")
        with np.errstate(over="ignore"):
            frames = torch.from_numpy(file.read(name).astype(np.float32))
        if not frames.isfinite().all():
            raise ValueError("it has values that are not finite in float32")
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as frames: {error}; correct or remove it") from error
    return frames
