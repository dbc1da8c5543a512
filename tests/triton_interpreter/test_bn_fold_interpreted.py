"""The vectors between the passes of batch normalisation, by the Triton kernels: the reference's bits."""

from __future__ import annotations

import pytest
import torch

from tolerances import assert_same

OPS = torch.ops.ckd_kernels


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("given", ["all", "nothing"])
def test_fold_and_coefficients(given, counted):
    generator = torch.Generator().manual_seed(0)
    vectors = list(torch.randn(4, 150, generator=generator)) if given == "all" else [None] * 4
    moments = torch.rand(2, 150, generator=generator, dtype=torch.float64)
    count = torch.tensor(7.0, dtype=torch.float64) if counted else None
    results = []
    for backend in ("triton", "reference"):
        folded = OPS.bn_fold(moments, *vectors, count, 11, 0.1, 1e-5, torch.float32, backend)
        results.append((folded, OPS.bn_coefficients(moments, folded[1], count, 11, backend)))
    for name, actual, expected in zip(("folded", "coefficients"), *results, strict=True):
        assert_same(name, actual, expected)
