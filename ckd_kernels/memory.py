"""One-bit saved spikes: what convolutions and linear layers keep of spikes for their backward pass.

A weight gradient needs the layer's input, so autograd keeps every spike tensor in 16 or 32 bits a spike, of which one
says something.  Here the spikes of our neurons are recognised by where they come from: `lif` and `bn_lif` note the
storage and the version of what they return, and a tensor that is saved for backward is packed where it lies in such a
storage and nobody has written to it since.  Nothing is read to find out, so a GPU is never waited for.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from .backend import requested
from .ops import pack as _ops  # noqa: F401  (defines the ops)

__all__ = ["one_bit_spikes"]


class one_bit_spikes(contextlib.ContextDecorator):
    """Keeps spikes that are saved for backward at 1 bit each instead of 16 or 32.

    Spikes that :func:`ckd_kernels.lif`, :func:`ckd_kernels.bn_lif` or a layer over them makes inside the ``with`` block
    (or the decorated function) are packed when an operation saves them for its backward pass, as convolutions and
    linear layers do with their input, and unpacked when its gradient is computed.  However many operations save the
    same spikes or views of them, they are packed once, and freed as soon as nobody else holds them.  Gradients are the
    same, bit for bit.  Only the forward pass needs to run inside.

    Everything else is left alone: sums of spikes (SEW-ResNet), pooled spikes, copies of spikes, as autocast makes them
    of float32 spikes for a layer in bfloat16, spikes that were modified in place, spikes made outside the block.

    - The innermost `torch.autograd.graph.saved_tensors_hooks` is the only one that acts: inside this block no outer
      `save_on_cpu` does, and what runs under non-reentrant checkpointing is kept as checkpointing keeps it.
    - ``torch.compile``: spikes made inside a compiled graph are left alone, as the compiler decides what that graph
      saves; those that enter it from outside are packed where it saves them as they are.  The block itself belongs
      around a compiled function: inside one it breaks the graph, an error with ``fullgraph=True``.
    - As with autograd's own check, writing through ``.data`` or a shared NumPy array is not noticed.

    It may be nested and entered again, in any number of threads, each of which packs its own spikes.

    Raises:
        RuntimeError: in backward, a tensor that was left alone was modified in place since it was saved.

    Example:
        >>> import torch, ckd_kernels
        >>> linear, neuron = torch.nn.Linear(64, 64), ckd_kernels.layers.LIF()
        >>> x = torch.rand(4, 2, 64)
        >>> with ckd_kernels.one_bit_spikes():
        ...     y = linear(neuron(x))  # keeps 4 * 2 * 64 bits instead of floats
        >>> y.sum().backward()
    """

    def __init__(self) -> None:
        self._hooks = saved_tensors_hooks(_save, _restore)

    def __enter__(self) -> None:
        self._hooks.__enter__()
        _here.depth += 1

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)
        _here.depth -= 1
        if _here.depth == 0:
            _here.spikes.clear()


def note_spikes(spikes: Tensor) -> None:
    """Tells this thread's `one_bit_spikes`, if there is any, that a tensor that has just been made is binary."""
    # A compiled graph may reuse memory without a word to autograd.
    if torch.compiler.is_compiling() or _here.depth == 0 or spikes.numel() == 0 or spikes.is_inference():
        return
    storage = spikes.untyped_storage()
    if len(_here.spikes) >= _here.limit:
        _here.spikes = {at: known for at, known in _here.spikes.items() if not known.storage.expired()}
        _here.limit = 64 + 2 * len(_here.spikes)
    _here.spikes[storage._cdata] = _Spikes(StorageWeakRef(storage), spikes._version, spikes.dtype, spikes.numel())


class _Packed:
    """The bits of a whole storage of spikes."""

    def __init__(self, spikes: Tensor) -> None:
        self.dtype, self.backend = spikes.dtype, requested()
        self.bits: Tensor = torch.ops.ckd_kernels.pack_bits(spikes, self.backend)

    def unpack(self, first: int, last: int) -> Tensor:
        """The spikes [first, last), of which ``first`` is a multiple of 8."""
        return torch.ops.ckd_kernels.unpack_bits(self.bits[first // 8 :], last - first, self.dtype, self.backend)


class _Spikes:
    """What is known of a storage.  The weak reference also keeps its address from being given to another one."""

    def __init__(self, storage: StorageWeakRef, version: int, dtype: torch.dtype, count: int) -> None:
        self.storage, self.version, self.dtype, self.count = storage, version, dtype, count
        # Weak: bits are as short-lived as the graphs that hold them.
        self._packed: weakref.ref[_Packed] | None = None

    def holds(self, t: Tensor) -> bool:
        """Whether all elements of t, which lies in this storage, are spikes still."""
        # The negative bit is how views like z.conj().imag change values without a copy.
        return t._version == self.version and t.dtype == self.dtype and not t.is_neg()

    def packed(self, t: Tensor) -> _Packed:
        packed = self._packed() if self._packed is not None else None
        if packed is None:
            packed = _Packed(t.as_strided((self.count,), (1,), 0))
            self._packed = weakref.ref(packed)
        return packed


class _Here(threading.local):
    """This thread's contexts, and the spikes made in them by the address of their storage."""

    def __init__(self) -> None:
        self.depth = 0
        self.limit = 64  # of entries, after which those of freed storages are dropped
        self.spikes: dict[int, _Spikes] = {}


_here = _Here()


class _View(NamedTuple):
    """Spikes, or a view of some of them, as autograd keeps them here."""

    packed: _Packed
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    def restore(self) -> Tensor:
        # Of a view only what it spans is unpacked, from a multiple of 32 so that its alignment stays as it was.
        first = self.offset // 32 * 32
        last = self.offset + 1 + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        return self.packed.unpack(first, last).as_strided(self.size, self.stride, self.offset - first)


class _LeftAlone(NamedTuple):
    """Any other tensor, with its version: where there are hooks, autograd leaves it to them to compare versions."""

    tensor: Tensor
    version: int

    def restore(self) -> Tensor:
        if self.tensor._version != self.version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation:"
                f" [{self.tensor.type()} {list(self.tensor.shape)}] is at version {self.tensor._version};"
                f" expected version {self.version} instead"
            )
        return self.tensor


def _save(t: Tensor) -> _View | _LeftAlone:
    spikes = None
    if type(t) is Tensor and t.layout is torch.strided and t.numel() > 0 and _here.spikes:
        spikes = _here.spikes.get(t.untyped_storage()._cdata)
    if spikes is None or not spikes.holds(t):
        # Detached: the tensor itself may hold the node of the graph that keeps it.
        return _LeftAlone(t.detach(), t._version)
    return _View(spikes.packed(t), t.size(), t.stride(), int(t.storage_offset()))


def _restore(saved: _View | _LeftAlone) -> Tensor:
    return saved.restore()
