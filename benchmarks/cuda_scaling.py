"""Data-parallel distillation over the GPUs of one host: images a second, what the all-reduce costs, equal losses.

    python benchmarks/cuda_scaling.py results.json

ResNet-19 of full width, bfloat16, SAMD and NLD, T = 4, random images of CIFAR-10's size, by `ckdsnn`'s own loop on 1,
2, 4, ... processes, a GPU each, over NCCL: with 128 images a process, and with 128 in all.  Images a second count whole
epochs, validation and checkpoints included, the first one left out.  The share of the all-reduce is what a step takes
less without it.  `losses` compares 20 steps in float32 with those of one process on the joint batch, where statistics
are shared between the processes (`--trainer.sync_batchnorm true`).  `--device cpu` tries it on a small network.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from cuda_trainer import REPLAYS, EpochTimes, RandomImages, be_quiet

from ckd_kernels import build_info
from ckdsnn.checkpoint import write_text_atomically
from ckdsnn.configuration import MethodConfig, ModelConfig, TeacherConfig
from ckdsnn.optimisation import OptimizerConfig
from ckdsnn.train import Distillation
from ckdsnn.training.writer import BackgroundCheckpointIO, ResumeCheckpoint

LOSSES = 20
BATCH = 128


class Watch(EpochTimes):
    """The length of epochs, of a step with and without its all-reduce, and the losses of single steps."""

    def __init__(self, *, losses: bool) -> None:
        super().__init__()
        self.losses: list[float] | None = [] if losses else None
        self.steps: dict[str, float] = {}
        self.captured = False

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        if self.losses is not None:
            loss = pl_module._runner.step.loss.clone()
            if trainer.world_size > 1:
                dist.all_reduce(loss)
            self.losses.append(float(loss) / trainer.world_size)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        super().on_train_end(trainer, pl_module)
        runner, feed = pl_module._runner, pl_module.feed
        self.captured = pl_module._captured
        if self.losses is not None:
            return
        for name in ("with", "without"):
            if name == "without":
                runner.step.all_reduce = lambda: None
            feed.position.zero_()
            _wait(pl_module.device)
            begin = time.perf_counter()
            for number in range(min(REPLAYS, feed.batches)):
                runner(trainer.global_step + number)
            _wait(pl_module.device)
            self.steps[name] = (time.perf_counter() - begin) / min(REPLAYS, feed.batches)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
    if dist.is_initialized():
        dist.barrier()


def train(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One training, on as many processes as this one was started with."""
    cpu, world, losses = spec["device"] == "cpu", int(os.environ.get("WORLD_SIZE", "1")), spec["losses"]
    torch.manual_seed(0)
    width = 0.05 if cpu else 1.0
    task = Distillation(
        ModelConfig("snn_resnet19", {"width": width, "time_steps": spec["time_steps"]}),
        MethodConfig("ce" if losses else "ckd"),
        None if losses else TeacherConfig(checkpoint=str(folder / "teacher.ckpt")),
        OptimizerConfig(lr=0.1, weight_decay=5e-4, decay="weights", nesterov=True),
        channels_last=True,
    )
    watch = Watch(losses=losses)
    trainer = L.Trainer(
        accelerator=spec["device"],
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        max_epochs=1 if losses else spec["epochs"],
        limit_train_batches=LOSSES if losses else None,
        limit_val_batches=0 if losses else None,
        precision="32-true" if losses else "bf16-mixed",
        sync_batchnorm=losses and world > 1 and not cpu,
        benchmark=True,
        logger=False,
        callbacks=[watch] if losses else [watch, ResumeCheckpoint(folder / "last.ckpt")],
        plugins=[BackgroundCheckpointIO()],
        enable_checkpointing=not losses,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    data = RandomImages(400 if cpu else 50_000, spec["batch"])
    trainer.fit(task, data)
    if losses:
        return {"losses": watch.losses}
    epoch = statistics.median(watch.lengths[1:])
    images = len(data.arrays("train").targets) // (spec["batch"] * world) * spec["batch"] * world
    return {
        "processes": world,
        "batch_a_process": spec["batch"],
        "captured": watch.captured,
        "epoch_s": round(epoch, 3),
        "images_a_second": round(images / epoch),
        "step_ms": round(1e3 * watch.steps["with"], 3),
        "all_reduce_share": round(1 - watch.steps["without"] / watch.steps["with"], 4),
    }


def launch(processes: int, spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`train` in processes of its own."""
    (folder / "row.json").unlink(missing_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += [__file__, str(folder / "row.json"), "--worker", json.dumps(spec)]
    subprocess.run(command, check=True, env={"OMP_NUM_THREADS": "4", **os.environ})
    row: dict[str, Any] = json.loads((folder / "row.json").read_text())
    return row


def save_teacher(folder: Path, device: str) -> None:
    """An untrained teacher costs as much as a trained one."""
    network = ModelConfig("ann_resnet19", {"width": 0.05 if device == "cpu" else 1.0})
    task = Distillation(network, MethodConfig("ce"), None, OptimizerConfig(schedule="constant"), channels_last=True)
    trainer = L.Trainer(
        accelerator=device,
        devices=1,
        max_steps=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    trainer.fit(task, RandomImages(400, 20))
    trainer.save_checkpoint(folder / "teacher.ckpt")


def measure(options: argparse.Namespace, folder: Path, report: dict[str, Any]) -> None:
    """Fills the report row by row, and writes it each time: a run that is stopped keeps what it has measured."""
    rows, losses = report["rows"], report["losses"]
    common = {"device": options.device, "time_steps": options.time_steps, "epochs": options.epochs}
    batch = 16 if options.device == "cpu" else BATCH
    for processes in options.processes:
        for size in sorted({batch, batch // processes}, reverse=True):
            row = launch(processes, {**common, "batch": size, "losses": False}, folder)
            row["times_one"] = round(row["images_a_second"] / rows[0]["images_a_second"], 3) if rows else 1.0
            rows.append(row)
            tell(options.out, report)
    wanted = launch(1, {**common, "batch": batch, "losses": True}, folder)["losses"]
    for processes in options.processes[1:] if options.device == "cuda" else []:
        found = launch(processes, {**common, "batch": batch // processes, "losses": True}, folder)["losses"]
        apart = max(abs(a - b) / abs(b) for a, b in zip(found, wanted, strict=True))
        losses.append({"processes": processes, "steps": len(found), "most_apart": apart})
        tell(options.out, report)


def tell(out: Path, report: dict[str, Any]) -> None:
    print(json.dumps((report["losses"] or report["rows"])[-1]), flush=True)
    write_text_atomically(json.dumps(report, indent=1, default=str) + "\n", out)


def main() -> None:
    count = max(1, torch.cuda.device_count())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="file of the results, JSON")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--time_steps", type=int, default=4, help="(4)")
    parser.add_argument("--epochs", type=int, default=3, help="of each training (3)")
    parser.add_argument(
        "--processes",
        type=int,
        nargs="+",
        default=[n for n in (1, 2, 4, 8) if n <= count],
        help="numbers of processes, one first (1, 2, 4, 8, as far as there are GPUs)",
    )
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.epochs < 2:
        parser.error("--epochs must be at least 2: the first one is not counted")
    if options.processes[0] != 1:
        parser.error("--processes must begin with 1, which the others are compared with")
    be_quiet()
    if options.worker is not None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        row = train(options.worker, options.out.parent)
        if int(os.environ.get("RANK", "0")) == 0:
            options.out.write_text(json.dumps(row))
        return
    device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    about = {"device": device, "gpus": count, "torch": torch.__version__, "build": build_info()}
    with tempfile.TemporaryDirectory() as place:
        save_teacher(Path(place), options.device)
        report = {"about": about, "time_steps": options.time_steps, "rows": [], "losses": []}
        measure(options, Path(place), report)


if __name__ == "__main__":
    main()
