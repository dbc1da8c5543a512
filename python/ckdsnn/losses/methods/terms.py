"""The SAMD and the NLD term as modules, shared by the methods that are made of them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ckdsnn.losses.cam_error import with_error
from ckdsnn.losses.nld import nld_loss, smoothed, strength_prior
from ckdsnn.losses.saliency import grad_cam_and_resolution, saliency_map
from ckdsnn.losses.samd import samd_loss
from ckdsnn.models.outputs import ANNOutput, SNNOutput, pick_stage, resolve_stage

from .base import NoiseSource
from .presets import NLDOptions, SAMDOptions

DEFAULT_STRENGTH, DEFAULT_PRIOR = 0.1, 0.1


class SAMDTerm(nn.Module):
    """:func:`~ckdsnn.losses.samd_loss` of student and teacher outputs, mean over the stages.

    Args:
        options: of the term.
        seed: of errors in the teacher's maps, where they are drawn.
    """

    def __init__(self, options: SAMDOptions, seed: int = 0) -> None:
        super().__init__()
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

    What is learnt is ``strength_shift``, s below and 0 at the start: the strength is
    ``start * softplus(s + log(e - 1))``, or where probabilities are mixed ``sigmoid(s + logit(start))``.  So it stays
    where it has a meaning, and weight decay draws it to where it started.  The term then has in it the prior of
    :func:`~ckdsnn.losses.nld.strength_prior`.
    """

    def __init__(self, options: NLDOptions, seed: int) -> None:
        super().__init__()
        self.options = options
        self.noise = NoiseSource(seed)
        self.strength_shift = nn.Parameter(torch.zeros(())) if options.learnable_strength else None

    @property
    def strength(self) -> float | Tensor | None:
        """lambda: the option's, None for the default of the loss, or what was learnt, [] float32."""
        return self.options.strength if self.strength_shift is None else self._learnt(self.strength_shift)[0]

    def _learnt(self, shift: Tensor) -> tuple[Tensor, Tensor]:
        """The strength, and the logarithm of its ratio to the starting one, which has slopes where it is all but 0."""
        start = DEFAULT_STRENGTH if self.options.strength is None else float(self.options.strength)
        if self.options.mixing == "probabilities":
            raw = shift + math.log(start / (1 - start))
            return raw.sigmoid(), F.logsigmoid(raw) - math.log(start)
        raw = shift + math.log(math.e - 1)
        near = F.softplus(raw.clamp_min(-15)).log()  # below, softplus is exp to the last bit of float32
        return start * F.softplus(raw), torch.where(raw > -15, near, raw)

    def smoothed(self, logits: Tensor, generator: torch.Generator, temperature: float | None = None) -> Tensor:
        """The logarithm of what the student's probabilities are with this noise in them, [B, K], for logits [B, K].

        Args:
            generator: of the noise, on the logits' device or on the CPU.
            temperature: None: that of the term.
        """
        options, strength = self.options, self.strength
        temperature = options.temperature if temperature is None else temperature
        if options.noise == "none":
            return torch.log_softmax(logits / temperature, 1)
        return smoothed(
            logits,
            generator,
            temperature,
            strength.to(logits.device) if isinstance(strength, Tensor) else strength,
            options.distribution,
            options.spread,
            options.sigma,
            options.mixing,
            options.detach_statistics,
            options.match,
        )

    def forward(self, student: SNNOutput, teacher: ANNOutput) -> Tensor:
        loss = nld_loss(
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
            match=self.options.match,
        )
        weight = DEFAULT_PRIOR if self.options.strength_prior is None else self.options.strength_prior
        if self.strength_shift is not None and weight > 0:
            loss = loss + weight * strength_prior(self._learnt(self.strength_shift)[1])
        return loss
