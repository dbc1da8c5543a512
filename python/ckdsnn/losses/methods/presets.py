"""The choices that the papers leave open, bound together by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ckdsnn.losses.cam_error import ERRORS
from ckdsnn.losses.nld import DISTRIBUTIONS, MATCHES, MIXINGS, NOISES, SPREADS, check_nld_options
from ckdsnn.losses.saliency import TEACHER_MAPS
from ckdsnn.losses.samd import NORMALISATIONS, SCALINGS, check_samd_options
from ckdsnn.option_types import NotNegative, OneOf, Positive, Share, Stages
from ckdsnn.registry import Options, nearest

from .base import Method


@dataclass(frozen=True)
class SAMDOptions(Options):
    """Options of the SAMD term; see :func:`~ckdsnn.losses.samd_loss` for those of the loss itself.

    Attributes:
        reduction: of spikes over time and channels; None: the mean.
        normalisation: of the maps before they are scaled.
        scaling: how maps are scaled and compared.
        temperature: of the softmax; None: 2.
        temperature_factor: whether the softmax's term is multiplied by the squared temperature; None: yes.
        stages: of the student, negative ones counted from the end; the term is the mean over them.
        teacher_stages: the teacher's stage for each of ``stages``; None: the same.
        teacher_map: which of the teacher's maps, see :func:`~ckdsnn.losses.saliency_map`.
        student_map: the spike activation map, or Grad-CAM of the student (CAM-CAM, an ablation).
        cam_error: which share of the teacher's maps is replaced by wrong ones (an experiment), see
            :func:`~ckdsnn.losses.cam_error.with_error`.
        cam_error_kind: how they are wrong, see :func:`~ckdsnn.losses.cam_error.wrong_maps`.
    """

    reduction: Literal["mean", "sum"] | None = None
    normalisation: Annotated[str, OneOf(tuple(NORMALISATIONS))] = "minmax"
    scaling: Annotated[str, OneOf(SCALINGS)] = "softmax"
    temperature: Positive | None = None
    temperature_factor: bool | None = None
    stages: Stages = (-1,)
    teacher_stages: Stages | None = None
    teacher_map: Annotated[str, OneOf(TEACHER_MAPS)] = "grad_cam"
    student_map: Literal["sam", "grad_cam"] = "sam"
    cam_error: Share = 0.0
    cam_error_kind: Annotated[str, OneOf(ERRORS)] = "shift"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_samd_options(self.normalisation, self.scaling, self.temperature, self.temperature_factor)
        if self.teacher_stages is not None and len(self.teacher_stages) != len(self.stages):
            raise ValueError(
                f"teacher_stages {self.teacher_stages} must name one stage for each of stages {self.stages}"
            )
        if self.student_map == "grad_cam" and self.reduction is not None:
            raise ValueError(f"reduction={self.reduction!r} is only used with student_map='sam'; leave it out")


@dataclass(frozen=True)
class NLDOptions(Options):
    """Options of the NLD term; see :func:`~ckdsnn.losses.nld_loss`.

    Attributes:
        temperature: of both softmaxes.
        noise: of the logits' own scale, of the standard deviation ``sigma``, or none.
        strength: lambda; None: 0.1.
        distribution: of the noise; None: gaussian.
        spread: of each sample's logits, by which adaptive noise is scaled; None: std.
        sigma: standard deviation of fixed noise.
        mixing: whether noise is added to logits or mixed into probabilities.
        detach_statistics: no gradient through the spread.
        match: in what noise of other distributions agrees with the Gaussian one, see
            :func:`~ckdsnn.losses.nld.standard_noise`; None: the standard deviation.
        learnable_strength: learn lambda, starting at ``strength``, together with the student.  It stays in (0, 1)
            where probabilities are mixed, and above 0 elsewhere.
        strength_prior: weight >= 0 (default 0.1) of :func:`~ckdsnn.losses.nld.strength_prior` in the term, which keeps
            a strength that is learnt from 0; only with ``learnable_strength``.
    """

    temperature: Positive = 2.0
    noise: Annotated[str, OneOf(NOISES)] = "adaptive"
    strength: NotNegative | None = None
    distribution: Annotated[str, OneOf(DISTRIBUTIONS)] | None = None
    spread: Annotated[str, OneOf(SPREADS)] | None = None
    sigma: Positive | None = None
    mixing: Annotated[str, OneOf(MIXINGS)] = "logits"
    detach_statistics: bool = True
    learnable_strength: bool = False
    match: Annotated[str, OneOf(MATCHES)] | None = None
    strength_prior: NotNegative | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_nld_options(
            self.temperature,
            self.noise,
            self.strength,
            self.distribution,
            self.spread,
            self.sigma,
            self.mixing,
            self.detach_statistics,
            self.match,
        )
        limits = (0, 1) if self.mixing == "probabilities" else (0,)
        if self.learnable_strength and self.strength in limits:
            raise ValueError(f"learnable_strength=True cannot start at the limit, strength={self.strength}")
        if self.noise == "none" and self.learnable_strength:
            raise ValueError("learnable_strength=True is not used with noise='none'; leave it False")
        if self.strength_prior is not None and not self.learnable_strength:
            raise ValueError(
                f"strength_prior={self.strength_prior} is only used with learnable_strength=True; leave it out"
            )


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


@dataclass(frozen=True)
class PresetOptions(Method.Options):
    """Options of the methods that are made of the two terms. Options of a term that are not given are the preset's.

    Attributes:
        preset: of the terms' options, the teacher's mode and the student's options; what else is given replaces them.
    """

    preset: Annotated[str, OneOf(tuple(PRESETS))] = "default"

    def __post_init__(self) -> None:
        for term in {"samd", "nld"} & {field.name for field in dataclasses.fields(self)}:
            if getattr(self, term) is None:
                object.__setattr__(self, term, self.base_of(term, {"preset": self.preset}))
        super().__post_init__()

    @classmethod
    def base_of(cls, name: str, values: Mapping[str, Any]) -> Options:
        made: Options = getattr(preset_named(values.get("preset", "default")), name)
        return made
