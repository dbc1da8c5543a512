"""CKDSNN: SAMD and NLD, together and each alone."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ckdsnn.models.outputs import ANNOutput, SNNOutput
from ckdsnn.option_types import NotNegative

from .base import Method, SeededOptions, register_method
from .presets import PRESETS, NLDOptions, PresetOptions, SAMDOptions
from .terms import NLDTerm, SAMDTerm


class _PresetMethod(Method):
    """What the three have in common: a preset, and what it says of teacher and student."""

    Options = PresetOptions
    options: PresetOptions

    def __init__(self, options: PresetOptions | None) -> None:
        super().__init__(options)
        preset = PRESETS[self.options.preset]
        self.teacher_mode, self.student_options = preset.teacher_mode, dict(preset.student_options)

    def _need_maps(self, term: SAMDTerm) -> None:
        self.sam_stages = term.sam_stages
        self.student_feature_stages = term.stages
        self.teacher_map = term.options.teacher_map
        self.teacher_map_stages = term.teacher_stages


@register_method("samd")
class SAMD(_PresetMethod):
    """``CE(z_st, y) + weight * L_SAMD``: the student's spike activation map follows the teacher's saliency map.

    CKDSNN (AAAI 2026, arXiv 2511.06902), section "SAMD"; see :func:`~ckdsnn.losses.samd_loss` for the equation.
    """

    @dataclass(frozen=True)
    class Options(SeededOptions, PresetOptions):
        """
        Attributes:
            weight: of the term (beta of the paper).
            samd: the term; a configuration gives its options beside the others.
        """

        flat = "samd"
        weight: NotNegative = 1.0
        samd: SAMDOptions = None  # type: ignore[assignment]  # the preset's

    options: Options

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self.samd = SAMDTerm(self.options.samd, self.options.seed)
        self._need_maps(self.samd)

    def distill(
        self, student: SNNOutput, teacher: ANNOutput, target: Tensor, epoch: float | Tensor
    ) -> dict[str, Tensor]:
        return {"samd": self.options.weight * self.samd(student, teacher, target)}


@register_method("nld")
class NLD(_PresetMethod):
    """``CE(z_st, y) + weight * L_NLD``: logit distillation with noise of the logits' own scale.

    CKDSNN (AAAI 2026, arXiv 2511.06902), section "NLD"; see :func:`~ckdsnn.losses.nld_loss` for the equation.
    """

    @dataclass(frozen=True)
    class Options(SeededOptions, PresetOptions):
        """
        Attributes:
            weight: of the term (gamma of the paper).
            nld: the term; a configuration gives its options beside the others.
        """

        flat = "nld"
        weight: NotNegative = 1.0
        nld: NLDOptions = None  # type: ignore[assignment]  # the preset's

    options: Options

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self.nld = NLDTerm(self.options.nld, self.options.seed)

    def distill(
        self, student: SNNOutput, teacher: ANNOutput, target: Tensor, epoch: float | Tensor
    ) -> dict[str, Tensor]:
        return {"nld": self.options.weight * self.nld(student, teacher)}


@register_method("ckd")
class CKD(_PresetMethod):
    """``CE(z_st, y) + beta * L_SAMD + gamma * L_NLD``, the method of CKDSNN (AAAI 2026, arXiv 2511.06902)."""

    @dataclass(frozen=True)
    class Options(SeededOptions, PresetOptions):
        """
        Attributes:
            beta: weight of SAMD.
            gamma: weight of NLD.
            samd: options of SAMD that replace those of the preset.
            nld: options of NLD that replace those of the preset.
        """

        beta: NotNegative = 1.0
        gamma: NotNegative = 1.0
        samd: SAMDOptions = None  # type: ignore[assignment]  # the preset's
        nld: NLDOptions = None  # type: ignore[assignment]  # the preset's

    options: Options

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self.samd = SAMDTerm(self.options.samd, self.options.seed)
        self.nld = NLDTerm(self.options.nld, self.options.seed)
        self._need_maps(self.samd)

    def distill(
        self, student: SNNOutput, teacher: ANNOutput, target: Tensor, epoch: float | Tensor
    ) -> dict[str, Tensor]:
        return {
            "samd": self.options.beta * self.samd(student, teacher, target),
            "nld": self.options.gamma * self.nld(student, teacher),
        }
