"""DVS128 Gesture as it is issued: long recordings, lists of those to train and test on, and tables of what is where."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from ckdsnn.data.files import check_inside, read_file
from ckdsnn.data.integration import Recording

TRIALS = {"train": "trials_to_train.txt", "test": "trials_to_test.txt"}
NAMES = (
    "hand_clapping", "right_hand_wave", "left_hand_wave", "right_arm_clockwise", "right_arm_counter_clockwise",
    "left_arm_clockwise", "left_arm_counter_clockwise", "arm_roll", "air_drums", "air_guitar", "other_gestures",
)  # fmt: skip
LARGEST_TABLE = 2**20  # bytes


def holds_gestures(folder: Path) -> bool:
    """Whether `folder` is that of the data set."""
    return all((folder / name).exists() for name in TRIALS.values())


def list_gestures(folder: Path, part: str, *, follow_symlinks: bool = False) -> tuple[list[Recording], Tensor]:
    """The samples of a part, in the order of its list, and their classes, int64 [N], 0 for the first gesture.

    Args:
        folder: of `trials_to_train.txt`, `trials_to_test.txt`, the recordings `NAME.aedat` and the tables
            `NAME_labels.csv` with class (1 to 11), first and last microsecond of each sample.
        part: "train" or "test".
        follow_symlinks: recordings may be links out of `folder`.

    Raises:
        FileNotFoundError: a table or a recording is missing.
        ValueError: a list or a table is not what it should be, or a link leads out of `folder`.
    """
    recordings: list[Recording] = []
    targets: list[int] = []
    trials = folder / TRIALS[part]
    for name in _lines(trials):
        if not re.fullmatch(r"[A-Za-z0-9_]+\.aedat", name):
            raise ValueError(f"{trials} lists {name[:100]!r}: expected names of recordings, such as user01_led.aedat")
        check_inside(folder / name, folder, follow_symlinks=follow_symlinks)
        table = folder / f"{name.removesuffix('.aedat')}_labels.csv"
        for row in _lines(table)[1:]:
            if not re.fullmatch(r"\d{1,2},\d{1,12},\d{1,12}", row):
                raise ValueError(f"{table} has the row {row[:100]!r}: expected class, first and last microsecond")
            label, start, end = (int(number) for number in row.split(","))
            if not 1 <= label <= len(NAMES):
                raise ValueError(f"{table} has class {label}: expected 1 to {len(NAMES)}")
            recordings.append(Recording(folder / name, start, end))
            targets.append(label - 1)
    if not recordings:
        raise ValueError(f"{trials} lists no recordings")
    return recordings, torch.tensor(targets)


def _lines(path: Path) -> list[str]:
    text = read_file(path, LARGEST_TABLE).decode("latin-1")
    return [line.strip() for line in text.splitlines() if line.strip()]
