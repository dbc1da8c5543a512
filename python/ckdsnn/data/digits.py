"""The digits canvas: a small but real vision task that needs no download.

scikit-learn's 1,797 real 8x8 digits, each enlarged to 12x12 and placed at a random position on a 20x20 canvas, with two
fragments of other digits as clutter and Gaussian noise of standard deviation 0.25; size, clutter and noise are options.
Where the digit lies matters, so the saliency maps of teacher and student have something to show.
"""

from __future__ import annotations

import gzip
import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ckdsnn.data.arguments import whole_number
from ckdsnn.data.augment import Augmentation
from ckdsnn.data.batches import counter_generator
from ckdsnn.data.module import ArrayDataModule, Arrays, register_data

GLYPH = 12  # side of a digit in pixels
SPLIT_SEED = 0  # the split is fixed: seeds of a run change weights, renderings and subsets, never who is a test digit


class DigitsSplit(NamedTuple):
    """Digits as float32 [N, 8, 8] in [0, 1] and targets int64 [N], for training, validation and test."""

    pool: Arrays
    validation: Arrays
    test: Arrays


@lru_cache(maxsize=1)
def digits_split() -> DigitsSplit:
    """The fixed split of scikit-learn's digits: 897 for training, 300 for validation, 600 for test.

    Example:
        >>> [len(part.targets) for part in digits_split()]
        [897, 300, 600]
    """
    with gzip.open(_digits_file(), "rt") as file:
        table = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float32))
    # Of each digit 64 pixels from 0 to 16, and which one it is.
    images, targets = table[:, :-1].reshape(-1, 8, 8) / 16, table[:, -1].long()
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(SPLIT_SEED))
    parts = order.split([897, 300, 600])
    return DigitsSplit(*(Arrays(images[part], targets[part]) for part in parts))


def _digits_file() -> Path:
    """The file that `sklearn.datasets.load_digits` reads; scikit-learn and SciPy take long to import."""
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise ImportError("the digits come with scikit-learn, which is not installed; run pip install scikit-learn")
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing from this scikit-learn: install version 1.0 or later")
    return path


@dataclass(frozen=True)
class Canvas:
    """What a digit is rendered on.

    Attributes:
        size: side in pixels, at least that of a digit, 12.
        clutter: number of fragments of other digits.
        fragment: side of a fragment in pixels, at most that of a digit.
        noise: standard deviation of the Gaussian noise; a digit's pixels lie in [0, 1].
    """

    size: int = 20
    clutter: int = 2
    fragment: int = 4
    noise: float = 0.25

    def __post_init__(self) -> None:
        if whole_number("size", self.size, 1) < GLYPH:
            raise ValueError(f"size must be at least {GLYPH}, the side of a digit, got {self.size}")
        whole_number("clutter", self.clutter, 0)
        if whole_number("fragment", self.fragment, 1) > GLYPH:
            raise ValueError(f"fragment must lie in [1, {GLYPH}], got {self.fragment}")
        if isinstance(self.noise, bool) or not isinstance(self.noise, int | float):
            raise TypeError(f"noise must be a number, got {self.noise!r}")
        if not 0 <= self.noise < float("inf"):
            raise ValueError(f"noise must be at least 0, got {self.noise}")

    def draw_corners(self, count: int, generator: torch.Generator) -> Tensor:
        """Random places for digits: int64 [count, 2], row and column of the upper left corner."""
        return torch.randint(0, self.size - GLYPH + 1, (count, 2), generator=generator)

    def place(self, glyphs: Tensor, corners: Tensor) -> Tensor:
        """[N, 12, 12] -> [N, size, size], each at its corner."""
        room = self.size - GLYPH
        # The canvas is a window of the padded glyph; moving the window up moves the glyph down.
        padded = F.pad(glyphs, (room, room, room, room))
        windows = padded.unfold(1, self.size, 1).unfold(2, self.size, 1)
        y, x = (room - corners).unbind(1)
        return windows[torch.arange(len(glyphs)), y, x]

    def cut_fragment(self, glyphs: Tensor, generator: torch.Generator) -> Tensor:
        """Keeps a random square of each glyph and clears the rest."""
        kept = []
        for _ in range(2):
            start = torch.randint(0, GLYPH - self.fragment + 1, (len(glyphs), 1), generator=generator)
            kept.append((torch.arange(GLYPH) >= start) & (torch.arange(GLYPH) < start + self.fragment))
        rows, columns = kept
        return glyphs * (rows[:, :, None] & columns[:, None, :])


