"""Placeholder until the Triton kernels land."""
import torch

def unavailable(name: str, device_type: str, dtype: torch.dtype) -> str | None:
    return "not there yet"
