"""Distillation methods by name: one file a method, found by being here."""

import importlib
import pkgutil

from .base import METHODS, Method, NoiseSource, build_method, register_method
from .presets import PRESETS, NLDOptions, Preset, SAMDOptions

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "METHODS",
    "PRESETS",
    "Method",
    "NLDOptions",
    "NoiseSource",
    "Preset",
    "SAMDOptions",
    "build_method",
    "register_method",
]
