"""Temporal separation with entropy regularisation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ckdsnn.losses.divergence import check_logits, kd_loss
from ckdsnn.models.outputs import ANNOutput, SNNOutput
from ckdsnn.option_types import NotNegative, Positive, Share

from .base import Method, register_method, step_cross_entropy


@register_method("tser")
class TSER(Method):
    """``(1-a) * mean_t CE(z_t, y) + a * tau^2 * mean_t KL(p_te || softmax(z_t/tau)) - g * mean_t H(softmax(z_t/u))``.

    z_t are the logits of time step t.  Called CET-RED in some tables.

    Yu et al.: Temporal separation with entropy regularization for knowledge distillation in spiking neural networks
    (CVPR 2025).  Accounts of the equation differ in the temperature of the entropy: some soften its distribution by
    tau like that of the divergence (``entropy_tau=tau``); here it is that of the logits themselves unless said
    otherwise.  The defaults of a, tau and g are ours.
    """

    @dataclass(frozen=True)
    class Options(Method.Options):
        """
        Attributes:
            alpha: a, weight of the teacher against that of the labels.
            tau: temperature.
            entropy: g, weight of the entropy.
            entropy_tau: u, temperature of the entropy.
        """

        alpha: Share = 0.5
        tau: Positive = 4.0
        entropy: NotNegative = 0.1
        entropy_tau: Positive = 1.0

    options: Options

    def cross_entropy(self, student: SNNOutput, target: Tensor) -> Tensor:
        return (1 - self.options.alpha) * step_cross_entropy(student, target, self.options.label_smoothing)

    def distill(
        self, student: SNNOutput, teacher: ANNOutput, target: Tensor, epoch: float | Tensor
    ) -> dict[str, Tensor]:
        options = self.options
        log_q = torch.log_softmax(student.step_logits / options.entropy_tau, dim=-1)
        mean_entropy = -(log_q.exp() * log_q).sum(-1).mean()
        return {
            "kd": options.alpha * step_kd_loss(student, teacher, options.tau),
            "entropy": -options.entropy * mean_entropy,
        }


def step_kd_loss(student: SNNOutput, teacher: ANNOutput, tau: float) -> Tensor:
    """``tau^2 * mean_t KL(softmax(z_te/tau) || softmax(z_t/tau))``, mean over the batch."""
    check_logits(student.logits, teacher.logits)
    steps = len(student.step_logits)
    return kd_loss(student.step_logits.flatten(0, 1), teacher.logits.repeat(steps, 1), tau)
