"""Teachers and students, by name."""

from . import ann_resnet, snn_resnet
from .outputs import ANNOutput, SNNOutput
from .registry import MODELS, build_model, register_model

__all__ = ["MODELS", "ANNOutput", "SNNOutput", "ann_resnet", "build_model", "register_model", "snn_resnet"]
