"""Saliency-scaled activation map distillation (SAMD): the student's spikes shall lie where the teacher looks."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from .divergence import check_temperature, full_precision, kl_divergence
from .resize import resize_to


def _minmax(maps: Tensor) -> Tensor:
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low + 1e-6)


def _minmax_batch(maps: Tensor) -> Tensor:
    shifted = maps - maps.min()
    return shifted / (shifted.max() + 1e-3)


def _zscore(maps: Tensor) -> Tensor:
    centred = maps - maps.mean((1, 2), keepdim=True)
    # The variance's square root has an infinite gradient at 0, which a map without a spike reaches.
    return centred / (centred.pow(2).mean((1, 2), keepdim=True) + 1e-12).sqrt()


def _l2(maps: Tensor) -> Tensor:
    return F.normalize(maps.flatten(1), dim=1).view_as(maps)


NORMALISATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda maps: maps,
    "minmax": _minmax,
    "zscore": _zscore,
    "minmax_batch": _minmax_batch,
}
SCALINGS = ("softmax", "l2", "zscore", "none")


def normalise_map(maps: Tensor, kind: str) -> Tensor:
    """Bring saliency maps to a common scale.

    Args:
        maps: [B, H, W].
        kind: ``"none"``; ``"minmax"``, each sample to [0, 1]; ``"zscore"``, each sample to mean 0 and standard
            deviation 1; ``"minmax_batch"``, the whole batch to [0, 1) with 1e-3 in the denominator, as the released
            code of CKDSNN does.  A constant map becomes all zeros.

    Returns:
        [B, H, W], float32 (float64 for float64).

    Raises:
        ValueError: unknown kind.

    Example:
        >>> import torch
        >>> from ckdsnn.losses import normalise_map
        >>> normalise_map(torch.tensor([[[0.0, 1.0, 4.0]]]), "minmax")
        tensor([[[0.0000, 0.2500, 1.0000]]])
    """
    if kind not in NORMALISATIONS:
        raise ValueError(f"normalisation must be one of {', '.join(NORMALISATIONS)}, got {kind!r}")
    return NORMALISATIONS[kind](full_precision(maps))


def samd_loss(
    student_map: Tensor,
    teacher_map: Tensor,
    *,
    normalisation: str = "minmax",
    scaling: str = "softmax",
    temperature: float | None = None,
    temperature_factor: bool | None = None,
) -> Tensor:
    """Distance between the student's and the teacher's saliency maps, mean over the batch.

    Both maps are normalised, then scaled and compared:

    ============ ==========================================================================================
    scaling      loss of a sample
    ============ ==========================================================================================
    ``softmax``  ``T^2 * KL(softmax(M_te / T) || softmax(M_st / T))`` over positions, T the temperature
    ``l2``       squared distance of the maps scaled to unit length, ``2 - 2*cosine``
    ``zscore``   mean over positions of the squared difference of z-scores, ``2 - 2*correlation``
    ``none``     mean over positions of the squared difference
    ============ ==========================================================================================

    CKDSNN (arXiv 2511.06902), section "SAMD"; ``softmax`` is the paper's choice, the others are its ablation.  The
    paper does not say whether the maps are normalised before the softmax.  Raw means make it almost flat, raw spike
    sums saturate it.  ``"minmax"`` is the default until a measurement on validation data decides otherwise.

    Args:
        student_map: [B, H, W], e.g. the spike activation map.
        teacher_map: [B, h, w], resized to H, W where they differ; no gradient flows to it.
        normalisation: see :func:`normalise_map`.
        scaling: see above.
        temperature: T > 0; only with ``scaling="softmax"`` (default 2).
        temperature_factor: whether to multiply by T^2; only with ``scaling="softmax"`` (default yes).

    Returns:
        A float32 scalar (float64 for float64).

    Raises:
        ValueError: maps that are not [B, H, W] of one B, unknown names, temperature <= 0 or not used.

    Example:
        >>> import torch
        >>> from ckdsnn.losses import samd_loss
        >>> sam = torch.tensor([[[0.1, 0.3], [0.2, 0.0]]])
        >>> samd_loss(sam, 5 * sam).item() < 1e-6
        True
    """
    if student_map.dim() != 3 or teacher_map.dim() != 3 or student_map.shape[0] != teacher_map.shape[0]:
        raise ValueError(
            "student_map and teacher_map must be [B, H, W] with the same B, got "
            f"{list(student_map.shape)} and {list(teacher_map.shape)}"
        )
    check_samd_options(normalisation, scaling, temperature, temperature_factor)
    temperature = 2.0 if temperature is None else temperature
    teacher_map = resize_to(teacher_map.detach(), student_map.shape[1:])
    student_map, teacher_map = normalise_map(student_map, normalisation), normalise_map(teacher_map, normalisation)
    if scaling == "softmax":
        factor = 1.0 if temperature_factor is False else temperature**2
        return factor * kl_divergence(teacher_map.flatten(1), student_map.flatten(1), temperature)
    if scaling == "l2":
        return (_l2(student_map) - _l2(teacher_map)).pow(2).sum((1, 2)).mean()
    if scaling == "zscore":
        student_map, teacher_map = _zscore(student_map), _zscore(teacher_map)
    return (student_map - teacher_map).pow(2).mean()


def check_samd_options(
    normalisation: str, scaling: str, temperature: float | None, temperature_factor: bool | None
) -> None:
    """Raises ValueError where the options of :func:`samd_loss` are unknown, out of range or not used."""
    if normalisation not in NORMALISATIONS:
        raise ValueError(f"normalisation must be one of {', '.join(NORMALISATIONS)}, got {normalisation!r}")
    if scaling not in SCALINGS:
        raise ValueError(f"scaling must be one of {', '.join(SCALINGS)}, got {scaling!r}")
    if scaling != "softmax" and not (temperature is None and temperature_factor is None):
        raise ValueError(f"temperature and temperature_factor are only used with scaling='softmax', not {scaling!r}")
    if temperature is not None:
        check_temperature(temperature)
