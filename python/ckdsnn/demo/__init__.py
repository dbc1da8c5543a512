"""`ckdsnn demo`: distil a small spiking network five ways on scikit-learn's digits, and show what came out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckdsnn.demo.command import main

if TYPE_CHECKING:
    from ckdsnn.demo.run import run_demo
    from ckdsnn.demo.settings import STUDENTS, DemoSettings

__all__ = ["STUDENTS", "DemoSettings", "main", "run_demo"]


def __getattr__(name: str) -> Any:
    """The rest imports PyTorch and Lightning, which takes seconds that a help text does not need."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ckdsnn.demo import run, settings

    return getattr(run if name == "run_demo" else settings, name)
