"""Noise-smoothed logits distillation (NLD): the student's logits are compared after noise of their own scale."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .divergence import check_logits, check_temperature, full_precision, kl_divergence

NOISES = ("adaptive", "fixed", "none")
DISTRIBUTIONS = ("gaussian", "laplace", "uniform", "gumbel")
MIXINGS = ("logits", "probabilities")
SPREADS = ("std", "variance")
_EULER_GAMMA = 0.5772156649015329


def standard_noise(like: Tensor, distribution: str, generator: torch.Generator) -> Tensor:
    """Noise of mean 0 and variance 1, in the shape, dtype and device of ``like``, drawn on the generator's device.

    Args:
        distribution: ``"gaussian"``, ``"laplace"``, ``"uniform"`` or ``"gumbel"``.

    Raises:
        ValueError: unknown distribution.
    """
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"distribution must be one of {', '.join(DISTRIBUTIONS)}, got {distribution!r}")
    noise = torch.empty(like.shape, dtype=like.dtype, device=generator.device)
    if distribution == "gaussian":
        noise.normal_(generator=generator)
    else:
        # Open interval: the logarithms below must stay finite.
        limits = torch.finfo(like.dtype)
        u = noise.uniform_(generator=generator).clamp(limits.tiny, 1 - limits.eps)
        if distribution == "uniform":
            noise = (2 * u - 1) * math.sqrt(3)
        elif distribution == "laplace":
            centred = u - 0.5
            noise = -centred.sign() * torch.log1p(-2 * centred.abs() + limits.eps) / math.sqrt(2)
        else:
            noise = (-torch.log(-torch.log(u)) - _EULER_GAMMA) * (math.sqrt(6) / math.pi)
    return noise.to(like.device)


def nld_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    generator: torch.Generator,
    temperature: float = 2.0,
    noise: str = "adaptive",
    strength: float | Tensor | None = None,
    distribution: str | None = None,
    spread: str | None = None,
    sigma: float | None = None,
    mixing: str = "logits",
    detach_statistics: bool = True,
) -> Tensor:
    """``tau^2 * KL(softmax(z_te / tau) || p_soft)``, mean over the batch, with noise in p_soft.

    ============== =====================================================================================
    mixing         p_soft
    ============== =====================================================================================
    logits         ``softmax((z_st + lambda*eps) / tau)``
    probabilities  ``(1 - lambda)*softmax(z_st / tau) + lambda*softmax(eps / tau)``
    ============== =====================================================================================

    ``eps = s*n`` with n of mean 0 and variance 1, and s the standard deviation of each sample's z_st over classes
    (its variance with ``spread="variance"``; ``sigma`` with ``noise="fixed"``).  The paper adds the mean of z_st to
    eps as well: a constant over classes, which every softmax above cancels, so it is left out.

    CKDSNN (arXiv 2511.06902), section "NLD": adaptive gaussian noise in the logits, lambda 0.1, tau 2.  Its released
    code mixes probabilities, takes the variance for the spread, and lets gradients flow through it.

    Args:
        student_logits: z_st, [B, K].
        teacher_logits: z_te, [B, K]; no gradient flows to it.
        generator: where the noise comes from; its state belongs in the checkpoint.
        temperature: tau > 0.
        noise: ``"adaptive"``, ``"fixed"`` (needs ``sigma``) or ``"none"`` (plain distillation).
        strength: lambda >= 0 (default 0.1), or a scalar tensor that learns it; in [0, 1] with mixing="probabilities".
        distribution: see :func:`standard_noise` (default gaussian).
        spread: ``"std"`` (default) or ``"variance"``; only with ``noise="adaptive"``.
        sigma: standard deviation > 0 of fixed noise.
        mixing: ``"logits"`` or ``"probabilities"``.
        detach_statistics: no gradient through s; only with ``noise="adaptive"`` does it make a difference.

    Returns:
        A float32 scalar (float64 for float64).

    Raises:
        ValueError: shapes that differ, unknown names, values out of range or not used.

    Example:
        >>> import torch
        >>> from ckdsnn.losses import nld_loss
        >>> z = torch.tensor([[2.0, 0.0, -1.0]])
        >>> nld_loss(z, z, generator=torch.Generator().manual_seed(0)).item() > 0
        True
    """
    check_logits(student_logits, teacher_logits)
    check_temperature(temperature)
    check_nld_options(noise, strength, distribution, spread, sigma, mixing)
    student_logits, teacher_logits = full_precision(student_logits), full_precision(teacher_logits.detach())
    if noise == "none":
        return temperature**2 * kl_divergence(teacher_logits, student_logits, temperature)

    strength = 0.1 if strength is None else strength
    eps = standard_noise(student_logits, distribution or "gaussian", generator)
    if sigma is not None:
        eps = eps * sigma
    else:
        basis = student_logits.detach() if detach_statistics else student_logits
        eps = eps * (basis.var(1, keepdim=True) if spread == "variance" else basis.std(1, keepdim=True))
    if mixing == "logits":
        return temperature**2 * kl_divergence(teacher_logits, student_logits + strength * eps, temperature)
    smoothed = torch.softmax(student_logits / temperature, 1), torch.softmax(eps / temperature, 1)
    log_mixed = torch.log((1 - strength) * smoothed[0] + strength * smoothed[1] + torch.finfo(eps.dtype).tiny)
    target = torch.log_softmax(teacher_logits / temperature, 1)
    return temperature**2 * F.kl_div(log_mixed, target, reduction="batchmean", log_target=True)


def check_nld_options(
    noise: str,
    strength: float | Tensor | None,
    distribution: str | None,
    spread: str | None,
    sigma: float | None,
    mixing: str,
) -> None:
    """Raises ValueError where the options of :func:`nld_loss` are unknown, out of range or contradict each other."""
    for name, choice, known in (
        ("noise", noise, NOISES),
        ("distribution", distribution or "gaussian", DISTRIBUTIONS),
        ("spread", spread or "std", SPREADS),
        ("mixing", mixing, MIXINGS),
    ):
        if choice not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {choice!r}")
    if noise == "none":
        unused = {"strength": strength, "distribution": distribution, "spread": spread, "sigma": sigma}
        for name, value in unused.items():
            if value is not None:
                raise ValueError(f"{name}={value!r} is not used with noise='none'; leave it out")
        if mixing != "logits":
            raise ValueError("mixing='probabilities' needs noise; there is nothing to mix with noise='none'")
    if noise == "adaptive" and sigma is not None:
        raise ValueError(f"sigma={sigma} is only used with noise='fixed'")
    if noise == "fixed":
        if spread is not None:
            raise ValueError(f"spread={spread!r} is only used with noise='adaptive'; fixed noise has sigma")
        if sigma is None or not sigma > 0:
            raise ValueError(f"noise='fixed' needs sigma > 0, got {sigma}")
    if isinstance(strength, (int, float)):
        if strength < 0:
            raise ValueError(f"strength must be >= 0, got {strength}")
        if mixing == "probabilities" and strength > 1:
            raise ValueError(f"strength must be in [0, 1] with mixing='probabilities', got {strength}")
