"""What every network of this package is, so that methods, trainer and analysis need to know no more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from .outputs import ANNOutput, SNNOutput, resolve_stage


class ANN(nn.Module):
    """A conventional network in stages.

    Args:
        num_classes: K.
        in_channels: channels of the images.
        stage_channels: channels of the features of stages 1, 2, ...

    Attributes:
        dense: whether it classifies pixels: logits are [B, K, H, W].
    """

    dense: ClassVar[bool] = False

    def __init__(self, num_classes: int, in_channels: int, stage_channels: Sequence[int]) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.stage_channels = tuple(stage_channels)

    @property
    def num_stages(self) -> int:
        """The number of the last stage."""
        return len(self.stage_channels)

    @property
    def classifier_weight(self) -> Tensor | None:
        """Class weights [K, C] where the head is global average pooling and one linear layer, else None."""
        return None

    @property
    def differentiable_stages(self) -> tuple[int, ...]:
        """Stages on whose features the logits depend: all, in an ordinary network."""
        return tuple(range(1, self.num_stages + 1))

    def forward(self, images: Tensor, *, differentiable_from: int | None = None) -> ANNOutput:
        """Logits and the features of all stages.

        Args:
            images: [B, in_channels, H, W], or frames [T, B, in_channels, H, W] that are averaged over time.
            differentiable_from: a stage whose features start a new graph, so that Grad-CAM can differentiate by them
                and by later ones although all parameters are frozen.

        Raises:
            ValueError: images of another shape.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement forward")

    def static_images(self, images: Tensor) -> Tensor:
        """``images`` [B, C, H, W] as they are; frames [T, B, C, H, W] averaged over time."""
        check_images(images, self.in_channels)
        return images if images.dim() == 4 else images.mean(0)


class SNN(nn.Module):
    """A spiking network in stages, over ``time_steps`` steps.

    A subclass ends its ``__init__`` by making ``self.head`` (see :func:`~ckdsnn.models.base.classifier_head`), and its
    ``forward`` by :meth:`finish`.

    Args:
        num_classes: K.
        in_channels: channels of the images.
        time_steps: T >= 1.
        stage_channels: channels of the features of stages 1, 2, ...
        sam_stages: stages whose spike activation map is returned, negative ones counted from the end.

    Attributes:
        dense: whether it classifies pixels: logits are [B, K, H, W].

    Raises:
        ValueError: time_steps < 1, a stage that does not exist.
    """

    dense: ClassVar[bool] = False
    head: nn.Module

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        time_steps: int,
        stage_channels: Sequence[int],
        sam_stages: Sequence[int],
    ) -> None:
        super().__init__()
        if time_steps < 1:
            raise ValueError(f"time_steps must be >= 1, got {time_steps}")
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.time_steps = time_steps
        self.stage_channels = tuple(stage_channels)
        self.sam_stages = tuple(sorted({resolve_stage(stage, self.num_stages) for stage in sam_stages}))

    @property
    def num_stages(self) -> int:
        """The number of the last stage."""
        return len(self.stage_channels)

    @property
    def classifier_weight(self) -> Tensor | None:
        """Class weights [K, C] where the head is one linear layer, else None."""
        return self.head.weight if isinstance(self.head, nn.Linear) else None

    def check_input(self, images: Tensor) -> None:
        """Raises ValueError unless images are [B, C, H, W], or frames [T, B, C, H, W] of ``time_steps`` steps, and
        TypeError where they are whole numbers."""
        check_images(images, self.in_channels)
        if images.dim() == 5 and images.shape[0] != self.time_steps:
            raise ValueError(
                f"frames have {images.shape[0]} time steps in dimension 0 but the model has "
                f"time_steps={self.time_steps}; frames are [T, B, C, H, W]"
            )

    def finish(self, features: dict[int, Tensor], sams: dict[int, Tensor]) -> SNNOutput:
        """The output: the head on the spatial mean of the last stage, step by step."""
        step_logits: Tensor = self.head(features[self.num_stages].mean((3, 4)))
        # The mean over time is taken in float32 at least.
        logits = step_logits.mean(0, dtype=torch.promote_types(step_logits.dtype, torch.float32))
        return SNNOutput(logits, step_logits, features, sams, self.classifier_weight)


def check_images(images: Tensor, in_channels: int) -> None:
    """Raises ValueError unless images are [B, in_channels, H, W] or frames [T, B, in_channels, H, W], and TypeError
    where they are whole numbers."""
    if not images.is_floating_point():
        raise TypeError(f"images must be of a floating-point dtype, got {images.dtype}: images.float() / 255 of bytes")
    if images.dim() not in (4, 5) or images.shape[-3] != in_channels:
        raise ValueError(
            f"images must be [B, {in_channels}, H, W] or frames [T, B, {in_channels}, H, W], got {list(images.shape)}"
        )


def classifier_head(channels: int, num_classes: int, head: str) -> nn.Module:
    """Class scores from pooled features.

    Args:
        head: ``"linear"``, or ``"released"`` for the released code's two linear layers with 256 units between and no
            activation.

    Raises:
        ValueError: unknown head.
    """
    if head == "linear":
        return nn.Linear(channels, num_classes)
    if head == "released":
        return nn.Sequential(nn.Linear(channels, 256), nn.Linear(256, num_classes))
    raise ValueError(f"head must be 'linear' or 'released', got {head!r}")
