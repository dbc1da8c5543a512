"""Several processes train as one does on the joint batch."""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import socket
import subprocess
import sys

import pytest
import torch

from ckdsnn.checkpoint import load_checkpoint

TASK = [
    "--config", "digits", "--data.train_samples", "120", "--data.views", "1", "--model.teacher", "null",
    "--model.network.options", "{widths: [4, 6, 8], time_steps: 2}", "--model.method.name", "ce",
    "--model.optimizer", "{name: sgd, lr: 0.05, momentum: 0.9}", "--trainer.max_epochs", "2",
    "--trainer.sync_batchnorm", "true", "--trainer.gradient_clip_val", "0.5",
]  # fmt: skip


def fit(folder, devices, batch):
    command = [sys.executable, "-m", "ckdsnn.cli", "fit", *TASK, "--out", folder, "--trainer.devices", devices]
    command += ["--data.batch_size", batch, "--trainer.accelerator", "gpu", "--trainer.strategy", "ddp"]
    process = subprocess.Popen(
        [str(argument) for argument in command],
        # Ten bits of a matrix product would tell halves from wholes.
        env={**os.environ, "OMP_NUM_THREADS": "1", "NVIDIA_TF32_OVERRIDE": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that none of them outlives a test that waits in vain
        cwd=folder.parent,
    )
    try:
        _, messages = process.communicate(timeout=240)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, messages
    with (folder / "logs" / "version_0" / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    return losses, load_checkpoint(folder / "last.ckpt")["state_dict"]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs: PyTorch shares batch statistics there alone")
def test_two_processes_are_one_with_the_joint_batch(tmp_path):
    two, weights = fit(tmp_path / "two", 2, 10)
    one, wanted = fit(tmp_path / "one", 1, 20)
    assert len(one) == 2
    assert two == pytest.approx(one, rel=1e-3)
    for name, value in weights.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-2, atol=1e-3, msg=lambda text, name=name: name + text)


VALIDATIONS = """
import sys, torch
import lightning as L
from ckdsnn.callbacks import WeightEMA
from ckdsnn.configuration import ModelConfig
from ckdsnn.data import DigitsCanvas
from ckdsnn.optimisation import OptimizerConfig
from ckdsnn.train import Distillation

class Watch(L.Callback):
    def __init__(self):
        self.seen = []

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        self.seen.append({name: value.clone() for name, value in module.network.state_dict().items()})

seen = {}
for name, average in {"itself": [], "average": [WeightEMA(0.5)]}.items():
    L.seed_everything(0)
    network = ModelConfig("snn_resnet_small", {"widths": [4, 6, 8], "time_steps": 2})
    task = Distillation(network, optimizer=OptimizerConfig(lr=0.05), num_classes=10, in_channels=1)
    watch = Watch()
    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, val_check_interval=2, num_sanity_val_steps=0,
        limit_val_batches=1, callbacks=[watch, *average], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )
    trainer.fit(task, DigitsCanvas(batch_size=10, train_samples=80))
    seen[name] = watch.seen
torch.save(seen, sys.argv[1] + str(trainer.global_rank))
"""


def test_all_processes_evaluate_one_network(tmp_path):
    """Within an epoch, too, where running statistics are each process's own, and so are averages of them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        rendezvous = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    command = [sys.executable, "-c", VALIDATIONS, str(tmp_path / "rank")]
    together([(command, rendezvous | {"LOCAL_RANK": str(rank)}) for rank in range(2)])
    seen = [torch.load(tmp_path / f"rank{rank}", weights_only=True) for rank in range(2)]
    for name in ("itself", "average"):
        first, second = seen[0][name], seen[1][name]
        assert len(first) == len(second) == 2  # within the epoch and at its end
        for mine, other in zip(first, second, strict=True):
            assert [key for key in mine if not torch.equal(mine[key], other[key])] == []
        assert any(not torch.equal(first[0][key], first[1][key]) for key in first[0] if "running_mean" in key)
    assert any(not torch.equal(seen[0]["itself"][0][key], value) for key, value in seen[0]["average"][0].items())


# Without statistics of the batch, so that the mean of two halves' gradients is the whole's.
STEPS = """
import os, sys, torch
import torch.distributed as dist
from ckdsnn.data import BatchLoader
from ckdsnn.data.batches import EpochSampler
from ckdsnn.losses import build_method
from ckdsnn.models import build_model
from ckdsnn.optimisation import OptimizerConfig
from ckdsnn.training import EagerRunner, EpochFeed, Telemetry, TrainStep

rank, world, poison, path = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
if world > 1:
    dist.init_process_group("gloo", init_method=f"file://{path}.store", rank=rank, world_size=world)
torch.manual_seed(0)
student, method = build_model("snn_resnet_small", 10, time_steps=2, widths=(4, 6, 8)).eval(), build_method("ce")
images, targets = torch.rand(48, 1, 12, 12), torch.arange(48) % 10
sampler = EpochSampler(48, 16 // world, shuffle=True, drop_last=True, seed=1, rank=rank, world_size=world)
config = OptimizerConfig(lr=0.1)
step = TrainStep(student, method, lambda batch: None, config.build(student.parameters()), config.build_schedule(9, 3),
                 EpochFeed(BatchLoader(images, targets, sampler)), Telemetry(torch.device("cpu")), clip_norm=0.3)
for number in range(6):
    if number % 3 == 0:
        step.feed.start(number // 3, 0)
    if poison and number == 4 and rank == 1:
        step.feed._rows.fill_(float("nan"))
    EagerRunner(step)(number)
if rank == 0:
    torch.save({"weights": student.state_dict(), "failed": step.telemetry.failed}, path)
"""


def together(commands):
    """Runs commands at once, each with environment variables of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(command, env=environment | own, stderr=subprocess.PIPE, text=True) for command, own in commands
    ]
    try:
        messages = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), messages


def steps(path, world, poison=0):
    together(
        [([sys.executable, "-c", STEPS, str(rank), str(world), str(poison), str(path)], {}) for rank in range(world)]
    )
    return torch.load(path, weights_only=True)


def test_gradients_of_two_processes_are_the_joint_batchs(tmp_path):
    one, two = steps(tmp_path / "one.pt", 1), steps(tmp_path / "two.pt", 2)
    for name, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], value, rtol=1e-4, atol=1e-6)
    assert not two["failed"]
    # What fails on one process fails on all, before any of them moves.
    broken = steps(tmp_path / "broken.pt", 2, poison=1)
    assert broken["failed"]
    assert all(value.isfinite().all() for value in broken["weights"].values())
