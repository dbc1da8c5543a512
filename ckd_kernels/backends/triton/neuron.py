"""One time step of a neuron, forward and backward, in Triton.

The order of operations is the numerics contract: the reference's, in its order, each rounded
once.  Every launch therefore sets ``enable_fp_fusion=False``, and every division is
``tl.div_rn``, since Triton's ``/`` is approximate on a GPU.
"""

# mypy: allow-untyped-defs, no-check-untyped-defs

import functools
import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from ...neuron import Neuron

# Triton's own exp is ex2.approx of a rounded product, some ten ulp off; the interpreter has no libdevice.
_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


class Constants(NamedTuple):
    """A neuron's numbers in a kernel, in float32."""

    leak: Any  # decay or tau: one value, or one for each of a tile's channels
    inverse: Any  # 1/leak
    rest: Any
    threshold: Any
    fire_level: Any


@functools.cache
def numbers(neuron: Neuron) -> tuple[float, float, float, float]:
    """Decay or tau, rest, threshold and fire level: the scalars that every kernel takes."""
    leak = 1.0 if neuron.leak_name is None else getattr(neuron, neuron.leak_name)
    return leak, neuron.rest, neuron.threshold, neuron.fire_level(torch.float32)


def options(neuron: Neuron, leak: Tensor | None) -> dict[str, Any]:
    """The constants that every kernel takes; ``leak`` is a learnable decay or tau."""
    return {
        "CHARGE": neuron.charge,
        "EXACT_INVERSE": leak is None and neuron.tau is not None and _has_exact_inverse(neuron.tau),
        "RESET": neuron.reset,
        "PER_CHANNEL": leak is not None and leak.numel() > 1,
    }


def _has_exact_inverse(tau: float) -> bool:
    """Whether 1/tau is a float32: tau is a power of two (>= 1), and its inverse not denormal."""
    return math.frexp(tau)[0] == 0.5 and tau <= 2.0**126


@triton.jit
def _exp(x):
    if _INTERPRETED:
        return tl.exp(x)
    else:
        return libdevice.exp(x)


@triton.jit
def surrogate_derivative(u, c0, c1, SURROGATE: tl.constexpr):
    """sg(u); c0 and c1 are the surrogate's constants."""
    if SURROGATE == "sigmoid":
        e = _exp(tl.abs(u) * -c0)
        d = e + 1.0
        return tl.div_rn(e * c0, d * d)
    elif SURROGATE == "atan":
        k = u * c1
        return tl.div_rn(c0, k * k + 1.0)
    elif SURROGATE == "triangle":
        d = c0 - tl.abs(u) * c1
        return tl.where(d < 0.0, 0.0, d)
    elif SURROGATE == "rectangle":
        return tl.where(tl.abs(u) < c1, c0, 0.0)
    elif SURROGATE == "piecewise_exp":
        return _exp(tl.abs(u) * -c1) * c0
    elif SURROGATE == "soft_sign":
        w = tl.abs(u) + c0
        return tl.div_rn(1.0, (w * w) * c1)
    elif SURROGATE == "fast_sigmoid":
        d = tl.abs(u) * c0 + 1.0
        return tl.div_rn(1.0, d * d)
    elif SURROGATE == "super_spike":
        d = tl.abs(u) + 1.0
        return tl.div_rn(c0, d * d)
    else:
        tl.static_assert(SURROGATE == "erf", "this surrogate has no branch in backends/triton/neuron.py")
        w = u * c1
        return _exp(-(w * w)) * c0


@triton.jit
def _over_leak(a, n, EXACT_INVERSE: tl.constexpr):
    """a/leak; where 1/leak is exact (a power of two) the product is the quotient, bit for bit, and cheaper."""
    if EXACT_INVERSE:
        return a * n.inverse
    else:
        return tl.div_rn(a, n.leak)


@triton.jit
def charge(n, v, x, CHARGE: tl.constexpr, EXACT_INVERSE: tl.constexpr, RESET: tl.constexpr):
    """h[t] from v[t-1] and x[t]."""
    if CHARGE == "decay":
        h = v * n.leak + x
    elif CHARGE == "leak":
        h = v - _over_leak(v - n.rest, n, EXACT_INVERSE) + x
    elif CHARGE == "leak_input":
        h = v + _over_leak(x - (v - n.rest), n, EXACT_INVERSE)
    else:
        tl.static_assert(CHARGE == "integrate")
        h = v + x
    if RESET == "soft_delayed":
        h = h - tl.where(v >= n.fire_level, n.threshold, 0.0)
    return h


@triton.jit
def after_reset(n, h, RESET: tl.constexpr):
    """v[t] from h[t]."""
    if RESET == "hard":
        return tl.where(h >= n.fire_level, n.rest, h)
    elif RESET == "soft":
        return h - tl.where(h >= n.fire_level, n.threshold, 0.0)
    else:
        return h


@triton.jit
def fire_backward(n, h, gs, gv, sg, RESET: tl.constexpr, DETACH: tl.constexpr):
    """gh = gs*sg + gv*R."""
    gh = gs * sg
    if RESET == "hard":
        r = 1.0 - tl.where(h >= n.fire_level, 1.0, 0.0)
        if not DETACH:
            r = r + (n.rest - h) * sg
        return gh + gv * r
    elif RESET == "soft" and not DETACH:
        return gh + gv * (1.0 - sg * n.threshold)
    else:
        return gh + gv


@triton.jit
def grad_input(n, gh, CHARGE: tl.constexpr, EXACT_INVERSE: tl.constexpr):
    """dL/dx[t] from gh."""
    if CHARGE == "leak_input":
        return _over_leak(gh, n, EXACT_INVERSE)
    else:
        return gh


@triton.jit
def grad_before(n, gh, CHARGE: tl.constexpr):
    """dL/dv[t-1] from gh."""
    if CHARGE == "decay":
        return gh * n.leak
    elif CHARGE == "integrate":
        return gh
    else:
        return gh * (1.0 - n.inverse)


@triton.jit
def grad_leak(n, gh, v, x, CHARGE: tl.constexpr):
    """Gradient of the decay or tau from gh, v[t-1] and x[t], element by element."""
    if CHARGE == "decay":
        return gh * v
    elif CHARGE == "leak":
        return gh * tl.div_rn(v - n.rest, n.leak * n.leak)
    else:
        tl.static_assert(CHARGE == "leak_input")
        return gh * tl.div_rn((v - n.rest) - x, n.leak * n.leak)
