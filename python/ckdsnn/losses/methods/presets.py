"""The choices that the papers leave open, bound together by name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

from ckdsnn.losses.nld import check_nld_options
from ckdsnn.losses.saliency import TEACHER_MAPS
from ckdsnn.losses.samd import check_samd_options
from ckdsnn.models.registry import nearest

Options = TypeVar("Options", "SAMDOptions", "NLDOptions")


@dataclass(frozen=True)
class SAMDOptions:
    """Options of the SAMD term; see :func:`~ckdsnn.losses.samd_loss` for those of the loss itself.

    Attributes:
        reduction: of spikes over time and channels, ``"mean"`` or ``"sum"``.
        stages: stages of the student, negative ones counted from the end; the term is the mean over them.
        teacher_stages: the teacher's stage for each of ``stages``; None for the same.
        teacher_map: which of the teacher's maps, see :func:`~ckdsnn.losses.saliency_map`.
        student_map: ``"sam"``, or ``"grad_cam"`` of the student (CAM-CAM, an ablation).
    """

    reduction: str | None = None
    normalisation: str = "minmax"
    scaling: str = "softmax"
    temperature: float | None = None
    temperature_factor: bool | None = None
    stages: tuple[int, ...] = (-1,)
    teacher_stages: tuple[int, ...] | None = None
    teacher_map: str = "grad_cam"
    student_map: str = "sam"

    def __post_init__(self) -> None:
        check_samd_options(self.normalisation, self.scaling, self.temperature, self.temperature_factor)
        for name in ("stages", "teacher_stages"):
            stages = getattr(self, name)
            if stages is not None:
                object.__setattr__(self, name, (stages,) if isinstance(stages, int) else tuple(stages))
        if not self.stages:
            raise ValueError("stages must name at least one stage, got none")
        if self.teacher_stages is not None and len(self.teacher_stages) != len(self.stages):
            raise ValueError(
                f"teacher_stages {self.teacher_stages} must name one stage for each of stages {self.stages}"
            )
        for name, value, known in (
            ("reduction", self.reduction or "mean", ("mean", "sum")),
            ("teacher_map", self.teacher_map, TEACHER_MAPS),
            ("student_map", self.student_map, ("sam", "grad_cam")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if self.student_map == "grad_cam" and self.reduction is not None:
            raise ValueError(f"reduction={self.reduction!r} is only used with student_map='sam'; leave it out")


@dataclass(frozen=True)
class NLDOptions:
    """Options of the NLD term; see :func:`~ckdsnn.losses.nld_loss`.

    Attributes:
        learnable_strength: learn lambda, starting at ``strength``, together with the student.
    """

    temperature: float = 2.0
    noise: str = "adaptive"
    strength: float | None = None
    distribution: str | None = None
    spread: str | None = None
    sigma: float | None = None
    mixing: str = "logits"
    detach_statistics: bool = True
    learnable_strength: bool = False

    def __post_init__(self) -> None:
        check_nld_options(self.noise, self.strength, self.distribution, self.spread, self.sigma, self.mixing)
        if self.noise == "none" and self.learnable_strength:
            raise ValueError("learnable_strength=True is not used with noise='none'; leave it False")


@dataclass(frozen=True)
class Preset:
    """One consistent set of choices: the two terms, the teacher's mode, and the student's last activation where it is
    not the network's own neuron."""

    samd: SAMDOptions
    nld: NLDOptions
    teacher_mode: str = "eval"
    last_activation: str | None = None


PRESETS: dict[str, Preset] = {
    "default": Preset(SAMDOptions(), NLDOptions()),
    "paper": Preset(SAMDOptions(normalisation="none"), NLDOptions()),
    "released-code": Preset(
        SAMDOptions(
            reduction="sum", normalisation="minmax_batch", temperature_factor=False, teacher_map="class_weights"
        ),
        NLDOptions(spread="variance", mixing="probabilities", detach_statistics=False),
        teacher_mode="train",
        last_activation="relu",
    ),
}


def preset_named(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ValueError: unknown name.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}" + nearest(name, list(PRESETS)))
    return PRESETS[name]


def override(options: Options, changes: dict[str, Any]) -> Options:
    """``options`` with ``changes``.

    Raises:
        TypeError: an option that does not exist.
        ValueError: options that do not go together.
    """
    known = [field.name for field in dataclasses.fields(options)]
    for name in changes:
        if name not in known:
            raise TypeError(f"no option {name!r}" + nearest(name, known))
    return dataclasses.replace(options, **changes)
