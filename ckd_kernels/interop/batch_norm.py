"""Batch normalisation that the neuron after it computes: ``convert(model, fuse=True)``.

A converted normalisation does not normalise.  It hands on its input with the promise to, a `DeferredNorm`; a residual
may be added to that, and a converted neuron then does all in one `bn_lif`.  Whoever else looks at it gets the
normalised tensor, computed there and then: what a model computes does not depend on how well we understood it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..normalisation import count_batch, module_arguments
from .adopt import Adopted, own_class

_ADDITIONS = {torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__}
# What Python looks up in the class, where __getattr__ does not help.
_OPERATORS = (
    *("sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "floordiv", "mod", "pow", "rpow", "matmul", "rmatmul"),
    *("isub", "imul", "itruediv", "neg", "abs", "eq", "ne", "lt", "le", "gt", "ge"),
    *("getitem", "setitem", "len", "iter", "bool", "float", "int"),
)


class _Normalisation:
    """One call of a normalisation, done when somebody needs it, and once."""

    def __init__(self, norm: Any, y: Tensor) -> None:
        self.norm = norm
        self.y = y
        self.by_batch = norm.training or norm.running_mean is None
        self.fused = False
        self.value: Tensor | None = None

    def tensor(self) -> Tensor:
        """The normalised y."""
        if self.value is None:
            norm = self.norm
            if not self.fused:
                self.value = own_class(norm).forward(norm, self.y)
            else:  # The running statistics have seen this batch.
                mean, var = (None, None) if self.by_batch else (norm.running_mean, norm.running_var)
                y = self.y.flatten(0, 1)
                flat = F.batch_norm(y, mean, var, norm.weight, norm.bias, self.by_batch, 0.0, norm.eps)
                self.value = flat.view(self.y.shape)
        return self.value


class DeferredNorm:
    """``norm(y) + residual``, not yet computed; for everybody but a converted neuron, a tensor."""

    def __init__(self, normalisation: _Normalisation, residual: Tensor | None = None) -> None:
        self._normalisation = normalisation
        self._residual = residual
        self._value: Tensor | None = None
        self._versions = self._current_versions()

    @property
    def shape(self) -> torch.Size:
        return self._normalisation.y.shape

    @property
    def device(self) -> torch.device:
        return self._normalisation.y.device

    def _current_versions(self) -> list[int]:
        operands = self._normalisation.y, self._residual
        return [t._version for t in operands if t is not None and not t.is_inference()]

    def _check_operands(self) -> None:
        if self._current_versions() != self._versions:
            raise RuntimeError(
                f"the input of a {type(self._normalisation.norm).__name__}, or the residual added to its output, was"
                " modified in place before the neuron that computes it ran; write out of place, or leave out fuse=True"
            )

    def tensor(self) -> Tensor:
        """What this stands for."""
        if self._value is None:
            self._check_operands()
            value = self._normalisation.tensor()
            self._value = value if self._residual is None else value + self._residual
        return self._value

    def take(self) -> tuple[Tensor, dict[str, Any]] | None:
        """y and the arguments of `bn_lif` beside it, for a neuron that does all the rest; None where that is done."""
        normalisation = self._normalisation
        if normalisation.fused or normalisation.value is not None or self._value is not None:
            return None
        self._check_operands()
        normalisation.fused = True
        return normalisation.y, {**module_arguments(normalisation.norm), "residual": self._residual}

    def counted(self) -> None:
        """To be called when a neuron has done what it has taken."""
        count_batch(self._normalisation.norm)

    def _fits(self, other: Any) -> bool:
        y = self._normalisation.y
        same = isinstance(other, Tensor) and (other.shape, other.dtype, other.device) == (y.shape, y.dtype, y.device)
        return same and self._residual is None and self._normalisation.value is None

    def add(self, other: Any, **options: Any) -> Any:
        """As `torch.Tensor.add`; the sum of this and a tensor of its shape is deferred too."""
        other = _value(other)
        if not options and self._fits(other):
            return DeferredNorm(self._normalisation, other)
        return self.tensor().add(other, **options)

    __add__ = __radd__ = add

    def __iadd__(self, other: Any) -> Any:  # type: ignore[misc]
        other = _value(other)
        if self._fits(other):
            self._residual = other
            self._versions = self._current_versions()
        else:
            self.tensor().add_(other)
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tensor(), name)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _ADDITIONS and len(args) == 2 and not kwargs:
            one, other = args if isinstance(args[0], cls) else args[::-1]
            return one.add(other)
        return func(*_value(args), **_value(kwargs or {}))


def _value(tree: Any) -> Any:
    """Arguments with tensors in place of what is deferred."""
    return torch.utils._pytree.tree_map_only(DeferredNorm, DeferredNorm.tensor, tree)


def _operator(name: str) -> Any:
    def apply(self: DeferredNorm, *others: Any) -> Any:
        return getattr(self.tensor(), name)(*_value(others))

    return apply


for _name in _OPERATORS:
    setattr(DeferredNorm, f"__{_name}__", _operator(f"__{_name}__"))
DeferredNorm.__hash__ = object.__hash__  # type: ignore[method-assign]  # as tensors: by identity


if TYPE_CHECKING:
    _Base = nn.Module
else:
    _Base = object


class DeferringNorm(Adopted, _Base):
    """A multi-step batch normalisation that leaves its work to the neuron after it."""

    def forward(self, x: Any) -> Any:
        """The normalised ``[T, B, C, ...]``, now or later."""
        own = own_class(self)
        later = (
            isinstance(x, Tensor)
            and self.step_mode == "m"
            and x.dim() in _DIMENSIONS[own.__name__[-2:]]
            and not (self._forward_hooks or self._backward_hooks or self._backward_pre_hooks)
            and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
        )
        return DeferredNorm(_Normalisation(self, x)) if later else own.forward(self, x)


_DIMENSIONS = {"1d": (3, 4), "2d": (5,), "3d": (6,)}
