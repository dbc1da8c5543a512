"""The frozen teacher: what a method asks of it, and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ckdsnn.models.base import ANN, SNN
from ckdsnn.models.outputs import ANNOutput, pick_stage, resolve_stage

from .arguments import check_target
from .methods.base import Method
from .saliency import saliency_map


class FrozenTeacher(nn.Module):
    """A teacher that never trains: no gradient for its parameters, and its mode does not follow ``.train()``.

    Args:
        model: a network that returns :class:`ANNOutput`, with ``num_stages``, and ``classifier_weight`` where the
            closed form of Grad-CAM holds.
        method: what is asked for: ``method.teacher_map`` and ``method.teacher_map_stages`` (saliency maps),
            ``method.teacher_feature_stages``, and ``method.teacher_mode``: ``"eval"``, or ``"train"`` as in the
            released code of CKDSNN, where the teacher's BN normalises by the batch and goes on updating its running
            statistics.

    Call:
        images and target [B] (or [B, H, W], of a teacher that classifies pixels) -> :class:`ANNOutput` whose ``cams``
        and ``features`` hold what the method asked for, keyed by the stages as the method named them.  All tensors are
        detached.  In eval mode they depend on each (image, target) alone, so that they may be cached.

    Raises:
        TypeError: a model that is no ANN (a spiking network, a plain module: wrap it in
            :class:`~ckdsnn.models.external.HookedANN`), a method that is no Method; images and target that are no
            tensors of floats and of int64.
        ValueError: a stage that the model does not have; a class activation map where the head is not linear; Grad-CAM
            of features that the logits do not depend on; a target that is no class.

    Example:
        >>> import torch
        >>> from ckdsnn.losses import FrozenTeacher, build_method
        >>> from ckdsnn.models import build_model
        >>> method = build_method("ckd")
        >>> student, teacher = (build_model(f"{kind}_resnet_small", num_classes=10) for kind in ("snn", "ann"))
        >>> frozen = FrozenTeacher(teacher, method.bind(student, teacher))
        >>> images, target = torch.randn(4, 1, 20, 20), torch.tensor([0, 1, 2, 3])
        >>> parts = method(student(images), frozen(images, target), target)
        >>> list(parts)
        ['ce', 'samd', 'nld']
        >>> sum(parts.values()).backward()
    """

    def __init__(self, model: ANN, method: Method) -> None:
        super().__init__()
        if isinstance(model, SNN):
            raise TypeError(f"FrozenTeacher takes a conventional network, got {type(model).__name__}, a spiking one")
        if not isinstance(model, ANN):
            raise TypeError(
                f"FrozenTeacher takes an ANN, got {type(model).__name__}: wrap it in ckdsnn.models.external.HookedANN"
            )
        if not isinstance(method, Method):
            raise TypeError(f"FrozenTeacher takes a Method, see build_method, got {type(method).__name__}")
        self.model = model.requires_grad_(False)
        self.map_kind = method.teacher_map
        self.map_stages = method.teacher_map_stages
        self.feature_stages = method.teacher_feature_stages
        self.mode = method.teacher_mode
        self.num_stages = model.num_stages
        for stage in (*self.map_stages, *self.feature_stages):
            resolve_stage(stage, self.num_stages)
        for stage in self.map_stages:
            if self._needs_autograd(stage) and resolve_stage(stage, self.num_stages) not in model.differentiable_stages:
                raise ValueError(
                    f"the teacher's logits do not depend on the features of stage {stage}, so Grad-CAM there is zero; "
                    "hook an earlier layer, e.g. blocks.11.norm1 of a transformer that classifies by its class token"
                )
        self.train(False)

    @property
    def classifier_weight(self) -> Tensor | None:
        """The model's, [K, C] or None."""
        return self.model.classifier_weight

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Ignores ``mode``: the method decides which mode the teacher is in."""
        super().train(self.mode == "train")
        return self

    @torch.no_grad()
    def forward(self, images: Tensor, target: Tensor) -> ANNOutput:
        self._check_batch(images, target)
        differentiated = [stage for stage in self.map_stages if self._needs_autograd(stage)]
        if differentiated:
            # Gradients are needed from the first such stage on; parameters are frozen, so the graph begins there.
            with torch.enable_grad():
                first = min(resolve_stage(stage, self.num_stages) for stage in differentiated)
                out = self.model(images, differentiable_from=first)
        else:
            out = self.model(images)
        cams = {stage: saliency_map(self.map_kind, out, stage, target).detach() for stage in self.map_stages}
        features = {stage: pick_stage(out.features, stage, "features").detach() for stage in self.feature_stages}
        weight = None if out.classifier_weight is None else out.classifier_weight.detach()
        return ANNOutput(out.logits.detach(), features, weight, cams)

    def _check_batch(self, images: Tensor, target: Tensor) -> None:
        if not isinstance(images, Tensor) or not images.is_floating_point():
            raise TypeError(f"images must be a tensor of floats, got {getattr(images, 'dtype', type(images).__name__)}")
        if images.dim() > 3:
            size = images.shape[-2:] if self.model.dense else ()
            check_target(target, images.shape[-4], self.model.num_classes, *size)

    def _needs_autograd(self, stage: int) -> bool:
        is_last = resolve_stage(stage, self.num_stages) == self.num_stages
        return self.map_kind != "class_weights" and not (is_last and self.classifier_weight is not None)
