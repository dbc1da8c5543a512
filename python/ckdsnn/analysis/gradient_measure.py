"""The gradients of a network at one of its stages, measured over samples, surrogates, references and time steps."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ckd_kernels import sam
from ckd_kernels.surrogate import Surrogate
from ckdsnn.analysis.gradient import (
    Smoothed,
    cosine,
    finite_difference_weights,
    map_of,
    smoothed_weights,
    surrogate_weights,
)
from ckdsnn.analysis.tail import Tail, with_surrogate, with_time_steps
from ckdsnn.data import Batch
from ckdsnn.losses import saliency_map
from ckdsnn.models import ANN, SNN
from ckdsnn.models.ann_resnet import ANNResNet
from ckdsnn.models.outputs import resolve_stage


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        stage: of the network, from 1 or negative from the end.
        time_steps: numbers of them.
        surrogates: what takes the place of the network's own.
        steps: of the finite differences, in spikes.
        sigmas: standard deviations of the noise at the thresholds, in units of the potential.
        draws: noise samples an estimate.
        seed: of the noise.
    """

    stage: int
    time_steps: tuple[int, ...]
    surrogates: tuple[Surrogate, ...]
    steps: tuple[float, ...]
    sigmas: tuple[float, ...]
    draws: int
    seed: int = 0


@dataclass(frozen=True)
class Looked:
    """The gradients of one batch, or of several put together, at one number of time steps; on the CPU.

    Attributes:
        features: mean over time, [N, C, H, W].
        sam: spike activation maps of the stage, [N, H, W].
        own: the weights by the surrogates that the network was trained with, [N, C].
        surrogates: by surrogate, [N, C] each.
        differences: finite differences by their steps, [N, C] each.
        smoothed: by the sigmas of their noise.
    """

    features: Tensor
    sam: Tensor
    own: Tensor
    surrogates: dict[Surrogate, Tensor]
    differences: dict[float, Tensor]
    smoothed: dict[float, Smoothed]

    @classmethod
    def together(cls, parts: Sequence[Looked]) -> Looked:
        """Of several batches, one."""
        first = parts[0]
        counts = [len(part.sam) for part in parts]

        def smoothed(sigma: float) -> Smoothed:
            each = [part.smoothed[sigma] for part in parts]
            same = sum(n * s.same for n, s in zip(counts, each, strict=True)) / sum(counts)
            return dataclasses.replace(each[0], groups=torch.cat([s.groups for s in each], 1), same=same)

        return cls(
            torch.cat([part.features for part in parts]),
            torch.cat([part.sam for part in parts]),
            torch.cat([part.own for part in parts]),
            {key: torch.cat([part.surrogates[key] for part in parts]) for key in first.surrogates},
            {key: torch.cat([part.differences[key] for part in parts]) for key in first.differences},
            {key: smoothed(key) for key in first.smoothed},
        )

    def map_of(self, weights: Tensor) -> Tensor:
        """Grad-CAM's map with these weights, [N, H, W]."""
        return map_of(weights, self.features[None])

    def references(self) -> dict[tuple[str, float], Tensor]:
        """Weights by the kind of reference, "difference" or "smoothed", and its step or sigma."""
        return {
            **{("difference", step): weights for step, weights in self.differences.items()},
            **{("smoothed", sigma): smoothed.weights for sigma, smoothed in self.smoothed.items()},
        }


def look(network: SNN, batches: Iterable[Batch], settings: Settings) -> dict[int, Looked]:
    """Measures a network, in eval mode; by the number of time steps.

    Raises:
        RunError: a network that cannot be entered at a stage.
        ValueError: a stage that it does not have.
    """
    tail = Tail(network, settings.stage)
    found: dict[int, list[Looked]] = {steps: [] for steps in settings.time_steps}
    generators: dict[int, torch.Generator] = {}
    for images, target, _ in batches:
        for steps, parts in found.items():
            if steps not in generators:
                generators[steps] = torch.Generator(images.device).manual_seed(settings.seed)
            with with_time_steps(network, steps):
                with torch.no_grad():
                    features = network(images).features[tail.stage]
                parts.append(_look(tail, features, target, settings, generators[steps]))
    return {steps: Looked.together(parts) for steps, parts in found.items()}


def _look(tail: Tail, features: Tensor, target: Tensor, settings: Settings, generator: torch.Generator) -> Looked:
    own = surrogate_weights(tail, features, target).cpu()
    surrogates = {}
    for surrogate in settings.surrogates:
        with with_surrogate(tail, surrogate):
            surrogates[surrogate] = surrogate_weights(tail, features, target).cpu()
    differences = {step: finite_difference_weights(tail, features, target, step).cpu() for step in settings.steps}
    smoothed = {}
    for sigma in settings.sigmas:
        estimate = smoothed_weights(tail, features, target, sigma, settings.draws, generator)
        smoothed[sigma] = dataclasses.replace(estimate, groups=estimate.groups.cpu())
    return Looked(features.mean(0).cpu(), sam(features).cpu(), own, surrogates, differences, smoothed)


@dataclass(frozen=True)
class Checks:
    """What must agree wherever the method is right: the least cosine over samples of the channel weights.

    Attributes:
        last_difference, last_smoothed: at the student's last stage, behind which there is no neuron: of the surrogate's
            weights with a finite difference, and with the gradient of the expected output.
        teacher: of the gradient of the conventional teacher, at the same stage, with a finite difference, in float64;
            None where it has no such stage or cannot be entered there.
    """

    last_difference: float
    last_smoothed: float
    teacher: float | None

    @classmethod
    def of(cls, network: SNN, teacher: ANN | None, batch: Batch, settings: Settings) -> Checks:
        """Runs them on a batch."""
        images, target, _ = batch
        tail = Tail(network, -1)
        with torch.no_grad():
            features = network(images).features[tail.stage]
        exact = surrogate_weights(tail, features, target)
        generator = torch.Generator(images.device).manual_seed(settings.seed)
        difference = finite_difference_weights(tail, features, target, 0.1)
        smoothed = smoothed_weights(tail, features, target, settings.sigmas[0], 64, generator).weights
        of_teacher = None
        if isinstance(teacher, ANNResNet) and resolve_stage(settings.stage, network.num_stages) <= teacher.num_stages:
            of_teacher = _teacher_check(teacher, images, target, resolve_stage(settings.stage, network.num_stages))
        return cls(float(cosine(difference, exact).min()), float(cosine(smoothed, exact).min()), of_teacher)


def _teacher_check(teacher: ANNResNet, images: Tensor, target: Tensor, stage: int) -> float:
    exact_teacher = copy.deepcopy(teacher).double()
    tail = Tail(exact_teacher, stage)
    with torch.no_grad():
        features = exact_teacher(images.double()).features[stage]
    exact = surrogate_weights(tail, features, target)
    return float(cosine(finite_difference_weights(tail, features, target, 1e-6), exact).min())


def teacher_maps_at(teacher: ANN, batches: Iterable[Batch], stage: int) -> Tensor:
    """Grad-CAM of the label's logit at a stage of the teacher, [N, h, w] on the CPU.

    Raises:
        ValueError: a stage that it does not have.
    """
    number = resolve_stage(stage, teacher.num_stages)
    parts = []
    for images, target, _ in batches:
        with torch.enable_grad():
            out = teacher(images, differentiable_from=number)
        parts.append(saliency_map("grad_cam", out, number, target).detach().cpu())
    return torch.cat(parts)
