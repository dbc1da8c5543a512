"""Head-tail-aware divergence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ckdsnn.losses.arguments import check_number, check_temperature
from ckdsnn.losses.divergence import check_logits
from ckdsnn.losses.precision import full_precision, outside_autocast
from ckdsnn.models.outputs import ANNOutput, SNNOutput
from ckdsnn.option_types import NotNegative, Positive, Within

from .base import Method, register_method


def hta_kl_loss(student_logits: Tensor, teacher_logits: Tensor, tau: float, head_mass: float) -> Tensor:
    """``tau^2 * (w_head * KL(p || q) + w_tail * KL(q || p))``, mean over the batch.

    p and q are the softened distributions of teacher and student.  The head is the fewest classes that the teacher
    gives at least ``head_mass``, the tail the rest; w_head and w_tail are the shares of ``sum |p - q|`` that lie there,
    without gradient.

    Args:
        student_logits, teacher_logits: [B, K]; no gradient flows to the teacher's.
        tau: temperature > 0.
        head_mass: in (0, 1).

    Example:
        >>> import torch
        >>> from ckdsnn.losses.methods.hta_kl import hta_kl_loss
        >>> z = torch.tensor([[1.0, 2.0, 3.0]])
        >>> hta_kl_loss(z, z, tau=4.0, head_mass=0.5).item()
        0.0
    """
    check_logits(student_logits, teacher_logits)
    check_temperature(tau, "tau")
    check_number(head_mass, "head_mass")
    if not 0.0 < head_mass < 1.0:
        raise ValueError(f"head_mass must be in (0, 1), got {head_mass}")
    with outside_autocast(student_logits):
        return _hta_kl(student_logits, teacher_logits, tau, head_mass)


def _hta_kl(student_logits: Tensor, teacher_logits: Tensor, tau: float, head_mass: float) -> Tensor:
    log_q = torch.log_softmax(full_precision(student_logits) / tau, 1)
    log_p = torch.log_softmax(full_precision(teacher_logits).detach() / tau, 1)
    p, q = log_p.exp(), log_q.exp()

    ordered, order = p.sort(dim=1, descending=True)
    before = ordered.cumsum(1) - ordered  # mass of the classes ahead of this one
    head = torch.zeros_like(p).scatter(1, order, (before < head_mass).to(p.dtype))

    gap = (p - q.detach()).abs()
    total = gap.sum(1).clamp_min(torch.finfo(p.dtype).tiny)
    w_head = (gap * head).sum(1) / total
    forward, reverse = (p * (log_p - log_q)).sum(1), (q * (log_q - log_p)).sum(1)
    return tau**2 * (w_head * forward + (1 - w_head) * reverse).mean()


@register_method("hta_kl")
class HTAKL(Method):
    """``CE(z_st, y) + weight * tau^2 * (w_head * KL(p_te || p_st) + w_tail * KL(p_st || p_te))``.

    Forward divergence where the teacher's likely classes are off, reverse divergence where its unlikely ones are; see
    :func:`hta_kl_loss`.

    Zhang et al.: Head-tail-aware KL divergence in knowledge distillation for spiking neural networks (2025, arXiv
    2504.20445).  The paper's abstract fixes the split by cumulative probability and the adaptive weights; weighting by
    ``|p - q|`` follows the adaptive KL divergence of Wu et al. (2024), and the defaults are ours.
    """

    @dataclass(frozen=True)
    class Options(Method.Options):
        """
        Attributes:
            tau: temperature.
            weight: of the distillation.
            head_mass: probability that makes the head.
        """

        tau: Positive = 4.0
        weight: NotNegative = 1.0
        head_mass: Annotated[float, Within(above=0, below=1)] = 0.5

    options: Options

    def distill(
        self, student: SNNOutput, teacher: ANNOutput, target: Tensor, epoch: float | Tensor
    ) -> dict[str, Tensor]:
        loss = hta_kl_loss(student.logits, teacher.logits, self.options.tau, self.options.head_mass)
        return {"hta_kl": self.options.weight * loss}
