"""Weights that a network starts from, and a short name for weights wherever they lie."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ckdsnn.checkpoint import RunError, load_checkpoint


def start_from(network: nn.Module, path: str | os.PathLike[str]) -> str:
    """Gives `network` the weights in `path`: a checkpoint of this package, or a file of a state_dict.

    Args:
        network: takes all of them; nothing is changed where they do not fit.
        path: of a file on this machine, which is read without running code from it.

    Returns:
        The fingerprint of the weights.

    Raises:
        FileNotFoundError: there is no such file.
        RunError: it cannot be read, or its weights have other names or shapes than the network's, or are not finite.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"weights: there is no file {path}")
    content = load_checkpoint(path)
    state = content.get("state_dict", content)
    # In a run's checkpoint, the network is one of the things that have a state.
    prefix = "network." if "ckdsnn" in content else ""
    weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    wanted = network.state_dict()
    unknown, missing = sorted(weights.keys() - wanted.keys()), sorted(wanted.keys() - weights.keys())
    shapes = [
        f"{name} is {_shape(weights[name])}, the network's {_shape(value)}"
        for name, value in wanted.items()
        if name in weights and _shape(weights[name]) != _shape(value)
    ]
    faults = [f"{len(names)} {how}: {_some(names)}" for how, names in
              (("missing", missing), ("unknown", unknown), ("of another shape", shapes)) if names]  # fmt: skip
    if faults:
        raise RunError(
            f"the weights in {path} do not fit the network: {'; '.join(faults)}. Give the options of the network that "
            "they come from, or leave the weights out"
        )
    if broken := [name for name, value in weights.items() if not value.isfinite().all()]:
        raise RunError(f"the weights in {path} are NaN or infinite in {_some(broken)}: name another file")
    network.load_state_dict(weights)
    return fingerprint(weights)


def to_evaluate(written: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The state that a run evaluates: the network's as it was written, and of the method's what fits its own.

    The network is what is evaluated. A method that did not train it may compare it with a teacher.
    """
    method = {name: value for name, value in own.items() if name.startswith("method.")}
    fitting = {
        name: written[name]
        for name, value in method.items()
        if name in written and _shape(written[name]) == _shape(value)
    }
    return {name: value for name, value in written.items() if not name.startswith("method.")} | method | fitting


def _shape(value: object) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else f"no tensor but {type(value).__name__}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """A short text that is the same for equal weights, and practically for no others.

    Example:
        >>> one = fingerprint({"w": torch.ones(2), "b": torch.zeros(())})
        >>> one == fingerprint({"b": torch.zeros(()), "w": torch.ones(2)})
        True
        >>> one == fingerprint({"w": torch.ones(2), "b": torch.tensor(1e-9)})
        False
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]
