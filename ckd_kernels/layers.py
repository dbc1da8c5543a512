"""Spiking neurons as modules: drop-in layers over :func:`ckd_kernels.lif`."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from .functional import LIFOutput, bn_lif, lif
from .neuron import Neuron
from .normalisation import module_arguments

__all__ = ["IF", "LIF", "BatchNormLIF", "ParametricLIF"]


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
        return self._keep_state(out)

    def _keep_state(self, out: Tensor | LIFOutput) -> Tensor | LIFOutput:
        if not isinstance(out, LIFOutput):
            return out
        if self.stateful:
            self.v = out.v
        return out._replace(v=None) if out.sam is not None else out.spikes

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


class BatchNormLIF(_SpikingLayer):
    """Batch normalisation over time, batch and space, and a spiking neuron, in one: see :func:`ckd_kernels.bn_lif`.

    Stands for ``nn.Sequential(nn.BatchNorm2d(num_features), neuron)`` with the normalisation applied to time and
    batch taken together; its parameters, buffers and their names are those of nn.BatchNorm2d, so that checkpoints of
    the pair load into it, and back.

    Args:
        num_features: C.
        neuron: any; default the CKDSNN paper's.
        eps: added to the variance, > 0.
        momentum: share of a batch's statistics in the running ones, in [0, 1]; None: all batches count alike.
        affine: whether there are a learnable weight and bias.
        track_running_stats: whether there are running statistics; without, the batch's serve in evaluation, too.
        alpha: None, or the weight starts at ``alpha*threshold``, threshold-dependent batch normalisation (Zheng et
            al., "Going Deeper With Directly-Trained Larger Spiking Neural Networks", AAAI 2021).
        time_dim: 0 for ``[T, B, C, ...]``, 1 for ``[B, T, C, ...]``.
        channel_dim: where channels are, counted with time.
        stateful: carry the membrane potential from call to call until `reset`.
        process_group: processes that share their statistics, as nn.SyncBatchNorm; None: each its own.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`ckd_kernels.bn_lif`.

    Example:
        >>> import torch
        >>> from ckd_kernels import layers
        >>> layer = layers.BatchNormLIF(8)
        >>> y = torch.randn(4, 2, 8, 5, 5)
        >>> layer(y, residual=torch.zeros_like(y)).shape
        torch.Size([4, 2, 8, 5, 5])
        >>> sorted(layer.state_dict()) == sorted(torch.nn.BatchNorm2d(8).state_dict())
        True
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        neuron: Neuron | None = None,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        alpha: float | None = None,
        time_dim: int = 0,
        channel_dim: int = 2,
        stateful: bool = False,
        process_group: Any = None,
    ) -> None:
        super().__init__(Neuron.paper() if neuron is None else neuron, time_dim=time_dim, stateful=stateful)
        if isinstance(num_features, bool) or not isinstance(num_features, int) or num_features < 1:
            raise ValueError(f"num_features must be an integer >= 1, got {num_features!r}")
        if not eps > 0.0:
            raise ValueError(f"eps must be > 0, got {eps!r}")
        if momentum is not None and not 0.0 <= momentum <= 1.0:
            raise ValueError(f"momentum must be None or in [0, 1], got {momentum!r}")
        if alpha is not None and not affine:
            raise ValueError(f"alpha={alpha!r} is where the weight starts, and affine=False has none; leave it out")
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        self.alpha = alpha
        self.channel_dim = channel_dim
        self.process_group = process_group
        self.register_parameter("weight", nn.Parameter(torch.empty(num_features)) if affine else None)
        self.register_parameter("bias", nn.Parameter(torch.empty(num_features)) if affine else None)
        self.register_buffer("running_mean", torch.empty(num_features) if track_running_stats else None)
        self.register_buffer("running_var", torch.empty(num_features) if track_running_stats else None)
        count = torch.tensor(0, dtype=torch.long) if track_running_stats else None
        self.register_buffer("num_batches_tracked", count)
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Forgets the running statistics."""
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.running_mean.zero_()
            self.running_var.fill_(1)
            self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """Running statistics, weight and bias as they start."""
        self.reset_running_stats()
        if self.weight is not None and self.bias is not None:
            nn.init.constant_(self.weight, 1.0 if self.alpha is None else self.alpha * self.neuron.threshold)
            nn.init.zeros_(self.bias)

    def forward(  # type: ignore[override]
        self, y: Tensor, residual: Tensor | None = None, *, return_sam: bool = False
    ) -> Tensor | LIFOutput:
        """Spikes of y's shape, or a :class:`LIFOutput` with ``return_sam``; see :func:`ckd_kernels.bn_lif`."""
        out = bn_lif(
            y,
            neuron=self.neuron,
            **module_arguments(self),
            residual=residual,
            time_dim=self.time_dim,
            channel_dim=self.channel_dim,
            v_init=self.v,
            return_v=self.stateful,
            return_sam=return_sam,
            process_group=self.process_group,
        )
        return self._keep_state(out)

    def extra_repr(self) -> str:
        shown = f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}"
        return f"{shown}, track_running_stats={self.track_running_stats}, {super().extra_repr()}"
