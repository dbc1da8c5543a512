"""Event-camera recordings as frames, CIFAR10-DVS above all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ckdsnn.data.augment import Augmentation
from ckdsnn.data.module import ArrayDataModule, Arrays
from ckdsnn.data.split import split_off


def read_frames(path: Path, time_steps: int) -> Tensor:
    """The frames of one recording, float32 [T, 2, H, W], event counts by polarity.

    Args:
        path: `.npy`, or `.npz` with one array or one named "frames".
        time_steps: T that is expected.

    Raises:
        ValueError: not an array of that form; pickled objects are not read.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            names = loaded.files
            if len(names) != 1 and "frames" not in names:
                raise ValueError(f"its arrays are {names}, none of them named frames")
            loaded = loaded["frames" if "frames" in names else names[0]]
    except Exception as error:
        raise ValueError(f"{path} cannot be read as frames: {error}") from error
    if loaded.ndim != 4 or loaded.shape[:2] != (time_steps, 2):
        raise ValueError(
            f"{path} holds an array {list(loaded.shape)}, expected [T={time_steps}, 2, H, W]: integrate the events "
            f"into {time_steps} frames, or set time_steps"
        )
    return torch.from_numpy(loaded.astype(np.float32))


class DVSFrames(ArrayDataModule):
    """Event frames in `root/<class>/*.npy` or `.npz`, each [T, 2, H, W], in memory; 2 channels.

    CIFAR10-DVS has no split of its own: of every class, `test` of the recordings (in the order of their names) are for
    testing, as most papers do with its last 100 of 1,000; validation is held out of the rest.

    Args:
        root: folder of the classes' folders.
        time_steps: T.
        batch_size: training samples a batch and process.
        size: side in pixels that frames are scaled to by averaging; None: as they are.
        test: share of each class for testing.
        validation: samples held out of the rest; 0: none.
        seed: order and augmentation.
        augmentation: of training batches; alike at all time steps of a sample.
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
        eval_batch_size: int = 64,
    ) -> None:
        super().__init__(batch_size, seed, augmentation, eval_batch_size)
        if time_steps < 1:
            raise ValueError(f"time_steps must be at least 1, got {time_steps}")
        if not 0 < test < 1:
            raise ValueError(f"test is a share between 0 and 1, got {test}")
        folder = Path(root)
        if not folder.is_dir():
            raise FileNotFoundError(f"root {root} is missing: frames are expected in {root}/<class>/*.npy or *.npz")
        self.class_names = sorted(path.name for path in folder.iterdir() if path.is_dir())
        if not self.class_names:
            raise ValueError(f"root {root} holds no folders: frames are expected in {root}/<class>/*.npy or *.npz")
        self.folder, self.time_steps, self.size = folder, time_steps, size
        self.test_share, self.validation = test, validation
        self.has_validation, self.num_classes = validation > 0, len(self.class_names)

    def load(self, part: str) -> Arrays | None:
        if part == "validation" and not self.validation:
            return None
        paths, targets = self._list(test=part == "test")
        if part != "test" and self.validation:
            kept, held_out = split_off(targets, self.validation, self.num_classes)
            chosen = kept if part == "train" else held_out
            paths, targets = [paths[i] for i in chosen.tolist()], targets[chosen]
        return Arrays(torch.stack([self._frames(path) for path in paths]), targets)

    def _list(self, *, test: bool) -> tuple[list[Path], Tensor]:
        paths: list[Path] = []
        targets: list[int] = []
        for number, name in enumerate(self.class_names):
            found = sorted(path for path in (self.folder / name).iterdir() if path.suffix in (".npy", ".npz"))
            if len(found) < 2:
                raise ValueError(f"class {name} needs at least 2 recordings (.npy, .npz), found {len(found)}")
            last = max(1, round(len(found) * self.test_share))
            chosen = found[-last:] if test else found[:-last]
            paths += chosen
            targets += [number] * len(chosen)
        return paths, torch.tensor(targets)

    def _frames(self, path: Path) -> Tensor:
        frames = read_frames(path, self.time_steps)
        if self.size is not None and frames.shape[-2:] != (self.size, self.size):
            frames = F.adaptive_avg_pool2d(frames, self.size)
        return frames
