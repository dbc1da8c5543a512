"""Recordings of event cameras: read from the formats of the data sets in use, and integrated into frames.

| data set | files | sensor (height x width) |
|---|---|---|
| N-MNIST | `.bin`, 5 bytes an event | 34 x 34 |
| N-Caltech101 | `.bin` | to be given |
| CIFAR10-DVS | `.aedat`, AEDAT 2.0 of a DVS128 | 128 x 128 |
| DVS128 Gesture | `.aedat`, AEDAT 3.1 | 128 x 128 |
| CIFAR10-DVS, later issue | `.aedat4` (package `aedat`) | as the file says |
| what SpikingJelly makes of any | `.npz` with t, x, y, p | to be given |
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import struct
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ckdsnn.data import aedat4_decoder
from ckdsnn.data.arrays import LARGEST_FILE, LARGEST_SIDE, ArrayFile
from ckdsnn.data.files import read_file

SUFFIXES = frozenset({".bin", ".aedat", ".aedat4", ".npz"})


class Events(NamedTuple):
    """The events of one recording, in the order of the file.

    Attributes:
        t: time in microseconds, int64 [N].
        x, y: column and row of the pixel, int64 [N].
        p: whether it became brighter, bool [N]: channel 1 of the frames; else channel 0.
        height, width: of the sensor, in pixels.
    """

    t: np.ndarray
    x: np.ndarray
    y: np.ndarray
    p: np.ndarray
    height: int
    width: int

    def between(self, start: int, end: int) -> Events:
        """The events of `start <= t < end`."""
        kept = (self.t >= start) & (self.t < end)
        return self._replace(t=self.t[kept], x=self.x[kept], y=self.y[kept], p=self.p[kept])


def read_events(path: Path, sensor_size: tuple[int, int] | None = None) -> Events:
    """The events of one recording.

    Args:
        path: a file of one of this module's formats, by the end of its name.
        sensor_size: height and width in pixels; None: those of the format's data set, or of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: `.aedat4` without the package aedat.
        ValueError: the file is no such recording, is damaged, has no events, or some outside of the sensor.
    """
    readers = {".bin": _read_bin, ".aedat": _read_aedat, ".aedat4": _read_aedat4, ".npz": _read_npz}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path} is no recording of events: expected one of {', '.join(sorted(readers))}")
    raw = read_file(path, LARGEST_FILE)
    try:
        t, x, y, p, size = reader(raw, path)
        height, width = sensor_size or size or (0, 0)
        if not height:
            raise ValueError("the format does not say how large the sensor is: set sensor_size to [height, width]")
        if len(t) == 0:
            raise ValueError("it has no events")
        if len({len(part) for part in (t, x, y, p)}) != 1:
            raise ValueError(f"t, x, y and p have {len(t)}, {len(x)}, {len(y)} and {len(p)} elements")
        x, y, t = x.astype(np.int64), y.astype(np.int64), t.astype(np.int64)
        if x.min() < 0 or y.min() < 0 or x.max() >= width or y.max() >= height:
            raise ValueError(
                f"it has events at x from {x.min()} to {x.max()} and y from {y.min()} to {y.max()}, outside of a "
                f"sensor of {height} x {width} pixels: set sensor_size to [height, width]"
            )
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as events: {error}; correct or remove it") from error
    return Events(t, x, y, p != 0, height, width)


_Raw = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, tuple[int, int] | None]


def _read_bin(raw: bytes, path: Path) -> _Raw:
    """N-MNIST (Orchard et al., 2015): a byte each for x and y, then 1 bit of polarity and 23 of time, big-endian."""
    if len(raw) % 5:
        raise ValueError(f"{len(raw)} bytes are no whole number of events of 5 bytes: it is cut short")
    x, y, high, middle, low = np.frombuffer(raw, np.uint8).reshape(-1, 5).T.astype(np.int64)
    t = (high & 127) << 16 | middle << 8 | low
    overflow = y == 240  # no event: the counter of the time has passed 2^13
    t = t + (np.cumsum(overflow) << 13)
    kept = ~overflow
    return t[kept], x[kept], y[kept], (high >> 7)[kept], (34, 34)


def _read_aedat(raw: bytes, path: Path) -> _Raw:
    for version, reader in ((b"2", _read_aedat2), (b"3.1", _read_aedat3)):
        if raw.startswith(b"#!AER-DAT" + version):
            return reader(raw, path)
    raise ValueError("its header is neither that of AEDAT 2 nor that of AEDAT 3.1")


def _read_aedat2(raw: bytes, path: Path) -> _Raw:
    """AEDAT 2.0 of a DVS128, turned as SpikingJelly's CIFAR10DVS turns it."""
    start = 0
    while raw.startswith(b"#", start) and (end := raw.find(b"\n", start)) >= 0:
        line = raw[start:end]
        if not line.rstrip(b"\r").decode("latin-1").isprintable():  # an event whose first byte is that of "#"
            break
        if b"AEChip" in line and b"DVS128" not in line:
            raise ValueError(f"it is of another camera than the DVS128 ({line[:80].decode('latin-1').strip()})")
        start = end + 1
    if (len(raw) - start) % 8:
        raise ValueError(f"{len(raw) - start} bytes are no whole number of events of 8 bytes: it is cut short")
    address, t = np.frombuffer(raw, ">u4", offset=start).reshape(-1, 2).T.astype(np.int64)
    pixel = address < 2**15  # others are signals from outside, not from the sensor
    if (address >= 2**16).any():
        raise ValueError("it has addresses that a DVS128 has not")
    address, t = address[pixel], t[pixel]
    x, y = address >> 1 & 127, address >> 8 & 127
    return t, 127 - y, 127 - x, 1 - (address & 1), (128, 128)


