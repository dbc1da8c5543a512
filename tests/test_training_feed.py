"""What a training step finds and what it tells: feeds, telemetry, precision, clipping, memory for spikes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ckdsnn.checkpoint import RunError
from ckdsnn.data import Batch, BatchLoader
from ckdsnn.data.batches import EpochSampler
from ckdsnn.losses import build_method
from ckdsnn.models import ANNOutput
from ckdsnn.optimisation import OptimizerConfig, Schedule
from ckdsnn.training import BatchFeed, EagerRunner, EpochFeed, Telemetry, TrainStep, feed

CPU = torch.device("cpu")
CONSTANT = Schedule([0.5])


class Still(BatchFeed):
    """The same batch at every step."""

    def __init__(self):
        super().__init__(CPU, 4)
        self.load(Batch(torch.eye(4).view(4, 1, 2, 2), torch.tensor([0, 1, 2, 0]), torch.arange(4)))


def tiny(network=None, schedule=CONSTANT, **options):
    """A linear network of a step that answers 3 of 4 images rightly."""
    layer = nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(4))
        layer.bias.zero_()
    network = network or (lambda images: ANNOutput(layer(images.flatten(1)), {}))
    optimizer = OptimizerConfig(lr=0.5, momentum=0.0, weight_decay=0.0).build(layer.parameters())
    step = TrainStep(
        network, build_method("ce"), lambda batch: None, optimizer, schedule, Still(), Telemetry(CPU), **options
    )
    return step, layer


def gradient(layer):
    images, targets = Still().batch()[:2]
    return torch.autograd.grad(F.cross_entropy(layer(images.flatten(1)), targets), list(layer.parameters()))


def test_a_step_tells_the_loss_of_its_batch_and_how_many_were_right():
    step, _ = tiny(accumulate=2)
    for first in (True, False):
        step.gradients(first=first)
        loss = (math.log(math.e + 3) * 4 - 3) / 4
        assert step.loss.item() == pytest.approx(loss, rel=1e-6)
    assert step.telemetry.means() == pytest.approx({"accuracy": 0.75, "loss": loss, "ce": loss})


def test_gradients_are_clipped_before_the_step():
    for options, size in (({"clip_norm": 0.01}, torch.linalg.vector_norm), ({"clip_value": 0.002}, torch.amax)):
        step, layer = tiny(**options)
        before = torch.cat([p.detach().clone().flatten() for p in layer.parameters()])
        EagerRunner(step)(0)
        moved = (torch.cat([p.detach().flatten() for p in layer.parameters()]) - before).abs()
        assert size(moved).item() == pytest.approx(0.5 * next(iter(options.values())), rel=1e-3)


def test_past_the_end_of_a_schedule_it_stays_where_it_was():
    step, _ = tiny(schedule=Schedule([0.25, 0.5], [0.75, 0.5]))
    seen = []
    for update in range(4):
        EagerRunner(step)(update)
        group = step.optimizer.param_groups[0]
        seen.append((group["lr"].item(), group["momentum"]))
    assert seen == [(0.25, 0.75), (0.5, 0.5), (0.5, 0.5), (0.5, 0.5)]


def test_momentum_of_adamw_is_its_first_beta():
    step, layer = tiny(schedule=Schedule([0.1], [0.6]))
    step.optimizer = OptimizerConfig(name="adamw").build(layer.parameters())
    step.set_momentum(0)
    assert step.optimizer.param_groups[0]["betas"] == (0.6, 0.999)


def test_forward_passes_are_in_the_lower_precision_without_kept_casts():
    seen, layer = [], nn.Linear(4, 4)

    def network(images):
        logits = layer(images.flatten(1))
        seen.append((logits.dtype, torch.is_autocast_cache_enabled()))
        return ANNOutput(logits, {})

    for dtype in (None, torch.bfloat16):
        step, _ = tiny(network, autocast=dtype)
        step.answers = lambda batch: seen.append(torch.is_autocast_enabled("cpu"))
        with torch.autocast("cpu", torch.float16):  # what surrounds a step does not count
            step.gradients()
    assert seen == [False, (torch.float32, True), True, (torch.bfloat16, False)]


@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.05}, {"clip_value": 0.01}], ids=str)
def test_a_scaled_loss_gives_the_same_steps(options):
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
    (plain, wanted), (step, layer) = tiny(**options), tiny(scaler=scaler, **options)
    for update in range(2):
        EagerRunner(plain)(update)
        EagerRunner(step)(update)
    for p, q in zip(layer.parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
    assert scaler.get_scale() == 16.0
    with torch.no_grad():
        step.feed.batch().images.fill_(math.inf)
    before = [p.detach().clone() for p in layer.parameters()]
    EagerRunner(step)(2)
    assert all(torch.equal(p, q) for p, q in zip(layer.parameters(), before, strict=True))
    assert scaler.get_scale() == 8.0


def test_the_scaler_multiplies_the_loss():
    step, layer = tiny(scaler=torch.amp.GradScaler("cpu", init_scale=8.0))
    step.gradients()
    torch.testing.assert_close(layer.weight.grad, 8 * gradient(layer)[0])


def test_processes_share_means_of_gradients_and_who_failed(monkeypatch):
    """As with another process whose gradients are three times ours."""
    for failed in (0.0, 1.0):
        step, layer = tiny()
        step.world = 2
        step.gradients()
        layer.weight.grad = layer.weight.grad.t().contiguous().t()  # as weights in channels_last have it
        own = [p.grad.clone() for p in layer.parameters()]
        step.pack()
        shared = step._flat
        monkeypatch.setattr("torch.distributed.all_reduce", lambda flat, failed=failed: flat.mul_(4)[-1:].add_(failed))
        step.all_reduce()
        step.unpack()
        assert step._flat is shared
        for p, before in zip(layer.parameters(), own, strict=True):
            assert torch.equal(p.grad, 2 * before)
        assert step.telemetry.failed == failed


def test_a_state_of_adamw_goes_to_the_device():
    step, layer = tiny()
    optimizer = OptimizerConfig(name="adamw").build(layer.parameters())
    optimizer.state[layer.weight]["step"] = torch.tensor(3.0)
    there = torch.device("meta")
    TrainStep(None, None, None, optimizer, step.schedule, None, Telemetry(there))
    assert optimizer.state[layer.weight]["step"].device == there


def record(telemetry, accuracy, loss, update, **parts):
    numbers = (torch.tensor(value) for value in (accuracy, loss))
    parts = {name: torch.tensor(value) for name, value in parts.items()}
    telemetry.record(*numbers, parts, torch.tensor([update]))


def test_means_are_over_the_epoch():
    told = Telemetry(CPU)
    record(told, 0.5, 3.0, 0, ce=1.0, kd=2.0)
    record(told, 1.0, 1.0, 1, ce=0.5, kd=0.5)
    told.poll(0)
    assert told.latest == {"accuracy": 1.0, "loss": 1.0, "ce": 0.5, "kd": 0.5}
    assert told.means() == {"accuracy": 0.75, "loss": 2.0, "ce": 0.75, "kd": 1.25}
    told.restart()
    record(told, 0.25, 8.0, 2, ce=4.0, kd=4.0)
    assert told.means() == {"accuracy": 0.25, "loss": 8.0, "ce": 4.0, "kd": 4.0}
    with pytest.raises(RunError, match="the parts of the loss were ce, kd and are now ce"):
        record(told, 0.0, 1.0, 3, ce=1.0)


def test_an_interrupted_epoch_goes_on_with_its_sums():
    told, later = Telemetry(CPU), Telemetry(CPU)
    record(told, 0.5, 3.0, 0, ce=3.0)
    record(told, 1.0, 1.0, 1, ce=1.0)
    later.load_state_dict(
        {name: getattr(value, "clone", lambda v=value: v)() for name, value in told.state_dict().items()}
    )
    assert later.names == ("accuracy", "loss", "ce")
    record(later, 0.0, 5.0, 2, ce=5.0)
    assert later.means() == {"accuracy": 0.5, "loss": 3.0, "ce": 3.0}
    assert not later.state_dict()["failed"]
    empty = Telemetry(CPU)
    empty.load_state_dict(Telemetry(CPU).state_dict())
    record(empty, 0.5, 3.0, 0, ce=3.0)
    assert empty.means()["loss"] == 3.0


@pytest.mark.parametrize("look", ["poll", "wait"])
def test_the_first_step_that_failed_is_told(look):
    told = Telemetry(CPU)
    record(told, 0.5, 3.0, 6, ce=1.0, kd=2.0)
    getattr(told, look)(4)
    told.check(torch.tensor(False), torch.tensor([6]))  # its gradient
    record(told, 0.5, math.nan, 7, ce=math.nan, kd=1.0)
    record(told, 0.5, 2.0, 8, ce=1.0, kd=1.0)
    assert told.failed == 1
    with pytest.raises(RunError, match=r"the gradient is not finite at step 6 \(epoch 4\): ce 1, kd 2\."):
        getattr(told, look)(4)
    other = Telemetry(CPU)
    record(other, 0.5, math.inf, 9, ce=math.inf, kd=1.0)
    with pytest.raises(RunError, match=r"the loss is not finite at step 9 \(epoch 2\): ce inf, kd 1\."):
        getattr(other, look)(2)


def epoch_feed(shape, **options):
    images = torch.rand(12, *shape, generator=torch.Generator().manual_seed(0))
    sampler = EpochSampler(12, 4, shuffle=True, drop_last=True, seed=2)
    loader = BatchLoader(images, torch.arange(12), sampler)
    return EpochFeed(loader, **options), loader


def test_an_epoch_at_once_lies_as_the_network_wants_it():
    for channels_last in (False, True):
        at_once, _ = epoch_feed((2, 3, 3), channels_last=channels_last)
        at_once.start(0, 0)
        assert at_once.batch().images.is_contiguous(memory_format=torch.channels_last) == channels_last


@pytest.mark.parametrize("channels_last", [False, True])
def test_frames_come_time_first(channels_last):
    at_once, loader = epoch_feed((5, 2, 3, 3), channels_last=channels_last)
    at_once.start(0, 0)
    for batch in loader:
        mine = at_once.batch()
        assert mine.images.shape == (5, 4, 2, 3, 3)
        assert all(torch.equal(a, b) for a, b in zip(mine, batch, strict=True))
        at_once.advance()


def test_where_training_is():
    at_once, _ = epoch_feed((1, 2, 2))
    seen = []
    for epoch, position in ((0, 0), (0, 2), (3, 1)):
        at_once.start(epoch, position)
        at_once.advance()
        seen.append((at_once.epoch.item(), at_once.position.item(), at_once.progress().item()))
    assert seen == [(0, 1, 1 / 3), (0, 3, 1.0), (3, 2, 3 + 2 / 3)]


def test_batches_are_copied_into_tensors_that_stay():
    one, two = (Batch(torch.full((2, 1), n), torch.full((2,), n), torch.full((2,), n)) for n in (1, 2))
    one_by_one = BatchFeed(CPU, 2)
    one_by_one.load(one)
    places = [part.data_ptr() for part in one_by_one.batch()]
    one_by_one.load(two)
    assert [part.data_ptr() for part in one_by_one.batch()] == places
    assert all((part == 2).all() for part in one_by_one.batch())
    assert all((part == 1).all() for part in one)  # the loader's own


def test_an_epoch_that_does_not_fit_is_refused(monkeypatch):
    asked = []
    with monkeypatch.context() as patch:
        patch.setattr(feed, "_check_memory", lambda needed, device: asked.append(needed))
        epoch_feed((3, 5, 5))
    assert asked == [12 * 3 * 5 * 5 * 4]  # float32
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (10**9, 2 * 10**9))
    feed._check_memory(8 * 10**8, torch.device("cuda"))
    with pytest.raises(
        RunError, match=r"takes 0\.9 GB of cuda, which has 1\.0 of 2\.0 GB free: set data\.where to host"
    ):
        feed._check_memory(9 * 10**8, torch.device("cuda"))
