"""The torch.library namespace that every op is defined in, and the short way to its implementation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

LIBRARY = torch.library.Library("ckd_kernels", "DEF")

# Of every op: Inductor is to give it inputs of the strides that the graph was traced with, whatever it takes for
# granted of other people's ops.  It may pad tensors that are its own, and those no kernel here reads in place.
TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)

# Arguments that concern nobody but the op.  Not tensors of other classes, such as fake ones, or symbols.
_PLAIN = frozenset({Tensor, torch.nn.Parameter, type(None), bool, int, float, str, torch.dtype})

# Who may be watching, each a call into C++.
_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack
_tracing = torch._C._is_tracing
_profiling = torch._C._autograd._profiler_enabled
_transforms = torch._C._are_functorch_transforms_active
_legacy_batch = torch._C._functorch.is_legacy_batchedtensor


def watched(*arguments: Any) -> bool:
    """Whether somebody sees the ops that are called, or one must be called for these arguments.

    Where nobody does, its implementation is called itself: the dispatcher would come back to Python with the same
    arguments, and behind a kernel that has filled the caches with data every piece of code is fetched from memory: the
    way there took longer than the copy of a small tensor.
    """
    return torch.compiler.is_compiling() or bool(_tracing()) or _watched(arguments)


def _watched(arguments: Sequence[Any]) -> bool:
    """As `watched`, where nothing is compiled or traced."""
    return (
        bool(_dispatch_modes() or _function_modes() or _profiling())
        or not _PLAIN.issuperset(map(type, arguments))
        or arguments[0].is_meta
    )


def register(name: str, implementation: Callable, fake: Callable, differentiable: Callable | None = None) -> Callable:
    """Registers an op's implementation (which picks a backend itself) for every device, and its fake.

    ``differentiable`` computes the op with a gradient, for those who call it by way of the dispatcher, such as a traced
    graph; it takes the op without a gradient, and then the op's arguments.

    Returns the op, or where nobody watches the implementation itself.
    """
    LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"ckd_kernels::{name}", fake, lib=LIBRARY)
    op = getattr(torch.ops.ckd_kernels, name)

    def below_autograd(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args) if watched(*args) or _transforms() else implementation(*args)

    autograd = torch.library.fallthrough_kernel
    if differentiable is not None:
        autograd = functools.partial(differentiable, below_autograd)
    LIBRARY.impl(name, autograd, "Autograd")

    def call(*args: Any) -> Any:
        return op(*args) if watched(*args) else implementation(*args)

    return call


def requires_grad(*arguments: Any) -> bool:
    """Whether a call on these arguments, the tensors among them, will have a backward pass."""
    if torch.is_grad_enabled():
        for t in arguments:
            if t is not None and isinstance(t, Tensor) and t.requires_grad:
                return True
    return False


# Who computes a call: the op, which may be recorded and has a gradient of its own; the autograd function over the ops;
# or PyTorch's own functions, see composed.py.
OP, FUNCTION, COMPOSED = "op", "function", "composed"


def way_of(x: Tensor, *others: Tensor | None) -> tuple[str, bool, bool]:
    """Who computes a call on these tensors; whether it will have a backward pass, and whether somebody watches it.

    Transforms of `torch.func` and forward-mode derivatives follow calls whose tensors do not tell of a gradient;
    `torch.jit.trace` cannot record an autograd function.
    """
    if torch.compiler.is_compiling():
        return FUNCTION, requires_grad(x, *others), True
    if _transforms() or forward_ad._current_level >= 0:
        return COMPOSED, False, True
    if _tracing():
        # ONNX has no such op, but all that it is composed of.
        return COMPOSED if torch.onnx.is_in_onnx_export() else OP, False, True
    needs_grad, watched = False, bool(_dispatch_modes() or _function_modes() or _profiling() or x.is_meta)
    for t in (x, *others):
        if t is not None:
            needs_grad = needs_grad or t.requires_grad
            watched = watched or type(t) not in _PLAIN
    needs_grad = needs_grad and torch.is_grad_enabled()
    return FUNCTION if needs_grad else OP, needs_grad, watched


def observed(t: Tensor) -> bool:
    """Whether looking at the values of a tensor would be recorded, or is not possible."""
    return (
        torch.compiler.is_compiling()
        or type(t) not in _PLAIN
        or bool(_dispatch_modes() or _function_modes() or _tracing() or _transforms())
    )


def batched(grads: Sequence[Tensor | None]) -> bool:
    """Whether a backward pass is that of many gradients at once: `torch.vmap`, or ``is_grads_batched``."""
    return _transforms() or any(g is not None and _legacy_batch(g) for g in grads)


def beyond_kernels(grads: Sequence[Tensor | None]) -> bool:
    """Whether the backward pass that runs does what the kernels do not: it is to be differentiated itself
    (``create_graph``), or that of many gradients at once."""
    return not torch.compiler.is_compiling() and (torch.is_grad_enabled() or batched(grads))
