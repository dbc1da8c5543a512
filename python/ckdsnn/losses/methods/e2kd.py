"""Explanation-enhanced knowledge distillation."""

from __future__ import annotations

from torch import Tensor

from ckdsnn.losses.arguments import check_temperature, check_weights
from ckdsnn.losses.divergence import kd_loss
from ckdsnn.losses.resize import resize_to
from ckdsnn.losses.saliency import grad_cam_and_resolution, saliency_map
from ckdsnn.losses.scaling import unit_length
from ckdsnn.models.outputs import ANNOutput, SNNOutput, pick_stage

from .base import Method, register_method


@register_method("e2kd")
class E2KD(Method):
    """``CE(z_st, y) + weight * KD + explanation_weight * mean (1 - cos(E_te, E_st))``.

    E are the Grad-CAM maps of the last stage for the class that the teacher predicts; the student's by surrogate
    gradients where neurons lie between, with the channel weights as constants.

    Parchami-Araghi et al.: Good teachers explain: explanation-enhanced knowledge distillation (ECCV 2024).  There the
    labels are not used; here, as in all methods of this package, they are.

    Args:
        tau: temperature > 0.
        weight: of the logit distillation.
        explanation_weight: of the maps.
        label_smoothing: in [0, 1].
    """

    def __init__(
        self, tau: float = 4.0, weight: float = 1.0, explanation_weight: float = 1.0, label_smoothing: float = 0.0
    ) -> None:
        super().__init__(label_smoothing)
        check_temperature(tau, "tau")
        check_weights(weight=weight, explanation_weight=explanation_weight)
        self.tau, self.weight, self.explanation_weight = tau, weight, explanation_weight
        self.student_feature_stages = self.teacher_map_stages = (-1,)
        self.teacher_map = "grad_cam_predicted"

    def distill(
        self, student: SNNOutput, teacher: ANNOutput, target: Tensor, epoch: float | Tensor
    ) -> dict[str, Tensor]:
        features = pick_stage(student.features, -1, "the student's features")
        ours, resolution = grad_cam_and_resolution(student.step_logits, features, teacher.logits.argmax(1))
        theirs = teacher.cams[-1] if -1 in teacher.cams else saliency_map(self.teacher_map, teacher, -1, target)
        theirs = resize_to(theirs, ours.shape[1:]).detach()
        cosine = (unit_length(ours, resolution)[0] * unit_length(theirs)[0]).sum((1, 2))
        return {
            "kd": self.weight * kd_loss(student.logits, teacher.logits, self.tau),
            "explanation": self.explanation_weight * (1 - cosine).mean(),
        }
