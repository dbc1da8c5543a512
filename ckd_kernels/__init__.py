"""Fused multi-step spiking-neuron kernels for PyTorch."""

from . import layers, surrogate
from .backend import build_info, use_backend
from .functional import LIFOutput, bn_lif, lif, sam
from .interop import ConversionReport, MultiStep, convert
from .memory import one_bit_spikes
from .neuron import Neuron

__version__ = "0.1.0"

__all__ = [
    "ConversionReport",
    "LIFOutput",
    "MultiStep",
    "Neuron",
    "bn_lif",
    "build_info",
    "convert",
    "layers",
    "lif",
    "one_bit_spikes",
    "sam",
    "surrogate",
    "use_backend",
]
