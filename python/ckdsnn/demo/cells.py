"""One cell of the demo: a teacher or a student of one seed, trained in a process of its own."""

from __future__ import annotations

import json
import logging
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger

from ckdsnn.checkpoint import AtomicCheckpointIO, provenance, write_text_atomically
from ckdsnn.demo.settings import TEACHER, DemoSettings
from ckdsnn.train import Distillation

Report = Callable[[int, dict[str, float]], None]  # epochs done, metrics


def cell_folder(out: Path, seed: int, key: str) -> Path:
    return out / f"seed{seed}" / key


def checkpoint_path(out: Path, seed: int, key: str) -> Path:
    return cell_folder(out, seed, key) / "last.ckpt"


def epochs_of(settings: DemoSettings, key: str) -> int:
    return settings.teacher_epochs if key == TEACHER else settings.student_epochs


def read_cell(out: Path, seed: int, key: str, settings: DemoSettings) -> dict[str, Any] | None:
    """The result of a cell that was finished with these settings, else None."""
    try:
        result = json.loads((cell_folder(out, seed, key) / "result.json").read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(result, dict) or result.get("settings") != settings.fingerprint():
        return None
    return result if checkpoint_path(out, seed, key).is_file() else None


class _EpochReport(Callback):
    """Collects the accuracies after every epoch and reports progress after every batch."""

    def __init__(self, report: Report, validate_every: int) -> None:
        self.report, self.validate_every = report, validate_every
        self.train: list[tuple[int, float]] = []  # epochs done, accuracy
        self.validation: list[tuple[int, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        self.report(trainer.current_epoch, {})

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        done = trainer.current_epoch + 1
        self.train.append((done, metrics["train/accuracy"]))
        if done % self.validate_every == 0:
            self.validation.append((done, metrics["val/accuracy"]))
        self.report(done, {"loss": metrics["train/loss"], "accuracy": metrics["train/accuracy"]})


def silence_lightning() -> None:
    """No banners, tips and hardware notes: eighteen trainings would print each of them eighteen times."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Lightning 2.6 still uses what torch 2.13 deprecates; nothing that a user of the demo could do about it.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(lightning|torch)\.")


def train_cell(out: Path, seed: int, key: str, settings: DemoSettings, report: Report) -> dict[str, Any]:
    """Trains and tests one cell and writes its log, checkpoint and, last of all, `result.json`.

    Args:
        out: folder of the demo.
        seed: weights, renderings, subset, order and noise.
        key: "teacher" or a key of `STUDENTS`.
        settings: sizes.
        report: called with progress after every batch; whatever it raises ends the cell.
    """
    silence_lightning()
    folder = cell_folder(out, seed, key)
    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted run left
    started = time.perf_counter()
    L.seed_everything(seed, verbose=False)
    if key == TEACHER:
        data, task = settings.teacher_data(seed), settings.teacher(seed)
    else:
        data = settings.student_data(seed)
        task = settings.student(key, seed, str(checkpoint_path(out, seed, TEACHER)))
    epochs = _EpochReport(report, settings.validate_every)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs_of(settings, key),
        logger=CSVLogger(folder, name="", version=""),
        callbacks=[epochs],
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        check_val_every_n_epoch=settings.validate_every,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    trainer.fit(task, data)
    seconds = time.perf_counter() - started
    trainer.save_checkpoint(checkpoint_path(out, seed, key))
    metrics = trainer.test(task, data, verbose=False)[0]
    result = {
        "seed": seed,
        "method": key,
        "test_accuracy": metrics["test/accuracy"],
        "firing_rate": metrics.get("test/firing_rate"),
        "seconds": seconds,
        "train_curve": epochs.train,
        "validation_curve": epochs.validation,
        "settings": settings.fingerprint(),
        **provenance(),
    }
    write_text_atomically(json.dumps(result, indent=1), folder / "result.json")
    return result


def load_cell(out: Path, seed: int, key: str, settings: DemoSettings) -> Distillation:
    """The trained teacher or student of a finished cell, in eval mode."""
    task = (
        settings.teacher(seed)
        if key == TEACHER
        else settings.student(key, seed, str(checkpoint_path(out, seed, TEACHER)))
    )
    state = AtomicCheckpointIO().load_checkpoint(checkpoint_path(out, seed, key))
    task.load_state_dict(state["state_dict"])
    return task.eval()
