"""The compiled module, its argument structs, and how a call reaches the device it belongs to."""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ...neuron import Neuron
from ...ops.layout import Layout

_CPU = torch.device("cpu")
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
_CHARGES = {"decay": 0, "integrate": 0, "leak": 1, "leak_input": 2}


@functools.cache
def compiled() -> Any:
    """ckd_kernels._C, or None where it was not built."""
    try:
        module = importlib.import_module("ckd_kernels._C")
    except ModuleNotFoundError as error:
        if error.name != "ckd_kernels._C":
            raise
        return None
    _warn_of_narrow_level(module)
    return module


def _warn_of_narrow_level(module: ModuleType) -> None:
    """A module that was compiled for one machine's processor runs on an older one, but slowly."""
    widest = module.cpu.widest_level()
    if widest == "baseline" or os.environ.get("CKD_CPU_LEVEL") or module.cpu.level() != "baseline":
        return
    warnings.warn(
        f"ckd_kernels was compiled for {', '.join(module.build_info()['cpu_levels'])} and runs the slow baseline on "
        f"this processor, which has {widest}; install it again on this machine, or with CKD_CPU_LEVELS=all",
        RuntimeWarning,
        stacklevel=2,
    )


def address(t: Tensor | None) -> int:
    """Of the first element; 0 for no tensor."""
    return 0 if t is None else t.data_ptr()


def rows(t: Tensor, first: int) -> tuple[int, int]:
    """The addresses of two rows of a contiguous matrix, which need no tensors of their own."""
    size = t.shape[1] * t.element_size()
    at = t.data_ptr() + first * size
    return at, at + size


def storage(dtype: torch.dtype) -> int:
    """The number of a storage type."""
    return _DTYPES[dtype]


@functools.lru_cache(maxsize=1024)
def neuron_struct(neuron: Neuron, dtype: torch.dtype) -> Any:
    """A neuron with its constants as the kernels take them, for the arithmetic of a storage type."""
    module = compiled()
    real = torch.float64 if dtype == torch.float64 else torch.float32
    leak = 1.0 if neuron.leak_name is None else getattr(neuron, neuron.leak_name)
    subtract = neuron.reset != "hard"
    return module.Neuron(
        _CHARGES[neuron.charge],
        int(subtract),
        # Without a reset there is nothing for a gradient to pass through.
        neuron.detach_reset or neuron.reset == "none",
        module.SURROGATES.index(neuron.surrogate.name),
        leak,
        neuron.threshold,
        neuron.fire_level(real),
        neuron.rest,
        neuron.threshold if neuron.reset == "soft" else 0.0,
        neuron.threshold if neuron.reset == "soft_delayed" else 0.0,
        *neuron.surrogate.constants(),
    )


@functools.lru_cache(maxsize=1024)
def shape_struct(layout: Layout) -> Any:
    """Sizes as the kernels take them."""
    return compiled().Shape(layout.outer, layout.steps, layout.rows, layout.channels, layout.inner, layout.repeated)


@functools.cache
def no_affine() -> Any:
    """Of a call without normalisation."""
    return compiled().Affine(0, 0, 0)


def run(struct: Any, device: torch.device) -> None:
    """Runs a call on the CPU, or queues it on the current stream of a GPU."""
    module = compiled()
    if device == _CPU:  # device.type is a new string each time
        module.cpu.run(struct, torch.get_num_threads())
        return
    size = module.cuda.workspace(struct)
    workspace = torch.empty(size, dtype=torch.uint8, device=device) if size else None
    # Not torch.cuda.current_stream, which takes longer to make an object of it than the launch itself.
    stream = torch._C._cuda_getCurrentRawStream(device.index)
    status = module.cuda.run(struct, 0 if workspace is None else workspace.data_ptr(), device.index, stream)
    if status != 0:
        raise RuntimeError(f"CUDA kernel launch on {device} failed: {module.cuda.error_string(status)}")
