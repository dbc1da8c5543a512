"""Several processes train as one does on the joint batch."""

from __future__ import annotations

import contextlib
import csv
import os
import signal
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


def steps(path, world, poison=0):
    arguments = [[sys.executable, "-c", STEPS, str(rank), str(world), str(poison), str(path)] for rank in range(world)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen(a, env=environment, stderr=subprocess.PIPE, text=True) for a in arguments]
    try:
        messages = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * world, messages
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
