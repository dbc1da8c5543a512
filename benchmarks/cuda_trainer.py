"""An epoch of `ckdsnn`'s own training on a GPU, beside the bare replays of its step's CUDA graph.

    python benchmarks/cuda_trainer.py results.json

ResNet-19 of full width, batch 128, bfloat16, 45,000 random images of CIFAR-10's size, AutoAugment + shift + flip +
erase, validation on 5,000 and checkpoints at their defaults: the teacher, and the student with SAMD and NLD at T = 1
and 4, eagerly and captured.  An epoch is the wall time from one to the next; the median of all but the first is told.
`--device cpu` tries it on a small network and few images.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from ckd_kernels import build_info
from ckdsnn.callbacks import ProgressBar
from ckdsnn.configuration import MethodConfig, ModelConfig, TeacherConfig
from ckdsnn.data import ArrayDataModule, Arrays, Augmentation
from ckdsnn.optimisation import OptimizerConfig
from ckdsnn.train import Distillation
from ckdsnn.training import GraphRunner
from ckdsnn.training.writer import BackgroundCheckpointIO, ResumeCheckpoint

REPLAYS = 50


class RandomImages(ArrayDataModule):
    """As many images as asked for, of CIFAR-10's size, whose first pixels tell the class; a tenth for validation."""

    num_classes, in_channels = 10, 3
    mean, std = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)

    def __init__(self, count: int, batch_size: int) -> None:
        augmentation = Augmentation(auto_augment="cifar10", shift=4, flip=True, erase=0.25)
        super().__init__(batch_size, augmentation=augmentation)
        self.count = count

    def load(self, part: str) -> Arrays:
        generator = torch.Generator().manual_seed(("train", "validation", "test").index(part))
        count = self.count * 9 // 10 if part == "train" else self.count // 10
        targets = torch.randint(0, 10, (count,), generator=generator)
        images = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
        images[:, 0, :4, :4] = (targets * 25).to(torch.uint8)[:, None, None]
        return Arrays(images, targets)


class EpochTimes(Callback):
    """When epochs begin and training ends."""

    def __init__(self) -> None:
        self.begun: list[float] = []

    @property
    def lengths(self) -> list[float]:
        """Of the epochs, in seconds."""
        return [end - begin for begin, end in zip(self.begun, self.begun[1:], strict=False)]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.begun.append(time.perf_counter())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        self.begun.append(time.perf_counter())


class Epochs(EpochTimes):
    """How long a bare replay takes, too."""

    def __init__(self) -> None:
        super().__init__()
        self.replay: float | None = None
        self.steps = 0

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        assert isinstance(pl_module, Distillation)
        runner, feed = pl_module._runner, pl_module.feed
        assert feed is not None
        self.steps = feed.batches
        if isinstance(runner, GraphRunner):
            feed.position.zero_()
            torch.cuda.synchronize()
            begin = time.perf_counter()
            for number in range(REPLAYS):
                runner(trainer.global_step + number)
            torch.cuda.synchronize()
            self.replay = (time.perf_counter() - begin) / REPLAYS


def task(kind: str, width: float, graph: bool, teacher: Path) -> Distillation:
    """`kind`: "teacher", or the number of time steps of a student."""
    optimizer = OptimizerConfig(lr=0.1, weight_decay=5e-4, decay="weights", nesterov=True)
    if kind == "teacher":
        network, method, source = ModelConfig("ann_resnet19", {"width": width}), MethodConfig("ce"), None
    else:
        network = ModelConfig("snn_resnet19", {"width": width, "time_steps": int(kind)})
        method, source = MethodConfig("ckd"), TeacherConfig(checkpoint=str(teacher))
    return Distillation(network, method, source, optimizer, channels_last=True, graph="auto" if graph else False)


def measure(kind: str, graph: bool, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    cpu = options.device == "cpu"
    epochs, teacher = Epochs(), folder / "teacher.ckpt"
    trained = task(kind, 0.05 if cpu else 1.0, graph, teacher)
    trainer = L.Trainer(
        accelerator=options.device,
        devices=1,
        max_epochs=options.epochs,
        precision="bf16-mixed",
        benchmark=True,
        logger=[CSVLogger(folder, name=f"{kind}{graph}"), TensorBoardLogger(folder, name=f"tensorboard{kind}{graph}")],
        callbacks=[epochs, ProgressBar(), ResumeCheckpoint(folder / f"{kind}.ckpt")],
        plugins=[BackgroundCheckpointIO()],
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    trainer.fit(trained, RandomImages(200 if cpu else 50_000, 20 if cpu else 128))
    lengths = epochs.lengths
    row: dict[str, Any] = {
        "network": "ANN ResNet-19" if kind == "teacher" else f"SNN ResNet-19, T {kind}",
        "captured": epochs.replay is not None,
        "steps": epochs.steps,
        "first_epoch_s": round(lengths[0], 3),
        "epoch_s": round(statistics.median(lengths[1:]), 3),
        "epochs_s": [round(length, 3) for length in lengths],
    }
    if epochs.replay is not None:
        row["replay_ms"] = round(1e3 * epochs.replay, 3)
        row["epoch_over_replays"] = round(row["epoch_s"] / (epochs.steps * epochs.replay), 3)
        row["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        torch.cuda.reset_peak_memory_stats()
    print(json.dumps({name: value for name, value in row.items() if name != "epochs_s"}), flush=True)
    return row


def be_quiet() -> None:
    """Results alone are printed."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="file of the results, JSON")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--epochs", type=int, default=5, help="of each training (5)")
    parser.add_argument("--kinds", nargs="+", default=["teacher", "1", "4"], help="teacher, or a number of time steps")
    options = parser.parse_args()
    if options.epochs < 2:
        parser.error("--epochs must be at least 2: the first one is not counted")
    be_quiet()
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if "teacher" not in options.kinds:
            options.kinds.insert(0, "teacher")
        for kind in options.kinds:
            for graph in (True, False):
                rows.append(measure(kind, graph, options, folder))
    device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    about = {"device": device, "torch": torch.__version__, "build": build_info()}
    options.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
