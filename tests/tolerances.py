"""How close gradients have to be.  Spikes and activation maps have no tolerance: they are compared with torch.equal."""

from __future__ import annotations

import torch
from torch import Tensor

# dtype of the gradient -> (rtol, atol); atol counts in units of the largest gradient, or of `scale`.
# Two-byte gradients are float32 ones rounded once, so they may be off by one unit in the last place.
TOLERANCES = {
    torch.float64: (1e-11, 1e-11),
    torch.float32: (1e-5, 1e-5),
    torch.bfloat16: (2.0**-7, 1e-5),
    torch.float16: (2.0**-10, 1e-5),
}


def assert_close(name: str, actual: Tensor, expected: Tensor, *, scale: float | None = None) -> None:
    """``actual`` is ``expected``, which may be of a wider dtype, within the tolerance of its own dtype.

    Args:
        name: what is compared, for the message.
        actual: gradient to judge.
        expected: what it should be.
        scale: for a sum, the sum of the terms' magnitudes: its rounding errors are relative to those.
    """
    rtol, atol = TOLERANCES[actual.dtype]
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    actual, expected = actual.double(), expected.double()
    if scale is None:
        finite = expected[expected.isfinite()]
        scale = finite.abs().max().item() if finite.numel() else 0.0
    torch.testing.assert_close(
        actual, expected, rtol=rtol, atol=atol * scale, equal_nan=True, msg=lambda text: f"{name}: {text}"
    )


def assert_same(name: str, actual: Tensor, expected: Tensor) -> None:
    """The same dtype, shape and values, NaN where NaN is expected: no tolerance."""
    assert actual.dtype == expected.dtype, f"{name}: {actual.dtype} instead of {expected.dtype}"
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    if torch.equal(actual, expected):
        return
    wrong = (actual != expected) & ~(actual.isnan() & expected.isnan())
    if wrong.any():
        at = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(
            f"{name}: {int(wrong.sum())} of {wrong.numel()} values differ,"
            f" first at {at}: {actual[at].item()!r} instead of {expected[at].item()!r}"
        )
