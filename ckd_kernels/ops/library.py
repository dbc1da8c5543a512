"""The torch.library namespace that every op is defined in."""

from __future__ import annotations

from collections.abc import Callable

import torch

LIBRARY = torch.library.Library("ckd_kernels", "DEF")


def register(name: str, implementation: Callable, fake: Callable) -> None:
    """Registers an op's implementation (which picks a backend itself) for every device, and its fake."""
    LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"ckd_kernels::{name}", fake, lib=LIBRARY)
