"""What a run shows and writes besides checkpoints: the progress bar and the predictions."""

from __future__ import annotations

import csv
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BasePredictionWriter, TQDMProgressBar

from ckdsnn.data import Batch


class ProgressBar(TQDMProgressBar):
    """Lightning's bar with the images trained a second, over all processes; on a pipe or file, a line an epoch with the
    means over it."""

    WINDOW = 20  # batches that the rate is measured over

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[tuple[float, int]] = []
        self._live = sys.stderr.isatty()
        if not self._live:
            self.disable()

    def init_validation_tqdm(self) -> Any:
        bar = super().init_validation_tqdm()
        bar.disable = True  # it would interrupt the training's bar for a moment after every epoch
        return bar

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # On every process: metrics are reduced over all of them, and one that does not ask leaves the others waiting.
        every = trainer.check_val_every_n_epoch
        parts = ("train/", "val/") if every and (trainer.current_epoch + 1) % every == 0 else ("train/",)
        metrics = trainer.callback_metrics
        means = {name: float(metrics[name]) for part in parts for name in metrics if name.startswith(part)}
        rate = self.get_metrics(trainer, pl_module)["images/s"]
        super().on_train_epoch_end(trainer, pl_module)
        if not self._live and trainer.is_global_zero:
            shown = "  ".join(f"{name.removeprefix('train/')} {value:.4g}" for name, value in means.items())
            print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {shown}  images/s {rate}", flush=True)

    def on_train_start(self, *args: Any) -> None:
        super().on_train_start(*args)
        self._seen = [(time.perf_counter(), 0)]  # a run that goes on within an epoch has no start of it

    def on_train_epoch_start(self, trainer: L.Trainer, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        self._seen = [(time.perf_counter(), 0)]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._seen = [*self._seen[-self.WINDOW :], (time.perf_counter(), len(batch.targets) * trainer.world_size)]
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        items = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        if len(self._seen) > 1:
            elapsed = self._seen[-1][0] - self._seen[0][0]
            items["images/s"] = f"{sum(count for _, count in self._seen[1:]) / max(elapsed, 1e-9):.0f}"
        return items


class PredictionWriter(BasePredictionWriter):
    """Writes every prediction as a row of `predictions.csv`: index, target, prediction, confidence."""

    def __init__(self, path: Path) -> None:
        super().__init__(write_interval="epoch")
        self.path = path

    def write_on_epoch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, predictions: Any, batch_indices: Any
    ) -> None:
        path = self.path
        if trainer.world_size > 1:  # each process has seen its own share
            path = path.with_name(f"{path.stem}-{trainer.global_rank}{path.suffix}")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(predictions[0])
            for batch in predictions:
                writer.writerows(zip(*(values.tolist() for values in batch.values()), strict=True))
        temporary.replace(path)
        print(f"predictions: {path}")
