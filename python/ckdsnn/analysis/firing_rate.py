"""Measured firing rates: spikes per neuron and time step, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ckd_kernels import layers

SPIKING_LAYERS = (layers.IF, layers.LIF, layers.ParametricLIF, layers.BatchNormLIF)


class FiringRate:
    """Counts the spikes of every spiking layer of a model while it is open.

    Sums stay on the device: reading `layers` or `mean` is what synchronises. The hooks are removed on exit.

    Attributes:
        layers: firing rate of each spiking layer by its name in the model, in spikes per neuron and time step.
        mean: spikes of all layers divided by their neurons x time steps x samples; None where nothing spiked because
            the model has no spiking layer or saw no batch.

    Example:
        >>> from ckd_kernels import layers
        >>> model = torch.nn.Sequential(layers.LIF())
        >>> with FiringRate(model) as rate:
        ...     _ = model(torch.full((4, 2, 3), 10.0))
        >>> rate.mean, rate.layers
        (1.0, {'0': 1.0})
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = {name: m for name, m in model.named_modules() if isinstance(m, SPIKING_LAYERS)}
        self._spikes: dict[str, Tensor] = {}
        self._neurons: dict[str, int] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> FiringRate:
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._counter(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _counter(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def count(module: nn.Module, args: Any, output: Any) -> None:
            spikes = getattr(output, "spikes", output).detach()
            # float32 would stop counting at 2**24 spikes.
            total = spikes.sum(dtype=torch.float64)
            self._spikes[name] = self._spikes.get(name, 0) + total
            self._neurons[name] = self._neurons.get(name, 0) + spikes.numel()

        return count

    @property
    def layers(self) -> dict[str, float]:
        return {name: float(total) / self._neurons[name] for name, total in self._spikes.items() if self._neurons[name]}

    @property
    def mean(self) -> float | None:
        neurons = sum(self._neurons.values())
        return sum(float(total) for total in self._spikes.values()) / neurons if neurons else None
