"""Other libraries' models on our kernels."""

from .convert import convert
from .report import ConversionReport, Entry
from .snntorch import MultiStep

__all__ = ["ConversionReport", "Entry", "MultiStep", "convert"]
