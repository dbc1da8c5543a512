"""Triton kernels in Triton's interpreter, on CPU tensors.

In a pytest process of its own: triton reads TRITON_INTERPRET when kernels are defined.  Where other tests have
imported triton before, those here skip themselves.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch

if "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"
triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle  # noqa: E402


@pytest.fixture(autouse=True)
def interpreted() -> None:
    from ckd_kernels.backends import triton as backend

    if backend.unavailable("triton", "cpu", torch.float32) is not None:
        pytest.skip("triton was imported without TRITON_INTERPRET=1; run these tests in a process of their own")


@pytest.fixture(autouse=True)
def rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 becomes bfloat16 as on a GPU, to nearest even; the interpreter drops the bits."""
    cast = InterpreterBuilder.cast_impl

    def cast_to_nearest(self: InterpreterBuilder, src: TensorHandle, dst_type: tl.dtype) -> TensorHandle:
        if src.dtype.scalar != tl.float32 or dst_type.scalar != tl.bfloat16:
            return cast(self, src, dst_type)
        rounded = torch.from_numpy(np.ascontiguousarray(src.data)).bfloat16().view(torch.int16)
        return TensorHandle(rounded.numpy().view(np.uint16), tl.bfloat16)

    monkeypatch.setattr(InterpreterBuilder, "cast_impl", cast_to_nearest)


@pytest.fixture(autouse=True)
def warnings_of_numpy() -> Iterator[None]:
    """Division by zero and the like are results here, not accidents."""
    with np.errstate(all="ignore"):
        yield
