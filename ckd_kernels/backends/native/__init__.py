"""The compiled kernels: C++ on the CPU, CUDA on the GPU, behind one set of argument structs."""

from __future__ import annotations

from typing import Any

import torch

from ...neuron import Neuron
from .batch_norm import bn_coefficients, bn_fold, bn_statistics
from .lif import lif_backward, lif_forward
from .module import compiled, neuron_struct
from .pack import pack_bits, unpack_bits
from .sam import sam

__all__ = [
    "bn_coefficients",
    "bn_fold",
    "bn_statistics",
    "compiled_facts",
    "is_compiled_in",
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


def is_compiled_in(op: str, neuron: Neuron, dtype: torch.dtype) -> bool:
    """Whether an op's backward kernels for GPUs are compiled for a neuron; others are looked up at run time."""
    return bool(compiled().cuda.is_compiled_in(neuron_struct(neuron, dtype), op == "bn_lif"))


def _runs_on(archs: tuple[str, ...], capability: tuple[int, int]) -> bool:
    """Whether a GPU runs what was compiled: machine code of its own generation, or PTX of its age or older.

    As CMake writes architectures: ``90`` is both, ``90-real`` machine code, ``90-virtual`` PTX; ``90a`` is for
    that GPU alone.
    """
    for arch in archs:
        number, _, kind = arch.partition("-")
        digits = number.rstrip("af")
        version = int(digits[:-1]), int(digits[-1])
        if version == capability:
            return True
        if number == digits and version <= capability and (kind != "real" or version[0] == capability[0]):
            return True
    return False


def unavailable(name: str, device_type: str, dtype: torch.dtype) -> str | None:
    """Why the backend ``name`` ("cpu" or "cuda") cannot run on a device type and dtype; None if it can."""
    module = compiled()
    if module is None:
        return f"the compiled module ckd_kernels._C is missing; {_REBUILD}"
    if device_type != name:
        return f"it runs on {name} tensors only"
    if name == "cuda":
        if not hasattr(module, "cuda"):
            return "the CUDA kernels were not compiled; install ckd-kernels where nvcc is, or with CKD_CUDA=ON"
        if not torch.cuda.is_available():
            return "PyTorch sees no GPU"
        if torch.cuda.is_initialized():  # to ask before would initialise it
            archs, capability = module.build_info()["cuda_archs"], torch.cuda.get_device_capability()
            if not _runs_on(archs, capability):
                major, minor = capability
                return (
                    f"the CUDA kernels were compiled for {', '.join(archs)} and this GPU is {major}.{minor}; "
                    f"install ckd-kernels again with CKD_CUDA_ARCHS={major}{minor}"
                )
        if dtype == torch.float64:
            return "the CUDA kernels have no float64; use float32, or the backend 'reference'"
    return None
