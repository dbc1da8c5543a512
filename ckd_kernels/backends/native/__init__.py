"""The compiled kernels: C++ on the CPU, CUDA on the GPU, behind one set of argument structs."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import torch

from .bn_fold import bn_coefficients, bn_fold
from .bn_lif import bn_lif_backward, bn_lif_forward, bn_lif_reduce, bn_statistics
from .lif import lif_backward, lif_forward
from .module import compiled
from .pack import pack_bits, unpack_bits
from .sam import sam

__all__ = [
    "bn_coefficients",
    "bn_fold",
    "bn_lif_backward",
    "bn_lif_forward",
    "bn_lif_reduce",
    "bn_statistics",
    "compiled_facts",
    "lif_backward",
    "lif_forward",
    "pack_bits",
    "sam",
    "unavailable",
    "unpack_bits",
]

_REBUILD = "install ckd-kernels with `pip install .`, which compiles them"


def compiled_facts() -> dict[str, Any] | None:
    """What the build says of itself, or None without a compiled module."""
    module = compiled()
    if module is None:
        return None
    return {**module.build_info(), "cpu_level_in_use": module.cpu.level()}


@functools.cache
def unavailable(name: str, device_type: str, dtype: torch.dtype) -> str | None:
    """Why the backend ``name`` ("cpu" or "cuda") cannot run on a device type and dtype; None if it can."""
    module: ModuleType | None = compiled()
    if module is None:
        return f"the compiled module ckd_kernels._C is missing; {_REBUILD}"
    if device_type != name:
        return f"it runs on {name} tensors only"
    if name == "cuda":
        if not hasattr(module, "cuda"):
            return "the CUDA kernels were not compiled; install ckd-kernels where nvcc is, or with CKD_CUDA=ON"
        if not torch.cuda.is_available():
            return "PyTorch sees no GPU"
        if dtype == torch.float64:
            return "the CUDA kernels have no float64; use float32, or the backend 'reference'"
    return None
