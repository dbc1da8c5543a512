"""Runs a call on the device of its tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .module import compiled


def run(call: Any, on: Tensor) -> None:
    """Runs a call on the CPU, or queues it on the current stream of the GPU that holds ``on``."""
    module: Any = compiled()
    if on.is_cpu:
        module.cpu.run(call, torch.get_num_threads())
        return
    size = module.cuda.workspace(call)
    workspace = torch.empty(size, dtype=torch.uint8, device=on.device) if size else None
    status = module.cuda.run(
        call,
        0 if workspace is None else workspace.data_ptr(),
        on.device.index,
        torch.cuda.current_stream(on.device).cuda_stream,
    )
    if status != 0:
        raise RuntimeError(f"CUDA kernel launch on {on.device} failed: {module.cuda.error_string(status)}")
