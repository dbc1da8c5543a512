"""Checkpoints that do not hold up training: copied on the device, written by a thread, by time and at the end."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from ckdsnn.checkpoint import AtomicCheckpointIO

BEST = "best.ckpt"
ASK_EVERY = 50  # steps of a distributed training between two looks at the first process's clock


class _Snapshot:
    """A checkpoint as it was when this was made: tensors of a GPU are copied there at once, and from there to the host
    on a stream of their own."""

    def __init__(self, checkpoint: dict[str, Any]) -> None:
        self._stream = torch.cuda.Stream() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
        self._on_device: list[Tensor] = []  # until they are on the host
        self._copies: dict[int, Tensor] = {}
        self._state = self._taken(checkpoint)
        self._copied = None
        if self._stream is not None:
            self._copied = torch.cuda.Event(blocking=True)
            self._copied.record(self._stream)

    def _taken(self, state: Any) -> Any:
        """A state of (nested) dictionaries, lists and tensors, whose tensors are copied, each once."""
        if isinstance(state, Tensor):
            if id(state) not in self._copies:
                self._copies[id(state)] = self._copy(state.detach())
            return self._copies[id(state)]
        if isinstance(state, dict):
            return type(state)((key, self._taken(value)) for key, value in state.items())
        if isinstance(state, (list, tuple)) and not hasattr(state, "_fields"):
            return type(state)(self._taken(value) for value in state)
        return state

    def _copy(self, tensor: Tensor) -> Tensor:
        copy = tensor.clone()
        if not copy.is_cuda:
            return copy
        assert self._stream is not None
        self._on_device.append(copy)
        self._stream.wait_stream(torch.cuda.current_stream(copy.device))
        with torch.cuda.stream(self._stream):
            return torch.empty_like(copy, device="cpu", pin_memory=True).copy_(copy, non_blocking=True)

    def wait(self) -> dict[str, Any]:
        """The checkpoint, once it is on the host. It is a reader's own thread that waits."""
        if self._copied is not None:
            self._copied.synchronize()
        self._on_device.clear()
        state: dict[str, Any] = self._state
        return state


class BackgroundCheckpointIO(AtomicCheckpointIO):
    """Lightning's checkpoint plugin that writes in a thread of its own, from copies.

    `save_checkpoint` returns once the copies are on their way. Of checkpoints for one path that wait to be written, the
    latest is. `best.ckpt` waits for the next other file, and is written just before it: what is on disk never tells of
    a best one that is not. A state that has seen a step whose loss is not finite is not written.

    Raises (from `save_checkpoint`, `flush` and `teardown`):
        RunError: a file before could not be written.
    """

    def __init__(self) -> None:
        super().__init__()
        self._executor: ThreadPoolExecutor | None = None
        self._writing: list[Future[None]] = []
        self._waiting: dict[Path, _Snapshot] = {}
        self._lock = threading.Lock()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if storage_options is not None:
            raise TypeError("storage_options is not supported: checkpoints are local files")
        path, snapshot = Path(path), _Snapshot(checkpoint)
        with self._lock:
            self._waiting.pop(path, None)
            self._waiting[path] = snapshot
        if path.name != BEST:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(1, "checkpoints")
            self._writing.append(self._executor.submit(self._write))
        while self._writing and self._writing[0].done():
            self._writing.pop(0).result()  # raises what went wrong

    def _write(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    return
                path = next((p for p in self._waiting if p.name == BEST), next(iter(self._waiting)))
                snapshot = self._waiting.pop(path)
            checkpoint = snapshot.wait()
            if not _failed(checkpoint):
                super().save_checkpoint(checkpoint, path)

    def flush(self) -> None:
        """Waits until everything is on disk."""
        while self._writing:
            self._writing.pop(0).result()
        self._write()

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        self.flush()
        checkpoint: dict[str, Any] = super().load_checkpoint(path, map_location, weights_only)
        # Lightning asks for it; a file that was cut down to its weights may have lost it.
        checkpoint.setdefault("pytorch-lightning_version", L.__version__)
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        with self._lock:
            self._waiting.pop(Path(path), None)
        self.flush()
        super().remove_checkpoint(path)

    def teardown(self) -> None:
        try:
            self.flush()
        finally:
            if self._executor is not None:
                self._executor.shutdown()
                self._executor = None


def _failed(checkpoint: dict[str, Any]) -> bool:
    telemetry = checkpoint.get("telemetry")
    return telemetry is not None and bool(telemetry["failed"])


class ResumeCheckpoint(Checkpoint):
    """Saves the run: by time, at its end, and every so many steps if wanted.

    Args:
        path: the file to (over)write.
        every_seconds: time between two saves within the training.
        every_n_steps: also save after every this many optimiser steps; None: by time alone.
    """

    def __init__(
        self, path: str | os.PathLike[str], every_seconds: float = 60.0, every_n_steps: int | None = None
    ) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"save_every_n_steps must be at least 1 or null, got {every_n_steps}")
        if not every_seconds >= 0:
            raise ValueError(f"save_every_seconds must not be negative, got {every_seconds}")
        self.path, self.every_seconds, self.every_n_steps = Path(path), every_seconds, every_n_steps
        self._saved_at = 0
        self._saved_when = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_when = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # The end of an epoch is saved after its validation, and gradients of half a step are in no checkpoint.
        whole = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if whole and not trainer.is_last_batch and self._is_due(trainer):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if ends(trainer) or self._is_due(trainer):
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        flush(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        flush(trainer)

    def _is_due(self, trainer: L.Trainer) -> bool:
        if self.every_n_steps is not None and trainer.global_step - self._saved_at >= self.every_n_steps:
            return True
        late = time.monotonic() - self._saved_when >= self.every_seconds
        if trainer.world_size == 1:
            return late
        # All processes save or none does: they gather their random states for it. Asking makes them wait.
        asking = trainer.is_last_batch or trainer.global_step % ASK_EVERY == 0
        return asking and bool(trainer.strategy.broadcast(late))

    def _save(self, trainer: L.Trainer) -> None:
        self._saved_at, self._saved_when = trainer.global_step, time.monotonic()
        trainer.save_checkpoint(self.path)

    def state_dict(self) -> dict[str, int]:
        return {"saved_at": self._saved_at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._saved_at = state["saved_at"]


def ends(trainer: L.Trainer) -> bool:
    """Whether the epoch that ends now is the last one of the training."""
    epochs = trainer.max_epochs
    return (
        trainer.should_stop or (epochs is not None and 0 <= epochs <= trainer.current_epoch + 1) or _steps_done(trainer)
    )


def is_finished(trainer: L.Trainer) -> bool:
    """Whether the training has come to its end: of the epochs, of the steps, or because a callback says so."""
    return _steps_done(trainer) or (ends(trainer) and trainer.is_last_batch)


def _steps_done(trainer: L.Trainer) -> bool:
    return 0 <= trainer.max_steps <= trainer.global_step


def flush(trainer: L.Trainer) -> None:
    """Waits until checkpoints are on disk."""
    plugin = trainer.strategy.checkpoint_io
    if isinstance(plugin, BackgroundCheckpointIO):
        plugin.flush()
