"""The digits canvas for segmentation: which pixels are the digit's, and which digit it is."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ckdsnn.data.digits import DigitsCanvas, placed_digits, render_canvas
from ckdsnn.data.module import Arrays, register_data

INK = 0.5  # of a digit's brightness, from which on a pixel is the digit's


@register_data("DigitMasks")
class DigitMasks(DigitsCanvas):
    """The images of :class:`DigitsCanvas` with a class for each pixel: 0 is the background, k + 1 the digit k.

    A pixel is the digit's where the enlarged digit, without clutter and noise, has half of the full brightness at
    least: about a ninth of all pixels where the canvas has 20x20. Fragments of other digits are background, and only
    their surroundings tell.

    Args:
        batch_size, train_samples, views, seed, size, clutter, fragment, noise, eval_batch_size, where: as of
            :class:`DigitsCanvas`.

    Example:
        >>> data = DigitMasks(batch_size=50, train_samples=300)
        >>> data.setup("fit")
        >>> next(iter(data.train_dataloader())).targets.shape
        torch.Size([50, 20, 20])
    """

    num_classes = 11
    dense = True
    class_names = ("background", *DigitsCanvas.class_names)

    def __init__(  # all options of the images but augmentation, which would not move the classes
        self,
        batch_size: int = 50,
        train_samples: int | None = None,
        views: int = 1,
        seed: int = 0,
        size: int = 20,
        clutter: int = 2,
        fragment: int = 4,
        noise: float = 0.25,
        eval_batch_size: int | None = None,
        where: Literal["device", "host"] = "device",
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            train_samples=train_samples,
            views=views,
            seed=seed,
            size=size,
            clutter=clutter,
            fragment=fragment,
            noise=noise,
            eval_batch_size=eval_batch_size,
            where=where,
        )

    def render(self, digits: Tensor, targets: Tensor, generator: torch.Generator) -> Arrays:
        # The corners are the first thing that a rendering draws.
        corners = self.canvas.draw_corners(len(digits), torch.Generator().set_state(generator.get_state()))
        ink = placed_digits(digits, corners, self.canvas) >= INK
        return Arrays(render_canvas(digits, generator, self.canvas), torch.where(ink, targets[:, None, None] + 1, 0))