def _read_aedat3(raw: bytes, path: Path) -> _Raw:
    """AEDAT 3.1 of a DVS128 (DVS128 Gesture): packets of events of one kind, of which polarity is number 1."""
    end = b"#!END-HEADER\r\n"
    place = raw.find(end, 0, 2**16)
    if place < 0:
        raise ValueError("its header has no end")
    place += len(end)
    packets = []
    while place < len(raw):
        if place + 28 > len(raw):
            raise ValueError("it is cut short within a packet's header")
        kind, _, size, _, overflow, capacity = struct.unpack_from("<HHIIII", raw, place)
        place += 28
        if place + capacity * size > len(raw) or (kind == 1 and size != 8):
            raise ValueError("it is cut short within a packet, or has events of another size")
        if kind == 1:
            words = np.frombuffer(raw, "<u4", 2 * capacity, place).reshape(-1, 2).astype(np.int64)
            words[:, 1] |= overflow << 31
            packets.append(words)
        place += capacity * size
    address, t = np.concatenate(packets).T if packets else np.zeros((2, 0), np.int64)
    return t, address >> 17 & 0x7FFF, address >> 2 & 0x7FFF, address >> 1 & 1, (128, 128)


def _read_aedat4(raw: bytes, path: Path) -> _Raw:
    if importlib.util.find_spec("aedat") is None:
        raise ImportError(f"{path}: AEDAT 4 is read by the package aedat: pip install 'ckd-kernels[events]'")
    command = [sys.executable, aedat4_decoder.__file__, str(2**31 + 64 * len(raw)), json.dumps(sys.path), str(path)]
    threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # whose stacks count as memory
    try:
        # A second a megabyte is a hundred times what it takes.
        done = subprocess.run(command, capture_output=True, env=os.environ | threads, timeout=60 + len(raw) / 1e6)
    except subprocess.TimeoutExpired:
        raise ValueError("its decoder does not come to an end") from None
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        # A line, where the decoder refused the file; where it broke down, a trace of its inside.
        raise ValueError(said[-1][:200] if said and done.returncode == 1 else "its decoder breaks down")
    file = ArrayFile(done.stdout)
    height, width = file.read("size").tolist()
    if not (0 < height <= LARGEST_SIDE and 0 < width <= LARGEST_SIDE):
        raise ValueError(f"it says that its sensor has {height} x {width} pixels")
    t, x, y, p = (file.read(name) for name in "txyp")
    return t, x, y, p, (height, width)


