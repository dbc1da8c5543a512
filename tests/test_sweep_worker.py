"""The process in which runs follow each other. That runs do not change each other: test_sweep_run.py."""

import gc

import lightning as L
import torch

from ckdsnn.data import DigitsCanvas
from ckdsnn.sweep.worker import run_command
from ckdsnn.train import Distillation


def test_nothing_of_a_run_stays_in_its_process(tmp_path, monkeypatch):
    """Networks, data, a graph's memory: the next run has the device to itself."""
    monkeypatch.chdir(tmp_path)
    gc.collect()
    kinds = (Distillation, L.Trainer, DigitsCanvas, torch.optim.AdamW)
    before = [one for one in gc.get_objects() if type(one) in kinds]
    options = ["--model.method.name=ce", "--model.network.options={widths: [4, 6, 8], time_steps: 1}"]
    options += ["--data.train_samples=60", "--trainer.max_epochs=1"]
    for verb in ("fit", "test"):
        assert run_command([verb, "--config", "digits", "--out", "out", *options]) == 0
        left = [one for one in gc.get_objects() if type(one) in kinds]
        assert len(left) == len(before), left
