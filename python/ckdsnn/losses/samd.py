"""Saliency-scaled activation map distillation (SAMD): the student's spikes shall lie where the teacher looks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .arguments import check_choice, check_flag, check_number, check_temperature, check_tensor
from .divergence import kl_divergence
from .precision import full_precision, outside_autocast
from .resize import resize_to
from .scaling import Scaled, minmax, minmax_batch, unit_length, zscore

NORMALISATIONS: dict[str, Callable[[Tensor, Tensor | None], Scaled]] = {
    "none": lambda maps, resolution: (maps, resolution),
    "minmax": minmax,
    "zscore": zscore,
    "minmax_batch": minmax_batch,
}
SCALINGS = ("softmax", "l2", "zscore", "none")


def normalise_map(maps: Tensor, kind: str, resolution: float | Tensor = 0.0) -> Tensor:
    """Bring saliency maps to a common scale.

    Args:
        maps: [B, H, W].
        kind: ``"none"``; ``"minmax"``, each sample to [0, 1]; ``"zscore"``, each sample to mean 0 and standard
            deviation 1; ``"minmax_batch"``, the whole batch to [0, 1) with 1e-3 in the denominator, as the released
            code of CKDSNN does.  A constant map becomes all zeros.
        resolution: the smallest difference that the maps can show, >= 0, a number or a tensor [B, 1, 1]; for a mean of
            spikes over T steps and C channels 1 / (T*C).  No map is stretched further than one that shows a single such
            difference: slopes stay below 1 / resolution (``sqrt(H*W)`` times that for ``"zscore"``).  With 0, a
            constant map has gradient 0, and slopes of other maps have no bound.

    Returns:
        [B, H, W], float32 (float64 for float64), also under autocast.

    Raises:
        TypeError: maps that are no tensor.
        ValueError: another shape, unknown kind, a resolution that is negative or not finite.

    Example:
        >>> import torch
        >>> from ckdsnn.losses import normalise_map
        >>> normalise_map(torch.tensor([[[0.0, 1.0, 4.0]]]), "minmax")
        tensor([[[0.0000, 0.2500, 1.0000]]])
    """
    check_tensor(maps, "maps")
    if maps.dim() != 3:
        raise ValueError(f"maps must be [B, H, W], got {list(maps.shape)}")
    check_choice(kind, "normalisation", tuple(NORMALISATIONS))
    _check_resolution(resolution)
    with outside_autocast(maps):
        return _normalised(maps, kind, resolution)[0]


def _normalised(maps: Tensor, kind: str, resolution: float | Tensor) -> Scaled:
    maps = full_precision(maps)
    if not isinstance(resolution, Tensor):
        return NORMALISATIONS[kind](maps, maps.new_full((), resolution) if resolution else None)
    return NORMALISATIONS[kind](maps, resolution.detach().to(maps.dtype))


def _check_resolution(resolution: Any) -> None:
    if isinstance(resolution, Tensor):
        check_tensor(resolution, "resolution")
    else:
        check_number(resolution, "resolution", low=0)


def samd_loss(
    student_map: Tensor,
    teacher_map: Tensor,
    *,
    normalisation: str = "minmax",
    scaling: str = "softmax",
    temperature: float | None = None,
    temperature_factor: bool | None = None,
    resolution: float | Tensor = 0.0,
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
        resolution: the smallest difference that the student's map can show, see :func:`normalise_map`; it bounds the
            gradient of maps that are nearly constant.  A constant map of the teacher becomes zeros.

    Returns:
        A float32 scalar (float64 for float64), also under autocast.

    Raises:
        TypeError: maps that are no tensors, a temperature that is no number.
        ValueError: maps that are not [B, H, W] of one B, unknown names, values out of range or not used.

    Example:
        >>> import torch
        >>> from ckdsnn.losses import samd_loss
        >>> sam = torch.tensor([[[0.1, 0.3], [0.2, 0.0]]])
        >>> samd_loss(sam, 5 * sam).item() < 1e-6
        True
    """
    check_tensor(student_map, "student_map")
    check_tensor(teacher_map, "teacher_map")
    if student_map.dim() != 3 or teacher_map.dim() != 3 or student_map.shape[0] != teacher_map.shape[0]:
        raise ValueError(
            "student_map and teacher_map must be [B, H, W] with the same B, got "
            f"{list(student_map.shape)} and {list(teacher_map.shape)}"
        )
    check_samd_options(normalisation, scaling, temperature, temperature_factor)
    _check_resolution(resolution)
    temperature = 2.0 if temperature is None else temperature
    with outside_autocast(student_map):
        teacher_map = resize_to(teacher_map.detach(), student_map.shape[1:])
        student = _normalised(student_map, normalisation, resolution)
        teacher = _normalised(teacher_map, normalisation, 0.0)
        if scaling == "softmax":
            factor = 1.0 if temperature_factor is False else temperature**2
            return factor * kl_divergence(teacher[0].flatten(1), student[0].flatten(1), temperature)
        if scaling == "l2":
            return (unit_length(*student)[0] - unit_length(*teacher)[0]).pow(2).sum((1, 2)).mean()
        if scaling == "zscore":
            student, teacher = zscore(*student), zscore(*teacher)
        return (student[0] - teacher[0]).pow(2).mean()


def check_samd_options(normalisation: Any, scaling: Any, temperature: Any, temperature_factor: Any) -> None:
    """Raises ValueError where the options of :func:`samd_loss` are unknown, out of range or not used.

    TypeError for a temperature that is no number, and a temperature_factor that is not True or False.
    """
    check_choice(normalisation, "normalisation", tuple(NORMALISATIONS))
    check_choice(scaling, "scaling", SCALINGS)
    if scaling != "softmax" and not (temperature is None and temperature_factor is None):
        raise ValueError(f"temperature and temperature_factor are only used with scaling='softmax', not {scaling!r}")
    if temperature is not None:
        check_temperature(temperature)
    if temperature_factor is not None:
        check_flag(temperature_factor, "temperature_factor")
