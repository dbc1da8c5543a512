"""What of a configuration decides the weights that come out: going on with another value is refused."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from jsonargparse import Namespace

from ckdsnn.checkpoint import random_state, restore_random_state
from ckdsnn.cli.output import BestCheckpoint, Termination
from ckdsnn.cli.training import TRAINER_OPTIONS, what_training_depends_on
from ckdsnn.resume import changed_run
from ckdsnn.train import Distillation

TRAINER = {
    "max_epochs": 3,
    "max_steps": -1,
    "fast_dev_run": False,
    "precision": "32-true",
    "accumulate_grad_batches": 1,
    "gradient_clip_val": None,
    "gradient_clip_algorithm": None,
    "limit_train_batches": None,
    "callbacks": None,
}
DATA = {"batch_size": 20, "seed": 0}


def depends_on(seed=0, data=None, **trainer):
    trainer = {"log_every_n_steps": 50, "overfit_batches": 0.0, "sync_batchnorm": False} | TRAINER | trainer
    init_args = Namespace(**DATA | {"root": "here"} | (data or {}))
    config = Namespace(
        data=Namespace(class_path="ckdsnn.data.DigitsCanvas", init_args=init_args), trainer=Namespace(**trainer)
    )
    return {"seed": seed} | what_training_depends_on(config)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"max_epochs": 4}, "trainer.max_epochs: 3 -> 4"),
        ({"max_steps": 4}, "trainer.max_steps: -1 -> 4"),
        ({"fast_dev_run": True}, "trainer.fast_dev_run: False -> True"),
        ({"precision": "bf16-mixed"}, "trainer.precision: '32-true' -> 'bf16-mixed'"),
        ({"accumulate_grad_batches": 2}, "trainer.accumulate_grad_batches: 1 -> 2"),
        ({"gradient_clip_val": 0.5}, "trainer.gradient_clip_val: None -> 0.5"),
        ({"gradient_clip_algorithm": "value"}, "trainer.gradient_clip_algorithm: None -> 'value'"),
        ({"limit_train_batches": 2}, "trainer.limit_train_batches: None -> 2"),
        ({"callbacks": [Namespace(class_path="ckdsnn.callbacks.WeightEMA")]}, "trainer.callbacks: None -> ["),
        ({"data": {"batch_size": 10}}, "data.init_args.batch_size: 20 -> 10"),
        ({"seed": 4}, "seed: 0 -> 4"),
    ],
    ids=str,
)
def test_another_value_is_another_run(changed, told):
    (line,) = changed_run(depends_on(), depends_on(**changed), Distillation)
    assert line.startswith(told)


def test_what_does_not_change_the_weights_may_differ():
    same = depends_on(data={"root": "elsewhere"}, log_every_n_steps=7)
    assert changed_run(depends_on(), same, Distillation) == []
    older = depends_on()
    del older["trainer"]["limit_train_batches"], older["trainer"]["accumulate_grad_batches"]
    assert changed_run(older, depends_on(), Distillation) == []
    assert set(TRAINER) <= set(TRAINER_OPTIONS)
    assert "fast_dev_run" not in depends_on()["trainer"]  # sweeps compare with what they recorded before it was there


def test_the_global_generators_go_on():
    def draw():
        return (
            random.random(),
            random.gauss(0, 1),
            np.random.rand(3).tolist(),
            np.random.randn(),
            torch.rand(3).tolist(),
        )

    random.gauss(0, 1)  # of a pair, of which the second is kept
    np.random.randn()
    state = random_state()
    drawn = draw()
    assert draw() != drawn
    restore_random_state(state)
    assert draw() == drawn


def test_the_best_is_the_one_of_the_highest_validation_accuracy(tmp_path):
    best = BestCheckpoint(tmp_path)
    assert (best.monitor, best.mode, best.save_top_k) == ("val/accuracy", "max", 1)
    saved = []
    best._save_checkpoint = lambda trainer, path: saved.append(trainer.now)
    trainer = SimpleNamespace(
        strategy=SimpleNamespace(broadcast=lambda x: x, reduce_boolean_decision=lambda x, **_: x), world_size=1
    )
    for trainer.now in (0.5, 0.75, 0.25, 0.8):
        best._save_topk_checkpoint(
            trainer, {"val/accuracy": torch.tensor(trainer.now), "epoch": torch.tensor(0), "step": torch.tensor(0)}
        )
    assert saved == [0.5, 0.75, 0.8]


@pytest.mark.parametrize(
    ("options", "batch", "saves"),
    [
        ({}, 1, True),
        ({"accumulate_grad_batches": 2}, 0, False),
        ({"accumulate_grad_batches": 2}, 1, True),
        ({"is_last_batch": True}, 1, True),
        ({"is_last_batch": True, "accumulate_grad_batches": 2}, 2, True),
        ({"world_size": 2}, 1, False),
        ({"received_sigterm": False}, 1, False),
    ],
    ids=str,
)
def test_a_run_that_is_told_to_stop_saves_first(tmp_path, options, batch, saves):
    saved = []
    fields = {"received_sigterm": True, "accumulate_grad_batches": 1, "world_size": 1, "is_last_batch": False}
    connector = SimpleNamespace()
    trainer = SimpleNamespace(save_checkpoint=saved.append, _signal_connector=connector, **fields | options)
    Termination(tmp_path).on_train_batch_end(trainer, None, None, None, batch)
    Termination(None).on_train_batch_end(trainer, None, None, None, batch)
    assert saved == [tmp_path] * saves
