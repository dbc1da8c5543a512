"""The choices that the papers leave open, bound together by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ckdsnn.losses.arguments import as_stages, check_choice, check_flag, check_in_unit_interval
from ckdsnn.losses.cam_error import ERRORS
from ckdsnn.losses.nld import check_nld_options
from ckdsnn.losses.saliency import TEACHER_MAPS
from ckdsnn.losses.samd import check_samd_options
from ckdsnn.models.registry import nearest

Options = TypeVar("Options", "SAMDOptions", "NLDOptions")


@dataclass(frozen=True)
class SAMDOptions:
    """Options of the SAMD term; see :func:`~ckdsnn.losses.samd_loss` for those of the loss itself.

    Attributes:
        reduction: of spikes over time and channels, ``"mean"`` (also where it is None) or ``"sum"``.
        stages: stages of the student, negative ones counted from the end; the term is the mean over them.
        teacher_stages: the teacher's stage for each of ``stages``; None for the same.
        teacher_map: which of the teacher's maps, see :func:`~ckdsnn.losses.saliency_map`.
        student_map: ``"sam"``, or ``"grad_cam"`` of the student (CAM-CAM, an ablation).
        cam_error: which share of the teacher's maps is replaced by wrong ones, in [0, 1] (an experiment), see
            :func:`~ckdsnn.losses.cam_error.with_error`.
        cam_error_kind: how they are wrong, see :func:`~ckdsnn.losses.cam_error.wrong_maps`.
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
    cam_error: float = 0.0
    cam_error_kind: str = "shift"

    def __post_init__(self) -> None:
        check_samd_options(self.normalisation, self.scaling, self.temperature, self.temperature_factor)
        for name in ("stages", "teacher_stages"):
            stages = getattr(self, name)
            if name == "stages" or stages is not None:
                object.__setattr__(self, name, as_stages(stages, name))
        if self.teacher_stages is not None and len(self.teacher_stages) != len(self.stages):
            raise ValueError(
                f"teacher_stages {self.teacher_stages} must name one stage for each of stages {self.stages}"
            )
        for name, value, known in (
            ("reduction", "mean" if self.reduction is None else self.reduction, ("mean", "sum")),
            ("teacher_map", self.teacher_map, TEACHER_MAPS),
            ("student_map", self.student_map, ("sam", "grad_cam")),
            ("cam_error_kind", self.cam_error_kind, ERRORS),
        ):
            check_choice(value, name, known)
        check_in_unit_interval(self.cam_error, "cam_error")
        if self.student_map == "grad_cam" and self.reduction is not None:
            raise ValueError(f"reduction={self.reduction!r} is only used with student_map='sam'; leave it out")


@dataclass(frozen=True)
class NLDOptions:
    """Options of the NLD term; see :func:`~ckdsnn.losses.nld_loss`.

    Attributes:
        learnable_strength: learn lambda, starting at ``strength``, together with the student.  It stays in (0, 1)
            where probabilities are mixed, and above 0 elsewhere.
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
        check_nld_options(
            self.temperature,
            self.noise,
            self.strength,
            self.distribution,
            self.spread,
            self.sigma,
            self.mixing,
            self.detach_statistics,
        )
        check_flag(self.learnable_strength, "learnable_strength")
        limits = (0, 1) if self.mixing == "probabilities" else (0,)
        if self.learnable_strength and self.strength in limits:
            raise ValueError(f"learnable_strength=True cannot start at the limit, strength={self.strength}")
        if self.noise == "none" and self.learnable_strength:
            raise ValueError("learnable_strength=True is not used with noise='none'; leave it False")


@dataclass(frozen=True)
class Preset:
    """One consistent set of choices: the two terms, the teacher's mode, and the options of the student that belong to
    them."""

    samd: SAMDOptions
    nld: NLDOptions
    teacher_mode: str = "eval"
    student_options: dict[str, str] = dataclasses.field(default_factory=dict)


# "paper" is the equations as printed.  Where accounts of them differ: the text averages spikes over time and channels,
# some accounts of the equation sum them (reduction="sum"); of a normalisation before the softmax it says nothing.
# "released-code" is what the authors' code does, in the loss and in the network: spike sums, the batch scaled to
# [0, 1), no T^2 in SAMD, the class map of the predicted class, a teacher in train mode, mixed probabilities, a ReLU for
# the last neuron, and two linear layers, 256 units between them, for the head.
PRESETS: dict[str, Preset] = {
    "default": Preset(SAMDOptions(), NLDOptions()),
    "paper": Preset(SAMDOptions(normalisation="none"), NLDOptions()),
    "released-code": Preset(
        SAMDOptions(
            reduction="sum", normalisation="minmax_batch", temperature_factor=False, teacher_map="class_weights"
        ),
        NLDOptions(spread="variance", mixing="probabilities", detach_statistics=False),
        teacher_mode="train",
        student_options={"last_activation": "relu", "head": "released"},
    ),
}


def preset_named(name: str) -> Preset:
    """The preset of that name.

    Raises:
        TypeError: no name.
        ValueError: unknown name.
    """
    if not isinstance(name, str):
        raise TypeError(f"preset must be a name, got {name!r}")
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}" + nearest(name, list(PRESETS)))
    return PRESETS[name]


def override(options: Options, changes: Mapping[str, Any]) -> Options:
    """``options`` with ``changes``.

    Raises:
        TypeError: an option that does not exist, changes that are no mapping of names to values.
        ValueError: options that do not go together.
    """
    if not isinstance(changes, Mapping):
        kind = type(options).__name__.removesuffix("Options").lower()
        raise TypeError(f"{kind} must be a mapping of options to values, got {changes!r}")
    known = [field.name for field in dataclasses.fields(options)]
    for name in changes:
        if name not in known:
            raise TypeError(f"no option {name!r}" + nearest(name, known))
    return dataclasses.replace(options, **changes)
