"""What a run shows and writes besides checkpoints: the progress bar and the predictions."""

from __future__ import annotations

import csv
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import BasePredictionWriter, TQDMProgressBar
from lightning.pytorch.callbacks import EMAWeightAveraging as LightningEMA
from torch import Tensor

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
        self._seen = [*self._seen[-self.WINDOW :], (time.perf_counter(), len(batch.indices) * trainer.world_size)]
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        items = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        telemetry = getattr(pl_module, "telemetry", None)
        if telemetry is not None:
            items |= {name: f"{value:.3f}" for name, value in telemetry.latest.items()}
        if len(self._seen) > 1:
            elapsed = self._seen[-1][0] - self._seen[0][0]
            items["images/s"] = f"{sum(count for _, count in self._seen[1:]) / max(elapsed, 1e-9):.0f}"
        return items


class WeightEMA(LightningEMA):
    """Lightning's exponential moving average of the weights, whose update does not wait for the device.

    Args:
        decay: of the average at every update; everything else as Lightning's callback of that name has it.

    Example:
        trainer:
          callbacks:
            - class_path: ckdsnn.callbacks.WeightEMA
              init_args: {decay: 0.999}
    """

    def __init__(self, decay: float = 0.999, **options: Any) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        super().__init__(decay=decay, **options)
        self.decay = decay
        self._begun = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:
            # The average asks whether it has begun, and a number on the host answers at once.
            self._average_model.update_parameters = self._update  # type: ignore[method-assign, assignment]

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"begun": self._begun}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._begun = state_dict.get("begun", self._latest_update_step > 0)  # Lightning's own callback has no such key

    @torch.no_grad()
    def _update(self, module: torch.nn.Module) -> None:
        average = self._average_model
        assert average is not None
        both: list[tuple[Tensor, Tensor]] = list(zip(average.module.parameters(), module.parameters(), strict=True))
        buffers = list(zip(average.module.buffers(), module.buffers(), strict=True))
        if self._use_buffers:
            both += buffers
        real = [(mean, now.detach()) for mean, now in both if mean.is_floating_point()]
        means, values = [mean for mean, _ in real], [now for _, now in real]
        if self._begun:
            torch._foreach_lerp_(means, values, 1 - self.decay)
        else:
            torch._foreach_copy_(means, values)
        for mean, now in both:
            if not mean.is_floating_point():
                mean.copy_(now)
        if not self._use_buffers:
            for mean, now in buffers:
                mean.copy_(now)
        average.n_averaged += 1
        self._begun = True


class PredictionWriter(BasePredictionWriter):
    """Writes every prediction as a row of `predictions.csv`: index, target, prediction, confidence.

    Those of pixels are arrays of these names in `predictions.npz`: index [N], the others [N, H, W].
    """

    def __init__(self, path: Path) -> None:
        super().__init__(write_interval="epoch")
        self.path = path

    def write_on_epoch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, predictions: Any, batch_indices: Any
    ) -> None:
        dense = any(values.ndim > 1 for values in predictions[0].values())
        path = self.path.with_suffix(".npz") if dense else self.path
        if trainer.world_size > 1:  # each process has seen its own share
            path = path.with_name(f"{path.stem}-{trainer.global_rank}{path.suffix}")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        if dense:
            arrays = {name: torch.cat([batch[name].cpu() for batch in predictions]).numpy() for name in predictions[0]}
            with temporary.open("wb") as archive:
                np.savez_compressed(archive, **arrays)  # type: ignore[arg-type]
        else:
            with temporary.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(predictions[0])
                for batch in predictions:
                    writer.writerows(zip(*(values.tolist() for values in batch.values()), strict=True))
        temporary.replace(path)
        print(f"predictions: {path}")
