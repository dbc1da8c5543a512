"""Spiking neurons as modules: drop-in layers over :func:`ckd_kernels.lif`."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from .functional import LIFOutput, lif
from .neuron import Neuron

__all__ = ["IF", "LIF", "ParametricLIF"]


class _SpikingLayer(nn.Module):
    """A neuron over all time steps of its input; the layers below say which neurons they take.

    Stateless by default: every call starts at rest.  With ``stateful=True`` the membrane potential
    after the last step stays in ``self.v`` and the next call continues from it, until `reset`.
    """

    v: Tensor | None

    def __init__(self, neuron: Neuron, *, time_dim: int, stateful: bool) -> None:
        super().__init__()
        if not isinstance(neuron, Neuron):
            raise TypeError(f"neuron must be a ckd_kernels.Neuron, e.g. Neuron.paper(); got {type(neuron).__name__}")
        if time_dim not in (0, 1):
            raise ValueError(f"time_dim must be 0 or 1, got {time_dim!r}")
        self.neuron = neuron
        self.time_dim = time_dim
        self.stateful = stateful
        # No buffer: a state belongs to a sequence, not to the model, and DDP must not broadcast it.
        self.v = None

    def _leak(self) -> dict[str, Tensor]:
        """Learnable decay or tau, as keyword argument of `lif`."""
        return {}

    def forward(self, x: Tensor, *, return_sam: bool = False, channel_dim: int | None = None) -> Tensor | LIFOutput:
        """Spikes of x's shape, or a :class:`LIFOutput` with ``return_sam``; see :func:`ckd_kernels.lif`."""
        out = lif(
            x,
            self.neuron,
            time_dim=self.time_dim,
            v_init=self.v,
            return_v=self.stateful,
            return_sam=return_sam,
            channel_dim=channel_dim,
            **self._leak(),
        )
        if not isinstance(out, LIFOutput):
            return out
        if self.stateful:
            self.v = out.v
        return out._replace(v=None) if return_sam else out.spikes

    def reset(self) -> None:
        """Forgets the membrane potential: the next call starts at rest."""
        self.v = None

    def detach(self) -> None:
        """Keeps the membrane potential but cuts its history, for truncated backpropagation through time."""
        if self.v is not None:
            self.v = self.v.detach()

    def __getstate__(self) -> dict[str, Any]:
        # Copies keep the membrane potential without its history, with which it could not be copied.
        return {**self.__dict__, "v": None if self.v is None else self.v.detach()}

    def extra_repr(self) -> str:
        shown = {f.name: getattr(self.neuron, f.name) for f in dataclasses.fields(self.neuron) if f.repr}
        text = ", ".join(f"{k}={v}" for k, v in shown.items() if v is not None)
        return f"{text}, time_dim={self.time_dim}" + (", stateful=True" if self.stateful else "")


class LIF(_SpikingLayer):
    """Leaky integrate-and-fire neuron.

    Args:
        neuron: any but ``charge="integrate"``; default the CKDSNN paper's.
        time_dim: 0 for ``[T, B, ...]``, 1 for ``[B, T, ...]``.
        stateful: carry the membrane potential from call to call until `reset`.

    Raises:
        TypeError, ValueError: as :func:`ckd_kernels.lif`, or a neuron that does not leak.

    Example:
        >>> import torch
        >>> from ckd_kernels import layers
        >>> layers.LIF()(torch.full((4, 2, 3), 0.8)).mean().item()
        0.5
    """

    def __init__(self, neuron: Neuron | None = None, *, time_dim: int = 0, stateful: bool = False) -> None:
        super().__init__(Neuron.paper() if neuron is None else neuron, time_dim=time_dim, stateful=stateful)
        if self.neuron.charge == "integrate":
            raise ValueError("LIF needs a charge that leaks, got charge='integrate'; use layers.IF")


class IF(_SpikingLayer):
    """Integrate-and-fire neuron.

    Args:
        neuron: one with ``charge="integrate"``; default SpikingJelly's ``IFNode()``.
        time_dim: 0 for ``[T, B, ...]``, 1 for ``[B, T, ...]``.
        stateful: carry the membrane potential from call to call until `reset`.

    Raises:
        TypeError, ValueError: as :func:`ckd_kernels.lif`, or a neuron that leaks.

    Example:
        >>> import torch
        >>> from ckd_kernels import layers
        >>> layers.IF()(torch.full((4, 2, 3), 0.5)).mean().item()
        0.5
    """

    def __init__(self, neuron: Neuron | None = None, *, time_dim: int = 0, stateful: bool = False) -> None:
        super().__init__(Neuron.spikingjelly_if() if neuron is None else neuron, time_dim=time_dim, stateful=stateful)
        if self.neuron.charge != "integrate":
            raise ValueError(f"IF needs charge='integrate', got {self.neuron.charge!r}; use layers.LIF")


class ParametricLIF(_SpikingLayer):
    """LIF neuron with a learnable leak (Fang et al., "Incorporating Learnable Membrane Time Constant", ICCV 2021).

    The parameter ``w`` is unbounded: ``1/tau = sigmoid(w)`` for the charges ``leak`` and ``leak_input``,
    ``decay = sigmoid(w)`` for ``decay``.  It starts at the neuron's own tau or decay.

    Args:
        neuron: any but ``charge="integrate"``, with tau > 1 or 0 < decay < 1; default SpikingJelly's LIF.
        channels: None for one ``w`` (as SpikingJelly), or the number of channels for one each.
        time_dim: 0 for ``[T, B, ...]``, 1 for ``[B, T, ...]``.
        stateful: carry the membrane potential from call to call until `reset`.

    Raises:
        TypeError, ValueError: as :func:`ckd_kernels.lif`, or a neuron that has no leak to learn.

    Example:
        >>> import torch
        >>> from ckd_kernels import layers
        >>> plif = layers.ParametricLIF()
        >>> plif(torch.rand(4, 2, 3)).sum().backward()
        >>> plif.w.grad.shape
        torch.Size([])
    """

    def __init__(
        self,
        neuron: Neuron | None = None,
        *,
        channels: int | None = None,
        time_dim: int = 0,
        stateful: bool = False,
    ) -> None:
        super().__init__(Neuron.spikingjelly_lif() if neuron is None else neuron, time_dim=time_dim, stateful=stateful)
        if channels is not None and (isinstance(channels, bool) or not isinstance(channels, int) or channels < 1):
            raise ValueError(f"channels must be None or an integer >= 1, got {channels!r}")
        name = self.neuron.leak_name
        if name is None:
            raise ValueError("ParametricLIF needs a charge that leaks, got charge='integrate'; use layers.IF")
        start = self.neuron.decay if self.neuron.decay is not None else 1.0 / self.neuron.tau  # type: ignore[operator]
        if not 0.0 < start < 1.0:
            raise ValueError(f"{name}={getattr(self.neuron, name)!r} is at the end of its range; nothing to learn from")
        w = torch.full(() if channels is None else (channels,), math.log(start / (1.0 - start)))
        self.w = nn.Parameter(w)

    def _leak(self) -> dict[str, Tensor]:
        rate = torch.sigmoid(self.w)
        return {"decay": rate} if self.neuron.leak_name == "decay" else {"tau": 1.0 / rate}
