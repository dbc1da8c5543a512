"""Selective alignment: errors of single time steps are corrected, and the rest of their dynamics is left alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ckdsnn.losses.divergence import kd_loss
from ckdsnn.models.outputs import ANNOutput, SNNOutput
from ckdsnn.option_types import NotNegative, Positive

from .base import Method, register_method, step_cross_entropy


@register_method("seal")
class SeAl(Method):
    """``mean_t CE(z_t, y) + alpha * ELA + beta * STA``, SeAl-KD.

    Error-aware logit alignment (ELA) takes the wrong class w = argmax z_t out of the comparison with the teacher where
    the time step t errs, w != y, by giving it the logit of the right one:

    ``ELA = mean_t tau^2 * KL(softmax(z_te' / tau) || softmax(z_t' / tau))``, where z_t' is z_t with
    ``z_t'[w] = z_t[y]``, and z_te' is z_te with ``z_te'[w] = z_te'[y] = min(z_te[w], z_te[y])``.

    Selective temporal alignment (STA) draws each time step towards the others, and most towards those that are sure of
    themselves and like it:

    ``STA = mean_i tau^2 * KL(softmax(sum_j W_ij z_j / tau) || softmax(z_i / tau))``, where
    ``W_ij = softmax_j(c_j * cos(z_i, z_j))`` over j != i, ``c_j = 1 - H(softmax(z_j)) / log K``, and no gradient flows
    through the target.  It is 0 with one time step.

    Sun et al.: Not all timesteps matter equally: selective alignment knowledge distillation for spiking neural networks
    (2026, arXiv 2605.14252); the terms are those of its public code, the weights those of its commands.
    """

    @dataclass(frozen=True)
    class Options(Method.Options):
        """
        Attributes:
            alpha: weight of ELA.
            beta: weight of STA.
            tau: temperature of both.
        """

        alpha: NotNegative = 0.6
        beta: NotNegative = 0.15
        tau: Positive = 3.0

    options: Options

    def cross_entropy(self, student: SNNOutput, target: Tensor) -> Tensor:
        return step_cross_entropy(student, target, self.options.label_smoothing)

    def distill(
        self, student: SNNOutput, teacher: ANNOutput, target: Tensor, epoch: float | Tensor
    ) -> dict[str, Tensor]:
        options = self.options
        return {
            "ela": options.alpha * error_aware_loss(student.step_logits, teacher.logits, target, options.tau),
            "sta": options.beta * temporal_loss(student.step_logits, options.tau),
        }


def error_aware_loss(step_logits: Tensor, teacher_logits: Tensor, target: Tensor, tau: float) -> Tensor:
    """ELA of :class:`SeAl`.

    Args:
        step_logits: [T, B, K].
        teacher_logits: [B, K]; no gradient flows to it.
        target: int64 [B].
        tau: temperature > 0.
    """
    steps = len(step_logits)
    logits, wanted = step_logits.flatten(0, 1), teacher_logits.detach().repeat(steps, 1)
    right = target.repeat(steps)[:, None]
    chosen = logits.detach().argmax(1, keepdim=True)
    # Where the time step is right, the two classes are one, and nothing changes.
    lower = torch.minimum(wanted.gather(1, right), wanted.gather(1, chosen))
    return kd_loss(
        logits.scatter(1, chosen, logits.gather(1, right)),
        wanted.scatter(1, right, lower).scatter(1, chosen, lower),
        tau,
    )


def temporal_loss(step_logits: Tensor, tau: float) -> Tensor:
    """STA of :class:`SeAl`; ``step_logits`` is [T, B, K]."""
    steps, _, classes = step_logits.shape
    if steps == 1:
        return step_logits.new_zeros(())
    with torch.no_grad():
        log_p = torch.log_softmax(step_logits, 2)
        confidence = 1 + (log_p.exp() * log_p).sum(2) / math.log(classes)
        unit = F.normalize(step_logits, dim=2)
        score = torch.einsum("ibk,jbk->bij", unit, unit) * confidence.T[:, None, :]
        itself = torch.eye(steps, dtype=torch.bool, device=score.device)
        weights = score.masked_fill(itself, -torch.inf).softmax(2)
        others = torch.einsum("bij,jbk->ibk", weights, step_logits)
    return kd_loss(step_logits.flatten(0, 1), others.flatten(0, 1), tau)
