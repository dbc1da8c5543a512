"""Where a network looks: Grad-CAM in closed form and by autograd, and class activation maps."""

from __future__ import annotations

import torch
from torch import Tensor

from ckdsnn.models.outputs import ANNOutput, pick_stage, resolve_stage

from .arguments import check_choice, check_target, check_tensor
from .precision import full_precision, mean_over_time, outside_autocast

TEACHER_MAPS = ("grad_cam", "grad_cam_predicted", "class_weights")


def _check_shape(x: Tensor, name: str, wanted: str) -> None:
    check_tensor(x, name)
    if x.dim() != wanted.count(",") + 1:
        raise ValueError(f"{name} must be {wanted}, got {list(x.shape)}")


def _weighted_sum(features: Tensor, weights: Tensor) -> Tensor:
    """``relu(sum_c weights_c * features_c)``, [B, H, W], in full precision."""
    return torch.einsum("bchw,bc->bhw", full_precision(features), full_precision(weights)).relu()


def class_activation_map(features: Tensor, classifier_weight: Tensor, target: Tensor) -> Tensor:
    """``relu(sum_c W[target, c] * F_c)``: the class activation map of ``target`` under a linear head.

    Zhou et al.: Learning deep features for discriminative localization (2016), equation 2, with a ReLU.

    Args:
        features: F, [B, C, H, W], what global average pooling and the linear layer see.
        classifier_weight: W, [K, C].
        target: class of each sample, int64 [B].

    Returns:
        float32 [B, H, W] (float64 for float64), also under autocast.

    Raises:
        TypeError: what is no tensor, a target that is not int64.
        ValueError: shapes that do not fit, or classes that do not exist (looked at on the CPU only).

    Example:
        >>> import torch
        >>> from ckdsnn.losses import class_activation_map
        >>> features = torch.tensor([[[[1.0, 0.0]], [[0.0, 2.0]]]])  # B 1, C 2, H 1, W 2
        >>> class_activation_map(features, torch.tensor([[1.0, -1.0], [3.0, 1.0]]), torch.tensor([1]))
        tensor([[[3., 2.]]])
    """
    _check_shape(features, "features", "[B, C, H, W]")
    check_tensor(classifier_weight, "classifier_weight")
    if classifier_weight.dim() != 2 or classifier_weight.shape[1] != features.shape[1]:
        raise ValueError(
            f"classifier_weight must be [K, {features.shape[1]}] to fit the features, "
            f"got {list(classifier_weight.shape)}"
        )
    check_target(target, features.shape[0], classifier_weight.shape[0])
    with outside_autocast(features):
        return _weighted_sum(features, classifier_weight[target])


def grad_cam_closed_form(features: Tensor, classifier_weight: Tensor, target: Tensor) -> Tensor:
    """Grad-CAM of the last stage under global average pooling and one linear layer, without a backward pass.

    There the gradient of the target's logit is ``W[target, c] / (H*W)`` at every position, hence
    ``M = relu(sum_c W[target, c] / (H*W) * F_c)``: the class activation map divided by H*W.

    Args, returns, raises:
        as :func:`class_activation_map`.

    Example:
        >>> import torch
        >>> from ckdsnn.losses import grad_cam_closed_form
        >>> features = torch.tensor([[[[1.0, 0.0]], [[0.0, 2.0]]]])  # B 1, C 2, H 1, W 2
        >>> grad_cam_closed_form(features, torch.tensor([[1.0, -1.0], [3.0, 1.0]]), torch.tensor([1]))
        tensor([[[1.5000, 1.0000]]])
    """
    positions = features.shape[-2] * features.shape[-1]
    return class_activation_map(features, classifier_weight, target) / positions


def grad_cam(logits: Tensor, features: Tensor, target: Tensor) -> Tensor:
    """Grad-CAM by autograd: ``relu(sum_c w_c F_c)`` with w_c the spatial mean of dlogit[target]/dF_c.

    Selvaraju et al.: Grad-CAM (2017), equations 1 and 2.  The weights are constants: gradients flow from the map to
    ``features`` only, never through the weights (spiking neurons have no second derivative).

    Args:
        logits: [B, K], computed from ``features`` with gradients enabled.
        features: F, [B, C, H, W], part of the graph of ``logits``.
        target: class of each sample, int64 [B].

    Returns:
        float32 [B, H, W] (float64 for float64), also under autocast.

    Raises:
        TypeError: what is no tensor, a target that is not int64.
        ValueError: shapes that do not fit, or classes that do not exist (looked at on the CPU only).
        RuntimeError: ``logits`` was not computed from ``features`` with gradients enabled.

    Example:
        >>> import torch
        >>> from ckdsnn.losses import grad_cam
        >>> features = torch.rand(2, 3, 4, 4, requires_grad=True)
        >>> grad_cam(features.mean((2, 3)), features, torch.tensor([0, 2])).shape
        torch.Size([2, 4, 4])
    """
    _check_shape(logits, "logits", "[B, K]")
    _check_shape(features, "features", "[B, C, H, W]")
    check_target(target, features.shape[0], logits.shape[1])
    with outside_autocast(features):
        gradient = full_precision(_channel_weights(logits, features, target))
        return _weighted_sum(features, gradient.mean((2, 3)))


