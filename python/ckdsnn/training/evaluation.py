"""What is measured: accuracy, of pixels mean IoU, and how far the student's answers are from the teacher's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ckdsnn.losses import FrozenTeacher, Method
from ckdsnn.losses.methods.terms import NLDTerm
from ckdsnn.losses.precision import full_precision
from ckdsnn.models.outputs import pixel_rows


def metric_names(method: Method, *, dense: bool) -> list[str]:
    """The metrics of an :class:`Evaluation`, by its method, which has the teacher that it needs.

    Args:
        method: what the student is trained by.
        dense: whether the networks classify pixels.

    Example:
        >>> from ckdsnn.losses import build_method
        >>> metric_names(build_method("nld"), dense=False), metric_names(build_method("ce"), dense=True)
        (['accuracy', 'kl', 'kl_noisy'], ['accuracy', 'mean_iou'])
    """
    term = _noise_term(method) if method.needs_teacher else None
    there = {
        "accuracy": True,
        "mean_iou": dense,
        "kl": method.needs_teacher,
        "kl_noisy": term is not None,
        "noise_strength": term is not None and isinstance(term.strength, Tensor),
    }
    return [name for name, has in there.items() if has]


def _noise_term(method: Method) -> NLDTerm | None:
    """The first one that has noise."""
    return next((m for m in method.modules() if isinstance(m, NLDTerm) and m.options.noise != "none"), None)


class Evaluation:
    """Sums over the batches of an evaluation, on the device; nothing waits for it but :meth:`means`.

    ============== =================================================================================================
    metric         is
    ============== =================================================================================================
    accuracy       share of samples whose most likely class is the label
    mean_iou       of pixels: for each class those with both label and prediction over those with either, over the whole
                   evaluation; mean over the classes that occur
    kl             ``KL(p_te || p_st)`` in nats, mean over samples, of what the two networks predict (temperature 1)
    kl_noisy       the same with the method's noise in p_st, the same noise in every evaluation; where there is any
    noise_strength what the method has learnt, where it learns its noise's strength
    ============== =================================================================================================

    Where networks classify pixels, these are the samples.

    Args:
        method: what the student is trained by.
        teacher: None: there is none, and no divergence from it.
        pixel_classes: K of networks that classify pixels; None: they classify images.

    Attributes:
        sums: number of right samples, number of samples, sums of the two divergences, and of pixels how many have label
            i and prediction j, at 4 + K i + j; float64 [4], or [4 + K^2] of pixels.

    Example:
        >>> from ckdsnn.losses import build_method
        >>> evaluation = Evaluation(build_method("ce"), None, pixel_classes=2)
        >>> logits = torch.tensor([[[[1.0, 1.0, 1.0, 0.0]], [[0.0, 0.0, 0.0, 1.0]]]])  # predicts 0, 0, 0, 1
        >>> evaluation.add(logits, torch.zeros(1, 1, 1, 4), torch.tensor([[[0, 0, 1, 1]]]))
        >>> {name: round(value, 4) for name, value in evaluation.means(evaluation.sums).items()}
        {'accuracy': 0.75, 'mean_iou': 0.5833}
    """

    def __init__(self, method: Method, teacher: FrozenTeacher | None, pixel_classes: int | None = None) -> None:
        self.teacher = teacher
        self.pixel_classes = pixel_classes
        self.term = None if teacher is None else _noise_term(method)
        self.sums = self._zeros(torch.device("cpu"))
        self._generator = torch.Generator()
        self._answers: dict[int, Tensor] = {}

    def _zeros(self, device: torch.device) -> Tensor:
        return torch.zeros(4 + (self.pixel_classes or 0) ** 2, dtype=torch.float64, device=device)

    def start(self, device: torch.device, *, again: bool) -> None:
        """Begins an evaluation; its noise is a stream of its own, and that of the training stays where it is.

        Args:
            again: whether batches of the same number are those of the evaluations before, since :meth:`forget`.
        """
        if not again:
            self.forget()
        if self.teacher is not None:
            self.teacher.to(device)
        self.sums = self._zeros(device)
        self._generator = torch.Generator(device).manual_seed(0)

    @torch.no_grad()
    def add(self, logits: Tensor, images: Tensor, target: Tensor, number: int | None = None) -> None:
        """Adds a batch.

        Args:
            logits: of the student, [B, K], or [B, K, H, W] of pixels.
            images: of the batch, as the teacher takes them.
            target: int64 [B], or [B, H, W] of pixels.
            number: of the batch, by which it comes again in later evaluations: a teacher whose answers do not change is
                asked once (those of pixels would take too much memory to be kept).
        """
        if self.pixel_classes is not None:
            logits, target = pixel_rows(logits), target.flatten()
        predicted = logits.argmax(1)
        self.sums[0] += (predicted == target).sum()
        self.sums[1] += len(target)
        if self.pixel_classes is not None:  # counted so, because bincount waits for the device
            pairs = target * self.pixel_classes + predicted
            self.sums[4:].index_add_(0, pairs, torch.ones_like(pairs, dtype=torch.float64))
        if self.teacher is None:
            return
        target_log = torch.log_softmax(self._teacher_logits(images, number), 1)
        logits = full_precision(logits)
        self.sums[2] += F.kl_div(torch.log_softmax(logits, 1), target_log, reduction="sum", log_target=True)
        if self.term is not None:
            noisy = self.term.smoothed(logits, self._generator, temperature=1.0)
            self.sums[3] += F.kl_div(noisy, target_log, reduction="sum", log_target=True)

    def _teacher_logits(self, images: Tensor, number: int | None) -> Tensor:
        assert self.teacher is not None
        # In train mode its running statistics move with training.
        constant = self.teacher.mode == "eval" and self.pixel_classes is None
        if number is not None and constant and number in self._answers:
            return self._answers[number]
        model = self.teacher.model
        model.eval()  # an evaluation must not move them
        answer = full_precision(model(images).logits)
        if self.pixel_classes is not None:
            answer = pixel_rows(answer)
        self.teacher.train()
        if number is not None and constant:
            self._answers[number] = answer
        return answer

    def means(self, sums: Tensor) -> dict[str, float]:
        """The metrics by name; none where no sample was seen.

        Args:
            sums: those of all processes, added up.
        """
        right, seen, kl, noisy = sums[:4].tolist()
        if not seen:
            return {}
        metrics = {"accuracy": right / seen}
        if self.pixel_classes is not None:
            metrics["mean_iou"] = mean_iou(sums[4:].view(self.pixel_classes, self.pixel_classes))
        if self.teacher is not None:
            metrics["kl"] = kl / seen
        if self.term is not None:
            metrics["kl_noisy"] = noisy / seen
            if isinstance(self.term.strength, Tensor):
                metrics["noise_strength"] = float(self.term.strength.detach())
        return metrics

    def forget(self) -> None:
        """Lets go of the teacher's answers."""
        self._answers = {}


def mean_iou(counts: Tensor) -> float:
    """Intersection over union, mean over the classes that occur as a label or a prediction.

    Args:
        counts: how many pixels have label i and prediction j, float64 [K, K].

    Example:
        >>> mean_iou(torch.tensor([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]).double())  # mean of 2/3 and 1/2
        0.5833333333333333
    """
    both = counts.diagonal()
    either = counts.sum(0) + counts.sum(1) - both
    occurs = either > 0
    return float((both[occurs] / either[occurs]).mean())
