"""What is installed, without importing it."""

from __future__ import annotations

import platform
from importlib import metadata

PACKAGES = ("ckd-kernels", "torch", "lightning", "torchmetrics", "numpy")


def versions() -> dict[str, str]:
    """The versions of Python, this distribution and what its results depend on, by name.

    Example:
        >>> versions()["torch"] == torch.__version__
        True
    """
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # run from a source tree that was not installed
            found[package] = "not installed"
    return found
