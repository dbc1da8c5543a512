"""What a training writes besides `last.ckpt`, and when."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ckdsnn.checkpoint import write_text_atomically


class SaveConfig(SaveConfigCallback):
    """Writes the whole configuration of a training to `config.yaml` in its folder, to be a recipe like any other.

    What the folder itself says is not in it, the checkpoint to go on from and a teacher that lies inside: a training of
    that recipe in another folder would silently go on with this one's weights, and learn from this one's teacher.
    """

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            config, folder = self.config.clone(), Path(trainer.default_root_dir)
            config.out, config.ckpt_path = str(folder), None
            teacher = config.model.get("teacher")
            if teacher is not None and teacher.checkpoint == str(folder / "teacher" / "last.ckpt"):
                teacher.checkpoint = None
            write_text_atomically(self.parser.dump(config, skip_none=False), folder / self.config_filename)


class BestCheckpoint(ModelCheckpoint):
    """`best.ckpt`, by validation accuracy, or of pixels by mean IoU; the best so far stays known where the folder has
    moved."""

    def __init__(self, out: Path, *, dense: bool = False) -> None:
        super().__init__(
            out,
            "best",
            monitor="val/mean_iou" if dense else "val/accuracy",
            mode="max",
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        )

    @property
    def state_key(self) -> str:
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        def moved(path: str) -> str:
            return os.path.join(str(self.dirpath), os.path.basename(path)) if path else path

        state = {name: moved(value) if name.endswith("_path") else value for name, value in state.items()}
        state["best_k_models"] = {moved(path): score for path, score in state["best_k_models"].items()}
        super().load_state_dict(state | {"dirpath": self.dirpath})


class TensorBoard(TensorBoardLogger):
    """TensorBoard's logs; its library takes a while to import, so that waits until there is something to log."""

    _begun = False

    @property
    def experiment(self) -> Any:
        if not self._begun:
            raise AttributeError("nothing was logged yet")  # before training, the trainer asks whether there is one
        return super().experiment

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self._begun = True
        super().log_metrics(metrics, step)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The configuration is in `config.yaml`."""

    def save(self) -> None:
        if self._begun:
            super().save()


class Termination(Callback):
    """What SIGTERM means where Lightning's loops, which end a training after the batch, leave something to do.

    Args:
        path: where a training saves how far it has come, so that nothing is lost; None: not at all.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._after_epoch = False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # The gradients of half a batch are in no checkpoint; and of several processes not all may have got the signal.
        whole = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
        if self.path and trainer.received_sigterm and whole and trainer.world_size == 1:
            trainer.save_checkpoint(self.path)
            if trainer.is_last_batch:
                # A run that goes on from here begins the next epoch: this one's validation and its row of the logs are
                # made now or never. So the signal waits for them, unless it is given again.
                self._after_epoch = True
                trainer._signal_connector.received_sigterm = False

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._after_epoch and self.path:
            trainer._signal_connector.received_sigterm = True  # Lightning logs the epoch, and ends
            trainer.save_checkpoint(self.path)

    def on_predict_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.received_sigterm:
            raise SIGTERMException
