"""Changing what a module computes without replacing it.

A converted module stays the object that it was: its class becomes a subclass of its own class, made here, with our
``forward`` in front.  (PyTorch does the same in `torch.nn.utils.parametrize` and in FSDP2.)  Hence parameters,
buffers, state, hooks, names, optimisers, wrappers such as DDP, ``isinstance`` checks and every reference to it stay as
they were, and what our code does not serve is still there, in the class below.
"""

from __future__ import annotations

import functools
from typing import Any

PREFIX = "Fused"


class Unsupported(Exception):
    """Why a module cannot run on our kernels."""


class Adopted:
    """Base of the classes that are put in front of a module's own."""

    _own: Any  # the class that the module had before; also below what PyTorch may put in front of ours

    def __reduce_ex__(self, protocol: Any) -> Any:
        cls = type(self)
        if "_own" not in vars(cls):
            return super().__reduce_ex__(protocol)
        # A class that was made at run time has no name to be pickled or copied by: it is made again.
        return _blank, cls.__bases__, self.__getstate__()  # type: ignore[attr-defined]


@functools.cache
def adopted_class(front: Any, own: Any) -> Any:
    """``own`` with ``front`` before it."""
    members = {"__module__": front.__module__, "__doc__": front.__doc__, "_own": own}
    return type(PREFIX + own.__name__, (front, own), members)


def _blank(front: Any, own: Any) -> Any:
    made = adopted_class(front, own)
    return made.__new__(made)


def own_class(module: Any) -> Any:
    """The class that an adopted module had before."""
    return module._own


def adopt(module: Any, front: Any) -> None:
    """Puts ``front`` before the module's class."""
    own: Any = type(module)
    module.__class__ = adopted_class(front, own)
