"""What models return: the one form in which losses, trainer and analysis see every network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class ANNOutput:
    """Output of a conventional network.

    Attributes:
        logits: [B, K].
        features: activations at the end of each stage, [B, C, H, W]; stages are numbered from 1.
        classifier_weight: [K, C] where the head is global average pooling and one linear layer, else None.
        cams: saliency maps [B, H, W] keyed by the stage as the method named it; filled by
            :class:`~ckdsnn.losses.FrozenTeacher`.
    """

    logits: Tensor
    features: dict[int, Tensor]
    classifier_weight: Tensor | None = None
    cams: dict[int, Tensor] = field(default_factory=dict)


@dataclass
class SNNOutput:
    """Output of a spiking network.

    Attributes:
        logits: [B, K], the mean of ``step_logits`` over time.
        step_logits: [T, B, K].
        features: activations at the end of each stage, [T, B, C, H, W]; stages are numbered from 1.
        sams: spike activation maps, float32 [B, H, W]: mean of the stage's features over time and channels;
            only for the model's ``sam_stages``.
        classifier_weight: as for :class:`ANNOutput`.
    """

    logits: Tensor
    step_logits: Tensor
    features: dict[int, Tensor]
    sams: dict[int, Tensor]
    classifier_weight: Tensor | None = None


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
