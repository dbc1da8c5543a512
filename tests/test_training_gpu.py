"""The captured training step on a GPU: the eager one's bits, and nothing that waits."""

from __future__ import annotations

import copy

import pytest
import torch

from ckdsnn.data import Augmentation, BatchLoader
from ckdsnn.data.batches import EpochSampler
from ckdsnn.losses import FrozenTeacher, NoiseSource, build_method
from ckdsnn.models import build_model
from ckdsnn.optimisation import OptimizerConfig
from ckdsnn.training import EagerRunner, EpochFeed, GraphRunner, Telemetry, TrainStep

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SAMPLES, BATCH, STEPS = 160, 16, 200


@pytest.fixture(autouse=True)
def deterministic(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    benchmark, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = benchmark


def make_step(name, options=None, optimizer=OptimizerConfig(lr=0.02), autocast=torch.bfloat16):
    torch.manual_seed(0)
    device = torch.device("cuda")
    method = build_method(name, **(options or {}))
    teacher = build_model("ann_resnet_small", 10)
    asked = dict(method.student_options) | ({"sam_stages": method.sam_stages} if method.sam_stages else {})
    student = build_model("snn_resnet_small", 10, time_steps=2, **asked)
    method.bind(student, teacher)
    for module in (student, teacher, method):
        module.to(device, memory_format=torch.channels_last)
    for module in method.modules():
        if isinstance(module, NoiseSource):
            module.to_device(device)
    frozen = FrozenTeacher(teacher, method) if method.needs_teacher else None
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (SAMPLES, 1, 20, 20), dtype=torch.uint8, generator=generator).to(device)
    sampler = EpochSampler(SAMPLES, BATCH, shuffle=True, drop_last=True, seed=1)
    augment = Augmentation(auto_augment="cifar10", shift=2, flip=True, erase=0.5)
    targets = (torch.arange(SAMPLES) % 10).to(device)
    loader = BatchLoader(images, targets, sampler, mean=(0.5,), std=(0.2,), augment=augment)
    trained = [p for p in (*student.parameters(), *method.parameters()) if p.requires_grad]
    return TrainStep(
        student,
        method,
        lambda batch: None if frozen is None else frozen(batch.images, batch.targets),
        optimizer.build(trained),
        optimizer.build_schedule(STEPS, SAMPLES // BATCH),
        EpochFeed(loader, channels_last=True),
        Telemetry(device),
        autocast=autocast,
        clip_norm=1.0,
    )


def run(step, runner, steps=STEPS, *, guard=False):
    for number in range(steps):
        epoch, position = divmod(number, step.feed.batches)
        if position == 0:
            step.feed.start(epoch, 0)
        if guard and number > 5:
            torch.cuda.set_sync_debug_mode("error")
        try:
            runner(number)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    step.telemetry.wait(0)


@pytest.mark.parametrize(
    ("name", "options", "optimizer"),
    [
        ("ckd", {}, OptimizerConfig(lr=0.02)),
        ("bkdsnn", {}, OptimizerConfig(lr=0.02, nesterov=True, decay="weights")),
        ("dkd", {"warmup": 3}, OptimizerConfig(name="adamw", lr=1e-3, warmup_epochs=1)),
        ("ce", {}, OptimizerConfig(lr=0.02)),
    ],
    ids=str,
)
def test_captured_steps_have_the_eager_ones_bits(name, options, optimizer):
    captured, eager = (make_step(name, options, optimizer) for _ in range(2))
    run(captured, GraphRunner(captured), guard=True)
    run(eager, EagerRunner(eager), guard=True)
    for (key, value), other in zip(
        captured.network.state_dict().items(), eager.network.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), key
    assert captured.telemetry.means() == eager.telemetry.means()


def test_a_captured_step_that_is_not_finite_leaves_the_weights():
    step = make_step("kd")
    runner = GraphRunner(step)
    run(step, runner, 10)
    before = copy.deepcopy(step.network.state_dict())
    step.feed.start(1, 0)
    step.feed._rows.fill_(float("nan"))
    runner(10)
    for number in range(11, 15):
        runner(number)
    after = dict(step.network.named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    with pytest.raises(RuntimeError, match=r"the loss is not finite at step 10"):
        step.telemetry.wait(1)


def test_augmentation_has_the_cpus_bits():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (300, 3, 32, 32), dtype=torch.uint8, generator=generator)
    for policy in ("cifar10", "svhn", "imagenet"):
        augment = Augmentation(auto_augment=policy, shift=4, flip=True, erase=0.5, cutout=4)
        there = augment.apply(images.cuda(), torch.arange(300).cuda(), 1, 2, (0.5,) * 3, (0.2,) * 3)
        here = augment.apply(images, torch.arange(300), 1, 2, (0.5,) * 3, (0.2,) * 3)
        assert torch.equal(there.cpu(), here), policy
