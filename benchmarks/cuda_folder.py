"""Training from a folder of JPEGs beside training from memory: images a second on a GPU.

    python benchmarks/cuda_folder.py FOLDER results.json

SEW-ResNet-34, T = 4, 224 x 224, batch 64, bfloat16, cross-entropy alone (a teacher would give the folder's workers more
time).  FOLDER holds train/<class>/*.jpeg; worker processes decode and crop them, one a core.  From memory, the same
images lie decoded on the GPU.  Images a second count whole epochs but the first, without validation.  `--device cpu`
tries it, on few small images.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from cuda_trainer import EpochTimes, be_quiet

from ckd_kernels import build_info
from ckdsnn.configuration import MethodConfig, ModelConfig
from ckdsnn.data import ArrayDataModule, Arrays, Augmentation, ImageFolder
from ckdsnn.data.folder import list_images
from ckdsnn.data.images import central_box, read_crop
from ckdsnn.data.module import DataModule
from ckdsnn.optimisation import OptimizerConfig
from ckdsnn.train import Distillation
from ckdsnn.training.writer import BackgroundCheckpointIO


class InMemory(ArrayDataModule):
    """The folder's images, decoded."""

    in_channels, mean, std = 3, ImageFolder.mean, ImageFolder.std

    def __init__(self, folder: Path, size: int, batch_size: int) -> None:
        super().__init__(batch_size, augmentation=Augmentation(flip=True))
        self.paths, self.targets, names = list_images(folder / "train", folder)
        self.num_classes, self.size = len(names), size

    def load(self, part: str) -> Arrays | None:
        if part == "validation":
            return None
        crops = [read_crop(path, self.size, central_box) for path in self.paths]
        return Arrays(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2), torch.tensor(self.targets))


def measure(name: str, data: DataModule, options: argparse.Namespace) -> dict[str, Any]:
    epochs = EpochTimes()
    task = Distillation(
        ModelConfig("sew_resnet34", {"time_steps": 4}),
        MethodConfig("ce"),
        None,
        OptimizerConfig(lr=0.05),
        num_classes=data.num_classes,
        channels_last=True,
    )
    trainer = L.Trainer(
        accelerator=options.device,
        devices=1,
        max_epochs=options.epochs,
        precision="bf16-mixed",
        benchmark=True,
        limit_val_batches=0,
        logger=False,
        callbacks=[epochs],
        plugins=[BackgroundCheckpointIO()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(task, data)
    images = trainer.num_training_batches * options.batch_size
    row = {"from": name, "images": images, "images_a_second": round(images / statistics.median(epochs.lengths[1:]), 1)}
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with train/<class>/*.jpeg and val/<class>/*.jpeg")
    parser.add_argument("out", type=Path, help="file of the results, JSON")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--epochs", type=int, default=3, help="of each training (3)")
    parser.add_argument("--size", type=int, default=224, help="side of the images (224)")
    parser.add_argument("--batch_size", type=int, default=64, help="(64)")
    options = parser.parse_args()
    if options.epochs < 2:
        parser.error("--epochs must be at least 2: the first one is not counted")
    be_quiet()
    folder = ImageFolder(str(options.folder), options.batch_size, options.size, validation=0)
    rows = [
        measure("folder", folder, options),
        measure("memory", InMemory(options.folder, options.size, options.batch_size), options),
    ]
    ratio = round(rows[0]["images_a_second"] / rows[1]["images_a_second"], 3)
    print(f"from the folder {ratio} of what memory gives")
    device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    about = {"device": device, "cores": len(os.sched_getaffinity(0)), "torch": torch.__version__, "build": build_info()}
    options.out.write_text(json.dumps({"about": about, "rows": rows, "ratio": ratio}, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
