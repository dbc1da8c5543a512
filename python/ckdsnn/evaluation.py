"""What a network classifies, images or pixels, and how well: accuracy, and of pixels the mean IoU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

from ckdsnn.checkpoint import RunError
from ckdsnn.data import DataModule
from ckdsnn.models import ANN, SNN


def check_classified(data: Any, network: ANN | SNN) -> None:
    """Raises RunError where the data has classes of pixels and the network predicts some of images, or the reverse."""
    if isinstance(data, DataModule) and data.dense != network.dense:
        each = ("image", "pixel")
        raise RunError(
            f"{type(data).__name__} has one class for each {each[data.dense]}, but {type(network).__name__} predicts "
            f"one for each {each[network.dense]}: name another network (snn_fcn_small and ann_fcn_small classify "
            "pixels), or other data"
        )


class Evaluation:
    """Counts of what a network predicts, on its device.

    Args:
        num_classes: K.
        device: of the network.
        dense: whether it classifies pixels.

    Example:
        >>> evaluation = Evaluation(2, torch.device("cpu"), dense=True)
        >>> logits = torch.tensor([[[[1.0, 1.0, 1.0, 0.0]], [[0.0, 0.0, 0.0, 1.0]]]])  # predicts 0, 0, 0, 1
        >>> evaluation.add(logits, torch.tensor([[[0, 0, 1, 1]]]))
        >>> {name: round(value, 4) for name, value in evaluation.metrics(lambda counts: counts).items()}
        {'accuracy': 0.75, 'mean_iou': 0.5833}
    """

    def __init__(self, num_classes: int, device: torch.device, *, dense: bool) -> None:
        self._correct, self._seen = torch.zeros(2, dtype=torch.float64, device=device).unbind()
        self._iou: MulticlassJaccardIndex | None = None
        if dense:
            self._iou = MulticlassJaccardIndex(num_classes, validate_args=False).to(device)

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """A batch: logits [B, K] and targets [B], or [B, K, H, W] and [B, H, W]."""
        predicted = logits.argmax(1)
        self._correct += (predicted == targets).sum()
        self._seen += targets.numel()
        if self._iou is not None:
            self._iou.update(predicted, targets)

    def metrics(self, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Accuracy, a share of the samples or pixels, and of pixels mean_iou: for each class the pixels with both label
        and prediction over those with either, mean over the classes that occur.  {} where nothing was seen.

        Args:
            total: sums a tensor over all processes.
        """
        correct, seen = total(torch.stack([self._correct, self._seen])).tolist()
        metrics = {"accuracy": correct / seen} if seen else {}
        if self._iou is not None and seen:
            metrics["mean_iou"] = float(self._iou.compute())
        return metrics
