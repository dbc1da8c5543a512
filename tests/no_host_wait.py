"""Finds what a CUDA graph cannot capture, on any device: ops for which the host must know what is on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

# A value is read, or a shape follows from values: on a GPU the host waits for both.
_WAITS = {
    aten._local_scalar_dense: "item, float, int, bool, or `if` on a tensor",
    aten.is_nonzero: "`if` on a tensor",
    aten.equal: "torch.equal",
    aten.nonzero: "nonzero",
    aten.nonzero_static: "nonzero_static",
    aten.masked_select: "masked_select",
    aten._unique: "unique",
    aten._unique2: "unique",
    aten.unique_dim: "unique",
    aten.unique_consecutive: "unique_consecutive",
    aten.unique_dim_consecutive: "unique_consecutive",
    aten.repeat_interleave: "repeat_interleave by a tensor",
    aten.bincount: "bincount",
    aten.multinomial: "multinomial, which checks its probabilities",
    # What a tensor made of Python numbers begins with: memory of the host that is copied to the device.
    aten.lift_fresh: "torch.tensor of Python numbers: torch.full makes one on the device",
}
_INDEXED = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index)


class HostWaitError(AssertionError):
    """An op that a captured step cannot contain."""


class NoHostWait(TorchDispatchMode):
    """Raises :class:`HostWaitError` at the first op for which the host would wait, and at copies between devices.

    Used around forward and backward, on any device; a CPU is enough to see all but copies between host and device.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        packet: Callable[..., Any] = func.overloadpacket
        if packet in _WAITS:
            raise HostWaitError(f"{func}: {_WAITS[packet]}")
        if packet in _INDEXED and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
            raise HostWaitError(f"{func}: indexing by a mask; use torch.where, masked_fill or gather")
        result = func(*args, **(kwargs or {}))
        if packet in (aten._to_copy, aten.copy_) and _devices(args) | _devices((result,)) > {"cpu"}:
            raise HostWaitError(f"{func}: a copy between host and device")
        return result


def _devices(values: tuple[Any, ...]) -> set[str]:
    return {value.device.type for value in values if isinstance(value, torch.Tensor)}
