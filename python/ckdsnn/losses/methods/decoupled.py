"""Distillation decoupled over time steps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ckdsnn.losses.divergence import kd_loss
from ckdsnn.models.outputs import ANNOutput, SNNOutput
from ckdsnn.option_types import NotNegative, Positive

from .base import Method, register_method, step_cross_entropy
from .tser import step_kd_loss


@register_method("decoupled")
class Decoupled(Method):
    """``mean_t [CE(z_t, y) + alpha * tau^2 * KL(p_te || q_t) + beta * tau^2 * KL(p_st || q_t)]``.

    q_t = softmax(z_t/tau) is a time step's distribution, p_te = softmax(z_te/tau) the teacher's, and p_st =
    softmax(mean_t z_t/tau) the student's own average, as a target without gradient.

    Yu et al.: Efficient logit-based knowledge distillation of deep spiking neural networks for full-range timestep
    deployment (ICML 2025).
    """

    @dataclass(frozen=True)
    class Options(Method.Options):
        """
        Attributes:
            alpha: weight of the teacher.
            beta: weight of the self-distillation.
            tau: temperature.
        """

        alpha: NotNegative = 0.2
        beta: NotNegative = 0.5
        tau: Positive = 3.0

    options: Options

    def cross_entropy(self, student: SNNOutput, target: Tensor) -> Tensor:
        return step_cross_entropy(student, target, self.options.label_smoothing)

    def distill(
        self, student: SNNOutput, teacher: ANNOutput, target: Tensor, epoch: float | Tensor
    ) -> dict[str, Tensor]:
        options, own = self.options, student.logits.repeat(len(student.step_logits), 1)
        return {
            "kd": options.alpha * step_kd_loss(student, teacher, options.tau),
            "self": options.beta * kd_loss(student.step_logits.flatten(0, 1), own, options.tau),
        }
