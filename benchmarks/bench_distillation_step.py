"""One step of distillation: augmented batch, frozen teacher and its Grad-CAM, spiking student, SAMD and NLD, SGD.

The student is ours or of the paper's modules, in either memory format; everything else is the same.  The parts that are
neither network are timed alone: ``part: data`` gathers, normalises and augments a batch, ``part: losses`` is the losses
and their backward pass down to logits and map.  `--full-width` as for the training step.
"""

from __future__ import annotations

import contextlib
import itertools

import networks
import pytest
import torch
from bench_training_step import PRECISIONS
from racing import DEVICES
from torch import Tensor

from ckdsnn.data.augment import Augmentation
from ckdsnn.data.batches import Batch, BatchLoader, EpochSampler
from ckdsnn.losses import FrozenTeacher, build_method
from ckdsnn.models import ANNOutput, SNNOutput, build_model

STUDENTS = ["ours", "ours channels-last", "paper", "paper channels-last"]
CONTESTANTS = [*STUDENTS, "part: data", "part: teacher", "part: losses"]
# The paper's for CIFAR without AutoAugment.
AUGMENTATION = Augmentation(shift=4, flip=True, erase=0.25)


def images_like_cifar(count: int, device: str, batch: int) -> BatchLoader:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator).to(device)
    targets = torch.randint(10, (count,), generator=generator).to(device)
    sampler = EpochSampler(count, batch, shuffle=True, drop_last=True)
    return BatchLoader(
        images, targets, sampler, mean=(0.491, 0.482, 0.447), std=(0.247, 0.243, 0.262), augment=AUGMENTATION
    )


class Distillation:
    """What one step needs; calling it does one."""

    def __init__(
        self, name: str, device: str, autocast: torch.dtype | None, width: float, batch: int, time_steps: int
    ) -> None:
        name, _, layout = name.partition(" ")
        self.format = torch.channels_last if layout == "channels-last" else torch.contiguous_format
        student = networks.build(name, width=width, time_steps=time_steps, sam=True)
        self.student = student.to(device=device, memory_format=self.format)
        self.method = build_method("ckd")
        teacher = build_model("ann_resnet19", 10, width=width).to(device=device, memory_format=self.format)
        self.teacher = FrozenTeacher(teacher, self.method)
        self.optimizer = networks.optimizer(self.student)
        self.batches = itertools.cycle(images_like_cifar(1024, device, batch))
        self.device, self.autocast = device, autocast

    def precision(self) -> contextlib.AbstractContextManager[None]:
        return torch.autocast(self.device, self.autocast, enabled=self.autocast is not None)

    def data(self) -> Batch:
        batch = next(self.batches)
        return batch._replace(images=batch.images.contiguous(memory_format=self.format))

    def losses(self, student: SNNOutput, teacher: ANNOutput, targets: Tensor) -> Tensor:
        return torch.stack(list(self.method(student, teacher, targets).values())).sum()

    def __call__(self) -> None:
        batch = self.data()
        with self.precision():
            teacher = self.teacher(batch.images, batch.targets)
            loss = self.losses(self.student(batch.images), teacher, batch.targets)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def part(self, name: str):
        """A call that does nothing but this part."""
        batch = self.data()
        with self.precision():
            teacher = self.teacher(batch.images, batch.targets)
            output = self.student(batch.images)
        if name == "data":
            return self.data

        def teach() -> None:
            with self.precision():
                self.teacher(batch.images, batch.targets)

        logits, step_logits = (x.detach().requires_grad_() for x in (output.logits, output.step_logits))
        sams = {stage: sam.detach().requires_grad_() for stage, sam in output.sams.items()}
        leaves = SNNOutput(logits, step_logits, output.features, sams)

        def losses() -> None:
            with self.precision():
                loss = self.losses(leaves, teacher, batch.targets)
            loss.backward()

        return {"teacher": teach, "losses": losses}[name]


def cases():
    for device in DEVICES:
        for dtype in PRECISIONS:
            for contestant in CONTESTANTS:
                yield device, dtype, "step", contestant


@pytest.mark.parametrize(("device", "dtype", "work", "contestant"), list(cases()))
def test_distillation_step(device, dtype, work, contestant, enter, size):
    def build(name):
        if not name.startswith("part: "):
            return Distillation(name, device, PRECISIONS[dtype], **size)
        return Distillation("ours", device, PRECISIONS[dtype], **size).part(name.removeprefix("part: "))

    enter(build, shape=networks.describe(size))


@pytest.mark.parametrize("contestant", ["ours"])
@pytest.mark.parametrize("device", DEVICES)
def test_augmentation(device, contestant, enter):
    """An epoch of CIFAR-10's size with no network: gathered, normalised, augmented; on one core of a CPU."""
    loader = images_like_cifar(50_000, device, 128)

    def build(name):
        def epoch() -> None:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            for _ in loader:
                pass
            torch.set_num_threads(threads)

        return epoch

    enter(build, shape="50000 images of 3x32x32", dtype="uint8", work="epoch, one thread")