def render_canvas(digits: Tensor, generator: torch.Generator, canvas: Canvas = Canvas()) -> Tensor:
    """Renders every digit once: random position, fragments of other digits, noise.

    Args:
        digits: float32 [N, 8, 8] in [0, 1], N >= 2; the fragments come from these digits too.
        generator: CPU generator; the rendering is a function of `digits`, `canvas` and its state.
        canvas: size, clutter and noise.

    Returns:
        float32 [N, 1, size, size].

    Example:
        >>> render_canvas(torch.rand(5, 8, 8), torch.Generator().manual_seed(0)).shape
        torch.Size([5, 1, 20, 20])
    """
    count = len(digits)
    if count < 2:
        raise ValueError(f"digits must hold at least 2 images, since clutter comes from the others, got {count}")
    glyphs = _enlarged(digits)
    made = canvas.place(glyphs, canvas.draw_corners(count, generator))
    for _ in range(canvas.clutter):
        other = (torch.arange(count) + torch.randint(1, count, (count,), generator=generator)) % count
        fragment = canvas.cut_fragment(glyphs[other], generator)
        made = torch.maximum(made, canvas.place(fragment, canvas.draw_corners(count, generator)))
    noise = torch.randn(made.shape, generator=generator) * canvas.noise
    return (made + noise)[:, None]


def placed_digits(digits: Tensor, corners: Tensor, canvas: Canvas = Canvas()) -> Tensor:
    """The digits alone, [N, 8, 8] -> [N, size, size], where a rendering with these corners has them."""
    return canvas.place(_enlarged(digits), corners)


def _enlarged(digits: Tensor) -> Tensor:
    """[N, 8, 8] -> [N, 12, 12]."""
    return F.interpolate(digits[:, None], size=(GLYPH, GLYPH), mode="bilinear", align_corners=False)[:, 0]


@register_data("DigitsCanvas")
class DigitsCanvas(ArrayDataModule):
    """The digits canvas as a data module: 1 input channel, 20x20 pixels, 10 classes.

    With more clutter and noise on a larger canvas and with fewer digits to learn from, it is harder.

    Args:
        batch_size: training samples a batch and process.
        train_samples: how many digits of the 897 in the training pool to use, chosen by `seed`; None: all.
        views: how many times each training digit is rendered (validation and test: once); an epoch passes each digit
            once, in rendering number epoch modulo `views`.
        seed: renderings, subset and batch order.
        augmentation: further augmentation in batches.
        size: side of the canvas in pixels, at least 12.
        clutter: number of fragments of other digits on it.
        fragment: side of a fragment in pixels, at most 12.
        noise: standard deviation of the Gaussian noise; a digit's pixels lie in [0, 1].
        eval_batch_size, where: see `ArrayDataModule`.

    Raises:
        ValueError: an option out of range.

    Example:
        >>> data = DigitsCanvas(batch_size=50, train_samples=300)
        >>> data.setup("fit")
        >>> next(iter(data.train_dataloader())).images.shape
        torch.Size([50, 1, 20, 20])
    """

    num_classes = 10
    in_channels = 1
    class_names = tuple("0123456789")

    def __init__(
        self,
        batch_size: int = 50,
        train_samples: int | None = None,
        views: int = 1,
        seed: int = 0,
        augmentation: Augmentation = Augmentation(),
        size: int = 20,
        clutter: int = 2,
        fragment: int = 4,
        noise: float = 0.25,
        eval_batch_size: int | None = None,
        where: Literal["device", "host"] = "device",
    ) -> None:
        super().__init__(batch_size, seed, augmentation, eval_batch_size, where)
        self.canvas = Canvas(size, clutter, fragment, noise)
        pool = len(digits_split().pool.targets)
        if train_samples is not None and not 2 <= whole_number("train_samples", train_samples, 0) <= pool:
            raise ValueError(f"train_samples must lie in [2, {pool}] or be None for all, got {train_samples}")
        self.train_samples, self.views = train_samples, whole_number("views", views, 1)

    def load(self, part: str) -> Arrays:
        digits, targets = getattr(digits_split(), part if part != "train" else "pool")
        generator = self._generator(part)
        if part != "train":
            return self.render(digits, targets, generator)
        if self.train_samples is not None:
            chosen = torch.randperm(len(targets), generator=generator)[: self.train_samples]
            digits, targets = digits[chosen], targets[chosen]
        views = [self.render(digits, targets, generator) for _ in range(self.views)]
        return Arrays(*(torch.cat(part) for part in zip(*views, strict=True)))

    def render(self, digits: Tensor, targets: Tensor, generator: torch.Generator) -> Arrays:
        """Digits [N, 8, 8] and their classes as images and what is to be said of them."""
        return Arrays(render_canvas(digits, generator, self.canvas), targets)

    def _generator(self, part: str) -> torch.Generator:
        return counter_generator(self.seed, ("train", "validation", "test").index(part))

    def test_boxes(self) -> tuple[Tensor, int]:
        """Where the test digits are: int64 [600, 2], rows and columns of the upper left corners, and the side."""
        # The corners are the first thing that a rendering draws.
        return self.canvas.draw_corners(len(digits_split().test.targets), self._generator("test")), GLYPH
