"""Placeholder until the native kernels land."""
import torch

def compiled_facts():
    return None

def unavailable(name: str, device_type: str, dtype: torch.dtype) -> str | None:
    return "the compiled module is missing"
