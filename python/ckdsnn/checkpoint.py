"""Checkpoints: written atomically, read with weights_only, complete enough to resume bit for bit."""

from __future__ import annotations

import os
import platform
import random
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.plugins import TorchCheckpointIO

from ckdsnn.files import load_tensors, replacing
from ckdsnn.versions import versions


class RunError(RuntimeError):
    """A run cannot start or go on, for a reason that its user can do something about."""


def save_atomically(state: Any, path: str | os.PathLike[str]) -> None:
    """`torch.save` to a temporary file beside `path`, then one rename: `path` is the old file or the whole new one.

    Raises:
        RunError: the file cannot be written, e.g. on a full disk; `path` is as it was.
    """
    try:
        with replacing(path) as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:
        # After a write that failed, PyTorch fails to close its archive, and raises that.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise _not_written(path, cause) from cause


def write_text_atomically(text: str, path: str | os.PathLike[str]) -> None:
    """Writes a small text file beside `path` and renames it.

    Raises:
        RunError: the file cannot be written, e.g. on a full disk; `path` is as it was.
    """
    try:
        with replacing(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise _not_written(path, error) from error


def _not_written(path: str | os.PathLike[str], error: OSError) -> RunError:
    before = "the file of that name is as it was" if Path(path).exists() else "no file of that name is left"
    return RunError(
        f"cannot write {path}: {error.strerror or error}; {before}. Make room or choose another folder (--out), then "
        "go on with the same command"
    )


def load_checkpoint(path: str | os.PathLike[str], map_location: Any = "cpu") -> dict[str, Any]:
    """Reads a checkpoint without running any code from it, and verifies the checksums that it carries.

    Raises:
        FileNotFoundError: there is no such file.
        RunError: the file is corrupted, cut short, or holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: check the path, or train it first")
    try:
        checkpoint = load_tensors(path, map_location)
        if not isinstance(checkpoint, dict):
            raise ValueError(f"it holds {type(checkpoint).__name__}, not a dictionary")
    except (OSError, ValueError) as error:
        raise RunError(
            f"the checkpoint {path} ({path.stat().st_size} bytes) cannot be read: {error}. It is corrupted, cut "
            "short or not a checkpoint: name another one, or delete it and train again"
        ) from error
    return checkpoint


# The number of the form in which a run is written; the first checkpoints had none, which is 0. It rises when older
# versions would misread the file; a new key with a default is no reason.
SCHEMA = 1

# What every run writes beside its weights, and of which type.
RUN_KEYS = {"network": dict, "config": dict, "finished": bool}
# What going on with it needs; beyond these, Lightning reads its own.
TRAINING_KEYS = {
    "epoch": int,
    "global_step": int,
    "loops": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "random_state": list,
    "train_loader": dict,
}
NETWORK_KEYS = {"name": str, "options": dict, "num_classes": int, "in_channels": int}


def load_run(path: str | os.PathLike[str]) -> dict[str, Any]:
    """`load_checkpoint` of a run of this package, whose `"ckdsnn"` says what made it.

    Raises:
        RunError: as `load_checkpoint`, or something else, or a later version of this package, wrote the file.
    """
    checkpoint = load_checkpoint(path)
    if "ckdsnn" not in checkpoint:
        raise RunError(f"the checkpoint {path} was not written by ckdsnn: its model and configuration are not known")
    made = checkpoint["ckdsnn"]
    schema = made.get("schema", 0) if isinstance(made, dict) else 0
    if type(schema) is not int or not 0 <= schema <= SCHEMA:
        raise RunError(
            f"the checkpoint {path} has schema {schema!r:.100}, this version of ckdsnn knows up to {SCHEMA}: use the "
            "version that wrote it, or a later one"
        )
    wrong = _wrong_keys(checkpoint, {"state_dict": dict, "ckdsnn": dict}, "")
    wrong = wrong or _wrong_keys(made, RUN_KEYS, "ckdsnn.")
    wrong = wrong or _wrong_keys(made["network"], NETWORK_KEYS, "ckdsnn.network.")
    if wrong:
        raise RunError(
            f"the checkpoint {path} has no usable {', '.join(wrong)}, which every run of ckdsnn writes: name another "
            "one, or delete it and train again"
        )
    return checkpoint


def check_training_state(checkpoint: dict[str, Any]) -> None:
    """Raises RunError unless a run's checkpoint holds what going on with its training needs, not the weights alone."""
    if wrong := _wrong_keys(checkpoint, TRAINING_KEYS, ""):
        raise RunError(
            f"the checkpoint has no usable {', '.join(wrong)}, so training cannot go on from it: use the last.ckpt of "
            "a run, or begin anew in another folder"
        )


def _wrong_keys(values: dict[str, Any], wanted: dict[str, type], prefix: str) -> list[str]:
    def fits(value: Any, kind: type) -> bool:
        return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))

    return [prefix + key for key, kind in wanted.items() if not fits(values.get(key), kind)]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint plugin with `save_atomically` and `load_checkpoint`.

    Lightning's own writer goes through the system's temporary folder, from which a move to another file system is a
    copy and therefore not atomic.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if storage_options is not None:
            raise TypeError("storage_options is not supported: checkpoints are local files")
        save_atomically(checkpoint, path)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        return load_checkpoint(path, map_location or "cpu")


def random_state() -> dict[str, Any]:
    """The state of Python's, numpy's and torch's global generators as plain values and tensors."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), int(position), int(has_gauss), float(gauss)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Undoes time: the global generators continue where `random_state` was called."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])


def provenance() -> dict[str, Any]:
    """Versions, machine and, where the working folder is in a git repository, its commit and whether it is dirty."""
    return {"versions": versions(), "platform": platform.platform(), "git": _git_state()}


def _git_state() -> dict[str, Any] | None:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None
