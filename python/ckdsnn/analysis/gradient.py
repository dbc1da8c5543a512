"""How wrong is Grad-CAM on a spiking network?  Its channel weights by surrogates, and by two references without any."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ckd_kernels.surrogate import Surrogate
from ckdsnn.analysis.tail import NoisyThresholds, Tail

BUDGET = 2**22  # values of features that are computed at a time
GROUPS = 16  # independent estimates of a smoothed gradient


def surrogate_weights(tail: Tail, features: Tensor, target: Tensor) -> Tensor:
    """Grad-CAM's channel weights through the surrogates that the neurons have (or of a network without neurons).

    ``w_c = 1/(H*W) * sum_{t,h,w} dS/dF[t,c,h,w]`` with S the target's logit, averaged over time.

    Args:
        features: F, [T, B, C, H, W], or [B, C, H, W] of a conventional network.
        target: int64 [B].

    Returns:
        [B, C].
    """
    with torch.enable_grad():
        leaf = features.detach().requires_grad_()
        score = tail(leaf).gather(1, target[:, None]).sum()
    return channel_weights(torch.autograd.grad(score, leaf)[0])


def channel_weights(gradient: Tensor) -> Tensor:
    """Sum over time and mean over positions of a gradient [T, B, C, H, W] or [B, C, H, W]: [B, C]."""
    return (gradient.sum(0) if gradient.dim() == 5 else gradient).mean((2, 3))


@torch.no_grad()
def finite_difference_weights(tail: Tail, features: Tensor, target: Tensor, step: float) -> Tensor:
    """The same weights by central differences, ``w_c = (S(F + step*1_c) - S(F - step*1_c)) / (2*step*H*W)``.

    1_c is 1 in channel c at all positions and time steps, so two forward passes make one weight exactly.  It is the
    slope of S along 1_c averaged over [-step, step], S being a step function: 0 almost everywhere, and undefined where
    a neuron is about to fire.  What it says depends on the step.

    Args:
        features, target: see :func:`surrogate_weights`.
        step: > 0, in units of the features (a spike is 1).

    Returns:
        [B, C].
    """
    channels, batch = features.shape[-3], len(target)
    directions = step * torch.eye(channels, dtype=features.dtype, device=features.device)
    parts = []
    for some in directions.split(max(1, BUDGET // (2 * features.numel()))):
        both = torch.cat([some, -some])  # [2n, C]
        shifted = features.unsqueeze(-5) + both[:, None, :, None, None]  # [(T,) 2n, B, C, H, W]
        scores = tail(shifted.flatten(-5, -4)).gather(1, target.repeat(len(both))[:, None]).view(len(both), batch)
        parts.append(scores[: len(some)] - scores[len(some) :])
    positions = features.shape[-2] * features.shape[-1]
    return torch.cat(parts).T / (2 * step * positions)


@dataclass(frozen=True)
class Smoothed:
    """An estimated gradient of the expected output.

    Attributes:
        groups: channel weights of independent estimates, [GROUPS, B, C]; their mean is the estimate.
        draws: noise samples behind the mean.
        same: share of draws in which the noisy network says the class that the network says without noise.
    """

    groups: Tensor
    draws: int
    same: float

    @property
    def weights(self) -> Tensor:
        """[B, C]."""
        return self.groups.mean(0)

    def repeatability(self) -> dict[int, Tensor]:
        """Cosine of two independent estimates [B], by the draws of each."""
        count = len(self.groups)
        sizes = [n for n in (1, 2, 4, 8) if 2 * n <= count]
        return {n * self.draws // count: cosine(self.groups[:n].mean(0), self.groups[n : 2 * n].mean(0)) for n in sizes}

    def ceiling(self) -> float:
        """The mean cosine that the exact gradient would have with this estimate: the root of its reliability.

        From two halves that agree to r, by Spearman and Brown's formula, ``sqrt(2r/(1 + r))``.
        """
        r = max(0.0, float(list(self.repeatability().values())[-1].mean()))
        return (2 * r / (1 + r)) ** 0.5


def smoothed_weights(
    tail: Tail, features: Tensor, target: Tensor, sigma: float, draws: int, generator: torch.Generator
) -> Smoothed:
    """The channel weights of the gradient of the *expected* output under noise at the thresholds.

    ``E[S]`` is a smooth function of F, and its gradient is estimated by likelihood ratios, without the derivative of a
    spike (Williams 1992; Glynn 1990): ``E[(S - b) * dlog p(spikes | F)/dF + dS/dF]``, where p is the probability of the
    spikes that were drawn, F enters it by every neuron that reads F, dS/dF is what reaches the logits past all neurons,
    and b is the mean score of the other draws.  Unbiased for any network; see
    :class:`~ckdsnn.analysis.tail.NoisyThresholds` for the noise.

    Args:
        features: F, [T, B, C, H, W].
        target: int64 [B].
        sigma: of the noise, > 0.
        draws: noise samples, rounded up so that each of the groups has an even number of 4 at least.
        generator: on the features' device.
    """
    each = max(4, 2 * -(-draws // (2 * GROUPS)))
    at_once = max(4, min(each, BUDGET // features.numel() // 2 * 2))
    with torch.no_grad():
        plain = tail(features).argmax(1)
    groups, same = [], 0.0
    with NoisyThresholds(tail, sigma, generator) as noisy:
        for _ in range(GROUPS):
            total, done = torch.zeros_like(features[0, :, :, 0, 0]), 0
            while done < each:
                count = at_once if each - done >= at_once + 4 or each - done == at_once else each - done
                weights, agree = _likelihood_ratio(noisy, tail, features, target, count, plain)
                total, done, same = total + count * weights, done + count, same + count * agree
            groups.append(total / each)
    return Smoothed(torch.stack(groups), GROUPS * each, same / (GROUPS * each))


def _likelihood_ratio(
    noisy: NoisyThresholds, tail: Tail, features: Tensor, target: Tensor, count: int, plain: Tensor
) -> tuple[Tensor, float]:
    """Channel weights [B, C] from `count` draws, and the share in which the network says what it says without noise."""
    batch = len(target)
    noisy.start()
    with torch.enable_grad():
        leaf = features.detach().requires_grad_()
        copies = leaf.unsqueeze(1).expand(-1, count, *leaf.shape[1:]).flatten(1, 2)
        logits = tail(copies)
        score = logits.gather(1, target.repeat(count)[:, None]).view(count, batch)
        value = score.detach()
        pair = value + value.roll(count // 2, 0)  # a draw and its antithetic one
        baseline = (value.sum(0) - pair) / (count - 2)
        objective = score.sum()
        if isinstance(noisy.score, Tensor):
            objective = objective + ((value - baseline) * noisy.score.view(count, batch)).sum()
    gradient = torch.autograd.grad(objective / count, leaf)[0]
    same = (logits.detach().argmax(1).view(count, batch) == plain).double().mean()
    return channel_weights(gradient), float(same)


def map_of(weights: Tensor, features: Tensor) -> Tensor:
    """Grad-CAM's map, ``relu(sum_c w_c mean_t F_tc)``: [B, H, W].

    Args:
        weights: [B, C].
        features: [T, B, C, H, W].
    """
    return torch.einsum("bchw,bc->bhw", features.mean(0), weights).relu()


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """Of each pair of vectors [B, C] or maps [B, H, W]: [B]; 0 where one is zero.

    Example:
        >>> cosine(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[4.0, 3.0], [1.0, 0.0]]))
        tensor([0.9600, 0.0000])
    """
    return F.cosine_similarity(first.flatten(1), second.flatten(1), dim=1, eps=1e-20)


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's, over the positions of each pair of maps [B, H, W]: [B]; 0 where one is constant.

    Example:
        >>> round(correlation(torch.tensor([[[0.0, 1.0, 2.0]]]), torch.tensor([[[5.0, 7.0, 9.0]]])).item(), 4)
        1.0
    """
    return cosine(*(m.flatten(1) - m.flatten(1).mean(1, keepdim=True) for m in (first, second)))


def angle(cosines: Tensor) -> Tensor:
    """In degrees, from 0 to 180.

    Example:
        >>> angle(torch.tensor([1.0, 0.5, -1.0])).round()
        tensor([  0.,  60., 180.])
    """
    return torch.rad2deg(torch.arccos(cosines.double().clamp(-1, 1))).to(cosines.dtype)


def full_width(surrogate: Surrogate) -> float:
    """Full width at half maximum of a surrogate derivative, in units of the potential.

    What alpha means differs from one surrogate to the next; this does not.

    Example:
        >>> from ckd_kernels import surrogate
        >>> full_width(surrogate.Triangle(2.0)), round(full_width(surrogate.Sigmoid(4.0)), 4)
        (0.5, 0.8814)
    """

    def derivative(u: float) -> float:
        return float(surrogate.derivative(torch.tensor(u, dtype=torch.float64)))

    low, high, half = 0.0, 1.0, derivative(0.0) / 2
    while derivative(high) >= half:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if derivative(middle) >= half else (low, middle)
    return round(low + high, 12)
