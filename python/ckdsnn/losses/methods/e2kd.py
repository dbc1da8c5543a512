"""Explanation-enhanced knowledge distillation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ckdsnn.losses.divergence import kd_loss
from ckdsnn.losses.resize import resize_to
from ckdsnn.losses.saliency import grad_cam_and_resolution, saliency_map
from ckdsnn.losses.scaling import unit_length
from ckdsnn.models.outputs import ANNOutput, SNNOutput, pick_stage
from ckdsnn.option_types import NotNegative, Positive

from .base import Method, register_method


@register_method("e2kd")
class E2KD(Method):
    """``CE(z_st, y) + weight * KD + explanation_weight * mean (1 - cos(E_te, E_st))``.

    E are the Grad-CAM maps of the last stage for the class that the teacher predicts; the student's by surrogate
    gradients where neurons lie between, with the channel weights as constants.

    Parchami-Araghi et al.: Good teachers explain: explanation-enhanced knowledge distillation (ECCV 2024).  There the
    labels are not used; here, as in all methods of this package, they are.
    """

    @dataclass(frozen=True)
    class Options(Method.Options):
        """
        Attributes:
            tau: temperature.
            weight: of the logit distillation.
            explanation_weight: of the maps.
        """

        tau: Positive = 4.0
        weight: NotNegative = 1.0
        explanation_weight: NotNegative = 1.0

    options: Options

    student_feature_stages = teacher_map_stages = (-1,)
    teacher_map = "grad_cam_predicted"

    def distill(
        self, student: SNNOutput, teacher: ANNOutput, target: Tensor, epoch: float | Tensor
    ) -> dict[str, Tensor]:
        features = pick_stage(student.features, -1, "the student's features")
        ours, resolution = grad_cam_and_resolution(student.step_logits, features, teacher.logits.argmax(1))
        theirs = teacher.cams[-1] if -1 in teacher.cams else saliency_map(self.teacher_map, teacher, -1, target)
        theirs = resize_to(theirs, ours.shape[1:]).detach()
        cosine = (unit_length(ours, resolution)[0] * unit_length(theirs)[0]).sum((1, 2))
        return {
            "kd": self.options.weight * kd_loss(student.logits, teacher.logits, self.options.tau),
            "explanation": self.options.explanation_weight * (1 - cosine).mean(),
        }
