"""Teachers and students, by name."""

from . import ann_resnet, external, fcn, sew_resnet, snn_resnet, spikformer
from .base import ANN, SNN
from .outputs import ANNOutput, SNNOutput
from .registry import MODELS, ModelOptions, build_model, make_model, register_model

__all__ = [
    "ANN",
    "MODELS",
    "SNN",
    "ANNOutput",
    "ModelOptions",
    "SNNOutput",
    "ann_resnet",
    "build_model",
    "external",
    "fcn",
    "make_model",
    "register_model",
    "sew_resnet",
    "snn_resnet",
    "spikformer",
]
