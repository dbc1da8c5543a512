"""`ckdsnn demo`: distil a small spiking network five ways on scikit-learn's digits, and show what came out."""

from ckdsnn.demo.run import main, run_demo
from ckdsnn.demo.settings import STUDENTS, DemoSettings

__all__ = ["STUDENTS", "DemoSettings", "main", "run_demo"]
