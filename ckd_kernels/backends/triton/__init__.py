"""Triton kernels: every op on NVIDIA and AMD GPUs; on CPU tensors only in Triton's interpreter, for tests."""

from __future__ import annotations

import torch

from ...call import Backward

try:
    import triton

    from .bn_fold import bn_coefficients, bn_fold
    from .bn_lif import bn_reduce
    from .bn_statistics import bn_statistics
    from .lif import lif_forward
    from .lif_backward import lif_gradients
    from .pack import pack_bits, unpack_bits
    from .sam import sam
    from .tiles import mask_at
except ImportError as error:
    _missing: str | None = (
        f"{error}; install the triton that this PyTorch asks for, e.g. pip install ckd-kernels[triton]"
    )
else:
    _missing = None
    # What triton.jit made of the kernels when they were imported; the variable's value may have changed since.
    _interpreted = not isinstance(mask_at, triton.JITFunction)

__all__ = [
    "bn_coefficients",
    "bn_fold",
    "bn_statistics",
    "lif_backward",
    "lif_forward",
    "pack_bits",
    "sam",
    "unavailable",
    "unpack_bits",
]


def lif_backward(call: Backward) -> None:
    """Sums or gradients, whichever are given to be written."""
    lif_gradients(call) if call.sums is None else bn_reduce(call)


def unavailable(name: str, device_type: str, dtype: torch.dtype) -> str | None:
    """Why this backend cannot run ``dtype`` on ``device_type``, or None."""
    if _missing is not None:
        return _missing
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return "the Triton kernels are for float32, bfloat16 and float16; the reference takes float64"
    if device_type == "cuda":
        return None if torch.cuda.is_available() else "PyTorch sees no GPU"
    if device_type == "cpu" and _interpreted:
        return None
    return "the Triton kernels run on GPUs, and on a CPU only with TRITON_INTERPRET=1 set before triton is imported"
