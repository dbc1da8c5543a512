"""Teachers and students, by name."""

from . import ann_resnet, external, fcn, sew_resnet, snn_resnet, spikformer
from .base import ANN, SNN
from .outputs import ANNOutput, SNNOutput
from .registry import MODELS, build_model, register_model

__all__ = [
    "ANN",
    "MODELS",
    "SNN",
    "ANNOutput",
    "SNNOutput",
    "ann_resnet",
    "build_model",
    "external",
    "fcn",
    "register_model",
    "sew_resnet",
    "snn_resnet",
    "spikformer",
]
