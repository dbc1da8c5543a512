"""What an evaluation measures: accuracy, and how far the student's answers are from the teacher's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ckdsnn.losses import FrozenTeacher, Method
from ckdsnn.losses.methods.terms import NLDTerm
from ckdsnn.losses.precision import full_precision


class Evaluation:
    """Sums over the batches of an evaluation, on the device; nothing waits for it but :meth:`means`.

    ============== =================================================================================================
    metric         is
    ============== =================================================================================================
    accuracy       share of samples whose most likely class is the label
    kl             ``KL(p_te || p_st)`` in nats, mean over samples, of what the two networks predict (temperature 1)
    kl_noisy       the same with the method's noise in p_st, the same noise in every evaluation; where there is any
    noise_strength what the method has learnt, where it learns its noise's strength
    ============== =================================================================================================

    Args:
        method: what the student is trained by.
        teacher: None: there is none, and no divergence from it.

    Attributes:
        sums: number of right samples, number of samples, sums of the two divergences; float64 [4].
    """

    def __init__(self, method: Method, teacher: FrozenTeacher | None) -> None:
        self.teacher = teacher
        terms = [m for m in method.modules() if isinstance(m, NLDTerm) and m.options.noise != "none"]
        self.term = terms[0] if terms and teacher is not None else None
        self.sums = torch.zeros(4, dtype=torch.float64)
        self._generator = torch.Generator()
        self._answers: dict[int, Tensor] = {}

    def start(self, device: torch.device, *, again: bool) -> None:
        """Begins an evaluation; its noise is a stream of its own, and that of the training stays where it is.

        Args:
            again: whether batches of the same number are those of the evaluations before, since :meth:`forget`.
        """
        if not again:
            self.forget()
        if self.teacher is not None:
            self.teacher.to(device)
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)
        self._generator = torch.Generator(device).manual_seed(0)

    @torch.no_grad()
    def add(self, logits: Tensor, images: Tensor, target: Tensor, number: int | None = None) -> None:
        """Adds a batch.

        Args:
            logits: of the student, [B, K].
            images: of the batch, as the teacher takes them.
            target: int64 [B].
            number: of the batch, by which it comes again in later evaluations: a teacher whose answers do not change is
                asked once.
        """
        self.sums[0] += (logits.argmax(1) == target).sum()
        self.sums[1] += len(target)
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
        constant = self.teacher.mode == "eval"  # else its running statistics move with training
        if number is not None and constant and number in self._answers:
            return self._answers[number]
        model = self.teacher.model
        model.eval()  # an evaluation must not move them
        answer = full_precision(model(images).logits)
        self.teacher.train()
        if number is not None and constant:
            self._answers[number] = answer
        return answer

    def means(self, sums: Tensor) -> dict[str, float]:
        """The metrics by name; none where no sample was seen.

        Args:
            sums: those of all processes, added up.
        """
        right, seen, kl, noisy = sums.tolist()
        if not seen:
            return {}
        metrics = {"accuracy": right / seen}
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
