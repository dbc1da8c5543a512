"""Spiking neurons as modules: drop-in layers over :func:`ckd_kernels.lif`."""

from __future__ import annotations

import dataclasses
import math
import sys
from typing import Any

import torch
from torch import Tensor, nn

from .arguments import check_eps, check_flag, check_group, check_index, check_momentum, check_number
from .functional import LIFOutput, bn_lif, lif
from .neuron import Neuron
from .norm_view import NormView
from .normalisation import count_batch, module_arguments, sharing_group

__all__ = ["IF", "LIF", "BatchNormLIF", "ParametricLIF"]


class _SpikingLayer(nn.Module):
    """A neuron over all time steps of its input; the layers below say which neurons they take.

    Stateless by default: every call starts at rest.  With ``stateful=True`` the membrane potential
    after the last step stays in ``self.v`` and the next call continues from it, until `reset`.
    A stateful layer cannot be part of activation checkpointing, which calls it once more.
    """

    v: Tensor | None

    def __init__(self, neuron: Neuron, *, time_dim: int, stateful: bool) -> None:
        super().__init__()
        if not isinstance(neuron, Neuron):
            raise TypeError(f"neuron must be a ckd_kernels.Neuron, e.g. Neuron.paper(); got {type(neuron).__name__}")
        check_index("time_dim", time_dim, "0 or 1")
        if time_dim not in (0, 1):
            raise ValueError(f"time_dim must be 0 or 1, got {time_dim!r}")
        check_flag("stateful", stateful)
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
            v_init=self._state(),
            return_v=self.stateful,
            return_sam=return_sam,
            channel_dim=channel_dim,
            **self._leak(),
        )
        return self._keep_state(out)

    def _state(self) -> Tensor | None:
        """The membrane potential to start from."""
        if self.stateful and not torch.compiler.is_compiling() and torch._C._current_graph_task_id() >= 0:
            raise RuntimeError(
                f"a stateful {type(self).__name__} was called during a backward pass, as activation checkpointing does:"
                " its membrane potential has moved on since the forward pass, and gradients would be wrong; leave the"
                " layer out of the checkpoint, or give the potential as an argument: ckd_kernels.lif(..., v_init=v,"
                " return_v=True)"
            )
        return _for_training(self.v)

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
            self.v = _for_training(self.v.detach())

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moves the membrane potential along, but keeps its dtype, which is that of the arithmetic."""
        super()._apply(fn, recurse)
        if self.v is not None:
            moved = fn(self.v)
            self.v = moved if self.v.is_meta else self.v.to(moved.device)
        return self

    def __getstate__(self) -> dict[str, Any]:
        # Copies keep the membrane potential without its history, with which it could not be copied.
        return {**self.__dict__, "v": None if self.v is None else self.v.detach()}

    def extra_repr(self) -> str:
        shown = {f.name: getattr(self.neuron, f.name) for f in dataclasses.fields(self.neuron) if f.repr}
        text = ", ".join(f"{k}={v}" for k, v in shown.items() if v is not None)
        return f"{text}, time_dim={self.time_dim}" + (", stateful=True" if self.stateful else "")


def _for_training(v: Tensor | None) -> Tensor | None:
    """v, or a copy that autograd takes where v was made under `torch.inference_mode`."""
    if v is None or torch.compiler.is_compiling() or not v.is_inference() or torch.is_inference_mode_enabled():
        return v
    return v.clone()


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
        if not 0.0 < self._start() < 1.0:
            raise ValueError(f"{name}={getattr(self.neuron, name)!r} is at the end of its range; nothing to learn from")
        self.w = nn.Parameter(torch.empty(() if channels is None else (channels,)))
        self.reset_parameters()

    def _start(self) -> float:
        """The neuron's decay, or 1/tau."""
        neuron = self.neuron
        return neuron.decay if neuron.decay is not None else 1.0 / neuron.tau  # type: ignore[operator]

    def reset_parameters(self) -> None:
        """w as it starts."""
        start = self._start()
        nn.init.constant_(self.w, math.log(start / (1.0 - start)))

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
        process_group: processes that share their statistics in training, as nn.SyncBatchNorm; ``"world"``: all, once
            `torch.distributed` is initialised; None: each its own.
            `torch.nn.SyncBatchNorm.convert_sync_batchnorm` sets it, too.

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
        check_eps(eps)
        if momentum is not None:
            check_momentum(momentum)
        check_flag("affine", affine)
        check_flag("track_running_stats", track_running_stats)
        check_index("channel_dim", channel_dim)
        if process_group != "world":
            check_group(process_group)
        if alpha is not None:
            top = sys.float_info.max
            check_number("alpha", alpha, low=-top, high=top, expected="None or a finite number")
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
        self.norm = NormView(self)
        self.reset_parameters()

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """As `torch.nn.Module.add_module`; what `torch.nn.SyncBatchNorm.convert_sync_batchnorm` puts in the place of
        the normalisation sets ``process_group``, and the layer stays what it is."""
        if name == "norm" and isinstance(module, nn.SyncBatchNorm):
            self.process_group = "world" if module.process_group is None else module.process_group
        else:
            super().add_module(name, module)

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
            v_init=self._state(),
            return_v=self.stateful,
            return_sam=return_sam,
            process_group=sharing_group(self.process_group) if self.training else None,
        )
        count_batch(self)
        return self._keep_state(out)

    def extra_repr(self) -> str:
        shown = f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}"
        return f"{shown}, track_running_stats={self.track_running_stats}, {super().extra_repr()}"
