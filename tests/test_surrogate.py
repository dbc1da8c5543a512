"""Surrogate derivatives against the literature, finite differences of their primitives, and each other's backends."""

from __future__ import annotations

import math

import pytest
import torch

from ckd_kernels import Neuron, lif, surrogate, use_backend
from reference_cases import DERIVATIVES, SURROGATES, TRANSCENDENTAL, surrogate_of
from tolerances import assert_close, assert_same

USUAL_ALPHA = {
    "sigmoid": 4.0,
    "atan": 2.0,
    "triangle": 1.0,
    "rectangle": 1.0,
    "piecewise_exp": 1.0,
    "soft_sign": 2.0,
    "fast_sigmoid": 25.0,
    "super_spike": 1.0,
    "erf": 2.0,
}


def test_all_are_known():
    assert set(surrogate.BY_NAME) == set(SURROGATES) == set(DERIVATIVES) == set(USUAL_ALPHA)
    assert {cls.__name__ for cls in surrogate.BY_NAME.values()} == set(surrogate.__all__) - {"Surrogate"}


@pytest.mark.parametrize("plain", [True, False], ids=["usual", "odd"])
@pytest.mark.parametrize("name", SURROGATES)
def test_derivative_is_the_literature_one(name, plain):
    sg = surrogate_of(name, plain=plain)
    assert sg.alpha == USUAL_ALPHA[name] * (1 if plain else 1.1)
    u = torch.cat([torch.linspace(-3, 3, 2001, dtype=torch.float64), torch.tensor([0.0, 40.0, -300.0]).double()])
    expected = DERIVATIVES[name](u, sg.alpha)
    assert_close("float64", sg.derivative(u), expected)
    assert_close("float32", sg.derivative(u.float()), DERIVATIVES[name](u.float().double(), sg.alpha))
    assert sg.derivative(u).min() >= 0
    assert sg.derivative(u.float()).dtype == torch.float32


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.7, 4.0, 25.0])
@pytest.mark.parametrize("name", SURROGATES)
def test_derivative_is_that_of_the_primitive(name, alpha):
    sg = surrogate.BY_NAME[name](alpha)
    u = torch.linspace(-2, 2, 801, dtype=torch.float64) + 1e-3
    step = 1e-6
    # Away from the kinks and jumps that some have where |u| is 0, 0.5/a or 1/a.
    kinks = torch.tensor([0.0, 0.5 / alpha, 1.0 / alpha]).double()
    u = u[((u.abs()[:, None] - kinks).abs() > 1e-4).all(1)]
    slope = (sg.primitive(u + step) - sg.primitive(u - step)) / (2 * step)
    torch.testing.assert_close(sg.derivative(u), slope, rtol=1e-5, atol=1e-7 * alpha)
    rises = sg.primitive(u).diff()
    assert (rises >= 0).all()
    assert rises.sum() > 0


@pytest.mark.parametrize("name", SURROGATES)
def test_extremes(name):
    """No overflow, no NaN: far from the threshold the gradient vanishes; at NaN it is NaN, or 0 for the rectangle."""
    sg = surrogate_of(name)
    u = torch.tensor([math.inf, -math.inf, 3e38, -3e38, math.nan])
    derivative = sg.derivative(u)
    assert derivative[:4].abs().max() < 1e-6
    assert derivative[4].isnan() or name == "rectangle"


@pytest.mark.parametrize("name", SURROGATES)
def test_every_backend_computes_it(target, name):
    """One step without carry: the gradient of x is sg(u) itself."""
    sg = surrogate_of(name, plain=False)
    x = torch.cat([torch.linspace(-4, 6, 4001), torch.tensor([1.0, 100.0, -100.0, math.inf, -math.inf, math.nan])])
    leaf = x[None].to(target.device).requires_grad_()
    with use_backend(target.backend):
        lif(leaf, Neuron(charge="integrate", detach_reset=True, surrogate=sg)).sum().backward()
    actual, expected = leaf.grad[0].cpu(), sg.derivative(x - 1.0)
    if name in TRANSCENDENTAL:
        assert_close("gradient", actual, expected)
        # "A few ulp", also where the derivative is small.
        finite = expected.isfinite() & (expected > 1e-30)
        ulps = (actual[finite] - expected[finite]).abs() / (expected[finite] * torch.finfo(torch.float32).eps)
        assert ulps.max() < 16
    else:
        assert_same("gradient", actual, expected)


@pytest.mark.parametrize("cls", surrogate.BY_NAME.values(), ids=lambda c: c.name)
@pytest.mark.parametrize(
    ("alpha", "error", "message"),
    [
        (0, ValueError, "alpha must be finite and > 0, got 0"),
        (-1.0, ValueError, "alpha must be finite and > 0, got -1.0"),
        (math.inf, ValueError, "alpha must be finite and > 0, got inf"),
        (math.nan, ValueError, "alpha must be finite and > 0, got nan"),
        ("2", TypeError, "alpha must be a number > 0, got '2'"),
        (True, TypeError, "alpha must be a number > 0, got True"),
        (None, TypeError, "alpha must be a number > 0, got None"),
    ],
)
def test_bad_alpha(cls, alpha, error, message):
    with pytest.raises(error, match=message):
        cls(alpha=alpha)


def test_unknown_surrogate_is_an_error():
    """Never a zero gradient: a class of one's own is no backend's."""

    class Mine(surrogate.Surrogate):
        name = "mine"

    for sg in (Mine(), surrogate.Surrogate()):
        with pytest.raises(TypeError, match="use one of its subclasses"):
            sg.derivative(torch.zeros(1))
    with pytest.raises(TypeError, match=r"surrogate must be one of ckd_kernels\.surrogate"):
        Neuron(surrogate=Mine())
