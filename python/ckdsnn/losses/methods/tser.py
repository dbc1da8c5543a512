"""Temporal separation with entropy regularisation."""

from __future__ import annotations

import torch
from torch import Tensor

from ckdsnn.losses.arguments import check_in_unit_interval, check_temperature, check_weights
from ckdsnn.losses.divergence import check_logits, kd_loss
from ckdsnn.models.outputs import ANNOutput, SNNOutput

from .base import Method, register_method, step_cross_entropy


@register_method("tser")
class TSER(Method):
    """``(1-a) * mean_t CE(z_t, y) + a * tau^2 * mean_t KL(p_te || softmax(z_t/tau)) - g * mean_t H(softmax(z_t/u))``.

    z_t are the logits of time step t.  Called CET-RED in some tables.

    Yu et al.: Temporal separation with entropy regularization for knowledge distillation in spiking neural networks
    (CVPR 2025).  Accounts of the equation differ in the temperature of the entropy: some soften its distribution by
    tau like that of the divergence (``entropy_tau=tau``); here it is that of the logits themselves unless said
    otherwise.  The defaults of a, tau and g are ours.

    Args:
        alpha: a, in [0, 1].
        tau: temperature > 0.
        entropy: g >= 0.
        entropy_tau: u > 0, temperature of the entropy.
        label_smoothing: in [0, 1].
    """

    def __init__(
        self,
        alpha: float = 0.5,
        tau: float = 4.0,
        entropy: float = 0.1,
        label_smoothing: float = 0.0,
        entropy_tau: float = 1.0,
    ) -> None:
        super().__init__(label_smoothing)
        check_temperature(tau, "tau")
        check_in_unit_interval(alpha, "alpha")
        check_weights(entropy=entropy)
        check_temperature(entropy_tau, "entropy_tau")
        self.alpha, self.tau, self.entropy, self.entropy_tau = alpha, tau, entropy, entropy_tau

    def cross_entropy(self, student: SNNOutput, target: Tensor) -> Tensor:
        return (1 - self.alpha) * step_cross_entropy(student, target, self.label_smoothing)

    def distill(
        self, student: SNNOutput, teacher: ANNOutput, target: Tensor, epoch: float | Tensor
    ) -> dict[str, Tensor]:
        log_q = torch.log_softmax(student.step_logits / self.entropy_tau, dim=-1)
        mean_entropy = -(log_q.exp() * log_q).sum(-1).mean()
        return {
            "kd": self.alpha * step_kd_loss(student, teacher, self.tau),
            "entropy": -self.entropy * mean_entropy,
        }


def step_kd_loss(student: SNNOutput, teacher: ANNOutput, tau: float) -> Tensor:
    """``tau^2 * mean_t KL(softmax(z_te/tau) || softmax(z_t/tau))``, mean over the batch."""
    check_logits(student.logits, teacher.logits)
    steps = len(student.step_logits)
    return kd_loss(student.step_logits.flatten(0, 1), teacher.logits.repeat(steps, 1), tau)
