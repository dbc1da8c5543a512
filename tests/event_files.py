"""Files of events in the formats of the data sets, made for tests, and SpikingJelly's functions to compare with."""

import ast
import importlib.util
import math
import struct
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Optional, Union

import numpy as np
import pytest
import torch

from ckdsnn.data.events import Events


@lru_cache
def spikingjelly_datasets():
    """SpikingJelly's functions that read and integrate events, by name; importing its package needs torchvision."""
    spec = importlib.util.find_spec("spikingjelly")
    if spec is None:
        pytest.skip("spikingjelly is not installed (make test installs it)")
    names = {"np": np, "torch": torch, "math": math, "struct": struct, "Path": Path}
    names |= {"Callable": Callable, "Union": Union, "Optional": Optional}
    for file in ("utils.py", "cifar10_dvs.py"):
        whole = ast.parse((Path(spec.submodule_search_locations[0]) / "datasets" / file).read_text())
        # Functions, and constants such as masks.
        parts = [
            part
            for part in whole.body
            if isinstance(part, ast.FunctionDef)
            or (isinstance(part, ast.Assign) and isinstance(part.value, ast.Constant))
        ]
        exec(compile(ast.Module(parts, []), file, "exec"), names)
    return SimpleNamespace(**names)


def made_events(count=200, height=34, width=34, seed=0, start=0):
    rng = np.random.default_rng(seed)
    t = np.sort(rng.integers(start, start + 100_000, count))
    return Events(
        t, rng.integers(0, width, count), rng.integers(0, height, count), rng.random(count) < 0.5, height, width
    )


def bin_file(made):
    """N-MNIST's format."""
    t, x, y, p, *_ = made
    return np.stack([x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255], axis=1).astype(np.uint8).tobytes()


def aedat2_file(made, header=b"#!AER-DAT2.0\r\n# AEChip: net.sf.jaer.DVS128\r\n"):
    """jAER's format, in which the camera of CIFAR10-DVS stands on its side."""
    t, x, y, p, *_ = made
    address = (127 - x) << 8 | (127 - y) << 1 | (1 - p.astype(int))
    return header + np.stack([address, t], axis=1).astype(">u4").tobytes()


def same(read, made):
    assert [part.tolist() for part in read[:4]] == [np.asarray(part).tolist() for part in made[:4]]
    assert read[4:] == made[4:]
    assert [part.dtype for part in read[:4]] == [np.int64, np.int64, np.int64, bool]
