"""The metrics that runs are compared by: what they are called, their unit, and which value is ahead."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """What a run is measured by.

    Attributes:
        key: of `test.json`, or of the validation in a run's log.
        words: in tables and figures.
        unit: "%" of a share, which the files have from 0 to 1; "": a number without one.
        lower: whether a lower value is ahead; None: neither is better.

    Example:
        >>> from ckdsnn.sweep.metrics import METRICS
        >>> METRICS["test/kl"].heading, METRICS["test/kl"].lower, METRICS["val/accuracy"].heading
        ('KL to the teacher, nats', True, 'validation accuracy %')
    """

    key: str
    words: str
    unit: str
    lower: bool | None

    @property
    def tested(self) -> bool:
        """Whether it is of the test set, and not of the last epoch's validation."""
        return self.key.startswith("test/")

    @property
    def percent(self) -> bool:
        """Whether it is a share, shown in percent."""
        return self.unit == "%"

    @property
    def scale(self) -> int:
        """What the value of the files is multiplied by, to be shown."""
        return 100 if self.percent else 1

    @property
    def form(self) -> str:
        """How a number is written in tables."""
        return ".2f" if self.percent else ".3f"

    @property
    def heading(self) -> str:
        """What it is called in a table, with its unit."""
        unit = f" {self.unit}" if self.percent else f", {self.unit}" if self.unit else ""
        return ("" if self.tested else "validation ") + self.words + unit

    @property
    def axis(self) -> str:
        """The label of its axis."""
        return ("test " if self.tested else "") + self.heading + (" (lower is ahead)" if self.lower else "")

    @property
    def count(self) -> str:
        """What the number of seeds is a number of, at which a paired difference is on the better side."""
        return "seeds higher" if self.lower is None else "seeds ahead (lower)" if self.lower else "seeds ahead"

    @property
    def of_teacher(self) -> Metric:
        """What a teacher is measured by beside it: the same, or its accuracy where a teacher has no such thing."""
        return self if self.key.endswith(("accuracy", "mean_iou")) else METRICS["test/accuracy"]


_MEASURED: dict[str, tuple[str, str, bool | None]] = {  # by an evaluation, see ckdsnn.training.evaluation
    "accuracy": ("accuracy", "%", False),
    "mean_iou": ("mean IoU", "%", False),
    "kl": ("KL to the teacher", "nats", True),
    "kl_noisy": ("KL to the teacher with noise", "nats", True),
    "noise_strength": ("learnt strength of the noise", "", None),
}
METRICS = {
    f"{part}/{name}": Metric(f"{part}/{name}", *rest) for part in ("test", "val") for name, rest in _MEASURED.items()
}
METRICS["test/firing_rate"] = Metric("test/firing_rate", "firing rate", "spikes a neuron and time step", True)


def teacher_column(key: str) -> str:
    """The name of a teacher's metric in a CSV file.

    Example:
        >>> teacher_column("test/mean_iou"), teacher_column("val/accuracy")
        ('teacher_mean_iou', 'teacher_val_accuracy')
    """
    return "teacher_" + key.removeprefix("test/").replace("/", "_")
