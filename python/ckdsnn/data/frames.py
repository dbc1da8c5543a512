"""Recordings of event cameras as frames: CIFAR10-DVS, N-MNIST, DVS128 Gesture and others of their layout."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ckdsnn.data.arguments import folder_name, share, true_or_false, whole_number
from ckdsnn.data.arrays import ArrayFile, read_frames
from ckdsnn.data.augment import Augmentation
from ckdsnn.data.events import LARGEST_FILE, SUFFIXES
from ckdsnn.data.files import class_folders, list_files, read_file
from ckdsnn.data.gestures import NAMES as GESTURES
from ckdsnn.data.gestures import holds_gestures, list_gestures
from ckdsnn.data.integration import Integration, Recording
from ckdsnn.data.module import ArrayDataModule, Arrays, register_data
from ckdsnn.data.split import split_off

RECORDINGS = SUFFIXES | {".npy"}


@register_data("DVSFrames")
class DVSFrames(ArrayDataModule):
    """Recordings of an event camera as frames [T, 2, H, W], in memory; 2 channels.

    Recordings are frames (`.npy`, or `.npz` with an array "frames"), which are taken as they are, or events (`.bin`,
    `.aedat`, `.aedat4`, or `.npz` with t, x, y, p; see `ckdsnn.data.events`), which are integrated into frames as
    SpikingJelly does it.

    They lie in one of these layouts; a folder's own split is kept:

    * `root/train/<class>/` and `root/test/<class>/`, in any case, as SpikingJelly and Tonic have N-MNIST and others.
    * DVS128 Gesture as it is issued, with lists of trials and tables of samples (`ckdsnn.data.gestures`).
    * `root/<class>/`, as CIFAR10-DVS, which has no split of its own: of every class, `test` of the recordings (in the
      order of their names) are for testing, as most papers do with its last 100 of 1,000.

    Validation is held out of the training part.

    Args:
        root: folder of the data set.
        time_steps: T.
        batch_size: training samples a batch and process.
        size: side in pixels that frames are scaled to by averaging; None: as they are.
        test: share of each class for testing, where there are no folders train and test.
        validation: samples held out of the rest; 0: none.
        seed: order and augmentation.
        augmentation: of training batches; alike at all time steps of a sample.
        eval_batch_size, where: see `ArrayDataModule`.
        split_by: events are cut into T frames of equal "number" or of equal "time".
        duration: microseconds a frame instead: the first T frames, empty ones where a recording is shorter.
        sensor_size: height and width in pixels, where the events' files do not say; None: the format's.
        cache: folder for frames made of events; None: `root/.frames`, or nowhere if that cannot be written.
        workers: processes that integrate; None: as many as there are cores.
        follow_symlinks: symbolic links may lead out of `root`.

    Raises:
        TypeError, ValueError, FileNotFoundError: an option of another type or out of range; a folder is missing or
            empty.
    """

    in_channels = 2

    def __init__(
        self,
        root: str,
        time_steps: int = 10,
        batch_size: int = 16,
        size: int | None = 48,
        test: float = 0.1,
        validation: int = 900,
        seed: int = 0,
        augmentation: Augmentation = Augmentation(shift=4, flip=True),
        eval_batch_size: int | None = None,
        where: Literal["device", "host"] = "device",
        split_by: Literal["number", "time"] = "number",
        duration: int | None = None,
        sensor_size: tuple[int, int] | None = None,
        cache: str | None = None,
        workers: int | None = None,
        follow_symlinks: bool = False,
    ) -> None:
        super().__init__(batch_size, seed, augmentation, eval_batch_size, where)
        self.time_steps = whole_number("time_steps", time_steps, 1)
        self.size = None if size is None else whole_number("size", size, 1)
        self.test_share, self.validation = share("test", test), whole_number("validation", validation, 0)
        self.follow_symlinks = true_or_false("follow_symlinks", follow_symlinks)
        self.workers = len(os.sched_getaffinity(0)) if workers is None else whole_number("workers", workers, 0)
        self.folder = folder_name("root", root)
        self.integration = Integration(time_steps, self.size, split_by, duration, sensor_size)
        self.cache = None if cache is None else folder_name("cache", cache)
        self.parts, self.class_names = self._layout()
        self.has_validation, self.num_classes = validation > 0, len(self.class_names)

    def _layout(self) -> tuple[dict[str, Path], list[str]]:
        """The folders of the parts, "train" and "test" or none, and the classes' names."""
        if holds_gestures(self.folder):
            return {}, list(GESTURES)
        expected = f"recordings are expected in {self.folder}/<class>/, or {self.folder}/train/<class>/ and test/"
        names = [name for name in class_folders(self.folder, expected) if self.folder / name != self.cache]
        parts = {name.lower(): self.folder / name for name in names if name.lower() in ("train", "test")}
        if not parts:
            if "ibmGestureTrain" in names:  # Tonic's, whose classes are the names of the files
                raise ValueError(
                    f"{self.folder} has a folder for each person, not for each class: move the recordings to "
                    "train/<class>/ and test/<class>/"
                )
            return {}, names
        if len(parts) != 2 or len(names) != 2:
            raise ValueError(
                f"{self.folder} has the folders {', '.join(names[:9])}: expected train and test alone, or a folder for "
                "each class"
            )
        classes = {part: class_folders(folder, expected) for part, folder in parts.items()}
        if classes["train"] != classes["test"]:
            differing = sorted(set(classes["train"]) ^ set(classes["test"]))
            raise ValueError(f"{self.folder}: train and test differ in their classes ({', '.join(differing[:9])})")
        return parts, classes["train"]

    def load(self, part: str) -> Arrays | None:
        if part == "validation" and not self.validation:
            return None
        recordings, targets = self._list(test=part == "test")
        if part != "test" and self.validation:
            kept, held_out = split_off(targets, self.validation, self.num_classes)
            chosen = kept if part == "train" else held_out
            recordings, targets = [recordings[i] for i in chosen.tolist()], targets[chosen]
        return Arrays(self._frames(recordings), targets)

    def _list(self, *, test: bool) -> tuple[list[Recording], Tensor]:
        if holds_gestures(self.folder):
            return list_gestures(self.folder, "test" if test else "train", follow_symlinks=self.follow_symlinks)
        recordings: list[Recording] = []
        targets: list[int] = []
        folder = self.parts.get("test" if test else "train")
        for number, name in enumerate(self.class_names):
            place = (folder or self.folder) / name
            found = list_files(place, RECORDINGS, self.folder, follow_symlinks=self.follow_symlinks)
            if len(found) < (2 if folder is None else 1):
                raise ValueError(
                    f"class {name} needs at least {2 if folder is None else 1} recording(s) "
                    f"({', '.join(sorted(RECORDINGS))}) in {place}, found {len(found)}"
                )
            if folder is None:
                last = max(1, round(len(found) * self.test_share))
                found = found[-last:] if test else found[:-last]
            recordings += [Recording(path) for path in found]
            targets += [number] * len(found)
        return recordings, torch.tensor(targets)

    def _frames(self, recordings: list[Recording]) -> Tensor:
        paths = [recording.path for recording in recordings]
        if _holds_events(paths[0]):
            return self.integration.frames(recordings, self.folder, self.cache, self.workers)
        frames = [read_frames(path, self.time_steps) for path in paths]
        if self.size is not None:
            frames = [F.adaptive_avg_pool2d(frame, self.size) for frame in frames]
        for path, frame in zip(paths, frames, strict=True):
            if frame.shape != frames[0].shape:
                raise ValueError(
                    f"{path} has frames of {frame.shape[2]} x {frame.shape[3]} pixels, {paths[0]} of "
                    f"{frames[0].shape[2]} x {frames[0].shape[3]}: set size"
                )
        return torch.stack(frames)


def _holds_events(path: Path) -> bool:
    """Whether a recording is one of events; all of a data set are of one kind."""
    if path.suffix.lower() != ".npz":
        return path.suffix.lower() != ".npy"
    try:
        return set("txyp") <= set(ArrayFile(read_file(path, LARGEST_FILE)).headers)
    except ValueError:  # which read_frames says with the file's name
        return False
