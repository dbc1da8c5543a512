"""CIFAR-10 and CIFAR-100 from their official python files."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch

from ckdsnn.data.augment import Augmentation
from ckdsnn.data.module import ArrayDataModule, Arrays
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


RECONSTRUCT = np.empty(0).__reduce__()[0]  # numpy's own name for it moved between its versions


class _ArraysOnly(pickle.Unpickler):
    """Unpickles arrays and plain values; a file that wants anything else called is refused."""

    ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): RECONSTRUCT,
        ("numpy._core.multiarray", "_reconstruct"): RECONSTRUCT,
        # Protocol 2 writes bytes as a call of this, with a string and an encoding.
        ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it wants to call {module}.{name}, which no CIFAR file does") from None


def read_batch(path: Path, label_key: str, num_classes: int) -> Arrays:
    """One official batch file as uint8 [N, 3, 32, 32] and int64 [N]; no code in it can run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut short or not what the official files are.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: extract the official archive again") from None
    try:
        content = _ArraysOnly(io.BytesIO(raw), encoding="latin1").load()
    except Exception as error:
        raise ValueError(
            f"{path} ({len(raw)} bytes) cannot be read: {error}. It is cut short, damaged or no CIFAR file: extract "
            "the official archive again"
        ) from error
    if not isinstance(content, dict) or "data" not in content or label_key not in content:
        raise ValueError(f"{path} has no 'data' and {label_key!r}: it is not a file of this data set")
    data, labels = content["data"], content[label_key]
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != (len(labels), 3072):
        found = f"{data.dtype} {list(data.shape)}" if isinstance(data, np.ndarray) else type(data).__name__
        raise ValueError(f"{path} must hold uint8 [{len(labels)}, 3072] for its {len(labels)} labels, got {found}")
    targets = torch.tensor(labels, dtype=torch.int64)
    if len(targets) and not (int(targets.min()) >= 0 and int(targets.max()) < num_classes):
        raise ValueError(
            f"{path} has labels from {int(targets.min())} to {int(targets.max())}, they must lie in "
            f"[0, {num_classes - 1}]"
        )
    return Arrays(torch.from_numpy(data.reshape(-1, 3, 32, 32)), targets)


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
        eval_batch_size: samples a batch in validation and test.

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
        eval_batch_size: int = 500,
    ) -> None:
        super().__init__(batch_size, seed, augmentation, eval_batch_size)
        if name not in LAYOUTS:
            raise ValueError(f"name must be one of {', '.join(LAYOUTS)}, got {name!r}")
        if validation < 0:
            raise ValueError(f"validation is a number of samples >= 0, got {validation}")
        if train_samples is not None and train_samples < 1:
            raise ValueError(f"train_samples must be at least 1 or None for all, got {train_samples}")
        layout = LAYOUTS[name]
        self.folder = Path(root) / layout.folder
        if not self.folder.is_dir():
            raise FileNotFoundError(
                f"root {root} has no folder {layout.folder}: download {layout.url} (md5 {layout.archive_md5}) and "
                f"extract it in {root}"
            )
        self.layout, self.validation, self.train_samples = layout, validation, train_samples
        self._files: dict[tuple[str, ...], Arrays] = {}
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
        if names not in self._files:
            batches = [read_batch(self.folder / name, self.layout.label_key, self.num_classes) for name in names]
            self._say_if_not_official(names)
            images, targets = torch.cat([b.images for b in batches]), torch.cat([b.targets for b in batches])
            self._files[names] = Arrays(images, targets)
        return self._files[names]

    def _say_if_not_official(self, names: tuple[str, ...]) -> None:
        found = {n: hashlib.md5((self.folder / n).read_bytes(), usedforsecurity=False).hexdigest() for n in names}
        if others := [f"{name} {md5}" for name, md5 in found.items() if md5 != self.layout.md5[name]]:
            print(f"note: not the official files in {self.folder}; md5 {', '.join(others)}")
