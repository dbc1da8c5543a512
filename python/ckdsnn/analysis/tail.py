"""The part of a network behind one of its stages, with the neurons' surrogates or thresholds changed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ckd_kernels import layers
from ckd_kernels.backends.reference.neuron import Step
from ckd_kernels.surrogate import Surrogate
from ckdsnn.analysis.firing_rate import SPIKING_LAYERS
from ckdsnn.checkpoint import RunError
from ckdsnn.models import ANN, SNN
from ckdsnn.models.ann_resnet import ANNResNet
from ckdsnn.models.outputs import resolve_stage


class Tail:
    """What a network makes of the features of one of its stages.

    Args:
        network: in eval mode: a spiking one of this package, or an :class:`~ckdsnn.models.ann_resnet.ANNResNet`.
        stage: from 1, or negative from the end.

    Call:
        features [T, B, C, H, W] ([B, C, H, W] of a conventional network) -> logits [B, K], the mean over time.

    Raises:
        RunError: a network that cannot be entered in its middle, or that classifies pixels.
        ValueError: a stage that it does not have.

    Example:
        >>> from ckdsnn.models import build_model
        >>> network = build_model("snn_resnet_small", num_classes=10, widths=(4, 6, 8)).eval()
        >>> out = network(torch.rand(2, 1, 20, 20))
        >>> torch.equal(Tail(network, 2)(out.features[2]), out.logits)
        True
    """

    def __init__(self, network: SNN | ANN, stage: int) -> None:
        stages = getattr(network, "stages", None)
        if not isinstance(stages, nn.ModuleList) or not isinstance(network, (SNN, ANNResNet)):
            raise RunError(
                f"{type(network).__name__} cannot be entered at a stage: it needs a list `stages` of its modules, as "
                "the networks of ckdsnn have"
            )
        if network.dense:
            raise RunError(
                f"{type(network).__name__} classifies pixels, and Grad-CAM explains one class an image: name a network "
                "that classifies images"
            )
        self.network = network
        self.stage = resolve_stage(stage, network.num_stages)
        self.modules = [module for part in stages[self.stage :] for module in part.modules()]

    def __call__(self, features: Tensor) -> Tensor:
        stages: Any = self.network.stages
        x = features
        for part in stages[self.stage :]:
            out = part(x)
            x = out[0] if isinstance(out, tuple) else out
        if isinstance(self.network, SNN):
            return self.network.finish({self.network.num_stages: x}, {}).logits
        logits: Tensor = self.network.classifier(x.mean((2, 3)))  # type: ignore[operator]
        return logits

    @property
    def spiking_layers(self) -> list[Any]:
        """The neurons between the features and the logits."""
        return [module for module in self.modules if isinstance(module, SPIKING_LAYERS)]


@contextmanager
def with_surrogate(tail: Tail, surrogate: Surrogate) -> Iterator[None]:
    """All neurons of the tail have this surrogate derivative; what they answer is the same."""
    before = [(layer, layer.neuron) for layer in tail.spiking_layers]
    try:
        for layer, neuron in before:
            layer.neuron = dataclasses.replace(neuron, surrogate=surrogate)
        yield
    finally:
        for layer, neuron in before:
            layer.neuron = neuron


@contextmanager
def with_time_steps(network: SNN, time_steps: int) -> Iterator[None]:
    """The network unrolls static images over so many steps."""
    before = [(module, module.time_steps) for module in network.modules() if hasattr(module, "time_steps")]
    try:
        for module, _ in before:
            module.time_steps = time_steps  # type: ignore[assignment]
        yield
    finally:
        for module, steps in before:
            module.time_steps = steps


class NoisyThresholds:
    """While it is open, every neuron of the tail fires where ``h[t] + noise >= threshold``, the noise logistic.

    The noise is drawn anew for every neuron and step, and is no part of the potential: an escape noise, with which a
    neuron at potential h fires with probability ``sigmoid((h - threshold)/scale)``, ``scale = sqrt(3)/pi * sigma``.
    Spikes have no derivative here, by surrogates or otherwise; what has one is how likely they were.

    Batches are two halves, and the second one's noise is the negative of the first's (antithetic draws).

    Args:
        tail: in eval mode.
        sigma: standard deviation of the noise, > 0, in units of the potential.
        generator: on the device of the features.

    Attributes:
        score: has the gradient of the log-probability of all spikes since :meth:`start`, given the potentials, [B]
            (``sum (spike - p) * h/scale`` with constants spike and p), by the neurons whose potential depends on what
            has a gradient; 0.0 where there are none.
    """

    def __init__(self, tail: Tail, sigma: float, generator: torch.Generator) -> None:
        self.layers, self.scale, self.generator = tail.spiking_layers, math.sqrt(3) / math.pi * sigma, generator
        self.score: Tensor | float = 0.0

    def start(self) -> None:
        """Forgets the spikes so far."""
        self.score = 0.0

    def __enter__(self) -> NoisyThresholds:
        for layer in self.layers:
            layer.forward = self._forward_of(layer)
        return self

    def __exit__(self, *exception: object) -> None:
        for layer in self.layers:
            del layer.forward  # the instance's, which stood before the class's

    def _forward_of(self, layer: Any) -> Any:
        def forward(x: Tensor, residual: Tensor | None = None, *, return_sam: bool = False, **_: Any) -> Any:
            if isinstance(layer, layers.BatchNormLIF):
                flat = x.flatten(0, 1)
                flat = F.batch_norm(
                    flat, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps
                )
                x = flat.unflatten(0, x.shape[:2])
                x = x if residual is None else x + residual
            spikes = self._fire(layer, x)
            if not return_sam:
                return spikes
            from ckd_kernels import LIFOutput, sam

            return LIFOutput(spikes, None, sam(spikes))

        return forward

    def _fire(self, layer: Any, x: Tensor) -> Tensor:
        leak = next(iter(layer._leak().values()), None)
        if leak is not None and leak.dim():
            leak = leak.view(-1, *[1] * (x.dim() - 3))
        step = _GivenSpikes(layer.neuron, leak, x)
        v = torch.full_like(x[0], step.rest)
        step.spikes = torch.zeros_like(v, dtype=torch.bool)
        fired = []
        for current in x:
            h = step.charge(v, current)
            margin = (h - step.threshold) / self.scale
            probability = margin.detach().sigmoid()
            step.spikes = self._uniform(margin) < probability
            if margin.requires_grad:
                surprise = step.spikes.to(x.dtype) - probability
                self.score = self.score + (surprise * margin).flatten(1).sum(1)
            v = step.reset(h)
            fired.append(step.spikes.to(x.dtype))
        return torch.stack(fired)

    def _uniform(self, like: Tensor) -> Tensor:
        half = torch.empty_like(like[: len(like) // 2], requires_grad=False).uniform_(generator=self.generator)
        return torch.cat([half, 1 - half])


class _GivenSpikes(Step):
    """A neuron that is told where it fires."""

    spikes: Tensor

    def fires(self, h: Tensor) -> Tensor:
        return self.spikes
