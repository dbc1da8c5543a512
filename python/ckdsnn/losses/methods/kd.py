"""Logit distillation."""

from dataclasses import dataclass

from torch import Tensor

from ckdsnn.losses.divergence import kd_loss
from ckdsnn.models.outputs import ANNOutput, SNNOutput
from ckdsnn.option_types import NotNegative, Positive

from .base import Method, register_method


@register_method("kd")
class KD(Method):
    """``CE(z_st, y) + weight * tau^2 * KL(softmax(z_te/tau) || softmax(z_st/tau))``, z_st the mean logits.

    Hinton, Vinyals, Dean: Distilling the knowledge in a neural network (2015).
    """

    @dataclass(frozen=True)
    class Options(Method.Options):
        """
        Attributes:
            tau: temperature.
            weight: of the distillation.
        """

        tau: Positive = 4.0
        weight: NotNegative = 1.0

    options: Options

    def distill(
        self, student: SNNOutput, teacher: ANNOutput, target: Tensor, epoch: float | Tensor
    ) -> dict[str, Tensor]:
        return {"kd": self.options.weight * kd_loss(student.logits, teacher.logits, self.options.tau)}
