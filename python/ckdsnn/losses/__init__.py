"""Distillation losses: functional forms, methods made of them, and the frozen teacher that feeds them."""

from .divergence import kd_loss
from .methods import (
    METHODS,
    PRESETS,
    Method,
    NLDOptions,
    NoiseSource,
    Preset,
    SAMDOptions,
    build_method,
    register_method,
)
from .nld import nld_loss
from .saliency import class_activation_map, grad_cam, grad_cam_closed_form, grad_cam_spiking, saliency_map
from .samd import normalise_map, samd_loss
from .teacher import FrozenTeacher

__all__ = [
    "METHODS",
    "PRESETS",
    "FrozenTeacher",
    "Method",
    "NLDOptions",
    "NoiseSource",
    "Preset",
    "SAMDOptions",
    "build_method",
    "class_activation_map",
    "grad_cam",
    "grad_cam_closed_form",
    "grad_cam_spiking",
    "kd_loss",
    "nld_loss",
    "normalise_map",
    "register_method",
    "saliency_map",
    "samd_loss",
]
