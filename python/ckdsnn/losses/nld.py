"""Noise-smoothed logits distillation (NLD): the student's logits are compared after noise of their own scale."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import check_choice, check_flag, check_number, check_temperature, check_tensor
from .divergence import check_logits, kl_divergence
from .precision import full_precision, outside_autocast

NOISES = ("adaptive", "fixed", "none")
DISTRIBUTIONS = ("gaussian", "laplace", "uniform", "gumbel")
MIXINGS = ("logits", "probabilities")
SPREADS = ("std", "variance")
MATCHES = ("std", "mean_abs")
_EULER_GAMMA = 0.5772156649015329
# E|n| of each distribution at mean 0 and variance 1.  Gumbel's is 2*Ein(exp(-gamma))*sqrt(6)/pi.
_MEAN_ABS = {
    "gaussian": math.sqrt(2 / math.pi),
    "laplace": math.sqrt(1 / 2),
    "uniform": math.sqrt(3) / 2,
    "gumbel": 0.7664954154322925,
}


def standard_noise(like: Tensor, distribution: str, generator: torch.Generator, match: str = "std") -> Tensor:
    """Noise of mean 0, in the shape, dtype and device of ``like``, drawn on the generator's device.

    Args:
        distribution: ``"gaussian"``, ``"laplace"``, ``"uniform"`` or ``"gumbel"``.
        match: in what the distributions agree: ``"std"``, standard deviation 1; or ``"mean_abs"``, the mean absolute
            value of a standard gaussian, ``sqrt(2/pi)``, so that gaussian noise is the same with either.

    Raises:
        ValueError: unknown distribution or match.
    """
    check_choice(distribution, "distribution", DISTRIBUTIONS)
    check_choice(match, "match", MATCHES)
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
        if match == "mean_abs":
            noise = noise * (_MEAN_ABS["gaussian"] / _MEAN_ABS[distribution])
    return noise.to(like.device)


def strength_prior(log_ratio: Tensor) -> Tensor:
    """``(r^2 - 1)/2 - log r`` with r a learnt strength over the one that it started with: what keeps it from 0.

    The divergence, for each logit in nats, of gaussian noise of the learnt strength from that of the starting one,
    ``KL(N(0, strength^2) || N(0, start^2))``: 0 at the start, without bound towards zero.  (Variational dropout learns
    its noise under such a divergence: Kingma, Salimans, Welling, NeurIPS 2015.)  Without it nothing holds the strength:
    NLD's divergence is convex in the logits, so noise of mean 0 that is added to them makes it larger on average,
    whatever the student says, and the gradient points to no noise at all.

    Args:
        log_ratio: ``log(strength/start)``, [].

    Example:
        >>> import torch
        >>> from ckdsnn.losses.nld import strength_prior
        >>> strength_prior(torch.tensor([1.0, 0.5]).log())
        tensor([0.0000, 0.3181])
    """
    return torch.expm1(2 * log_ratio) / 2 - log_ratio


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
    match: str | None = None,
) -> Tensor:
    """``tau^2 * KL(softmax(z_te / tau) || p_soft)``, mean over the batch, with noise in p_soft.

    ============== =====================================================================================
    mixing         p_soft
    ============== =====================================================================================
    logits         ``softmax((z_st + lambda*eps) / tau)``
    probabilities  ``(1 - lambda)*softmax(z_st / tau) + lambda*softmax(eps / tau)``
    ============== =====================================================================================

    ``eps = s*n`` with n of mean 0 and variance 1 (or another ``match``), and s the standard deviation of each sample's
    z_st over classes (its variance with ``spread="variance"``; ``sigma`` with ``noise="fixed"``).  The paper adds the
    mean of z_st to eps as well: a constant over classes, which every softmax above cancels, so it is left out.

    CKDSNN (arXiv 2511.06902), section "NLD": adaptive gaussian noise in the logits, lambda 0.1, tau 2.  Its released
    code mixes probabilities, takes the variance for the spread, and lets gradients flow through it.

    Args:
        student_logits: z_st, [B, K].
        teacher_logits: z_te, [B, K]; no gradient flows to it.
        generator: where the noise comes from; its state belongs in the checkpoint.
        temperature: tau > 0.
        noise: ``"adaptive"``, ``"fixed"`` (needs ``sigma``) or ``"none"`` (plain distillation).
        strength: lambda >= 0 (default 0.1), or a scalar tensor that learns it; in [0, 1] with mixing="probabilities",
            where the value of a tensor is clamped to that.
        distribution: see :func:`~ckdsnn.losses.nld.standard_noise` (default gaussian).
        spread: ``"std"`` (default) or ``"variance"``; only with ``noise="adaptive"``.
        sigma: standard deviation > 0 of fixed noise.
        mixing: ``"logits"`` or ``"probabilities"``.
        detach_statistics: no gradient through s; only with ``noise="adaptive"`` does it make a difference.
        match: what n has in common with noise of other distributions, see
            :func:`~ckdsnn.losses.nld.standard_noise` (default std).

    Returns:
        A float32 scalar (float64 for float64), also under autocast.

    Raises:
        TypeError: logits that are no tensors, a generator that is none, numbers that are none.
        ValueError: shapes that differ, one class, unknown names, values out of range or not used.

    Example:
        >>> import torch
        >>> from ckdsnn.losses import nld_loss
        >>> z = torch.tensor([[2.0, 0.0, -1.0]])
        >>> nld_loss(z, z, generator=torch.Generator().manual_seed(0)).item() > 0
        True
    """
    check_logits(student_logits, teacher_logits)
    check_nld_options(temperature, noise, strength, distribution, spread, sigma, mixing, detach_statistics, match)
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {generator!r}")
    student_logits, teacher_logits = full_precision(student_logits), full_precision(teacher_logits.detach())
    if noise == "none":
        return temperature**2 * kl_divergence(teacher_logits, student_logits, temperature)

    log_soft = smoothed(
        student_logits, generator, temperature, strength, distribution, spread, sigma, mixing, detach_statistics, match
    )
    with outside_autocast(student_logits):
        target = torch.log_softmax(teacher_logits / temperature, 1)
        return temperature**2 * F.kl_div(log_soft, target, reduction="batchmean", log_target=True)


def smoothed(
    logits: Tensor,
    generator: torch.Generator,
    temperature: float = 2.0,
    strength: float | Tensor | None = None,
    distribution: str | None = None,
    spread: str | None = None,
    sigma: float | None = None,
    mixing: str = "logits",
    detach_statistics: bool = True,
    match: str | None = None,
) -> Tensor:
    """``log p_soft`` of :func:`nld_loss`, [B, K], for logits [B, K] in float32 or float64 and checked options."""
    strength = 0.1 if strength is None else strength
    with outside_autocast(logits):
        eps = standard_noise(logits, distribution or "gaussian", generator, match or "std")
        if sigma is not None:
            eps = eps * sigma
        else:
            basis = logits.detach() if detach_statistics else logits
            eps = eps * (basis.var(1, keepdim=True) if spread == "variance" else basis.std(1, keepdim=True))
        if mixing == "logits":
            return torch.log_softmax((logits + strength * eps) / temperature, 1)
        return _log_mixture(
            torch.log_softmax(logits / temperature, 1), torch.log_softmax(eps / temperature, 1), strength
        )


def _log_mixture(log_p: Tensor, log_q: Tensor, share: float | Tensor) -> Tensor:
    """``log((1 - share)*p + share*q)`` without leaving the logarithms, in which nothing underflows."""
    if isinstance(share, Tensor):
        eps = torch.finfo(log_p.dtype).eps
        share = share.to(log_p.dtype).clamp(eps, 1 - eps)
        return torch.logaddexp(log_p + torch.log1p(-share), log_q + torch.log(share))
    if share == 0:
        return log_p
    if share == 1:
        return log_q
    return torch.logaddexp(log_p + math.log1p(-share), log_q + math.log(share))


def check_nld_options(
    temperature: Any,
    noise: Any,
    strength: Any,
    distribution: Any,
    spread: Any,
    sigma: Any,
    mixing: Any,
    detach_statistics: Any,
    match: Any = None,
) -> None:
    """Raises ValueError where the options of :func:`nld_loss` are unknown, out of range or contradict each other.

    TypeError for numbers that are none, and for a detach_statistics that is not True or False.
    """
    check_temperature(temperature)
    check_choice(noise, "noise", NOISES)
    check_choice("gaussian" if distribution is None else distribution, "distribution", DISTRIBUTIONS)
    check_choice("std" if spread is None else spread, "spread", SPREADS)
    check_choice("std" if match is None else match, "match", MATCHES)
    check_choice(mixing, "mixing", MIXINGS)
    check_flag(detach_statistics, "detach_statistics")
    if noise == "none":
        unused = {
            "strength": strength, "distribution": distribution, "match": match, "spread": spread, "sigma": sigma
        }  # fmt: skip
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
        if sigma is None:
            raise ValueError("noise='fixed' needs sigma > 0, got None")
        check_number(sigma, "sigma", above=0)
    if isinstance(strength, Tensor):
        check_tensor(strength, "strength")
        if strength.numel() != 1:
            raise ValueError(f"strength must be one number, got a tensor {list(strength.shape)}")
    elif strength is not None:
        check_number(strength, "strength", low=0)
        if mixing == "probabilities" and strength > 1:
            raise ValueError(f"strength must be in [0, 1] with mixing='probabilities', got {strength}")
