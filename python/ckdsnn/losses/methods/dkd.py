"""Decoupled knowledge distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ckdsnn.losses.arguments import check_target, check_temperature, check_weights
from ckdsnn.losses.divergence import check_logits, kl_divergence
from ckdsnn.losses.precision import full_precision, outside_autocast
from ckdsnn.models.outputs import ANNOutput, SNNOutput
from ckdsnn.option_types import NotNegative, Positive, Within

from .base import Method, register_method


def dkd_loss(
    student_logits: Tensor, teacher_logits: Tensor, target: Tensor, alpha: float, beta: float, tau: float
) -> Tensor:
    """``tau^2 * (alpha * TCKD + beta * NCKD)``, mean over the batch.

    TCKD is the divergence between the distributions (target, all others), NCKD that among the others.

    Args:
        student_logits, teacher_logits: [B, K]; no gradient flows to the teacher's.
        target: int64 [B].
        alpha, beta: weights.
        tau: temperature > 0.

    Example:
        >>> import torch
        >>> from ckdsnn.losses.methods.dkd import dkd_loss
        >>> z = torch.tensor([[1.0, 2.0, 3.0]])
        >>> dkd_loss(z, z, torch.tensor([0]), alpha=1.0, beta=8.0, tau=4.0).item()
        0.0
    """
    check_logits(student_logits, teacher_logits)
    check_target(target, *student_logits.shape)
    check_weights(alpha=alpha, beta=beta)
    check_temperature(tau, "tau")
    classes = torch.arange(student_logits.shape[1] - 1, device=target.device)
    # The others by number, not by mask, whose number of elements the device would have to tell first.
    others = classes + (classes >= target[:, None])

    def split(logits: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of the target's probability against all others', and the logits of the others."""
        logits = full_precision(logits)
        rest = logits.gather(1, others)
        own = logits.gather(1, target[:, None])[:, 0]
        return torch.stack([own / tau, torch.logsumexp(rest / tau, 1)], dim=1), rest

    with outside_autocast(student_logits):
        student_binary, student_others = split(student_logits)
        teacher_binary, teacher_others = split(teacher_logits.detach())
        tckd = kl_divergence(teacher_binary, student_binary)
        nckd = kl_divergence(teacher_others, student_others, tau)
        return tau**2 * (alpha * tckd + beta * nckd)


@register_method("dkd")
class DKD(Method):
    """``CE(z_st, y) + w * tau^2 * (alpha * TCKD + beta * NCKD)``, w rising linearly to 1 over ``warmup`` epochs.

    Zhao et al.: Decoupled knowledge distillation (CVPR 2022), equation 7; defaults of its code for CIFAR-100.
    """

    @dataclass(frozen=True)
    class Options(Method.Options):
        """
        Attributes:
            alpha: weight of the target class against all others.
            beta: weight of the classes that are not the target.
            tau: temperature.
            warmup: epochs until the distillation has its full weight; the first has 1/warmup of it, so 1 is no warm-up.
        """

        alpha: NotNegative = 1.0
        beta: NotNegative = 8.0
        tau: Positive = 4.0
        warmup: Annotated[int, Within(low=1)] = 20

    options: Options

    def distill(
        self, student: SNNOutput, teacher: ANNOutput, target: Tensor, epoch: float | Tensor
    ) -> dict[str, Tensor]:
        options = self.options
        dkd = dkd_loss(student.logits, teacher.logits, target, options.alpha, options.beta, options.tau)
        return {"dkd": self._rise(epoch, dkd) * dkd}

    def _rise(self, epoch: float | Tensor, like: Tensor) -> float | Tensor:
        """The weight in ``epoch``, the same number from a tensor as from a Python number."""
        if not isinstance(epoch, Tensor):
            return min((int(epoch) + 1) / self.options.warmup, 1.0)
        done = epoch.floor().to(like.dtype) + 1
        # Divided by a tensor: on a GPU, division by a number is multiplication by its reciprocal.
        return (done / torch.full_like(done, self.options.warmup)).clamp(max=1.0)
