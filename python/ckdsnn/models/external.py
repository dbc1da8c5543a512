"""Any network as a teacher: its layers are watched through hooks, a transformer's tokens become maps."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import ANN
from .outputs import ANNOutput
from .registry import nearest, register_model

LAYOUTS = ("channels_first", "channels_last", "tokens")


class HookedANN(ANN):
    """A network whose layers stand for stages.

    Args:
        model: images [B, in_channels, S, S] -> logits [B, K].
        layers: module names (as in ``model.named_modules()``) whose outputs are the features of stages 1, 2, ...
        num_classes: K.
        in_channels: channels of the images.
        image_size: S, what the model takes; images of another size are resized (bilinear, antialiased).
        layout: of the layers' outputs: ``"channels_first"`` [B, C, H, W], ``"channels_last"`` [B, H, W, C] or
            ``"tokens"`` [B, P + H*W, C] with P prefix tokens, H = W.
        prefix_tokens: P, e.g. 1 for a class token; only with ``layout="tokens"`` (default: the model's own
            ``num_prefix_tokens``, as timm has it, else 1).
        classifier: name of the linear layer, where the logits are that layer on the spatial mean of the last stage;
            Grad-CAM then needs no backward pass.  Checked.

    Raises:
        ValueError: a layer that does not exist or returns something else, logits of another shape, a classifier that
            does not make them.

    Grad-CAM differentiates by a layer's output, so the logits must depend on it: where a vision transformer
    classifies by its class token, hook the input of the last attention (``blocks.11.norm1`` in timm), not the last
    block.  :class:`~ckdsnn.losses.FrozenTeacher` refuses layers of which the logits are independent.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from ckdsnn.models.external import HookedANN
        >>> plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
        >>> teacher = HookedANN(plain, ["1"], num_classes=5, in_channels=3, image_size=16, classifier="4")
        >>> teacher(torch.zeros(2, 3, 16, 16)).features[1].shape
        torch.Size([2, 8, 14, 14])
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        num_classes: int,
        in_channels: int,
        image_size: int,
        layout: str = "channels_first",
        prefix_tokens: int | None = None,
        classifier: str | None = None,
    ) -> None:
        if layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
        if prefix_tokens is not None and layout != "tokens":
            raise ValueError(f"prefix_tokens={prefix_tokens} is only used with layout='tokens'; leave it out")
        if not layers:
            raise ValueError("layers must name at least one layer, got none")
        known = dict(model.named_modules())
        for name in (*layers, *(() if classifier is None else (classifier,))):
            if name not in known:
                raise ValueError(f"the model has no layer {name!r}" + nearest(name, list(known)))
        super().__init__(num_classes, in_channels, (0,) * len(layers))
        self.model = model
        self.layers = tuple(layers)
        self.image_size = image_size
        self.layout = layout
        own = getattr(model, "num_prefix_tokens", 1)
        self.prefix_tokens = int(own) if prefix_tokens is None else prefix_tokens
        self.classifier_name = classifier
        self.stage_channels, self._differentiable_stages = self._probe()

    @property
    def classifier_weight(self) -> Tensor | None:
        if self.classifier_name is None:
            return None
        return self.model.get_submodule(self.classifier_name).weight  # type: ignore[return-value]

    @property
    def differentiable_stages(self) -> tuple[int, ...]:
        return self._differentiable_stages

    def forward(self, images: Tensor, *, differentiable_from: int | None = None) -> ANNOutput:
        images = self.static_images(images)
        if images.shape[-2:] != (self.image_size, self.image_size):
            size = (self.image_size, self.image_size)
            images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        features: dict[int, Tensor] = {}
        # Hooks for the length of a call: copies of this module then watch their own layers.
        handles = [
            self.model.get_submodule(name).register_forward_hook(self._watch(stage, features, differentiable_from))
            for stage, name in enumerate(self.layers, start=1)
        ]
        try:
            logits = self.model(images)
        finally:
            for handle in handles:
                handle.remove()
        if not isinstance(logits, Tensor) or logits.shape != (len(images), self.num_classes):
            got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"the model must return logits [B, {self.num_classes}], got {got}")
        return ANNOutput(logits, features, self.classifier_weight)

    def _watch(
        self, stage: int, features: dict[int, Tensor], differentiable_from: int | None
    ) -> Callable[[nn.Module, Any, Any], Tensor]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Tensor:
            maps = self._to_maps(output, self.layers[stage - 1])
            if stage == differentiable_from:
                maps = maps.detach().requires_grad_()
            features[stage] = maps
            # What goes on is made from the map, so that the logits can be differentiated by it.
            return self._from_maps(maps, output) if torch.is_grad_enabled() else output

        return hook

    def _to_maps(self, output: Any, name: str) -> Tensor:
        """The layer's output as [B, C, H, W]."""
        wanted = 3 if self.layout == "tokens" else 4
        if not isinstance(output, Tensor) or output.dim() != wanted:
            got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"layer {name!r} must return a tensor of {wanted} dimensions with layout={self.layout!r}, got {got}"
            )
        if self.layout == "channels_first":
            return output
        if self.layout == "channels_last":
            return output.permute(0, 3, 1, 2)
        tokens = output[:, self.prefix_tokens :]
        side = round(tokens.shape[1] ** 0.5)
        if side * side != tokens.shape[1]:
            raise ValueError(
                f"layer {name!r} returns {output.shape[1]} tokens; without prefix_tokens={self.prefix_tokens} these "
                f"are {tokens.shape[1]}, no square map: set prefix_tokens"
            )
        return tokens.transpose(1, 2).unflatten(2, (side, side))

    def _from_maps(self, maps: Tensor, output: Tensor) -> Tensor:
        """The inverse of :meth:`_to_maps`; prefix tokens are those of ``output``."""
        if self.layout == "channels_first":
            return maps
        if self.layout == "channels_last":
            return maps.permute(0, 2, 3, 1)
        return torch.cat([output[:, : self.prefix_tokens], maps.flatten(2).transpose(1, 2)], dim=1)

    def _probe(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Channels of every stage, and the stages on which the logits depend, from one image of noise."""
        generator = torch.Generator().manual_seed(0)
        reference = next(self.model.parameters())
        image = torch.randn(1, self.in_channels, self.image_size, self.image_size, generator=generator)
        was_training = self.model.training
        self.model.eval()
        with torch.enable_grad():
            out = self(image.to(reference.device, reference.dtype), differentiable_from=1)
            stages = sorted(out.features)
            if len(stages) != self.num_stages:
                idle = [name for stage, name in enumerate(self.layers, start=1) if stage not in stages]
                raise ValueError(f"layers {idle} are not called by the model's forward pass")
            gradients = torch.autograd.grad(out.logits.sum(), [out.features[s] for s in stages], allow_unused=True)
        self.model.train(was_training)
        weight = self.classifier_weight
        if weight is not None:
            pooled = out.features[self.num_stages].mean((2, 3))
            bias: Tensor | None = self.model.get_submodule(self.classifier_name or "").bias  # type: ignore[assignment]
            if weight.shape != (self.num_classes, pooled.shape[1]) or not torch.allclose(
                F.linear(pooled, weight, bias), out.logits, rtol=1e-3, atol=1e-4
            ):
                raise ValueError(
                    f"classifier {self.classifier_name!r} on the spatial mean of {self.layers[-1]!r} does not make the "
                    "logits; leave classifier out, Grad-CAM then runs a backward pass"
                )
        reached = tuple(s for s, g in zip(stages, gradients, strict=True) if g is not None and bool(g.any()))
        return tuple(out.features[s].shape[1] for s in stages), reached


@register_model("external")
def external(
    num_classes: int,
    source: str,
    layers: Sequence[str],
    image_size: int,
    in_channels: int = 3,
    layout: str = "channels_first",
    prefix_tokens: int | None = None,
    classifier: str | None = None,
    model_options: Mapping[str, Any] | None = None,
    weights: str | None = None,
) -> HookedANN:
    """A network from another library, or your own, as a teacher; see :class:`HookedANN`.

    Args:
        num_classes: K.
        source: ``"timm:NAME"``, ``"torchvision:NAME"``, or ``"package.module:name"`` of a class or function that takes
            ``model_options`` and returns an nn.Module.  The first two get the number of classes by themselves, timm
            also that of channels.
        layers, image_size, in_channels, layout, prefix_tokens, classifier: see :class:`HookedANN`.
        model_options: keyword arguments of the model.  Nothing is downloaded unless they ask for it
            (``{"pretrained": true}`` in timm).
        weights: file of a state_dict, loaded with ``weights_only=True``, whose tensors the model all has.

    Raises:
        ValueError: a source that cannot be found, or what :class:`HookedANN` refuses.
        ImportError: timm or torchvision is not installed.
        FileNotFoundError: no such file of weights.
        RunError: weights that cannot be read or do not fit.
    """
    model = _make(source, num_classes, in_channels, dict(model_options or {}))
    if weights is not None:
        from ckdsnn.weights import start_from  # imports Lightning

        start_from(model, weights)
    return HookedANN(model, layers, num_classes, in_channels, image_size, layout, prefix_tokens, classifier)


def _make(source: str, num_classes: int, in_channels: int, options: dict[str, Any]) -> nn.Module:
    package, _, name = source.partition(":")
    if not name:
        raise ValueError(f"source must be 'timm:NAME', 'torchvision:NAME' or 'package.module:name', got {source!r}")
    if package == "timm":
        return _library("timm").create_model(name, num_classes=num_classes, in_chans=in_channels, **options)
    if package == "torchvision":
        return _library("torchvision").models.get_model(name, num_classes=num_classes, **options)
    try:
        build = getattr(importlib.import_module(package), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"source {source!r} cannot be imported: {error}") from error
    model = build(**options)
    if not isinstance(model, nn.Module):
        raise ValueError(f"source {source!r} must make an nn.Module, got {type(model).__name__}")
    return model


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"source '{name}:...' needs {name}, which cannot be imported ({error}); run pip install {name}"
        ) from error
