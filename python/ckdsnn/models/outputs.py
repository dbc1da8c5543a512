"""What models return: the one form in which losses, trainer and analysis see every network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

Output = TypeVar("Output", "ANNOutput", "SNNOutput")


@dataclass
class ANNOutput:
    """Output of a conventional network.

    Attributes:
        logits: [B, K], or [B, K, H, W] of a network that classifies pixels.
        features: activations at the end of each stage, [B, C, H, W]; stages are numbered from 1.
        classifier_weight: [K, C] where the head is global average pooling and one linear layer, or, of pixels, adds one
            linear layer of the last stage to what others say; else None.
        cams: saliency maps [B, H, W] keyed by the stage as the method named it; filled by
            :class:`~ckdsnn.losses.FrozenTeacher`.
        image_size: H, W where samples are the pixels of images, see
            :func:`~ckdsnn.models.outputs.by_pixel`; else None.
    """

    logits: Tensor
    features: dict[int, Tensor]
    classifier_weight: Tensor | None = None
    cams: dict[int, Tensor] = field(default_factory=dict)
    image_size: tuple[int, int] | None = None


@dataclass
class SNNOutput:
    """Output of a spiking network.

    Attributes:
        logits: [B, K], or [B, K, H, W] of a network that classifies pixels: the mean of ``step_logits`` over time.
        step_logits: [T, B, K] or [T, B, K, H, W].
        features: activations at the end of each stage, [T, B, C, H, W]; stages are numbered from 1.
        sams: spike activation maps, float32 [B, H, W]: mean of the stage's features over time and channels;
            only for the model's ``sam_stages``.
        classifier_weight: as for :class:`ANNOutput`.
        image_size: as for :class:`ANNOutput`.
    """

    logits: Tensor
    step_logits: Tensor
    features: dict[int, Tensor]
    sams: dict[int, Tensor]
    classifier_weight: Tensor | None = None
    image_size: tuple[int, int] | None = None


# What torch.export and torch.func take apart.
for _output in (ANNOutput, SNNOutput):
    torch.export.register_dataclass(_output, serialized_type_name=f"{__name__}.{_output.__name__}")


def by_pixel(output: Output) -> Output:
    """The output of a network that classifies pixels as one of samples: ``logits`` [B*H*W, K], pixel after pixel.

    Example:
        >>> import torch
        >>> from ckdsnn.models.outputs import ANNOutput, by_pixel
        >>> output = by_pixel(ANNOutput(torch.zeros(2, 11, 20, 20), {}))
        >>> output.logits.shape, output.image_size
        (torch.Size([800, 11]), (20, 20))
    """
    height, width = output.logits.shape[-2:]
    flat = replace(output, logits=pixel_rows(output.logits), image_size=(height, width))
    if isinstance(flat, SNNOutput):
        flat.step_logits = pixel_rows(flat.step_logits)
    return flat


def pixel_rows(logits: Tensor) -> Tensor:
    """[..., B, K, H, W] -> [..., B*H*W, K]."""
    return logits.movedim(-3, -1).flatten(-4, -2)


def resolve_stage(stage: int, num_stages: int) -> int:
    """Stage number from 1 for ``stage``, which may count from the end (-1 is the last).

    Raises:
        ValueError: the model has no such stage.

    Example:
        >>> from ckdsnn.models.outputs import resolve_stage
        >>> resolve_stage(-1, num_stages=3), resolve_stage(2, num_stages=3)
        (3, 2)
    """
    resolved = stage if stage > 0 else num_stages + 1 + stage
    if stage == 0 or not 1 <= resolved <= num_stages:
        raise ValueError(
            f"stage {stage} does not exist: the model has stages 1 to {num_stages} (or -1 to -{num_stages})"
        )
    return resolved


def pick_stage(maps: Mapping[int, Tensor], stage: int, what: str) -> Tensor:
    """The tensor of ``stage`` in ``maps``, by its own key or, for a negative stage, counted from the last key.

    Raises:
        ValueError: ``maps`` does not hold that stage; ``what`` names it in the message.
    """
    if stage in maps:
        return maps[stage]
    if stage < 0 and maps and max(maps) + 1 + stage in maps:
        return maps[max(maps) + 1 + stage]
    raise ValueError(f"{what} of stage {stage} are needed, but there are only those of stages {sorted(maps)}")
