"""Random numbers that are a function of a seed, an epoch and a sample alone, and alike on every device.

The generator is SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): it has no state but a counter, so that the numbers of
any sample come at once, in any order, by any process.
"""

from __future__ import annotations

from enum import IntEnum

from torch import Tensor

GAMMA, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mixed(*numbers: int) -> int:
    """64 bits that depend on every number and on their order; neighbouring numbers give unrelated bits."""
    state = 0
    for number in numbers:
        state = (state + GAMMA * (number + 1)) % 2**64
        state = ((state ^ (state >> 30)) * FIRST) % 2**64
        state = ((state ^ (state >> 27)) * SECOND) % 2**64
        state ^= state >> 31
    return state


class Draw(IntEnum):
    """What a sample's draws decide. Each has its number for good, so that no option changes what another one does."""

    SUB_POLICY = 0
    FIRST_APPLIED = 1
    SECOND_APPLIED = 2
    FIRST_SIGN = 3
    SECOND_SIGN = 4
    SHIFT_Y = 5
    SHIFT_X = 6
    FLIP = 7
    ERASED = 8
    ERASE_AREA = 9
    ERASE_RATIO = 10
    ERASE_Y = 11
    ERASE_X = 12
    CUTOUT_Y = 13
    CUTOUT_X = 14


class Draws:
    """The random numbers of some samples in one epoch.

    Args:
        seed, epoch: any integers.
        indices: int64 [N], the samples' positions in the data set; on any device, where the draws then lie.

    Example:
        >>> draws = Draws(0, 3, torch.arange(1000))
        >>> draws.uniform(Draw.FLIP).shape
        torch.Size([1000])
        >>> part = Draws(0, 3, torch.arange(500, 1000))
        >>> bool(torch.equal(draws.uniform(Draw.FLIP)[500:], part.uniform(Draw.FLIP)))
        True
    """

    def __init__(self, seed: int, epoch: int, indices: Tensor) -> None:
        self._sample = _mix(indices * _signed(GAMMA) + _signed(mixed(seed, epoch)))

    def bits(self, draw: int) -> Tensor:
        """The draw of every sample, int64 [N] in [0, 2**24)."""
        return _shifted(_mix(self._sample + _signed(GAMMA * (draw + 1) % 2**64)), 40)

    def uniform(self, draw: int) -> Tensor:
        """The draw as float32 [N] in [0, 1), without rounding."""
        return self.bits(draw).float() * 2.0**-24

    def below(self, draw: int, limit: int | Tensor) -> Tensor:
        """The draw as int64 [N] in [0, limit); `limit` up to 2**24, a number or int64 [N]."""
        return (self.bits(draw) * limit) >> 24


def _mix(state: Tensor) -> Tensor:
    state = (state ^ _shifted(state, 30)) * _signed(FIRST)
    state = (state ^ _shifted(state, 27)) * _signed(SECOND)
    return state ^ _shifted(state, 31)


def _shifted(state: Tensor, places: int) -> Tensor:
    """A logical shift to the right, which torch's is not: that repeats the sign."""
    return (state >> places) & (2 ** (64 - places) - 1)


def _signed(bits: int) -> int:
    """The int64 of these 64 bits."""
    return bits - 2**64 if bits >= 2**63 else bits
