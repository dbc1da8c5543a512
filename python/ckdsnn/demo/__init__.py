"""`ckdsnn demo`: distil a small spiking network five ways on scikit-learn's digits, and show what came out."""

from ckdsnn.demo.command import main

__all__ = ["main"]
