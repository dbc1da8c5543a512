"""Checks of what callers hand over.  Each names the argument, what it was and what it must be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor


def check_number(value: Any, name: str, *, above: float | None = None, low: float | None = None) -> None:
    """Raises TypeError unless ``value`` is a number, ValueError unless it is finite and > ``above``, >= ``low``."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    number = float(value)
    if above is not None and not number > above:
        raise ValueError(f"{name} must be > {above:g}, got {value}")
    if low is not None and not number >= low:
        raise ValueError(f"{name} must be >= {low:g}, got {value}")
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {value}")


def check_temperature(value: Any, name: str = "temperature") -> None:
    """Raises TypeError unless ``value`` is a number, ValueError unless it is finite and > 0."""
    check_number(value, name, above=0)


def check_weights(**weights: Any) -> None:
    """Raises TypeError unless all are numbers, ValueError unless they are finite and >= 0."""
    for name, value in weights.items():
        check_number(value, name, low=0)


def check_whole(value: Any, name: str, *, low: int | None = None) -> None:
    """Raises TypeError unless ``value`` is a whole number, ValueError unless it is >= ``low``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if low is not None and int(value) < low:
        raise ValueError(f"{name} must be >= {low}, got {value}")


def check_flag(value: Any, name: str) -> None:
    """Raises TypeError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_choice(value: Any, name: str, known: Sequence[str]) -> None:
    """Raises ValueError unless ``value`` is one of ``known``."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def check_tensor(value: Any, name: str) -> None:
    """Raises TypeError unless ``value`` is a floating-point tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {value!r}")
    if not value.is_floating_point():
        raise TypeError(f"{name} must be of a floating-point dtype, got {value.dtype}")


def check_target(target: Any, batch: int, num_classes: int, *size: int) -> None:
    """Raises TypeError unless ``target`` is an int64 tensor, ValueError unless it is ``[batch]`` of existing classes.

    Of pixels, where ``size`` is H, W, it is ``[batch, H, W]``.

    Classes are looked at on the CPU only; a GPU would have to be waited for.
    """
    each = "pixel" if size else "sample"
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be a torch.Tensor, got {target!r}")
    if target.dtype != torch.int64:
        raise TypeError(f"target must be int64, one class a {each}, got {target.dtype}")
    if target.shape != (batch, *size):
        raise ValueError(f"target must be {[batch, *size]}, one class a {each}, got {list(target.shape)}")
    if target.device.type != "cpu" or torch.compiler.is_compiling():
        return
    classes = target.flatten().tolist()
    if classes and not (min(classes) >= 0 and max(classes) < num_classes):
        wrong = min(classes) if min(classes) < 0 else max(classes)
        raise ValueError(f"target must hold classes from 0 to {num_classes - 1}, got {wrong}")