def grad_cam_spiking(step_logits: Tensor, features: Tensor, target: Tensor) -> Tensor:
    """Grad-CAM of a spiking network: that of the mean logits and of the features averaged over time.

    ``M = relu(sum_c w_c mean_t F_tc)``, w_c the spatial mean of the gradient of ``mean_t logit_t[target]``, summed over
    time (the features' average gets the sum of its terms' gradients).  Surrogate gradients stand for the
    derivatives of the neurons between ``features`` and the logits; there are none after the last stage.

    Args:
        step_logits: [T, B, K].
        features: [T, B, C, H, W], part of the graph of ``step_logits``.
        target: class of each sample, int64 [B].

    Returns, raises:
        as :func:`grad_cam`.

    Example:
        >>> import torch
        >>> from ckdsnn.losses import grad_cam_spiking
        >>> spikes = torch.ones(2, 1, 3, 1, 2, requires_grad=True)
        >>> grad_cam_spiking(spikes.mean((3, 4)), spikes, torch.tensor([0]))  # w = 1/(H*W) for class 0's channel
        tensor([[[0.5000, 0.5000]]], grad_fn=<ReluBackward0>)
    """
    return grad_cam_and_resolution(step_logits, features, target)[0]


def grad_cam_and_resolution(step_logits: Tensor, features: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`grad_cam_spiking`, and half of the most that a spike adds to each map, ``max_c |w_c| / (2*T)``, [B, 1, 1].

    Half, so that a map of a single spike is more than that, however it was rounded.
    """
    _check_shape(step_logits, "step_logits", "[T, B, K]")
    _check_shape(features, "features", "[T, B, C, H, W]")
    check_target(target, features.shape[1], step_logits.shape[2])
    with outside_autocast(features):
        gradient = full_precision(_channel_weights(mean_over_time(step_logits), features, target))
        weights = gradient.sum(0).mean((2, 3))
        spike = weights.abs().amax(1)[:, None, None] / len(features)
        return _weighted_sum(mean_over_time(features), weights), spike / 2


def _channel_weights(logits: Tensor, features: Tensor, target: Tensor) -> Tensor:
    if not features.requires_grad or not logits.requires_grad:
        raise RuntimeError(
            "logits were not computed from features with gradients enabled, which Grad-CAM by autograd needs; "
            "run the forward pass under torch.enable_grad(), or use grad_cam_closed_form"
        )
    with torch.enable_grad():
        score = logits.gather(1, target[:, None]).sum()
    return torch.autograd.grad(score, features, retain_graph=True)[0]


def saliency_map(kind: str, output: ANNOutput, stage: int, target: Tensor) -> Tensor:
    """The teacher's saliency map at ``stage``.

    Args:
        kind: ``"grad_cam"``, Grad-CAM of the target's logit, in closed form where it holds (last stage, linear head)
            and by autograd elsewhere; ``"grad_cam_predicted"``, that of the class that the teacher predicts; or
            ``"class_weights"``, the class activation map of the predicted class, as in the released code of CKDSNN
            (last stage and linear head only).
        output: of the teacher, with the features of all stages; with their graph where autograd is needed.
        stage: from 1, or negative from the end.
        target: class of each sample, int64 [B]; only ``"grad_cam"`` looks at it.

    Returns:
        float32 [B, H, W].

    Raises:
        TypeError: an output of another kind.
        ValueError: unknown kind, a stage that does not exist, class weights that are not there.
        RuntimeError: autograd is needed and the output has no graph.

    Example:
        >>> import torch
        >>> from ckdsnn.losses import saliency_map
        >>> from ckdsnn.models import build_model
        >>> output = build_model("ann_resnet_small", num_classes=10)(torch.zeros(2, 1, 20, 20))
        >>> saliency_map("grad_cam", output, -1, torch.tensor([3, 5])).shape
        torch.Size([2, 5, 5])
    """
    check_choice(kind, "teacher_map", TEACHER_MAPS)
    if not isinstance(output, ANNOutput):
        raise TypeError(f"output must be that of a conventional network, got {type(output).__name__}")
    features = pick_stage(output.features, stage, "the teacher's features")
    num_stages = max(output.features)
    explained = target if kind == "grad_cam" else output.logits.argmax(1)
    if output.classifier_weight is not None and resolve_stage(stage, num_stages) == num_stages:
        closed_form = class_activation_map if kind == "class_weights" else grad_cam_closed_form
        return closed_form(features, output.classifier_weight, explained)
    if kind == "class_weights":
        raise ValueError(
            "teacher_map='class_weights' needs the last stage of a teacher whose head is global average pooling and "
            f"one linear layer; stage {stage} of this one is not: use teacher_map='grad_cam'"
        )
    return grad_cam(output.logits, features, explained)
