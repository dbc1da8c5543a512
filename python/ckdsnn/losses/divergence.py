"""Kullback-Leibler divergences between temperature-softened logits: what most distillation losses are made of."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .arguments import check_temperature, check_tensor
from .precision import full_precision, outside_autocast


def check_logits(student_logits: Tensor, teacher_logits: Tensor) -> None:
    """Raises TypeError unless both are floating-point tensors, ValueError unless both are [B, K] with K >= 2."""
    check_tensor(student_logits, "student_logits")
    check_tensor(teacher_logits, "teacher_logits")
    if student_logits.shape != teacher_logits.shape or student_logits.dim() != 2:
        raise ValueError(
            "student_logits and teacher_logits must both be [B, K], got "
            f"{list(student_logits.shape)} and {list(teacher_logits.shape)}; teacher and student need the same classes"
        )
    if student_logits.shape[1] < 2:
        raise ValueError(
            f"student_logits and teacher_logits must be of at least 2 classes, got {list(student_logits.shape)}; "
            "the distribution over one class teaches nothing"
        )


def kl_divergence(target_logits: Tensor, logits: Tensor, temperature: float = 1.0) -> Tensor:
    """``KL(softmax(target_logits / temperature) || softmax(logits / temperature))``, mean over the batch.

    Args:
        target_logits, logits: [B, K] or [B, ...]; the distribution runs over dimension 1.
        temperature: > 0.

    Returns:
        A float32 scalar (float64 for float64); gradients flow to both arguments.
    """
    target = F.log_softmax(full_precision(target_logits) / temperature, dim=1)
    return F.kl_div(
        F.log_softmax(full_precision(logits) / temperature, dim=1), target, reduction="batchmean", log_target=True
    )


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, tau: float = 4.0) -> Tensor:
    """Logit distillation: ``tau^2 * KL(softmax(z_te / tau) || softmax(z_st / tau))``, mean over the batch.

    Hinton, Vinyals, Dean: Distilling the knowledge in a neural network (2015), equation 1 with the tau^2 of section 2.

    Args:
        student_logits: z_st, [B, K].
        teacher_logits: z_te, [B, K]; no gradient flows to it.
        tau: temperature, > 0.

    Returns:
        A float32 scalar (float64 for float64), also under autocast.

    Raises:
        TypeError: logits that are no tensors, a tau that is no number.
        ValueError: shapes differ, one class, or tau <= 0.

    Example:
        >>> import torch
        >>> from ckdsnn.losses import kd_loss
        >>> z = torch.tensor([[1.0, 2.0, 3.0]])
        >>> kd_loss(z, z).item()
        0.0
    """
    check_logits(student_logits, teacher_logits)
    check_temperature(tau, "tau")
    with outside_autocast(student_logits):
        return tau**2 * kl_divergence(teacher_logits.detach(), student_logits, tau)
