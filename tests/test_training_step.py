"""The training step on static tensors: what it computes, what it waits for, and what is baked into it."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ckd_kernels.layers import BatchNormLIF
from ckdsnn.data import Augmentation, Batch, BatchLoader
from ckdsnn.data.batches import EpochSampler
from ckdsnn.losses import METHODS, FrozenTeacher, build_method
from ckdsnn.models import build_model
from ckdsnn.optimisation import OptimizerConfig
from ckdsnn.training import BatchFeed, EagerRunner, EpochFeed, Telemetry, TrainStep, why_not_captured
from no_host_wait import NoHostWait

SAMPLES, BATCH, CPU = 24, 6, torch.device("cpu")
OPTIMIZER = OptimizerConfig(lr=0.05, momentum=0.9, weight_decay=1e-3, warmup_epochs=1)
# A method's own parameters train, too, and some need more than one option.
VARIANTS = [
    *((name, {}) for name in sorted(METHODS)),
    ("ckd", {"preset": "released-code"}),
    ("nld", {"learnable_strength": True}),
    ("dkd", {"warmup": 2}),
]


def loader(**options):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (SAMPLES, 1, 12, 12), dtype=torch.uint8, generator=generator)
    targets = torch.arange(SAMPLES) % 10
    sampler = EpochSampler(SAMPLES, BATCH, shuffle=True, drop_last=True, seed=3)
    augment = Augmentation(shift=2, flip=True, erase=0.5)
    return BatchLoader(images, targets, sampler, mean=(0.5,), std=(0.2,), augment=augment, **options)


def parts(name="ckd", options=None, **model_options):
    torch.manual_seed(0)
    method = build_method(name, **(options or {}))
    widths = {"widths": (4, 6, 8)}
    if name == "ce":
        student, frozen = build_model("snn_resnet_small", 10, time_steps=2, **widths), None
        method.bind(student)
    else:
        asked = dict(method.student_options) | ({"sam_stages": method.sam_stages} if method.sam_stages else {})
        student = build_model("snn_resnet_small", 10, time_steps=2, **widths, **asked)
        teacher = build_model("ann_resnet_small", 10, **widths)
        method.bind(student, teacher)
        frozen = FrozenTeacher(teacher, method)
    return student, method, frozen


def answers_of(frozen):
    return lambda batch: None if frozen is None else frozen(batch.images, batch.targets)


def make_step(student, method, frozen, feed, optimizer=OPTIMIZER, **options):
    trained = [p for p in (*student.parameters(), *method.parameters()) if p.requires_grad]
    schedule = optimizer.build_schedule(3 * SAMPLES // BATCH, SAMPLES // BATCH)
    telemetry = Telemetry(CPU)
    step = TrainStep(
        student, method, answers_of(frozen), optimizer.build(trained), schedule, feed, telemetry, **options
    )
    return step


def run(step, epochs=2, runner=None):
    runner = runner or EagerRunner(step)
    done = 0
    for epoch in range(epochs):
        step.feed.start(epoch, 0)
        for _ in range(step.feed.batches):
            runner(done)
            done += 1
    return step


def plain_loop(student, method, frozen, epochs=2):
    """The same training in the words of a textbook."""
    trained = [p for p in (*student.parameters(), *method.parameters()) if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9, weight_decay=1e-3, fused=True)
    batches = loader()
    rates = OPTIMIZER.build_schedule(3 * len(batches), len(batches)).rates
    losses = []
    for epoch in range(epochs):
        batches.sampler.set_epoch(epoch)
        for number, batch in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = torch.tensor(rates[len(losses)])
            answer = None if frozen is None else frozen(batch.images, batch.targets)
            loss = sum(
                method(student(batch.images), answer, batch.targets, epoch=epoch + number / len(batches)).values()
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_steps_are_those_of_a_plain_loop(name, options):
    mine, theirs = parts(name, options), parts(name, options)
    step = run(make_step(*mine, EpochFeed(loader())))
    losses = plain_loop(*theirs)
    for a, b in zip(mine[:2], theirs[:2], strict=True):
        for (key, value), other in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
            assert torch.equal(value, other), key
    assert step.loss.item() == pytest.approx(losses[-1], rel=1e-6)
    if any(True for _ in mine[1].parameters()):
        fresh = parts(name, options)[1]
        assert any(not torch.equal(p, q) for p, q in zip(mine[1].parameters(), fresh.parameters(), strict=True))


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_no_step_waits_for_the_device(name, options):
    step = make_step(*parts(name, options), EpochFeed(loader()), clip_norm=0.5)
    step.feed.start(0, 0)
    EagerRunner(step)(0)  # optimisers make their state at the first step
    with NoHostWait():
        EagerRunner(step)(1)


class Record(TorchDispatchMode):
    """Notes every call of an op with its arguments and results, as a CUDA graph does: addresses and constants."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out


