"""What the demo trains: one teacher and five students a seed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ckdsnn.configuration import MethodConfig, ModelConfig, TeacherConfig
from ckdsnn.data import DigitsCanvas
from ckdsnn.optimisation import OptimizerConfig
from ckdsnn.train import Distillation

TEACHER = "teacher"


@dataclass(frozen=True)
class Student:
    """A way to train the student: its label in tables and figures, and the method."""

    label: str
    method: str


STUDENTS = {
    "ce": Student("CE only", "ce"),
    "kd": Student("KD", "kd"),
    "samd": Student("SAMD only", "samd"),
    "nld": Student("NLD only", "nld"),
    "samd_nld": Student("SAMD + NLD", "ckd"),
}


@dataclass(frozen=True)
class DemoSettings:
    """Sizes of the demo; results are only ever compared within equal settings.

    Attributes:
        seeds: how many seeds, counted from 0.
        widths: channels of the three stages, of teacher and student alike.
        time_steps: T of the student.
        views: renderings of each training digit; an epoch passes each digit once, in the next rendering.
        teacher_epochs, teacher_batch: the teacher learns from the whole pool of 897 digits.
        student_epochs, student_batch, student_samples: the student learns from this many of them.
        validate_every: epochs between looks at the validation digits, which are for the curves only.
        lr: peak learning rate of AdamW with a one-cycle schedule.
    """

    seeds: int = 3
    widths: tuple[int, ...] = (12, 24, 48)
    time_steps: int = 4
    teacher_epochs: int = 30
    views: int = 6
    teacher_batch: int = 64
    student_epochs: int = 40
    student_samples: int = 300
    validate_every: int = 5
    student_batch: int = 30
    lr: float = 0.01

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, tuple) and not value > 0:
                raise ValueError(f"{field.name} must be positive, got {value}")

    @classmethod
    def quick(cls, seeds: int = 1) -> DemoSettings:
        """A run of some seconds that shows that everything works; its accuracies mean nothing."""
        return cls(seeds=seeds, teacher_epochs=2, student_epochs=2, validate_every=1)

    def fingerprint(self) -> dict[str, Any]:
        """All that a single cell depends on: finished cells with another fingerprint are not reused."""
        values = dataclasses.asdict(self) | {"widths": list(self.widths)}
        del values["seeds"]
        return values

    def teacher_data(self, seed: int) -> DigitsCanvas:
        return DigitsCanvas(batch_size=self.teacher_batch, views=self.views, seed=seed)

    def student_data(self, seed: int) -> DigitsCanvas:
        return DigitsCanvas(
            batch_size=self.student_batch, train_samples=self.student_samples, views=self.views, seed=seed
        )

    def teacher(self, seed: int) -> Distillation:
        return self._task(ModelConfig("ann_resnet_small", {"widths": self.widths}), MethodConfig("ce"), seed)

    def student(self, key: str, seed: int, teacher_checkpoint: str) -> Distillation:
        chosen = STUDENTS[key]
        model = ModelConfig("snn_resnet_small", {"widths": self.widths, "time_steps": self.time_steps})
        # Nothing is augmented, so the teacher's answers to the 300 samples are computed once.
        teacher = None if chosen.method == "ce" else TeacherConfig(checkpoint=teacher_checkpoint, cache=True)
        return self._task(model, MethodConfig(chosen.method), seed, teacher)

    def _task(
        self, model: ModelConfig, method: MethodConfig, seed: int, teacher: TeacherConfig | None = None
    ) -> Distillation:
        return Distillation(
            network=model,
            method=method,
            teacher=teacher,
            optimizer=OptimizerConfig(name="adamw", lr=self.lr, schedule="one_cycle"),
            seed=seed,
            num_classes=DigitsCanvas.num_classes,
            in_channels=DigitsCanvas.in_channels,
            channels_last=True,  # a third faster on a CPU
        )
