"""The torch.library namespace that every op is defined in, and the short way to its implementation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

LIBRARY = torch.library.Library("ckd_kernels", "DEF")

# Arguments that concern nobody but the op.  Not tensors of other classes, such as fake ones, or symbols.
_PLAIN = frozenset({Tensor, torch.nn.Parameter, type(None), bool, int, float, str, torch.dtype})


def register(name: str, implementation: Callable, fake: Callable) -> Callable:
    """Registers an op's implementation (which picks a backend itself) for every device, and its fake.

    Returns what autograd functions call: the op, or where nobody watches the implementation itself.  The dispatcher
    would come back to Python with the same arguments, and behind a kernel that has filled the caches with data every
    piece of code is fetched from memory: the way there took longer than the copy of a small tensor.
    """
    LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"ckd_kernels::{name}", fake, lib=LIBRARY)
    op = getattr(torch.ops.ckd_kernels, name)

    def call(*args: Any) -> Any:
        if (
            torch.compiler.is_compiling()
            or torch._C._len_torch_dispatch_stack()
            or not _PLAIN.issuperset(map(type, args))
            or args[0].is_meta
        ):
            return op(*args)
        return implementation(*args)

    return call


def requires_grad(*tensors: Tensor | None) -> bool:
    """Whether a call on these tensors will have a backward pass."""
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return False


def followed() -> bool:
    """Whether derivatives are followed that `requires_grad` does not tell of, or may be.

    They are refused by autograd functions; an op alone would drop them without a word.
    """
    return (
        torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    )
