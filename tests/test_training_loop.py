"""What the LightningModule makes of its options and of the trainer around it, hook by hook."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import nn

from ckdsnn import train
from ckdsnn.analysis import FiringRate
from ckdsnn.checkpoint import SCHEMA, RunError, random_state, save_atomically
from ckdsnn.configuration import MethodConfig, ModelConfig, TeacherConfig
from ckdsnn.data import Batch, BatchLoader
from ckdsnn.data.batches import EpochSampler
from ckdsnn.losses import NoiseSource
from ckdsnn.models.folded import FoldedConv
from ckdsnn.optimisation import OptimizerConfig
from ckdsnn.train import Distillation
from ckdsnn.training import BatchFeed, EpochFeed, lightning

SMALL = {"widths": [2, 3, 4]}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    torch.manual_seed(1)
    task = Distillation(ModelConfig("ann_resnet_small", SMALL), in_channels=1)
    path = tmp_path_factory.mktemp("teacher") / "last.ckpt"
    made = {"schema": SCHEMA, "network": task.run_config["network"], "config": task.run_config, "finished": True}
    save_atomically({"ckdsnn": made, "state_dict": task.state_dict()}, path)
    return TeacherConfig(checkpoint=str(path))


def student(method="nld", teacher=None, method_options=None, **options):
    network = ModelConfig("snn_resnet_small", {**SMALL, "time_steps": 1})
    return Distillation(network, MethodConfig(method, method_options or {}), teacher, in_channels=1, **options)


def loader(size=5):
    sampler = EpochSampler(20, size, shuffle=True, drop_last=True, seed=4)
    return BatchLoader(torch.rand(20, 1, 8, 8), torch.arange(20) % 10, sampler)


def surround(task, **options):
    """What the hooks look at of a trainer."""
    strategy = SimpleNamespace(root_device=torch.device("cpu"), reduce=lambda value, reduce_op: value)
    precision = SimpleNamespace(convert_input=lambda images: images, scaler=None)
    fields = {
        "strategy": strategy, "precision_plugin": precision, "global_rank": 0, "world_size": 1, "global_step": 0,
        "current_epoch": 0, "max_epochs": 3, "max_steps": -1, "accumulate_grad_batches": 1, "gradient_clip_val": None,
        "gradient_clip_algorithm": None, "is_last_batch": False, "num_training_batches": 4, "should_stop": False,
        "estimated_stepping_batches": 12, "optimizers": [], "train_dataloader": loader(), "callback_metrics": {},
        "fit_loop": SimpleNamespace(setup_data=lambda: None), "state": SimpleNamespace(fn=TrainerFn.FITTING),
        "datamodule": None, "barebones": False,
    }  # fmt: skip
    task._trainer = SimpleNamespace(**fields | options)
    task._fabric = None
    return task._trainer


def test_what_is_optimised_and_for_how_long(teacher):
    task = student("nld", teacher, {"learnable_strength": True}, optimizer=OptimizerConfig(warmup_epochs=1))
    task.network.head.bias.requires_grad_(False)
    surround(task, num_training_batches=5, accumulate_grad_batches=2, estimated_stepping_batches=9)
    optimizer = task.configure_optimizers()
    optimised = {id(p) for group in optimizer.param_groups for p in group["params"]}
    wanted = [
        p for p in (*task.network.parameters(), task.method.nld.strength_shift) if p is not task.network.head.bias
    ]
    assert optimised == {id(p) for p in wanted}
    assert task.schedule.rates == OptimizerConfig(warmup_epochs=1).build_schedule(9, 3).rates
    surround(task, num_training_batches=5, estimated_stepping_batches=4)
    with pytest.raises(RunError, match=r"warmup_epochs 1 is 5 steps, the whole training is 4"):
        task.configure_optimizers()


def test_the_teacher_is_folded_where_it_stays_in_eval_mode(teacher):
    for options, folded in (({}, True), ({"preset": "released-code"}, False)):
        task = student("ckd", teacher, options)
        convs = [m for m in task.teacher.model.modules() if isinstance(m, nn.Conv2d)]
        assert {isinstance(conv, FoldedConv) for conv in convs} == {folded}


@pytest.mark.parametrize("channels_last", [False, True])
def test_both_networks_see_images_in_the_memory_format_that_was_asked_for(teacher, channels_last):
    task, seen = student("nld", teacher, channels_last=channels_last), []
    surround(task)
    task.network.forward = task.teacher.forward = lambda images, *targets: seen.append(images.stride())
    batch = Batch(torch.rand(2, 3, 8, 9), torch.tensor([0, 1]), torch.arange(2))
    task._converted(batch.images)
    task._answers(batch)
    assert seen == [(216, 1, 27, 3) if channels_last else (216, 72, 9, 1)] * 2
    assert task._in_memory_format(torch.zeros(2, 2, 3, 8, 9)).is_contiguous()  # frames are left alone


def test_the_seed_is_that_of_the_noise_unless_the_method_has_its_own(teacher):
    assert student("nld", teacher, seed=5).method.nld.noise.seed == 5
    assert student("nld", teacher, {"seed": 3}, seed=5).method.nld.noise.seed == 3


def test_every_process_has_noise_of_its_own_where_it_trains(teacher, monkeypatch):
    monkeypatch.setattr(train, "own_backward", lambda trainer: None)
    moved = []
    monkeypatch.setattr(NoiseSource, "to_device", lambda self, device: moved.append(device))
    task = student("nld", teacher)
    for rank, stage, process in ((0, "fit", 0), (2, "test", 0), (2, "fit", 2)):
        surround(task, global_rank=rank)
        task.setup(stage)
        assert task.method.nld.noise.process == process
    task.on_fit_start()
    assert moved == [torch.device("cpu")]


@pytest.mark.parametrize(("graph", "captured"), [("auto", True), (True, True), (False, False)])
def test_a_step_that_can_be_captured_is_where_it_is_wanted(monkeypatch, graph, captured):
    monkeypatch.setattr(train, "check_capture", lambda *_: None)
    task = student("ce", graph=graph)
    surround(task)
    task.on_fit_start()
    assert task._captured == captured


def test_a_graph_that_is_insisted_on_is_refused_where_there_is_none():
    task = student("ce", graph=True)
    surround(task)
    with pytest.raises(RunError, match=r"model\.graph is true, but the training step cannot be captured: .*CPU"):
        task.on_fit_start()
    with pytest.raises(ValueError, match=r"model\.graph must be auto, true or false, got 'yes'"):
        student("ce", graph="yes")


def test_compile_compiles_the_network(monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    student("ce", compile=True)
    student("ce")
    assert compiled == ["SNNResNet"]


def test_data_on_the_device_is_fed_by_the_epoch():
    trainer = surround(student("ce"))
    fed = lightning.make_feed(trainer, torch.device("cpu"), channels_last=True)
    assert isinstance(fed, EpochFeed)
    assert fed.channels_last
    assert not trainer.train_dataloader.gathers
    trainer.train_dataloader = [1, 2]
    fed = lightning.make_feed(trainer, torch.device("cpu"), channels_last=True)
    assert isinstance(fed, BatchFeed)
    assert fed.batches == 4


@pytest.mark.parametrize(
    ("options", "norm", "value"),
    [
        ({}, None, None),
        ({"gradient_clip_val": 0.0}, None, None),
        ({"gradient_clip_val": 0.5}, 0.5, None),
        ({"gradient_clip_val": 0.5, "gradient_clip_algorithm": GradClipAlgorithmType.NORM}, 0.5, None),
        ({"gradient_clip_val": 0.5, "gradient_clip_algorithm": GradClipAlgorithmType.VALUE}, None, 0.5),
    ],
    ids=str,
)
def test_the_step_is_as_the_trainer_says(options, norm, value):
    task, scaler = student("ce"), torch.amp.GradScaler("cpu")
    trainer = surround(task, global_step=7, accumulate_grad_batches=3, **options)
    trainer.optimizers = [task.configure_optimizers()]
    task.on_train_start()
    step = task._make_runner().step
    assert (step.clip_norm, step.clip_value, step.accumulate, step.updates.item()) == (norm, value, 3, 7)
    assert (step.autocast, step.scaler) == (None, None)
    trainer.precision_plugin.scaler = scaler
    with torch.autocast("cpu", torch.bfloat16):
        step = task._make_runner().step
    assert (step.autocast, step.scaler) == (torch.bfloat16, scaler)


class Recorder:
    """Notes calls of whatever is asked of it."""

    def __init__(self, **fields):
        self.calls = []
        self.__dict__.update(fields)

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self.calls.append((name, *args, *kwargs.values())) or {}


@pytest.mark.parametrize(("begin", "accumulate"), [(0, 1), (0, 2), (3, 2)])
def test_batches_become_steps(begin, accumulate):
    task = student("ce")
    trainer = surround(task, accumulate_grad_batches=accumulate, current_epoch=2)
    steps = []

    def runner(update, **which):
        steps.append((update, which["first"], which["last"]))

    runner.step = SimpleNamespace(loss=torch.tensor(2.0))
    task._runner, task.telemetry = runner, Recorder()
    task.feed = Recorder(started=1)
    task.feed.start = lambda epoch, position: (
        task.feed.calls.append((epoch, position)) or setattr(task.feed, "started", epoch)
    )
    for batch in range(begin, 5):
        trainer.is_last_batch = batch == 4
        trainer.global_step = 10 + batch
        assert task.training_step(batch, batch) == 2.0
    whole = {1: [(b, True, True) for b in range(5)],
             2: [(0, True, False), (1, False, True), (2, True, False), (3, False, True), (4, True, True)]}  # fmt: skip
    assert steps == [(10 + b, first, last) for b, first, last in whole[accumulate][begin:]]
    assert task.feed.calls == [(2, begin), *(("load", batch) for batch in range(begin, 5))]
    polls = [("poll", 2)] * (5 - begin)
    assert task.telemetry.calls == ([("restart",)] if begin == 0 else []) + polls


def test_means_are_logged_at_the_end_of_an_epoch_and_of_the_training(monkeypatch):
    shared, logged = [], []
    monkeypatch.setattr(train, "share_buffers", shared.append)
    task = student("ce")
    monkeypatch.setattr(task, "log_dict", lambda means, **how: logged.append((means, how)))
    for options, ends in (
        ({"is_last_batch": True}, True),
        ({"global_step": 5}, False),
        ({"global_step": 4, "max_steps": 5}, False),
        ({"global_step": 5, "max_steps": 5, "world_size": 2}, True),
    ):
        surround(task, current_epoch=3, **options)
        task.telemetry = Recorder(means=lambda: {"loss": 0.5, "accuracy": 0.25})
        task.on_train_batch_end(None, None, 0)
        assert task.telemetry.calls == [("wait", 3)] * ends  # what a GPU tells late is seen before it is logged
        assert len(shared) == len(logged) == ends
        for means, how in logged:
            assert means == {"train/loss": 0.5, "train/accuracy": 0.25}
            assert how["on_epoch"]
            assert how["sync_dist"] == ("world_size" in options)
        shared.clear()
        logged.clear()


def test_a_fit_leaves_no_memory_behind():
    task = student("ce")
    task._runner, task.feed = object(), object()
    task.on_fit_end()
    assert (task._runner, task.feed) == (None, None)


def answer(task, right):
    """Makes the network answer `right` of its images rightly."""
    task.network = nn.Identity()
    task.network.forward = lambda images: SimpleNamespace(logits=images)
    logits = torch.eye(10)[:4].clone()
    logits[right:] = torch.eye(10)[9]
    return Batch(logits, torch.arange(4), torch.arange(4))


@pytest.mark.parametrize("part", ["validation", "test"])
def test_accuracies_count_the_samples_of_all_processes(part, monkeypatch):
    task, logged, asked = student("ce"), {}, []
    trainer = surround(task)
    # As if another process had seen 2 samples, and none of them rightly.
    trainer.strategy.reduce = lambda counts, reduce_op: (
        asked.append(reduce_op) or counts + torch.tensor([0.0, 2.0, 0.0, 0.0])
    )
    monkeypatch.setattr(task, "log", lambda name, value, **_: logged.update({name: value}))
    if part == "test":
        task.on_test_start()
    for right, accuracy in ((3, 6 / 10), (1, 2 / 10)):
        getattr(task, f"on_{part}_epoch_start")()
        assert task._evaluation.sums.dtype == torch.float64
        for _ in range(2):
            getattr(task, f"{part}_step")(answer(task, right), 0)
        task._firing_rate = FiringRate(nn.Identity())
        getattr(task, f"on_{part}_epoch_end")()
        assert logged == {f"{part.removesuffix('idation')}/accuracy": accuracy}
    assert asked == ["sum", "sum"]


def test_spikes_are_counted_during_a_test_alone(monkeypatch):
    task, logged = student("ce"), {}
    surround(task)
    monkeypatch.setattr(task, "log", lambda name, value, **_: logged.update({name: value}))
    hooks = [module._forward_hooks for module in task.network.modules()]
    task.on_test_start()
    assert any(hooks)
    task.on_test_epoch_start()
    task.test_step(Batch(torch.rand(3, 1, 8, 8), torch.zeros(3, dtype=torch.long), torch.arange(3)), 0)
    task.on_test_epoch_end()
    assert not any(hooks)
    assert logged.keys() == {"test/accuracy", "test/firing_rate"}


def test_predictions_are_the_likeliest_class_of_each_sample():
    task = student("ce")
    batch = answer(task, 4)
    batch.images.mul_(2.0)
    made = task.predict_step(batch, 0)
    assert made["prediction"].tolist() == made["target"].tolist() == made["index"].tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(made["confidence"], torch.full((4,), 1 / (1 + 9 * torch.e**-2)))


def saved(task, **options):
    trainer = surround(task, **options)
    checkpoint = {}
    task.on_save_checkpoint(checkpoint)
    return checkpoint, trainer


@pytest.mark.parametrize(
    ("options", "finished"),
    [
        ({"current_epoch": 2, "is_last_batch": True}, True),
        ({"current_epoch": 2, "is_last_batch": False}, False),
        ({"current_epoch": 1, "is_last_batch": True}, False),
    ],
    ids=str,
)
def test_a_checkpoint_tells_whether_the_training_is_finished(options, finished):
    assert saved(student("ce"), **options)[0]["ckdsnn"]["finished"] is finished


def test_a_training_goes_on_as_if_it_had_not_stopped(teacher):
    task = student("ckd", teacher, {"preset": "released-code"})
    buffers = [b for name, b in task.teacher.named_buffers() if "running_mean" in name]
    buffers[0].fill_(3.0)
    trainer = surround(task)
    task.on_train_start()
    task.telemetry.record(
        torch.tensor(1.0), torch.tensor(2.0), {"ce": torch.tensor(2.0)}, torch.zeros(1, dtype=torch.int64)
    )
    trainer.train_dataloader.sampler.set_epoch(1)
    batches = iter(trainer.train_dataloader)
    next(batches)
    checkpoint = {"state_dict": task.state_dict()}
    task.on_save_checkpoint(checkpoint)
    checkpoint |= {"epoch": 1, "global_step": 5, "loops": {}, "optimizer_states": [], "lr_schedulers": []}
    checkpoint["teacher_buffers"] = {name: value.clone() for name, value in checkpoint["teacher_buffers"].items()}

    def draw():
        return (
            random.random(),
            float(np.random.rand()),
            torch.rand(2).tolist(),
            torch.rand(2, generator=noise().generator).tolist(),
        )

    def noise():
        return task.method.nld.noise

    wanted, rest = draw(), len(list(batches))
    task = student("ckd", teacher, {"preset": "released-code"})
    trainer = surround(task, state=SimpleNamespace(fn=TrainerFn.TESTING))
    task.on_load_checkpoint(checkpoint)
    assert task._state_to_restore is None  # a test needs the weights alone
    trainer.state.fn = TrainerFn.FITTING
    task.on_load_checkpoint(checkpoint)
    assert next(b for name, b in task.teacher.named_buffers() if "running_mean" in name)[0] == 3.0
    task.on_train_start()
    assert draw() == wanted
    trainer.train_dataloader.gathers = True
    trainer.train_dataloader.sampler.set_epoch(1)
    assert len(list(trainer.train_dataloader)) == rest == 3
    assert task.telemetry.means() == {"accuracy": 1.0, "loss": 2.0, "ce": 2.0}
    assert task._state_to_restore is None


def test_what_cannot_go_on_is_refused(teacher):
    task = student("nld", teacher)
    checkpoint = saved(task)[0] | {
        "epoch": 1,
        "global_step": 5,
        "loops": {},
        "optimizer_states": [],
        "lr_schedulers": [],
    }
    checkpoint["random_state"] = [{"global": random_state(), "noise": []}] * 2
    task.check_resumable(checkpoint, 2)
    with pytest.raises(RunError, match=r"started with 2 process\(es\), now there are 1"):
        task.check_resumable(checkpoint, 1)
    other = student("nld", teacher, optimizer=OptimizerConfig(lr=0.3))
    with pytest.raises(RunError, match=r"Different: optimizer\.lr: 0\.1 -> 0\.3"):
        other.check_resumable(checkpoint, 2)
    small = Distillation(ModelConfig("snn_resnet_small", {"widths": [2, 2, 2]}), in_channels=1)
    with pytest.raises(RunError, match="the checkpoint holds"):
        small.check_checkpoint(checkpoint)
