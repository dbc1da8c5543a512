"""CIFAR-10 and CIFAR-100 from their official python files."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from ckdsnn.data.arguments import folder_name, whole_number
from ckdsnn.data.augment import Augmentation
from ckdsnn.data.files import read_file
from ckdsnn.data.module import ArrayDataModule, Arrays, register_data
from ckdsnn.data.pickled import read_pickled
from ckdsnn.data.split import balanced_subset, split_off


class _Layout(NamedTuple):
    """Where the official archive of a data set puts what."""

    url: str
    archive_md5: str
    folder: str
    train: tuple[str, ...]
    test: str
    label_key: str
    md5: dict[str, str]  # of the extracted files
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


LAYOUTS = {
    "cifar10": _Layout(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        archive_md5="c58f30108f718f92721af3b95e74349a",
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{i}" for i in range(1, 6)),
        test="test_batch",
        label_key="labels",
        md5={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        },
        num_classes=10,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    "cifar100": _Layout(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
        folder="cifar-100-python",
        train=("train",),
        test="test",
        label_key="fine_labels",
        md5={"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        num_classes=100,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    ),
}


LARGEST_FILE = 2**29  # bytes; the largest official one has 155 million


def read_batch(path: Path, label_key: str, num_classes: int) -> Arrays:
    """One batch file, as issued or as Python 3 writes it again; no code in it can run (see `pickled`).

    Args:
        path: the file, a pickled dict of "data", uint8 [N, 3072], and labels; keys are str or bytes.
        label_key: which of its entries are the labels, a list or an array of N integers.
        num_classes: labels lie in [0, num_classes).

    Returns:
        Images uint8 [N, 3, 32, 32], targets int64 [N].

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut short or not what the official files are.
    """
    remedy = "extract the official archive again"
    try:
        raw = read_file(path, LARGEST_FILE)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}: {remedy}") from None
    try:
        content = read_pickled(raw)
    except ValueError as error:
        raise ValueError(
            f"{path} ({len(raw)} bytes) cannot be read: {error}. It is cut short, damaged or no CIFAR file: {remedy}"
        ) from error
    if "data" not in content or label_key not in content:
        raise ValueError(f"{path} has no 'data' and {label_key!r}: it is not a file of this data set; {remedy}")
    try:
        labels = _labels(content[label_key], num_classes)
    except ValueError as error:
        raise ValueError(f"{path} {error}: {remedy}") from None
    data = content["data"]
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != (len(labels), 3072):
        found = f"{data.dtype} {list(data.shape)}" if isinstance(data, np.ndarray) else type(data).__name__
        raise ValueError(
            f"{path} must hold uint8 [{len(labels)}, 3072] for its {len(labels)} labels, got {found}: {remedy}"
        )
    pixels = torch.from_numpy(np.array(data, order="C"))  # a copy: the array is a view of the file's bytes
    return Arrays(pixels.view(-1, 3, 32, 32), torch.tensor(labels, dtype=torch.int64))


class _File(NamedTuple):
    """A file, and what tells that it has changed."""

    path: Path
    size: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> _File:
        try:
            found = path.stat()
        except OSError:  # for which those who read it have the words
            return cls(path, 0, 0)
        return cls(path, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _decoded(files: tuple[_File, ...], label_key: str, num_classes: int) -> tuple[Arrays, dict[str, str]]:
    """All samples of some batch files, and the md5 of each. They are kept, as runs of a sweep follow each other in a
    process, and decoding takes a second or two."""
    batches = [read_batch(file.path, label_key, num_classes) for file in files]
    md5 = {
        file.path.name: hashlib.md5(read_file(file.path, LARGEST_FILE), usedforsecurity=False).hexdigest()
        for file in files
    }
    return Arrays(torch.cat([b.images for b in batches]), torch.cat([b.targets for b in batches])), md5


def _labels(found: object, num_classes: int) -> list[int]:
    labels = found.tolist() if isinstance(found, np.ndarray) and found.ndim == 1 else found
    if not isinstance(labels, list | tuple):
        raise ValueError(f"must hold a list of labels, got {type(found).__name__}")
    # bool is a subclass of int, and True is no label.
    if others := {type(label).__name__.lstrip("_") for label in labels if type(label) is not int}:
        raise ValueError(f"must hold integers as labels, got {', '.join(sorted(others))}")
    if labels and not (min(labels) >= 0 and max(labels) < num_classes):
        # A number of a million digits is not for printing.
        low, high = (max(-(2**63), min(2**63, end)) for end in (min(labels), max(labels)))
        raise ValueError(f"has labels from {low} to {high}, they must lie in [0, {num_classes - 1}]")
    return list(labels)


@register_data("CIFAR")
class CIFAR(ArrayDataModule):
    """CIFAR-10 or CIFAR-100, in memory: 3 channels, 32x32 pixels. Nothing is ever downloaded.

    Where a file is not the official one, its md5 is printed, so that results on other pixels are known as such.

    Args:
        root: folder that holds `cifar-10-batches-py` or `cifar-100-python`.
        name: "cifar10" or "cifar100".
        batch_size: training samples a batch and process.
        validation: training samples held out for validation, as many of each class as can be, the same for every seed;
            0: none, and no model selection.
        train_samples: how many of the others to train on, chosen likewise; None: all.
        seed: order and augmentation.
        augmentation: of training batches.
        eval_batch_size, where: see `ArrayDataModule`.

    Raises:
        ValueError: an option out of range.
        FileNotFoundError: the folder or a file is missing; says where the data set is to be had.
    """

    in_channels = 3

    def __init__(
        self,
        root: str,
        name: Literal["cifar10", "cifar100"] = "cifar10",
        batch_size: int = 128,
        validation: int = 5000,
        train_samples: int | None = None,
        seed: int = 0,
        augmentation: Augmentation = Augmentation(shift=4, flip=True),
        eval_batch_size: int | None = None,
        where: Literal["device", "host"] = "device",
    ) -> None:
        super().__init__(batch_size, seed, augmentation, eval_batch_size, where)
        if name not in LAYOUTS:
            raise ValueError(f"name must be one of {', '.join(LAYOUTS)}, got {name!r}")
        whole_number("validation", validation, 0)
        if train_samples is not None:
            whole_number("train_samples", train_samples, 1)
        layout = LAYOUTS[name]
        self.folder = folder_name("root", root) / layout.folder
        if not self.folder.is_dir():
            raise FileNotFoundError(
                f"root {root} has no folder {layout.folder}: download {layout.url} (md5 {layout.archive_md5}) and "
                f"extract it in {root}"
            )
        self.layout, self.validation, self.train_samples = layout, validation, train_samples
        self._said: set[str] = set()
        self.has_validation = validation > 0
        self.num_classes, self.mean, self.std = layout.num_classes, layout.mean, layout.std

    def load(self, part: str) -> Arrays | None:
        if part == "test":
            return self._read((self.layout.test,))
        images, targets = self._read(self.layout.train)
        if self.validation:
            kept, held_out = split_off(targets, self.validation, self.num_classes)
            chosen = kept if part == "train" else held_out
            images, targets = images[chosen], targets[chosen]
        elif part == "validation":
            return None
        if part == "train" and self.train_samples is not None:
            if self.train_samples > len(targets):
                raise ValueError(f"train_samples is {self.train_samples}, but there are {len(targets)} to train on")
            chosen = balanced_subset(targets, self.train_samples, self.num_classes)
            images, targets = images[chosen], targets[chosen]
        return Arrays(images, targets)

    def _read(self, names: tuple[str, ...]) -> Arrays:
        files = tuple(_File.of(self.folder / name) for name in names)
        arrays, found = _decoded(files, self.layout.label_key, self.num_classes)
        if others := [f"{name} {md5}" for name, md5 in found.items() if md5 != self.layout.md5[name]]:
            note = f"note: not the official files in {self.folder}; md5 {', '.join(others)}"
            if note not in self._said:
                print(note)
            self._said.add(note)
        return arrays
