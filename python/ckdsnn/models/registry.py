"""Models by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ckdsnn.registry import Options, Registry

from .base import ANN, SNN


@dataclass(frozen=True)
class ModelOptions(Options):
    """Base of the options of a model, which are what is registered: they build it.

    Attributes of a subclass: `default_channels`, channels of the images where `build_model` is not told.
    """

    default_channels: ClassVar[int] = 3

    def build(self, num_classes: int, in_channels: int) -> ANN | SNN:
        """The model with random weights."""
        raise NotImplementedError(f"{type(self).__name__} must implement build")


MODELS: Registry[type[ModelOptions]] = Registry("model", ModelOptions)
register_model = MODELS.register


def make_model(name: str, num_classes: int, in_channels: int | None, options: Mapping[str, Any] | Options) -> ANN | SNN:
    """:func:`build_model` of options as one value: a mapping, or the model's own dataclass."""
    made: ModelOptions = MODELS.options(name, options)
    channels = made.default_channels if in_channels is None else in_channels
    for key, value in (("num_classes", num_classes), ("in_channels", channels)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{key} must be a whole number, got {value!r}")
        if value < 1:
            raise ValueError(f"{key} must be >= 1, got {value}")
    return made.build(num_classes, channels)


def build_model(name: str, num_classes: int, in_channels: int | None = None, **options: Any) -> ANN | SNN:
    """The model registered under ``name``.

    Args:
        name: a key of ``MODELS``, e.g. ``"ann_resnet19"`` or ``"snn_resnet20"``, or ``"MODULE:NAME"``, see
            :meth:`~ckdsnn.registry.Registry.find`.
        num_classes: K, size of the logits.
        in_channels: channels of the images; None: as many as those of the data that the model is made for.
        options: of that model, the fields of its dataclass.

    Raises:
        ValueError: unknown name, num_classes < 1, or a value that the model refuses.
        TypeError: an option that the model does not have, or a value of another type.

    Example:
        >>> import torch
        >>> from ckdsnn.models import build_model
        >>> model = build_model("snn_resnet_small", num_classes=10, in_channels=1, time_steps=2)
        >>> model(torch.zeros(3, 1, 20, 20)).logits.shape
        torch.Size([3, 10])
    """
    return make_model(name, num_classes, in_channels, options)
