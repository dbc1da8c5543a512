"""Class attention transfer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from ckdsnn.losses.precision import full_precision, mean_over_time, outside_autocast
from ckdsnn.losses.scaling import unit_length
from ckdsnn.models.base import ANN, SNN
from ckdsnn.models.outputs import ANNOutput, SNNOutput, pick_stage
from ckdsnn.option_types import NotNegative, Within

from .base import Method, register_method


def class_maps(features: Tensor, classifier_weight: Tensor, resolution: int, steps: int = 1) -> Tensor:
    """Maps of all classes, pooled to ``resolution`` x ``resolution`` and each scaled to unit length: [B, K, r, r].

    Lengths below half of what a single spike in ``steps`` time steps can make count as that, which bounds the gradient.
    """
    with outside_autocast(features):
        maps = torch.einsum("bchw,kc->bkhw", full_precision(features), full_precision(classifier_weight))
        pooled = F.adaptive_avg_pool2d(maps, resolution)
        positions = features.shape[2] * features.shape[3] / resolution**2
        spike = classifier_weight.detach().abs().max().to(pooled.dtype) / (2 * positions * steps)
        return unit_length(pooled.flatten(0, 1), spike)[0].view_as(pooled)


@register_method("catkd")
class CATKD(Method):
    """``CE(z_st, y) + weight * MSE(A_st, A_te)``, A the class attention maps of the last stage.

    ``A_k = sum_c W[k, c] F_c`` for every class k, pooled and scaled to unit length, F the student's features averaged
    over time; both heads must be global average pooling and one linear layer.

    Guo et al.: Class attention transfer based knowledge distillation (CVPR 2023), with the defaults of its code.
    """

    @dataclass(frozen=True)
    class Options(Method.Options):
        """
        Attributes:
            weight: of the maps.
            resolution: maps are pooled to resolution x resolution.
        """

        weight: NotNegative = 400.0
        resolution: Annotated[int, Within(low=1)] = 2

    options: Options

    student_feature_stages = teacher_feature_stages = (-1,)

    def make_modules(self, student: SNN, teacher: ANN) -> None:
        self._weight_of(student.classifier_weight, "student")
        self._weight_of(teacher.classifier_weight, "teacher")

    def distill(
        self, student: SNNOutput, teacher: ANNOutput, target: Tensor, epoch: float | Tensor
    ) -> dict[str, Tensor]:
        student_weight = self._weight_of(student.classifier_weight, "student")
        teacher_weight = self._weight_of(teacher.classifier_weight, "teacher")
        features = pick_stage(student.features, -1, "the student's features")
        wanted = pick_stage(teacher.features, -1, "the teacher's features")
        ours = class_maps(mean_over_time(features), student_weight, self.options.resolution, len(features))
        theirs = class_maps(wanted, teacher_weight, self.options.resolution).detach()
        return {"catkd": self.options.weight * F.mse_loss(ours, theirs)}

    @staticmethod
    def _weight_of(weight: Tensor | None, name: str) -> Tensor:
        if weight is None:
            raise ValueError(
                f"catkd needs class maps, but the {name}'s head is not global average pooling and one linear layer; "
                "use head='linear', or another method"
            )
        return weight
