"""Recordings of events made into frames by worker processes, each once: what is made is kept on disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ckdsnn.checkpoint import RunError
from ckdsnn.data.arguments import whole_number
from ckdsnn.data.arrays import read_frames
from ckdsnn.data.events import LARGEST_SIDE, integrate_by_count, integrate_by_duration, read_events
from ckdsnn.files import replacing

FORM = 1  # of what is kept; to be counted up when the same events give other frames


class Recording(NamedTuple):
    """A sample: the events in a file, or those of `start <= t < end` in microseconds."""

    path: Path
    start: int | None = None
    end: int | None = None

    def __str__(self) -> str:
        return f"{self.path}" if self.start is None else f"{self.path} from {self.start} to {self.end} us"


@dataclass(frozen=True)
class Integration:
    """How events become frames.

    Attributes:
        time_steps: number of frames, T.
        size: side in pixels that frames are scaled to by averaging; None: as they are.
        split_by: cut into T frames of equal "number" of events or of equal "time".
        duration: microseconds a frame instead; None: by `split_by`.
        sensor_size: height and width in pixels; None: as the recordings' format says.

    Raises:
        TypeError, ValueError: an option of another type, or out of range.
    """

    time_steps: int
    size: int | None = None
    split_by: Literal["number", "time"] = "number"
    duration: int | None = None
    sensor_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        whole_number("time_steps", self.time_steps, 1)
        if self.size is not None:
            whole_number("size", self.size, 1)
        if self.split_by not in ("number", "time"):
            raise ValueError(f"split_by must be number or time, got {self.split_by!r}")
        if self.duration is not None:
            whole_number("duration", self.duration, 1)
        if self.sensor_size is not None:
            if not isinstance(self.sensor_size, tuple | list) or len(self.sensor_size) != 2:
                raise TypeError(f"sensor_size must be [height, width] in pixels, got {self.sensor_size!r}")
            for side in self.sensor_size:
                if whole_number("sensor_size", side, 1) > LARGEST_SIDE:
                    raise ValueError(f"sensor_size must be up to {LARGEST_SIDE} pixels a side, got {side}")

    @property
    def name(self) -> str:
        """A name for what is made: other settings, another name."""
        how = f"split_by_{self.split_by}" if self.duration is None else f"of_{self.duration}_us"
        sensor = "" if self.sensor_size is None else "_sensor_{}x{}".format(*self.sensor_size)
        size = "" if self.size is None else f"_size_{self.size}"
        return f"frames_{self.time_steps}_{how}{sensor}{size}_v{FORM}"

    def __call__(self, recording: Recording) -> Tensor:
        """The frames of a recording, float32 [T, 2, H, W]; errors as of `read_events`."""
        events = read_events(recording.path, self.sensor_size)
        if recording.start is not None and recording.end is not None:
            events = events.between(recording.start, recording.end)
            if len(events.t) == 0:
                raise ValueError(f"{recording}: there are no events; correct the table of samples, or remove its row")
        if self.duration is None:
            frames = integrate_by_count(events, self.time_steps, self.split_by)
        else:
            frames = integrate_by_duration(events, self.duration, self.time_steps)
        return frames if self.size is None else F.adaptive_avg_pool2d(frames, self.size)

    def frames(self, recordings: list[Recording], root: Path, cache: Path | None, workers: int) -> Tensor:
        """The frames of many recordings, float32 [N, T, 2, H, W].

        Args:
            recordings: their files lie under `root`.
            root: folder of the data set.
            cache: folder where frames are kept; None: `root/.frames`, or nowhere if that cannot be written.
            workers: processes that work at it.

        Raises:
            RunError: a recording cannot be read, or has another size than the first.
        """
        made = _Made(self, recordings, root, (cache or root / ".frames") / self.name)
        # A process takes longer to start than a few recordings to integrate.
        loader = DataLoader(
            made, batch_size=None, collate_fn=_as_it_is, num_workers=min(workers, len(recordings) // 32)
        )
        frames, noted = torch.empty(0), False
        for number, (frame, error, note) in enumerate(loader):
            if error:
                raise RunError(error)
            if note and not noted:
                noted = True
                print(f"note: frames are made anew in every run: {note}")
            if number == 0:
                frames = torch.empty(len(recordings), *frame.shape)
            if frame.shape != frames.shape[1:]:
                raise RunError(
                    f"{recordings[number]} has frames of {frame.shape[2]} x {frame.shape[3]} pixels, "
                    f"{recordings[0]} of {frames.shape[3]} x {frames.shape[4]}: set size"
                )
            frames[number] = frame
        return frames


class _Answer(NamedTuple):
    frame: Tensor
    error: str
    note: str


def _as_it_is(answer: Any) -> Any:
    return answer


class _Made(Dataset):
    """Frames by number of the recording, from `kept` if they are there; they are the file's that they were made of."""

    def __init__(self, integration: Integration, recordings: list[Recording], root: Path, kept: Path) -> None:
        self.integration, self.recordings, self.root, self.kept = integration, recordings, root, kept

    def __len__(self) -> int:
        return len(self.recordings)

    def __getitem__(self, number: int) -> _Answer:
        recording, note = self.recordings[number], ""
        try:
            status = os.stat(recording.path)
            relative = recording.path.relative_to(self.root)
            part = "" if recording.start is None else f".{recording.start}-{recording.end}"
            name = f"{relative.name}{part}.{status.st_size}.{status.st_mtime_ns}.npz"
            kept = self.kept / relative.parent / name
            try:
                return _Answer(read_frames(kept, self.integration.time_steps), "", "")
            except (FileNotFoundError, ValueError):  # not there, or damaged
                frame = self.integration(recording)
        except (ImportError, OSError, ValueError) as error:  # raised where no worker's traceback is put in front of it
            return _Answer(torch.empty(0), str(error), "")
        try:
            with replacing(kept) as file:
                # Few pixels of a frame see events, and counts are small.
                small = frame.byte() if torch.equal(frame.byte().float(), frame) else frame
                np.savez_compressed(file, frames=small.numpy())
        except OSError as error:
            note = f"{kept.parent} cannot be written ({error.strerror}); set cache to a folder that can"
        return _Answer(frame, "", note)
