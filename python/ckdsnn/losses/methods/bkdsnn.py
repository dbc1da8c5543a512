"""Blurred knowledge distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ckdsnn.losses.precision import full_precision, mean_over_time
from ckdsnn.losses.resize import resize_to
from ckdsnn.models.base import ANN, SNN
from ckdsnn.models.outputs import ANNOutput, SNNOutput, pick_stage
from ckdsnn.option_types import NotNegative, Within

from .base import Method, NoiseSource, SeededOptions, register_method
from .kdsnn import stage_channels


@register_method("bkdsnn")
class BKDSNN(Method):
    """``CE(z_st, y) + weight * sum (G(mask * P(mean_t F_st)) - F_te')^2 / B``: restore the teacher's features.

    Whole channels of the student's features are masked at random; G is conv3x3-ReLU-conv3x3; P a 1x1 convolution, only
    where the channel counts differ.  F_te' = F_te / max|F_te| * max(P(mean_t F_st)), over the batch, as in the released
    code, whose max(F_te) is the same for features after a ReLU, and no scale for those that may be negative.  G and P
    train with the student.

    Xu et al.: BKDSNN, enhancing the performance of learning-based spiking neural networks training with blurred
    knowledge distillation (ECCV 2024).
    """

    @dataclass(frozen=True)
    class Options(SeededOptions):
        """
        Attributes:
            weight: of the sum of squares; 2e-3 for CIFAR, 7e-5 for ImageNet.
            drop: probability that a channel is masked.
            stage: of both networks, negative ones counted from the end.
        """

        weight: NotNegative = 2e-3
        drop: Annotated[float, Within(low=0, below=1)] = 0.15
        stage: int = -1

    options: Options

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self.student_feature_stages = self.teacher_feature_stages = (self.options.stage,)
        self.noise = NoiseSource(self.options.seed)
        self.align: nn.Module | None = None
        self.restore: nn.Module | None = None

    def make_modules(self, student: SNN, teacher: ANN) -> None:
        channels, wanted = stage_channels(student, self.options.stage), stage_channels(teacher, self.options.stage)
        self.align = nn.Identity() if channels == wanted else nn.Conv2d(channels, wanted, 1)
        self.restore = nn.Sequential(
            nn.Conv2d(wanted, wanted, 3, padding=1), nn.ReLU(), nn.Conv2d(wanted, wanted, 3, padding=1)
        )

    def distill(
        self, student: SNNOutput, teacher: ANNOutput, target: Tensor, epoch: float | Tensor
    ) -> dict[str, Tensor]:
        if self.align is None or self.restore is None:
            raise RuntimeError("bkdsnn has no restoring network yet; call method.bind(student, teacher) first")
        stage = self.options.stage
        aligned = self.align(mean_over_time(pick_stage(student.features, stage, "the student's features")))
        generator = self.noise.generator
        draw = torch.rand(aligned.shape[:2], generator=generator, device=generator.device)
        keep = (draw >= self.options.drop).to(aligned.device, aligned.dtype)
        restored = self.restore(aligned * keep[:, :, None, None])
        wanted = resize_to(pick_stage(teacher.features, stage, "the teacher's features"), restored.shape[2:])
        wanted = full_precision(wanted).detach()
        # A teacher's features without an activation stay 0.
        largest = wanted.abs().max().clamp_min(torch.finfo(wanted.dtype).tiny)
        wanted = wanted / largest * aligned.max()
        return {"features": self.options.weight * F.mse_loss(restored, wanted, reduction="sum") / len(restored)}
