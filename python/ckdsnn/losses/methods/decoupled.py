"""Distillation decoupled over time steps."""

from __future__ import annotations

from torch import Tensor

from ckdsnn.losses.arguments import check_temperature, check_weights
from ckdsnn.losses.divergence import kd_loss
from ckdsnn.models.outputs import ANNOutput, SNNOutput

from .base import Method, register_method, step_cross_entropy
from .tser import step_kd_loss


@register_method("decoupled")
class Decoupled(Method):
    """``mean_t [CE(z_t, y) + alpha * tau^2 * KL(p_te || q_t) + beta * tau^2 * KL(p_st || q_t)]``.

    q_t = softmax(z_t/tau) is a time step's distribution, p_te = softmax(z_te/tau) the teacher's, and p_st =
    softmax(mean_t z_t/tau) the student's own average, as a target without gradient.

    Yu et al.: Efficient logit-based knowledge distillation of deep spiking neural networks for full-range timestep
    deployment (ICML 2025).

    Args:
        alpha: weight of the teacher.
        beta: weight of the self-distillation.
        tau: temperature > 0.
        label_smoothing: in [0, 1].
    """

    def __init__(self, alpha: float = 0.2, beta: float = 0.5, tau: float = 3.0, label_smoothing: float = 0.0) -> None:
        super().__init__(label_smoothing)
        check_temperature(tau, "tau")
        check_weights(alpha=alpha, beta=beta)
        self.alpha, self.beta, self.tau = alpha, beta, tau

    def cross_entropy(self, student: SNNOutput, target: Tensor) -> Tensor:
        return step_cross_entropy(student, target, self.label_smoothing)

    def distill(
        self, student: SNNOutput, teacher: ANNOutput, target: Tensor, epoch: float | Tensor
    ) -> dict[str, Tensor]:
        own = student.logits.repeat(len(student.step_logits), 1)
        return {
            "kd": self.alpha * step_kd_loss(student, teacher, self.tau),
            "self": self.beta * kd_loss(student.step_logits.flatten(0, 1), own, self.tau),
        }
