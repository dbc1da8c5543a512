"""Logits and features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ckdsnn.losses.divergence import kd_loss
from ckdsnn.losses.precision import full_precision, mean_over_time
from ckdsnn.losses.resize import resize_to
from ckdsnn.models.base import ANN, SNN
from ckdsnn.models.outputs import ANNOutput, SNNOutput, pick_stage, resolve_stage
from ckdsnn.option_types import NotNegative, Positive, Stages

from .base import Method, register_method


@register_method("kdsnn")
class KDSNN(Method):
    """``CE(z_st, y) + weight * KD + feature_weight * mean_stages MSE(P(mean_t F_st), F_te)``, P a 1x1 convolution.

    Xu et al.: Constructing deep spiking neural networks from artificial neural networks with knowledge distillation
    (CVPR 2023).  The projections train with the student.  The defaults of the weights are ours.
    """

    @dataclass(frozen=True)
    class Options(Method.Options):
        """
        Attributes:
            tau: temperature of the logit distillation.
            weight: of the logit distillation.
            feature_weight: of the features.
            stages: of both networks, negative ones counted from the end.
        """

        tau: Positive = 4.0
        weight: NotNegative = 1.0
        feature_weight: NotNegative = 1.0
        stages: Stages = (-1,)

    options: Options

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self.student_feature_stages = self.teacher_feature_stages = self.options.stages
        self.projections = nn.ModuleList()

    def make_modules(self, student: SNN, teacher: ANN) -> None:
        self.projections = nn.ModuleList(
            nn.Conv2d(stage_channels(student, stage), stage_channels(teacher, stage), 1)
            for stage in self.student_feature_stages
        )

    def distill(
        self, student: SNNOutput, teacher: ANNOutput, target: Tensor, epoch: float | Tensor
    ) -> dict[str, Tensor]:
        if not self.projections:
            raise RuntimeError("kdsnn has no projections yet; call method.bind(student, teacher) first")
        losses = []
        for stage, project in zip(self.student_feature_stages, self.projections, strict=True):
            projected = project(mean_over_time(pick_stage(student.features, stage, "the student's features")))
            wanted = resize_to(pick_stage(teacher.features, stage, "the teacher's features"), projected.shape[2:])
            losses.append(F.mse_loss(projected, full_precision(wanted).detach()))
        return {
            "kd": self.options.weight * kd_loss(student.logits, teacher.logits, self.options.tau),
            "features": self.options.feature_weight * torch.stack(losses).mean(),
        }


def stage_channels(model: SNN | ANN, stage: int) -> int:
    """Channels of the features of ``stage``."""
    return model.stage_channels[resolve_stage(stage, model.num_stages) - 1]