def _read_npz(raw: bytes, path: Path) -> _Raw:
    file = ArrayFile(raw)
    if set("txyp") - set(file.headers):
        raise ValueError(f"its arrays are {', '.join(sorted(file.headers)[:9])}, expected t, x, y and p")
    for name in "txyp":
        shape, dtype, _ = file.headers[name]
        if len(shape) != 1 or dtype.kind not in "bui" or shape[0] * dtype.itemsize > LARGEST_FILE:
            raise ValueError(f"its array {name} is {dtype} {list(shape)}, expected integers [N]")
    t, x, y, p = (file.read(name) for name in "txyp")
    return t, x, y, p, None


def integrate_by_count(events: Events, frames: int, split_by: Literal["number", "time"]) -> Tensor:
    """Frames of as many events each, or of as much time each: float32 [frames, 2, height, width], events counted.

    Equal to SpikingJelly's `integrate_events_by_fixed_frames_number`, where that is defined; a frame without events
    is empty. What is left over goes into the last frame.

    Args:
        events: of one recording.
        frames: number of frames, T.
        split_by: "number" of events or "time".
    """
    count, t = len(events.t), events.t
    if split_by == "number":
        starts = np.arange(frames) * (count // frames)
        ends = starts + count // frames
    else:
        length = (t[-1] - t[0]) // frames
        starts, ends = np.zeros(frames, np.int64), np.zeros(frames, np.int64)
        for number in range(frames):
            first = t[0] + number * length
            within = np.flatnonzero((t >= first) & (t < first + length))
            if len(within):
                starts[number], ends[number] = within[0], within[-1] + 1
            else:
                starts[number] = ends[number] = ends[number - 1] if number else 0
    ends[-1] = count
    return torch.stack([_count(events, int(start), int(end)) for start, end in zip(starts, ends, strict=True)])


def integrate_by_duration(events: Events, duration: int, frames: int | None = None) -> Tensor:
    """Frames of `duration` microseconds each: float32 [frames, 2, height, width], events counted.

    Equal to SpikingJelly's `integrate_events_by_fixed_duration`, of which the first `frames` are taken, or to which
    empty ones are added.

    Args:
        events: of one recording, in the order of their times.
        duration: microseconds a frame.
        frames: number of frames; None: as many as the recording has.

    Raises:
        ValueError: the frames of the whole recording would take more than 2 GB.
    """
    t = events.t - events.t.min()
    whole = max(1, math.ceil(t[-1] / duration))
    wanted = whole if frames is None else frames
    if wanted * 8 * events.height * events.width > 2**31:
        raise ValueError(f"frames of {duration} microseconds would be {wanted:,}: give frames, or a longer duration")
    bounds = np.searchsorted(t // duration, np.arange(1, min(wanted, whole)), side="left")
    last = len(t) if wanted >= whole else int(np.searchsorted(t // duration, wanted, side="left"))
    edges = [0, *bounds.tolist(), last]
    made = [_count(events, start, end) for start, end in pairwise(edges)]
    return torch.stack(made + [torch.zeros_like(made[0])] * (wanted - len(made)))


def _count(events: Events, start: int, end: int) -> Tensor:
    _, x, y, p, height, width = events
    place = (p[start:end] * height + y[start:end]) * width + x[start:end]
    counts = np.bincount(place, minlength=2 * height * width)
    return torch.from_numpy(counts.astype(np.float32)).view(2, height, width)
