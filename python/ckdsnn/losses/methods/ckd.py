"""CKDSNN: SAMD and NLD, together and each alone."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from ckdsnn.losses.arguments import check_weights
from ckdsnn.models.outputs import ANNOutput, SNNOutput

from .base import Method, register_method
from .presets import NLDOptions, Preset, SAMDOptions, override, preset_named
from .terms import NLDTerm, SAMDTerm


class _PresetMethod(Method):
    """What the three have in common: a preset, and what it says of teacher and student."""

    def __init__(self, preset: str, label_smoothing: float) -> None:
        super().__init__(label_smoothing)
        self.preset: Preset = preset_named(preset)
        self.teacher_mode = self.preset.teacher_mode
        self.student_options = dict(self.preset.student_options)

    def _need_maps(self, term: SAMDTerm) -> None:
        self.sam_stages = term.sam_stages
        self.student_feature_stages = term.stages
        self.teacher_map = term.options.teacher_map
        self.teacher_map_stages = term.teacher_stages


@register_method("samd")
class SAMD(_PresetMethod):
    """``CE(z_st, y) + weight * L_SAMD``: the student's spike activation map follows the teacher's saliency map.

    CKDSNN (AAAI 2026, arXiv 2511.06902), section "SAMD"; see :func:`~ckdsnn.losses.samd_loss` for the equation.

    Args:
        preset: ``"default"``, ``"paper"`` or ``"released-code"``.
        weight: of the term (beta of the paper).
        label_smoothing: in [0, 1].
        seed: of errors in the teacher's maps (``cam_error``), where they are drawn.
        options: fields of :class:`SAMDOptions` that replace those of the preset.
    """

    option_fields = tuple(field.name for field in dataclasses.fields(SAMDOptions))

    def __init__(
        self,
        preset: str = "default",
        weight: float = 1.0,
        label_smoothing: float = 0.0,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(preset, label_smoothing)
        check_weights(weight=weight)
        self.weight = weight
        self.samd = SAMDTerm(override(self.preset.samd, options), seed)
        self._need_maps(self.samd)

    def distill(
        self, student: SNNOutput, teacher: ANNOutput, target: Tensor, epoch: float | Tensor
    ) -> dict[str, Tensor]:
        return {"samd": self.weight * self.samd(student, teacher, target)}


@register_method("nld")
class NLD(_PresetMethod):
    """``CE(z_st, y) + weight * L_NLD``: logit distillation with noise of the logits' own scale.

    CKDSNN (AAAI 2026, arXiv 2511.06902), section "NLD"; see :func:`~ckdsnn.losses.nld_loss` for the equation.

    Args:
        preset: ``"default"``, ``"paper"`` or ``"released-code"``.
        weight: of the term (gamma of the paper).
        label_smoothing: in [0, 1].
        seed: of the noise.
        options: fields of :class:`NLDOptions` that replace those of the preset.
    """

    option_fields = tuple(field.name for field in dataclasses.fields(NLDOptions))

    def __init__(
        self,
        preset: str = "default",
        weight: float = 1.0,
        label_smoothing: float = 0.0,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(preset, label_smoothing)
        check_weights(weight=weight)
        self.weight = weight
        self.nld = NLDTerm(override(self.preset.nld, options), seed)

    def distill(
        self, student: SNNOutput, teacher: ANNOutput, target: Tensor, epoch: float | Tensor
    ) -> dict[str, Tensor]:
        return {"nld": self.weight * self.nld(student, teacher)}


@register_method("ckd")
class CKD(_PresetMethod):
    """``CE(z_st, y) + beta * L_SAMD + gamma * L_NLD``, the method of CKDSNN (AAAI 2026, arXiv 2511.06902).

    Args:
        preset: ``"default"``, ``"paper"`` or ``"released-code"``.
        beta: weight of SAMD.
        gamma: weight of NLD.
        label_smoothing: in [0, 1].
        seed: of the noise, and of errors in the teacher's maps (``cam_error``).
        samd: fields of :class:`SAMDOptions` that replace those of the preset.
        nld: fields of :class:`NLDOptions` that replace those of the preset.
    """

    def __init__(
        self,
        preset: str = "default",
        beta: float = 1.0,
        gamma: float = 1.0,
        label_smoothing: float = 0.0,
        seed: int = 0,
        samd: dict[str, Any] | None = None,
        nld: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(preset, label_smoothing)
        check_weights(beta=beta, gamma=gamma)
        self.beta = beta
        self.gamma = gamma
        self.samd = SAMDTerm(override(self.preset.samd, {} if samd is None else samd), seed)
        self.nld = NLDTerm(override(self.preset.nld, {} if nld is None else nld), seed)
        self._need_maps(self.samd)

    def distill(
        self, student: SNNOutput, teacher: ANNOutput, target: Tensor, epoch: float | Tensor
    ) -> dict[str, Tensor]:
        return {
            "samd": self.beta * self.samd(student, teacher, target),
            "nld": self.gamma * self.nld(student, teacher),
        }
