"""One training step: batch, teacher, student, losses, backward, clipping, optimiser, and the sums for the logs.

It reads and writes tensors that stay where they are, takes no number from the device and gives it none but constants,
so the same code runs eagerly on any device and is captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ckdsnn.data import Batch
from ckdsnn.losses import Method
from ckdsnn.models import ANNOutput
from ckdsnn.optimisation import Schedule
from ckdsnn.training.feed import Feed
from ckdsnn.training.telemetry import Telemetry

Answers = Callable[[Batch], ANNOutput | None]


class TrainStep:
    """A step of training on static tensors.

    Args:
        network: what is trained; images -> output.
        method: the loss, on the step's device.
        answers: the teacher's output for a batch, or None for methods that need none.
        optimizer: a fused one; its learning rate becomes a tensor that the step sets.
        schedule: learning rate and momentum by the number of the optimiser step.
        feed: where batches come from.
        telemetry: what the step tells.
        accumulate: batches whose gradients are averaged for an optimiser step.
        clip_norm, clip_value: bound of the gradient's norm, or of each of its values; None: none.
        autocast: the lower precision of forward passes; None: none.
        scaler: of the loss, for float16.

    Attributes:
        loss: of the latest step, [].
        updates: optimiser steps done, int64 [1].
    """

    def __init__(
        self,
        network: Callable[[Tensor], Any],
        method: Method,
        answers: Answers,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        feed: Feed,
        telemetry: Telemetry,
        *,
        accumulate: int = 1,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        autocast: torch.dtype | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        self.network, self.method, self.answers = network, method, answers
        self.optimizer, self.schedule, self.feed, self.telemetry = optimizer, schedule, feed, telemetry
        self.accumulate, self.clip_norm, self.clip_value = accumulate, clip_norm, clip_value
        self.autocast, self.scaler = autocast, scaler
        self.device = telemetry.device
        self.world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.updates = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.loss = torch.zeros((), device=self.device)
        self._rates = torch.tensor(schedule.rates, dtype=torch.float32, device=self.device)
        self._rate = torch.zeros((), device=self.device)
        for group in optimizer.param_groups:  # a checkpoint's say how that training ran
            group |= {"lr": self._rate, "fused": True, "foreach": False}
            if "capturable" in group:  # adamw's
                group["capturable"] = self.device.type == "cuda"
        for state in optimizer.state.values():
            if "step" in state:  # adamw's, which a training that was not fused kept on the host
                state["step"] = state["step"].to(self.device)
        self._flat: Tensor | None = None

    def gradients(self, *, first: bool = True) -> None:
        """Forward and backward; `first` of the batches whose gradients are accumulated."""
        if first:
            self.optimizer.zero_grad(set_to_none=True)
        batch = self.feed.batch()
        kind = self.device.type
        # Casts are not kept from one use of a weight to the next: what was captured would read those of the capture.
        lower: Any = nullcontext()
        if self.autocast is not None:
            lower = torch.autocast(kind, self.autocast, cache_enabled=False)
        with torch.autocast(kind, enabled=False):
            with lower:
                answers = self.answers(batch)
                output = self.network(batch.images)
                parts = self.method(output, answers, batch.targets, epoch=self.feed.progress())
            loss = torch.stack(list(parts.values())).sum()
            scaled = loss if self.accumulate == 1 else loss / self.accumulate
            (scaled if self.scaler is None else self.scaler.scale(scaled)).backward()
        with torch.no_grad():
            self.loss.copy_(loss)
            accuracy = (output.logits.argmax(1) == batch.targets).double().mean()
            self.telemetry.record(accuracy, loss, parts, self.updates)
            self.feed.advance()

    # Gradients of several processes are averaged in one flat tensor. What each holds lies as its parameter does.

    @torch.no_grad()
    def pack(self) -> None:
        """Puts all gradients, and whether this process failed, into one tensor."""
        if self.world > 1:
            parts = [*(_memory(g) for g in self._grads()), self.telemetry.failed[None]]
            if self._flat is None:
                self._flat = parts[0].new_empty(sum(len(part) for part in parts))
            torch.cat(parts, out=self._flat)

    def all_reduce(self) -> None:
        """Adds them up over all processes."""
        if self.world > 1:
            dist.all_reduce(self._flat)

    @torch.no_grad()
    def unpack(self) -> None:
        """Puts their means where they came from."""
        if self.world > 1:
            assert self._flat is not None
            grads = [_memory(g) for g in self._grads()]
            *means, failed = (self._flat / self.world).split([*(g.numel() for g in grads), 1])
            torch._foreach_copy_(grads, means)
            self.telemetry.check(failed[0] == 0, self.updates)

    def _grads(self) -> list[Tensor]:
        return [p.grad for p in self.parameters if p.grad is not None]

    @torch.no_grad()
    def update(self) -> None:
        """Clips, and steps the optimiser; a gradient that is not finite leaves all weights as they are."""
        last = len(self._rates) - 1  # a constant rate may go on for ever
        self._rate.copy_(self._rates.index_select(0, self.updates.clamp(max=last))[0])
        if self.scaler is None:
            grads = self._grads()
            norm = torch.nn.utils.get_total_norm(grads)
            self.telemetry.check(torch.isfinite(norm), self.updates)
            self._clip(norm)
            self.optimizer.found_inf = self.telemetry.failed  # type: ignore[attr-defined]
            self.optimizer.step()
        else:
            if self.clip_norm is not None or self.clip_value is not None:
                self.scaler.unscale_(self.optimizer)
                self._clip(torch.nn.utils.get_total_norm(self._grads()))
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.updates += 1

    def _clip(self, norm: Tensor) -> None:
        if self.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip_norm, norm)
        if self.clip_value is not None:
            torch.nn.utils.clip_grad_value_(self.parameters, self.clip_value)

    def set_momentum(self, update: int) -> None:
        """What the schedule says of the momentum, a number of the host, before optimiser step `update`."""
        if self.schedule.momenta is None:
            return
        momentum = self.schedule.momenta[min(update, len(self.schedule.momenta) - 1)]
        for group in self.optimizer.param_groups:
            if "betas" in group:
                group["betas"] = (momentum, group["betas"][1])
            else:
                group["momentum"] = momentum


def _memory(grad: Tensor) -> Tensor:
    """A dense tensor's values in the order in which they lie in memory."""
    return grad.as_strided((grad.numel(),), (1,))
