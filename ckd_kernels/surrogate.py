"""Surrogate derivatives of the firing step.

A spike is a Heaviside step of ``u = h - threshold``; its derivative is zero almost
everywhere, so the backward pass uses a smooth stand-in instead (Neftci et al.,
"Surrogate Gradient Learning in Spiking Neural Networks", 2019).  Each class below is
one stand-in: its ``name``, its sharpness ``alpha``, its ``derivative`` (what every
backend computes, in this order of operations) and its ``primitive`` (the smooth step
whose derivative it is).

To add one, see CONTRIBUTING.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real  # NumPy's numbers, too
from typing import ClassVar

import torch
from torch import Tensor

__all__ = [
    "ATan",
    "Erf",
    "FastSigmoid",
    "PiecewiseExp",
    "Rectangle",
    "Sigmoid",
    "SoftSign",
    "SuperSpike",
    "Surrogate",
    "Triangle",
]


def _quotient(numerator: float, denominator: Tensor) -> Tensor:
    # `float / tensor` is computed by PyTorch as reciprocal times float, which rounds twice.
    return torch.div(torch.full_like(denominator, numerator), denominator)


def _floating(u: Tensor) -> Tensor:
    if not isinstance(u, Tensor) or not u.dtype.is_floating_point:
        kind = u.dtype if isinstance(u, Tensor) else type(u).__name__
        raise TypeError(f"u must be a floating-point tensor, got {kind}")
    return u


@dataclass(frozen=True)
class Surrogate:
    """Base of the surrogate derivatives; use one of its subclasses.

    Args:
        alpha: sharpness, a finite number > 0; each subclass has its usual default.

    Raises:
        TypeError: ``alpha`` is not a real number.
        ValueError: ``alpha`` is not finite and > 0.

    Example:
        >>> from ckd_kernels import surrogate
        >>> surrogate.Triangle(alpha=1.0).derivative(torch.tensor([-2.0, 0.0, 0.5]))
        tensor([0.0000, 1.0000, 0.5000])
    """

    alpha: float = 1.0
    name: ClassVar[str]

    def __post_init__(self) -> None:
        if isinstance(self.alpha, bool) or not isinstance(self.alpha, Real):
            raise TypeError(f"alpha must be a number > 0, got {self.alpha!r}")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"alpha must be finite and > 0, got {self.alpha!r}; larger is sharper")
        object.__setattr__(self, "alpha", float(self.alpha))

    def constants(self) -> tuple[float, float]:
        """The two constants that the kernels need, computed once in double precision."""
        raise TypeError("Surrogate is a base class; use one of its subclasses, e.g. surrogate.Triangle()")

    def derivative(self, u: Tensor) -> Tensor:
        """Surrogate derivative at ``u = h - threshold``; any floating tensor, same shape out."""
        return self._derivative(_floating(u))

    def primitive(self, u: Tensor) -> Tensor:
        """The smooth step whose derivative this is, up to a constant; any floating tensor."""
        return self._primitive(_floating(u))

    def _derivative(self, u: Tensor) -> Tensor:
        raise TypeError("Surrogate is a base class; use one of its subclasses, e.g. surrogate.Triangle()")

    def _primitive(self, u: Tensor) -> Tensor:
        raise TypeError("Surrogate is a base class; use one of its subclasses, e.g. surrogate.Triangle()")


@dataclass(frozen=True)
class Sigmoid(Surrogate):
    """``a * S * (1 - S)`` with ``S = sigmoid(a*u)`` (SpikingJelly's default).

    Computed as ``a*e / (1 + e)^2`` with ``e = exp(-a*|u|)``, which never overflows.
    """

    alpha: float = 4.0
    name: ClassVar[str] = "sigmoid"

    def constants(self) -> tuple[float, float]:
        return self.alpha, 0.0

    def _derivative(self, u: Tensor) -> Tensor:
        a, _ = self.constants()
        e = torch.exp(u.abs() * -a)
        d = e + 1.0
        return torch.div(e * a, d * d)

    def _primitive(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.alpha * u)


@dataclass(frozen=True)
class ATan(Surrogate):
    """``(a/2) / (1 + (pi/2 * a * u)^2)`` (Fang et al., ICCV 2021; snnTorch's default)."""

    alpha: float = 2.0
    name: ClassVar[str] = "atan"

    def constants(self) -> tuple[float, float]:
        return self.alpha / 2.0, math.pi / 2.0 * self.alpha

    def _derivative(self, u: Tensor) -> Tensor:
        c0, c1 = self.constants()
        k = u * c1
        return _quotient(c0, k * k + 1.0)

    def _primitive(self, u: Tensor) -> Tensor:
        return torch.atan(math.pi / 2.0 * self.alpha * u) / math.pi + 0.5


@dataclass(frozen=True)
class Triangle(Surrogate):
    """``max(0, a - a^2 * |u|)``, the CKDSNN paper's ``max(0, g - |u|) / g^2`` with ``g = 1/a``
    (SpikingJelly's PiecewiseQuadratic)."""

    alpha: float = 1.0
    name: ClassVar[str] = "triangle"

    def constants(self) -> tuple[float, float]:
        return self.alpha, self.alpha * self.alpha

    def _derivative(self, u: Tensor) -> Tensor:
        c0, c1 = self.constants()
        return (c0 - u.abs() * c1).clamp_min(0.0)

    def _primitive(self, u: Tensor) -> Tensor:
        a = self.alpha
        inside = -(a * a) / 2.0 * u.abs() * u + a * u + 0.5
        return torch.where(u.abs() < 1.0 / a, inside, (u >= 0).to(u.dtype))


@dataclass(frozen=True)
class Rectangle(Surrogate):
    """``a if |u| < 0.5/a else 0`` (Wu et al., STBP, 2018)."""

    alpha: float = 1.0
    name: ClassVar[str] = "rectangle"

    def constants(self) -> tuple[float, float]:
        return self.alpha, 0.5 / self.alpha

    def _derivative(self, u: Tensor) -> Tensor:
        c0, c1 = self.constants()
        # The bound is compared in u's own precision, as the kernels do.
        height, bound = (torch.full((), c, dtype=u.dtype, device=u.device) for c in (c0, c1))
        return torch.where(u.abs() < bound, height, 0.0)

    def _primitive(self, u: Tensor) -> Tensor:
        return (self.alpha * u + 0.5).clamp(0.0, 1.0)


@dataclass(frozen=True)
class PiecewiseExp(Surrogate):
    """``(a/2) * exp(-a*|u|)`` (Shrestha and Orchard, SLAYER, 2018)."""

    alpha: float = 1.0
    name: ClassVar[str] = "piecewise_exp"

    def constants(self) -> tuple[float, float]:
        return self.alpha / 2.0, self.alpha

    def _derivative(self, u: Tensor) -> Tensor:
        c0, c1 = self.constants()
        return torch.exp(u.abs() * -c1) * c0

    def _primitive(self, u: Tensor) -> Tensor:
        tail = torch.exp(-self.alpha * u.abs()) / 2.0
        return torch.where(u < 0, tail, 1.0 - tail)


@dataclass(frozen=True)
class SoftSign(Surrogate):
    """``1 / (2a * (1/a + |u|)^2)`` (SpikingJelly's SoftSign)."""

    alpha: float = 2.0
    name: ClassVar[str] = "soft_sign"

    def constants(self) -> tuple[float, float]:
        return 1.0 / self.alpha, 2.0 * self.alpha

    def _derivative(self, u: Tensor) -> Tensor:
        c0, c1 = self.constants()
        w = u.abs() + c0
        return _quotient(1.0, (w * w) * c1)

    def _primitive(self, u: Tensor) -> Tensor:
        return (self.alpha * u / (1.0 + (self.alpha * u).abs()) + 1.0) / 2.0


@dataclass(frozen=True)
class FastSigmoid(Surrogate):
    """``1 / (a*|u| + 1)^2`` (Zenke and Ganguli, SuperSpike, 2018; snnTorch's fast_sigmoid, where a is called slope)."""

    alpha: float = 25.0
    name: ClassVar[str] = "fast_sigmoid"

    def constants(self) -> tuple[float, float]:
        return self.alpha, 0.0

    def _derivative(self, u: Tensor) -> Tensor:
        a, _ = self.constants()
        d = u.abs() * a + 1.0
        return _quotient(1.0, d * d)

    def _primitive(self, u: Tensor) -> Tensor:
        return u / (1.0 + self.alpha * u.abs())


@dataclass(frozen=True)
class SuperSpike(Surrogate):
    """``a / (1 + |u|)^2`` (Zenke and Ganguli, SuperSpike, 2018; SpikingJelly's SuperSpike)."""

    alpha: float = 1.0
    name: ClassVar[str] = "super_spike"

    def constants(self) -> tuple[float, float]:
        return self.alpha, 0.0

    def _derivative(self, u: Tensor) -> Tensor:
        a, _ = self.constants()
        d = u.abs() + 1.0
        return _quotient(a, d * d)

    def _primitive(self, u: Tensor) -> Tensor:
        return self.alpha * u / (1.0 + u.abs())


@dataclass(frozen=True)
class Erf(Surrogate):
    """``(a/sqrt(pi)) * exp(-a^2 * u^2)`` (SpikingJelly's Erf)."""

    alpha: float = 2.0
    name: ClassVar[str] = "erf"

    def constants(self) -> tuple[float, float]:
        return self.alpha / math.sqrt(math.pi), self.alpha

    def _derivative(self, u: Tensor) -> Tensor:
        c0, c1 = self.constants()
        w = u * c1
        return torch.exp(-(w * w)) * c0

    def _primitive(self, u: Tensor) -> Tensor:
        return (1.0 + torch.erf(self.alpha * u)) / 2.0


BY_NAME: dict[str, type[Surrogate]] = {cls.name: cls for cls in Surrogate.__subclasses__()}
