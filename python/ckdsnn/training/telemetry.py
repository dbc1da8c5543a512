"""What a training step tells of itself: sums on the device, which the host reads late and without waiting."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ckdsnn.checkpoint import RunError

EVERY = 10  # steps between two looks at a GPU


class Telemetry:
    """Sums over an epoch, the latest step and the first step that was not finite, all in tensors of the device.

    Args:
        device: of the step.

    Attributes:
        names: of the numbers: accuracy, loss and the parts of the loss; known after the first step.
        failed: float32 [] of 0, or 1 from the first step on whose loss or gradient was not finite; the optimisers take
            it as `found_inf` and leave the weights alone from then on.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.names: tuple[str, ...] = ()
        self.failed = torch.zeros((), device=device)
        self._empty = torch.zeros(0, dtype=torch.float64, device=device)
        self._sums = self._last = self._failure = self._empty
        self._count = torch.zeros(1, dtype=torch.float64, device=device)
        self._board: Tensor | None = None  # pinned, what the host reads
        self._copied: torch.cuda.Event | None = None
        self._polls = 0
        self.latest: dict[str, float] = {}

    def _name(self, names: tuple[str, ...]) -> None:
        if self.names and self.names != names:
            raise RunError(f"the parts of the loss were {', '.join(self.names[2:])} and are now {', '.join(names[2:])}")
        if not len(self._sums):
            self._sums = torch.zeros(len(names), dtype=torch.float64, device=self.device)
        if not self.names:
            self.names = names
            self._last = torch.zeros(len(names), dtype=torch.float64, device=self.device)
            self._failure = torch.zeros(len(names) + 1, dtype=torch.float64, device=self.device)

    def record(self, accuracy: Tensor, loss: Tensor, parts: dict[str, Tensor], update: Tensor) -> None:
        """Adds a step; `update` is the number of optimiser steps before it, int64 [1]."""
        self._name(("accuracy", "loss", *parts))
        values = torch.stack([part.detach().double() for part in (accuracy, loss, *parts.values())])
        self._sums += values
        self._count += 1
        self._last.copy_(values)
        self.check(torch.isfinite(values[1]), update)

    def check(self, finite: Tensor, update: Tensor) -> None:
        """Notes the step as failed unless `finite` [], a bool or a number that is not 0, holds."""
        first = torch.logical_and(finite == 0, self.failed == 0)
        self._failure.copy_(torch.where(first, torch.cat([update.double(), self._last]), self._failure))
        self.failed.copy_(torch.maximum(self.failed, first.float()))

    def restart(self) -> None:
        """The sums of a new epoch."""
        self._sums.zero_()
        self._count.zero_()

    def means(self) -> dict[str, float]:
        """Means over the epoch so far. Waits for the device."""
        mean = (self._sums / self._count).tolist()
        return dict(zip(self.names, mean, strict=True))

    def poll(self, epoch: int) -> None:
        """Reads what steps have told, on a GPU some steps late: `latest` is renewed and a failure is raised.

        Raises:
            RunError: a step was not finite.
        """
        if self.device.type != "cuda":
            self._read(torch.cat([self.failed.double()[None], self._last, self._failure]).tolist(), epoch)
            return
        self._polls += 1
        if self._polls % EVERY == 1:
            if self._copied is not None:
                # Of EVERY steps ago: the device has work left, and the host does not run further ahead than that.
                self._copied.synchronize()
                assert self._board is not None
                self._read(self._board.tolist(), epoch)
            self._post()

    def wait(self, epoch: int) -> None:
        """As `poll`, of all steps: waits for the device."""
        self._read(torch.cat([self.failed.double()[None], self._last, self._failure]).tolist(), epoch)

    def _post(self) -> None:
        told = torch.cat([self.failed.double()[None], self._last, self._failure])
        if self._board is None:
            self._board = torch.empty(told.shape, dtype=told.dtype, pin_memory=True)
        self._board.copy_(told, non_blocking=True)
        self._copied = torch.cuda.Event(blocking=True)
        self._copied.record()

    def _read(self, told: list[float], epoch: int) -> None:
        count = len(self.names)
        self.latest = dict(zip(self.names, told[1 : 1 + count], strict=True))
        if told[0]:
            step, _, *values = told[1 + count :]
            raise RunError(_not_finite(int(step), epoch, dict(zip(self.names[1:], values, strict=True))))

    def state_dict(self) -> dict[str, Any]:
        """The sums of the epoch so far: means of an epoch that was interrupted are over all of it."""
        return {"names": list(self.names), "sums": self._sums, "count": self._count, "failed": self.failed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.names = ()
        self._sums = state["sums"].to(self.device)
        self._count.copy_(state["count"])
        names = tuple(state["names"])
        if names:
            self._name(names)


def _not_finite(step: int, epoch: int, values: dict[str, float]) -> str:
    loss, *parts = values.items()
    told = ", ".join(f"{name} {value:g}" for name, value in parts)
    what = "gradient" if abs(loss[1]) < float("inf") else "loss"
    return (
        f"the {what} is not finite at step {step} (epoch {epoch}): {told}. The weights are those of the step before, "
        "and no checkpoint was written since; lower optimizer.lr, set trainer.gradient_clip_val, or use "
        "trainer.precision 32-true"
    )
