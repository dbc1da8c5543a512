"""The SAMD and the NLD term as modules, shared by the methods that are made of them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ckdsnn.losses.arguments import check_whole
from ckdsnn.losses.cam_error import with_error
from ckdsnn.losses.nld import nld_loss
from ckdsnn.losses.saliency import grad_cam_and_resolution, saliency_map
from ckdsnn.losses.samd import samd_loss
from ckdsnn.models.outputs import ANNOutput, SNNOutput, pick_stage, resolve_stage

from .base import NoiseSource
from .presets import NLDOptions, SAMDOptions


class SAMDTerm(nn.Module):
    """:func:`~ckdsnn.losses.samd_loss` of student and teacher outputs, mean over the stages.

    Args:
        options: of the term.
        seed: of errors in the teacher's maps, where they are drawn.
    """

    def __init__(self, options: SAMDOptions, seed: int = 0) -> None:
        super().__init__()
        check_whole(seed, "seed", low=0)
        self.noise: NoiseSource | None = None
        if options.cam_error > 0 and options.cam_error_kind != "shift":
            self.noise = NoiseSource(seed + 2**31)  # beyond the seeds that people choose: not the stream of NLD
        self.options = options
        self.stages = options.stages
        self.teacher_stages = options.stages if options.teacher_stages is None else options.teacher_stages
        self.sam_stages = options.stages if options.student_map == "sam" else ()

    def forward(self, student: SNNOutput, teacher: ANNOutput, target: Tensor) -> Tensor:
        losses = []
        for stage, teacher_stage in zip(self.stages, self.teacher_stages, strict=True):
            student_map, resolution = self._student_map(student, stage, target)
            losses.append(
                samd_loss(
                    student_map,
                    self._teacher_map(teacher, teacher_stage, target),
                    normalisation=self.options.normalisation,
                    scaling=self.options.scaling,
                    temperature=self.options.temperature,
                    temperature_factor=self.options.temperature_factor,
                    resolution=resolution,
                )
            )
        return torch.stack(losses).mean()

    def _student_map(self, student: SNNOutput, stage: int, target: Tensor) -> tuple[Tensor, float | Tensor]:
        """The map, and half of what one spike adds to it: half, so that rounding does not matter."""
        number = resolve_stage(stage, max(student.features))
        features = student.features[number]
        if self.options.student_map == "grad_cam":
            return grad_cam_and_resolution(student.step_logits, features, target)
        sam = pick_stage(student.sams, number, "spike activation maps")
        fired = features.shape[0] * features.shape[2]
        return (sam * fired, 0.5) if self.options.reduction == "sum" else (sam, 0.5 / fired)

    def _teacher_map(self, teacher: ANNOutput, stage: int, target: Tensor) -> Tensor:
        if stage in teacher.cams:
            maps = teacher.cams[stage]
        else:
            maps = saliency_map(self.options.teacher_map, teacher, stage, target)
        generator = None if self.noise is None else self.noise.generator
        return with_error(maps, self.options.cam_error, self.options.cam_error_kind, generator)


class NLDTerm(nn.Module):
    """:func:`~ckdsnn.losses.nld_loss` with its generator and, where it is learnt, its strength.

    A strength that is learnt stays where it has a meaning: it is the sigmoid of a parameter where probabilities are
    mixed, and the softplus of it where noise is added to logits.
    """

    def __init__(self, options: NLDOptions, seed: int) -> None:
        super().__init__()
        self.options = options
        self.noise = NoiseSource(seed)
        self.raw_strength: nn.Parameter | None = None
        if options.learnable_strength:
            start = 0.1 if options.strength is None else options.strength
            raw = math.log(start / (1 - start)) if options.mixing == "probabilities" else math.log(math.expm1(start))
            self.raw_strength = nn.Parameter(torch.tensor(raw))

    @property
    def strength(self) -> float | Tensor | None:
        """lambda: the option's, None for the default of the loss, or what was learnt, [] float32."""
        if self.raw_strength is None:
            return self.options.strength
        return self.raw_strength.sigmoid() if self.options.mixing == "probabilities" else F.softplus(self.raw_strength)

    def forward(self, student: SNNOutput, teacher: ANNOutput) -> Tensor:
        return nld_loss(
            student.logits,
            teacher.logits,
            generator=self.noise.generator,
            temperature=self.options.temperature,
            noise=self.options.noise,
            strength=self.strength,
            distribution=self.options.distribution,
            spread=self.options.spread,
            sigma=self.options.sigma,
            mixing=self.options.mixing,
            detach_statistics=self.options.detach_statistics,
        )
