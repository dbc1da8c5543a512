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

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
_CHARGES = {"decay": 0, "integrate": 0, "leak": 1, "leak_input": 2}


@functools.cache
def compiled() -> ModuleType | None:
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


def row(t: Tensor, i: int) -> int:
    """The address of a row of a contiguous matrix, which needs no tensor of its own."""
    return t.data_ptr() + i * t.stride(0) * t.element_size()


def storage(t: Tensor) -> int:
    """The number of a storage type."""
    return _DTYPES[t.dtype]


@functools.lru_cache(maxsize=1024)
def neuron_struct(neuron: Neuron, dtype: torch.dtype) -> Any:
    """A neuron with its constants as the kernels take them, for the arithmetic of a storage type."""
    module = compiled()
    assert module is not None
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
    module = compiled()
    assert module is not None
    return module.Shape(layout.outer, layout.steps, layout.rows, layout.channels, layout.inner, layout.repeated)


@functools.cache
def _no_affine() -> Any:
    return affine_struct(0, 0, 0)


def affine_struct(scale: int, shift: int, residual: int) -> Any:
    """Normalisation and residual, by their addresses, as the kernels take them."""
    module = compiled()
    assert module is not None
    return module.Affine(scale, shift, residual)


def lif_forward_struct(
    neuron: Neuron,
    layout: Layout,
    x: Tensor,
    v_init: Tensor | None,
    leak: Tensor | None,
    spikes: Tensor,
    v_last: Tensor | None,
    sam: Tensor | None,
    checkpoints: Tensor | None,
    affine: Any = None,
) -> Any:
    """A neuron over all time steps of x, or of what ``affine`` makes of it."""
    module = compiled()
    assert module is not None
    return module.LifForward(
        neuron_struct(neuron, x.dtype),
        shape_struct(layout),
        storage(x),
        address(x),
        address(v_init),
        address(leak),
        leak is not None and leak.dim() > 0,
        address(spikes),
        address(v_last),
        address(sam),
        address(checkpoints),
        affine or _no_affine(),
    )


def lif_backward_struct(
    neuron: Neuron,
    layout: Layout,
    x: Tensor,
    v_init: Tensor | None,
    leak: Tensor | None,
    checkpoints: Tensor | None,
    grad_spikes: Tensor | None,
    grad_v: Tensor | None,
    grad_sam: Tensor | None,
    grad_x: Tensor | None,
    grad_v_init: Tensor | None,
    grad_leak: Tensor | None,
    affine: Any = None,
    *,
    mean: int = 0,
    offset: int = 0,
    slope: int = 0,
    grad_residual: int = 0,
    sums: int = 0,
) -> Any:
    """The way back of `lif_forward_struct`; what only a normalisation has is given by its address."""
    module = compiled()
    assert module is not None
    return module.LifBackward(
        neuron_struct(neuron, x.dtype),
        shape_struct(layout),
        storage(x),
        address(x),
        address(v_init),
        address(leak),
        leak is not None and leak.dim() > 0,
        address(checkpoints),
        address(grad_spikes),
        address(grad_v),
        address(grad_sam),
        address(grad_x),
        address(grad_v_init),
        address(grad_leak),
        affine or _no_affine(),
        mean,
        offset,
        slope,
        grad_residual,
        sums,
    )
