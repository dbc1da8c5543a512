"""Any network as a teacher: its layers are watched through hooks, a transformer's tokens become maps."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ckdsnn.files import load_tensors
from ckdsnn.option_types import Layer, OneOf, Within
from ckdsnn.registry import nearest

from .base import ANN
from .outputs import ANNOutput
from .registry import ModelOptions, register_model

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
        trainable: names of the layers that a training of this network changes, e.g. ``["fc"]``: the head alone.  All
            others keep their weights and stay in eval mode, so that they keep their statistics too.

    Raises:
        TypeError: a model that is no nn.Module, layers that are no list of names.
        ValueError: a layer that does not exist or returns something else, logits of another shape, a classifier that
            does not make them.

    Features are copies: layers behind the watched ones may work in place.

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
        trainable: Sequence[str] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
        for argument, names in (("layers", layers), ("trainable", () if trainable is None else trainable)):
            if isinstance(names, str) or not all(isinstance(name, str) for name in names):
                raise TypeError(f"{argument} must be a list of layer names, got {names!r}")
        if type(image_size) is not int or image_size < 1:
            raise ValueError(f"image_size must be a positive integer, got {image_size!r}")
        if layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
        if prefix_tokens is not None and layout != "tokens":
            raise ValueError(f"prefix_tokens={prefix_tokens} is only used with layout='tokens'; leave it out")
        if not layers:
            raise ValueError("layers must name at least one layer, got none")
        known = dict(model.named_modules())
        for name in (*layers, *(() if classifier is None else (classifier,)), *(trainable or ())):
            if name not in known:
                raise ValueError(f"the model has no layer {name!r}" + nearest(name, filter(None, known)))
        super().__init__(num_classes, in_channels, (0,) * len(layers))
        self.model = model
        self.layers = tuple(layers)
        self.image_size = image_size
        self.layout = layout
        own = getattr(model, "num_prefix_tokens", 1)
        self.prefix_tokens = int(own) if prefix_tokens is None else prefix_tokens
        self.classifier_name = classifier
        if classifier is not None and getattr(known[classifier], "weight", torch.empty(0)).dim() != 2:
            raise ValueError(f"classifier {classifier!r} is no linear layer, but {type(known[classifier]).__name__}")
        self.trainable = None if trainable is None else tuple(trainable)
        if self.trainable is not None:
            model.requires_grad_(False)
            for name in self.trainable:
                known[name].requires_grad_(True)
        was_training = model.training
        self.eval()
        try:
            self.stage_channels, self._differentiable_stages = self._probe()
        finally:
            self.train(was_training)

    def train(self, mode: bool = True) -> HookedANN:
        """Training or eval mode; of the ``trainable`` layers alone, where they are named."""
        super().train(mode)
        if self.trainable is not None:
            self.model.eval()
            for name in self.trainable:
                self.model.get_submodule(name).train(mode)
        return self

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
            # A copy: layers that work in place may overwrite this one's output, by what it returns or by its input.
            maps = self._to_maps(output, self.layers[stage - 1]).clone()
            if stage == differentiable_from:
                maps = maps.detach().requires_grad_()
            features[stage] = maps
            if not torch.is_grad_enabled():
                return output
            # What goes on is made from the map, so that the logits can be differentiated by it, and is a copy again.
            return self._from_maps(maps.clone(), output)

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
        reference = next(self.model.parameters(), torch.empty(0))
        image = torch.randn(1, self.in_channels, self.image_size, self.image_size, generator=generator)
        with torch.enable_grad():
            out = self(image.to(reference.device, reference.dtype), differentiable_from=1)
            stages = sorted(out.features)
            if len(stages) != self.num_stages:
                idle = [name for stage, name in enumerate(self.layers, start=1) if stage not in stages]
                raise ValueError(f"layers {idle} are not called by the model's forward pass")
            gradients: Sequence[Tensor | None] = [None] * len(stages)
            if out.logits.requires_grad:
                gradients = torch.autograd.grad(out.logits.sum(), [out.features[s] for s in stages], allow_unused=True)
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
@dataclass(frozen=True)
class External(ModelOptions):
    """A network from another library, or your own, as a teacher; see :class:`HookedANN`.

    Attributes:
        source: ``timm:NAME``, ``torchvision:NAME``, or ``package.module:name`` of a class or function that takes
            ``model_options`` and returns an nn.Module; it is imported and called.  The first two get the number of
            classes by themselves, timm also that of channels.
        layers: names of the modules whose outputs are the features of stages 1, 2, ...
        image_size: what the model takes; images of another size are resized.
        layout: of the layers' outputs.
        prefix_tokens: tokens before those of the image, e.g. 1 for a class token; None: as many as the model says.
        classifier: name of the linear layer, where the logits are that layer on the spatial mean of the last stage.
        model_options: keyword arguments of the model.  Nothing is downloaded unless they ask for it
            (``{"pretrained": true}`` in timm).
        weights: file of a state_dict with all of the model's weights, loaded with ``weights_only=True``.
        trainable: names of the layers that a training of this network changes; None: all.

    Raises:
        TypeError: a value of another type.
        ValueError: a source that cannot be found or does not take the options, weights that do not fit, or what
            :class:`HookedANN` refuses.
        ImportError: timm or torchvision is not installed.
        FileNotFoundError: no such file of weights.
    """

    source: str
    layers: tuple[Layer, ...]
    image_size: Annotated[int, Within(low=1)]
    layout: Annotated[str, OneOf(LAYOUTS)] = "channels_first"
    prefix_tokens: int | None = None
    classifier: Layer | None = None
    model_options: Mapping[str, Any] | None = None
    weights: str | None = None
    trainable: tuple[Layer, ...] | None = None

    @property
    def comes_trained(self) -> bool:
        """Whether the model brings weights of its own: timm calls it pretrained, torchvision weights."""
        asked = self.model_options or {}
        return bool(self.weights or asked.get("weights") or asked.get("pretrained"))

    def build(self, num_classes: int, in_channels: int) -> HookedANN:
        model = _make(self.source, num_classes, in_channels, dict(self.model_options or {}))
        if self.weights is not None:
            _load_weights(model, self.weights, self.source)
        return HookedANN(
            model,
            self.layers,
            num_classes,
            in_channels,
            self.image_size,
            self.layout,
            self.prefix_tokens,
            self.classifier,
            trainable=self.trainable,
        )


def untrained_parameters(model: nn.Module, again: nn.Module) -> list[str]:
    """Names of the parameters that no training has made: those that differ between two models made in the same way, and
    the weights of linear layers that are one constant, as some libraries initialise a head."""
    others = dict(again.named_parameters())
    linear = {f"{name}.weight" for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    return [
        name
        for name, value in model.named_parameters()
        if not torch.equal(value, others[name]) or (name in linear and value.numel() > 1 and value.min() == value.max())
    ]


def _load_weights(model: nn.Module, path: str, source: str) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(f"weights: there is no file {path}")
    try:
        state = load_tensors(path)
        state = state.get("state_dict", state)
        model.load_state_dict(state)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"weights: {path} is no state_dict of {source}: {error}") from error


def _make(source: str, num_classes: int, in_channels: int, options: dict[str, Any]) -> nn.Module:
    package, _, name = source.partition(":")
    if not (package and name):
        raise ValueError(f"source must be 'timm:NAME', 'torchvision:NAME' or 'package.module:name', got {source!r}")
    if package == "timm":
        options = {"num_classes": num_classes, "in_chans": in_channels, **options}
        return _from_library(_library("timm").create_model, source, options)
    if package == "torchvision":
        options = {"num_classes": num_classes, **options}
        return _from_library(_library("torchvision").models.get_model, source, options)
    try:
        build = getattr(importlib.import_module(package), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"source {source!r} cannot be imported: {error}") from error
    _check_arguments(build, source, options)
    model = build(**options)
    if not isinstance(model, nn.Module):
        raise ValueError(f"source {source!r} must make an nn.Module, got {type(model).__name__}")
    return model


def _check_arguments(build: Any, source: str, options: dict[str, Any]) -> None:
    """Raises ValueError where ``build`` does not take ``options``; what it raises itself keeps its traceback."""
    if not callable(build):
        raise ValueError(f"source {source!r} must be a class or function, got {type(build).__name__}")
    try:
        inspect.signature(build).bind(**options)
    except TypeError as error:
        raise ValueError(f"source {source!r} does not take model_options {options}: {error}") from error
    except ValueError:  # it has no signature that Python knows
        pass


def _from_library(create: Callable[..., Any], source: str, options: dict[str, Any]) -> nn.Module:
    try:
        return create(source.partition(":")[2], **options)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"source {source!r} makes no model with {options}: {error}") from error


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"source '{name}:...' needs {name}, which cannot be imported ({error}); run pip install {name}"
        ) from error