def replayed(calls):
    """Runs the calls once more on the same storages."""
    for func, args, kwargs, out in calls:
        if func._schema.is_mutable:
            func(*args, **kwargs)
            continue
        again = func(*args, **kwargs)
        for a, b in zip(_tensors(out), _tensors(again), strict=True):
            if a.data_ptr() != b.data_ptr():
                a.copy_(b)


def _tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for v in value for t in _tensors(v)] if isinstance(value, (list, tuple)) else []


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_nothing_is_baked_in(name, options):
    """Repeats a recorded step, which shows a learning rate, noise, epoch or batch that became a constant."""
    mine, theirs = parts(name, options), parts(name, options)
    eager = run(make_step(*theirs, EpochFeed(loader())))
    step = make_step(*mine, EpochFeed(loader()))
    step.feed.start(0, 0)
    EagerRunner(step)(0)
    with Record() as record, torch.no_grad():
        pass
    with record:
        EagerRunner(step)(1)
    with torch.no_grad():
        for number in range(2, 2 * step.feed.batches):
            if number % step.feed.batches == 0:
                step.feed.start(number // step.feed.batches, 0)
            replayed(record.calls)
    assert step.updates.item() == eager.updates.item()
    for (key, value), other in zip(mine[0].state_dict().items(), theirs[0].state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")
    assert step.telemetry.means() == pytest.approx(eager.telemetry.means(), rel=1e-4)


def test_feeds_bring_the_same_batches():
    at_once, one_by_one = EpochFeed(loader(), channels_last=True), BatchFeed(CPU, SAMPLES // BATCH)
    batches = loader()
    for epoch in range(2):
        batches.sampler.set_epoch(epoch)
        at_once.start(epoch, 0)
        one_by_one.start(epoch, 0)
        for number, batch in enumerate(batches):
            one_by_one.load(batch)
            for a, b, c in zip(at_once.batch(), one_by_one.batch(), batch, strict=True):
                assert torch.equal(a, c)
                assert torch.equal(b, c)
            assert at_once.progress().item() == epoch + number / len(batches)
            at_once.advance()
            one_by_one.advance()


def test_a_feed_may_start_in_mid_epoch():
    whole, later = EpochFeed(loader()), EpochFeed(loader())
    whole.start(1, 0)
    whole.advance()
    whole.advance()
    later.start(1, 2)
    assert torch.equal(whole.batch().images, later.batch().images)
    assert not torch.equal(whole.batch().indices, EpochFeed(loader()).batch().indices)


def test_epochs_differ():
    feed = EpochFeed(loader())
    feed.start(0, 0)
    first = feed.batch()
    feed.start(1, 0)
    second = feed.batch()
    assert not torch.equal(first.indices, second.indices)
    same = [(i, j) for i, a in enumerate(first.indices) for j, b in enumerate(second.indices) if a == b]
    assert any(not torch.equal(first.images[i], second.images[j]) for i, j in same)


@pytest.mark.parametrize("optimizer", [OPTIMIZER, OptimizerConfig(name="adamw", lr=0.01, schedule="constant")])
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_step_that_is_not_finite_leaves_the_weights_of_the_step_before(optimizer, kind):
    student, method, frozen = parts("kd")
    step = make_step(student, method, frozen, EpochFeed(loader()), optimizer)
    step.feed.start(0, 0)
    runner = EagerRunner(step)
    runner(0)
    runner(1)
    before = copy.deepcopy(dict(student.named_parameters()))
    forward, poison = student.forward, torch.tensor(float("nan"))

    def poisoned(images):
        out = forward(images)
        if kind == "loss":
            out.logits = out.logits * poison
        else:
            out.logits.register_hook(lambda grad: grad * poison)
        return out

    student.forward = poisoned
    runner(2)
    student.forward = forward
    runner(3)  # as many as the host runs ahead
    assert all(torch.equal(p, before[name]) for name, p in student.named_parameters())
    with pytest.raises(RuntimeError, match=rf"the {kind} is not finite at step 2 \(epoch 0\): ce .*, kd .*"):
        step.telemetry.poll(0)


def test_gradients_are_clipped():
    for options in ({"clip_norm": 0.01}, {"clip_value": 0.001}):
        student, method, frozen = parts("kd")
        step = make_step(student, method, frozen, EpochFeed(loader()), **options)
        step.feed.start(0, 0)
        EagerRunner(step)(0)
        grads = [p.grad for p in student.parameters()]
        if "clip_norm" in options:
            assert torch.nn.utils.get_total_norm(grads).item() == pytest.approx(0.01, rel=1e-3)
        else:
            assert max(g.abs().max().item() for g in grads) == pytest.approx(0.001, rel=1e-6)


def test_accumulated_gradients_are_those_of_the_joint_batch():
    """Without batch normalisation in training mode, whose statistics are the batch's."""
    pair = []
    for batch, accumulate in ((6, 2), (12, 1)):
        student, method, frozen = parts("kd")
        student.eval()
        feed = EpochFeed(loader())
        feed.batch_size, feed.batches = batch, SAMPLES // batch
        feed._within = torch.arange(batch)
        step = make_step(student, method, frozen, feed, accumulate=accumulate)
        feed.start(0, 0)
        runner = EagerRunner(step)
        for number in range(accumulate):
            runner(0, first=number == 0, last=number == accumulate - 1)
        pair.append([p.grad for p in student.parameters()])
        assert step.updates.item() == 1
    torch.testing.assert_close(pair[0], pair[1], rtol=1e-4, atol=1e-6)


def test_one_cycle_is_pytorchs():
    for steps in (3, 10, 97):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01, momentum=0.9)
        theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps)
        mine = OptimizerConfig(lr=0.01, schedule="one_cycle").build_schedule(steps, 10)
        for step in range(steps):
            group = optimizer.param_groups[0]
            assert mine.rates[step] == pytest.approx(group["lr"], rel=1e-9)
            assert mine.momenta[step] == pytest.approx(group["momentum"], rel=1e-9)
            optimizer.step()
            if step < steps - 1:
                theirs.step()


def test_one_cycle_reaches_the_optimiser():
    for name, read in (("sgd", lambda g: g["momentum"]), ("adamw", lambda g: g["betas"][0])):
        config = OptimizerConfig(name=name, lr=0.01, schedule="one_cycle")
        step = make_step(*parts("ce"), EpochFeed(loader()), config)
        step.feed.start(0, 0)
        runner, seen = EagerRunner(step), []
        for number in range(3):
            runner(number)
            group = step.optimizer.param_groups[0]
            seen.append((group["lr"].item(), read(group)))
        wanted = config.build_schedule(12, 4)
        assert seen == [
            (pytest.approx(rate, rel=1e-6), momentum)
            for rate, momentum in zip(wanted.rates[:3], wanted.momenta[:3], strict=True)
        ]


def test_decay_of_weights_alone():
    student = parts("ce")[0]
    everything, weights = (OptimizerConfig(decay=kind).build(student.parameters()) for kind in ("all", "weights"))
    assert [g["weight_decay"] for g in everything.param_groups] == [1e-4]
    assert [g["weight_decay"] for g in weights.param_groups] == [1e-4, 0.0]
    assert all(p.dim() > 1 for p in weights.param_groups[0]["params"])
    assert all(p.dim() <= 1 for p in weights.param_groups[1]["params"])
    assert sum(len(g["params"]) for g in weights.param_groups) == len(list(student.parameters()))


def test_a_training_without_an_end_needs_a_constant_rate():
    assert OptimizerConfig(schedule="constant", lr=0.3).build_schedule(math.inf, 5).rates == [0.3]
    for schedule in ("cosine", "one_cycle"):
        with pytest.raises(ValueError, match=rf"optimizer.schedule {schedule} needs to know when training ends"):
            OptimizerConfig(schedule=schedule).build_schedule(math.inf, 5)


def test_what_cannot_be_captured_says_why(monkeypatch):
    student, method, _ = parts("kd")
    cuda, plain = torch.device("cuda"), OPTIMIZER.build_schedule(10, 5)
    cycle = OptimizerConfig(schedule="one_cycle").build_schedule(10, 5)
    assert why_not_captured(cuda, student, method, plain) is None
    assert "needs an NVIDIA GPU" in why_not_captured(CPU, student, method, plain).replace("need ", "needs ")
    assert "one_cycle" in why_not_captured(cuda, student, method, cycle)
    assert "accumulate_grad_batches is 2" in why_not_captured(cuda, student, method, plain, accumulate=2)
    assert "16-mixed" in why_not_captured(cuda, student, method, plain, scaler=True)
    shared = torch.nn.Sequential(torch.nn.SyncBatchNorm(3))
    assert why_not_captured(cuda, shared, method, plain) is None  # with nobody
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    for module in (shared, torch.nn.Sequential(BatchNormLIF(3, process_group="world"))):
        assert "0 shares its statistics" in why_not_captured(cuda, module, method, plain)
    assert why_not_captured(cuda, student, method, plain) is None
    method.capturable = False
    assert "method kd says" in why_not_captured(cuda, student, method, plain)


def test_batches_of_another_shape_are_refused():
    feed = BatchFeed(CPU, 2)
    feed.load(Batch(torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.long), torch.arange(4)))
    with pytest.raises(RuntimeError, match=r"a training batch is \[3, 1, 2, 2\], the ones before were \[4, 1, 2, 2\]"):
        feed.load(Batch(torch.zeros(3, 1, 2, 2), torch.zeros(3, dtype=torch.long), torch.arange(3)))
