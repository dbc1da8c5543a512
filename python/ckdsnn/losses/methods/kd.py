"""Logit distillation."""

from torch import Tensor

from ckdsnn.losses.arguments import check_temperature, check_weights
from ckdsnn.losses.divergence import kd_loss
from ckdsnn.models.outputs import ANNOutput, SNNOutput

from .base import Method, register_method


@register_method("kd")
class KD(Method):
    """``CE(z_st, y) + weight * tau^2 * KL(softmax(z_te/tau) || softmax(z_st/tau))``, z_st the mean logits.

    Hinton, Vinyals, Dean: Distilling the knowledge in a neural network (2015).

    Args:
        tau: temperature > 0.
        weight: of the distillation.
        label_smoothing: in [0, 1].
    """

    def __init__(self, tau: float = 4.0, weight: float = 1.0, label_smoothing: float = 0.0) -> None:
        super().__init__(label_smoothing)
        check_temperature(tau, "tau")
        check_weights(weight=weight)
        self.tau = tau
        self.weight = weight

    def distill(
        self, student: SNNOutput, teacher: ANNOutput, target: Tensor, epoch: float | Tensor
    ) -> dict[str, Tensor]:
        return {"kd": self.weight * kd_loss(student.logits, teacher.logits, self.tau)}
