"""SAMD for networks that classify pixels: saliency maps that keep position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from ckdsnn.losses.divergence import kd_loss
from ckdsnn.losses.precision import full_precision, mean_over_time
from ckdsnn.losses.resize import resize_to
from ckdsnn.losses.samd import NORMALISATIONS, SCALINGS, check_samd_options, samd_loss
from ckdsnn.models.base import ANN, SNN
from ckdsnn.models.outputs import ANNOutput, SNNOutput, pick_stage
from ckdsnn.option_types import NotNegative, OneOf, Positive, Within

from .base import Method, register_method


def label_shares(target: Tensor, num_classes: int, size: Sequence[int]) -> Tensor:
    """Which part of the pixels around each position of a smaller map has which label: float32 [B, K, h, w].

    It is the one-hot mask brought to ``size`` as maps are, the transpose of a bilinear enlargement but for the border.

    Example:
        >>> import torch
        >>> from ckdsnn.losses.methods.samd_dense import label_shares
        >>> label_shares(torch.tensor([[[0, 1], [1, 1]]]), 2, (1, 1)).flatten()
        tensor([0.2500, 0.7500])
    """
    classes = torch.arange(num_classes, device=target.device)[:, None, None]
    return resize_to((target[:, None] == classes).float(), size)


def class_evidence(features: Tensor, classifier_weight: Tensor) -> Tensor:
    """``A_k(p) = sum_c W[k, c] F_c(p)``: what the features at p add to the score of class k there, [B, K, h, w].

    Args:
        features: F, [B, C, h, w].
        classifier_weight: W, [K, C].
    """
    return torch.einsum("bchw,kc->bkhw", full_precision(features), full_precision(classifier_weight))


@register_method("samd_dense")
class SAMDDense(Method):
    """``CE(z_st, y) + weight * L_SAMD + kd_weight * L_KD`` of every pixel, with maps that keep position.

    Grad-CAM averages a gradient over the image, and with it all that was said of single pixels.  Here each position p
    of the last stage keeps its own weights, those of the labels of its own pixels, as in HiResCAM (Draelos and Carin,
    arXiv 2011.08891) of the scores of all object pixels.  The head adds a linear layer W of the last stage, so there
    is a closed form: with ``A_k(p) = sum_c W[k, c] F_c(p)`` the evidence at p for class k and ``n_k(p)`` the share of
    the pixels around p whose label is k,

    ``M_te(p) = relu(sum_{k != background} n_k(p) A_k(p))``.

    The background, where the data has such a class, should have no part in it: its evidence is nearly as high outside
    of objects as theirs is inside, and a map that is high everywhere is no saliency.

    ============ ===================================================================================================
    maps         compared by :func:`~ckdsnn.losses.samd_loss`, a softmax over positions as in CKDSNN
    ============ ===================================================================================================
    ``sam``      M_te with the student's spike activation map, the mean of its spikes over time and channels
    ``classes``  for every object class in the image, ``A_k`` of the teacher with ``A_k`` of the student's spikes
                 averaged over time, as Shu et al. (Channel-wise knowledge distillation, ICCV 2021) compare scores; the
                 mean over these classes.  The student's head is linear too, so no surrogate gradient makes its maps
    ============ ===================================================================================================

    An image without objects adds nothing to ``classes``; in ``sam`` its map is the same everywhere.  Networks that
    classify images have one label for all positions: M_te is then the map of :class:`SAMD`.
    """

    @dataclass(frozen=True)
    class Options(Method.Options):
        """
        Attributes:
            weight: of SAMD.
            kd_weight: of pixel-wise distillation, ``tau^2 * KL`` of the classes of each pixel, mean over pixels.
            tau: its temperature.
            maps: which maps are compared: the spike activation map, or one of each class.
            background: the class that is no object; None: all are.
            normalisation: of the maps before they are scaled.
            scaling: how maps are scaled and compared, see :func:`~ckdsnn.losses.samd_loss`.
            temperature: of the softmax; None: 2.
            temperature_factor: whether the softmax's term is multiplied by the squared temperature; None: yes.
        """

        weight: NotNegative = 1.0
        kd_weight: NotNegative = 0.0
        tau: Positive = 4.0
        maps: Literal["sam", "classes"] = "sam"
        background: Annotated[int, Within(low=0)] | None = None
        normalisation: Annotated[str, OneOf(tuple(NORMALISATIONS))] = "minmax"
        scaling: Annotated[str, OneOf(SCALINGS)] = "softmax"
        temperature: Positive | None = None
        temperature_factor: bool | None = None

        def __post_init__(self) -> None:
            super().__post_init__()
            check_samd_options(self.normalisation, self.scaling, self.temperature, self.temperature_factor)

    options: Options
    student_feature_stages = teacher_feature_stages = (-1,)

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self.sam_stages = (-1,) if self.options.maps == "sam" else ()

    def make_modules(self, student: SNN, teacher: ANN) -> None:
        background = self.options.background
        if background is not None and background >= student.num_classes:
            raise ValueError(
                f"background must be one of the classes 0 to {student.num_classes - 1} or None, got {background}"
            )
        for name, network in (("student", student), ("teacher", teacher)):
            if network.classifier_weight is None:
                raise ValueError(f"samd_dense needs a linear layer of the last stage in the {name}'s head")

    def distill(
        self, student: SNNOutput, teacher: ANNOutput, target: Tensor, epoch: float | Tensor
    ) -> dict[str, Tensor]:
        assert student.classifier_weight is not None
        assert teacher.classifier_weight is not None
        theirs = class_evidence(pick_stage(teacher.features, -1, "the teacher's features"), teacher.classifier_weight)
        labels = target.view(-1, *(student.image_size or (1, 1)))
        shares = label_shares(labels, theirs.shape[1], theirs.shape[2:])
        if self.options.background is not None:
            classes = torch.arange(theirs.shape[1], device=target.device)
            shares = shares * (classes != self.options.background)[:, None, None]
        features = pick_stage(student.features, -1, "the student's features")
        if self.options.maps == "sam":
            sam = pick_stage(student.sams, -1, "spike activation maps")
            # Half of what one spike adds to the map: half, so that rounding does not matter.
            samd = self._samd(sam, (shares * theirs).sum(1).relu(), 0.5 / (features.shape[0] * features.shape[2]))
        else:
            ours = class_evidence(mean_over_time(features), student.classifier_weight)
            samd = self._of_classes(ours, theirs, shares, student.classifier_weight, len(features))
        parts = {"samd": self.options.weight * samd}
        if self.options.kd_weight > 0:
            parts["kd"] = self.options.kd_weight * kd_loss(student.logits, teacher.logits, self.options.tau)
        return parts

    def _of_classes(self, ours: Tensor, theirs: Tensor, shares: Tensor, weight: Tensor, steps: int) -> Tensor:
        """The mean over the classes that an image has; maps of the others are made equal, and then add nothing."""
        present = shares.flatten(2).amax(2)[:, :, None, None] > 0
        theirs = resize_to(theirs, ours.shape[2:])
        spike = weight.detach().abs().max().to(ours.dtype) / (2 * steps)
        samd = self._samd((ours * present).flatten(0, 1), (theirs * present).flatten(0, 1), spike)
        return samd * (present.numel() / present.sum().clamp(min=1))

    def _samd(self, ours: Tensor, theirs: Tensor, resolution: float | Tensor) -> Tensor:
        return samd_loss(
            ours,
            theirs,
            normalisation=self.options.normalisation,
            scaling=self.options.scaling,
            temperature=self.options.temperature,
            temperature_factor=self.options.temperature_factor,
            resolution=resolution,
        )
