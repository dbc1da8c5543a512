"""Optimiser and learning-rate schedule as one configuration."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True)
class Schedule:
    """What the optimiser uses at each of its steps; past the end, what it used last.

    Attributes:
        rates: learning rates.
        momenta: momentum of sgd, or the first beta of adamw; None: as the optimiser has it.
    """

    rates: list[float]
    momenta: list[float] | None = None


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimiser and schedule; the schedule steps once an optimiser step.

    Attributes:
        name: "sgd" (with momentum) or "adamw".
        lr: peak learning rate.
        weight_decay: None: 1e-4 for sgd, 1e-2 for adamw.
        decay: what decays: "all" parameters, as in the paper's recipe, or "weights", those of more than one dimension:
            no biases, and nothing that a normalisation learns.
        momentum: momentum of sgd; with adamw leave it at None.
        nesterov: Nesterov momentum of sgd.
        schedule: "cosine" to 0, "one_cycle" (Smith, arXiv 1708.07120; the momentum goes down and up again with it) or
            "constant".
        warmup_epochs: linear warm-up from 0 before "cosine" or "constant".

    Raises:
        ValueError: a value out of range, or an option that the chosen optimiser or schedule does not use.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    weight_decay: float | None = None
    decay: Literal["all", "weights"] = "all"
    momentum: float | None = None
    nesterov: bool = False
    schedule: Literal["cosine", "one_cycle", "constant"] = "cosine"
    warmup_epochs: float = 0.0

    def __post_init__(self) -> None:
        for option, allowed in (
            ("name", ("sgd", "adamw")),
            ("schedule", ("cosine", "one_cycle", "constant")),
            ("decay", ("all", "weights")),
        ):
            if (value := getattr(self, option)) not in allowed:
                raise ValueError(f"optimizer.{option} must be one of {', '.join(allowed)}, got {value!r}")
        for option in ("lr", "weight_decay", "momentum", "warmup_epochs"):
            value = getattr(self, option)
            if value is None and option in ("weight_decay", "momentum"):
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"optimizer.{option} must be a finite number, got {value!r}")
        if not isinstance(self.nesterov, bool):
            raise ValueError(f"optimizer.nesterov must be true or false, got {self.nesterov!r}")
        if not self.lr > 0:
            raise ValueError(f"optimizer.lr must be positive, got {self.lr}")
        if self.weight_decay is not None and self.weight_decay < 0:
            raise ValueError(f"optimizer.weight_decay must not be negative, got {self.weight_decay}")
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise ValueError(f"optimizer.momentum must lie in [0, 1), got {self.momentum}")
        if self.warmup_epochs < 0:
            raise ValueError(f"optimizer.warmup_epochs must not be negative, got {self.warmup_epochs}")
        if self.name == "adamw" and (self.momentum is not None or self.nesterov):
            raise ValueError("optimizer.momentum and optimizer.nesterov belong to sgd: remove them or choose name: sgd")
        if self.nesterov and self.momentum == 0:
            raise ValueError("optimizer.nesterov needs a momentum: raise optimizer.momentum or set nesterov to false")
        if self.schedule == "one_cycle" and self.warmup_epochs:
            raise ValueError("optimizer.schedule one_cycle has a warm-up of its own: set optimizer.warmup_epochs to 0")

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser for `parameters`: PyTorch's fused one, which takes its learning rate from the device and leaves
        the weights alone where the step says that its gradient is not finite."""
        parameters = list(parameters)
        fused = all(p.is_floating_point() for p in parameters)
        groups: list[dict] = [{"params": parameters}]
        if self.decay == "weights":
            matrices, others = ([p for p in parameters if (p.dim() > 1) == many] for many in (True, False))
            groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
            groups = [group for group in groups if group["params"]]
        if self.name == "adamw":
            decay = 1e-2 if self.weight_decay is None else self.weight_decay
            return torch.optim.AdamW(groups, lr=self.lr, weight_decay=decay, fused=fused)
        return torch.optim.SGD(
            groups,
            lr=self.lr,
            momentum=0.9 if self.momentum is None else self.momentum,
            weight_decay=1e-4 if self.weight_decay is None else self.weight_decay,
            nesterov=self.nesterov,
            fused=fused,
        )

    def build_schedule(self, total_steps: float, steps_per_epoch: float) -> Schedule:
        """The schedule over `total_steps` optimiser steps; `math.inf` for a training without an end.

        Raises:
            ValueError: a warm-up as long as the training, or a schedule that needs an end where there is none.
        """
        warmup = round(self.warmup_epochs * steps_per_epoch)
        if warmup >= total_steps:
            raise ValueError(
                f"optimizer.warmup_epochs {self.warmup_epochs} is {warmup} steps, the whole training is {total_steps}: "
                "lower it or train longer"
            )
        if self.schedule == "constant":
            return Schedule([self.lr * (step + 1) / (warmup + 1) for step in range(warmup)] + [self.lr])
        if not math.isfinite(total_steps):
            raise ValueError(
                f"optimizer.schedule {self.schedule} needs to know when training ends: set trainer.max_epochs or "
                "trainer.max_steps, or choose schedule: constant"
            )
        steps = range(int(total_steps))
        if self.schedule == "one_cycle":
            return _one_cycle(self.lr, len(steps))
        rates = []
        for step in steps:
            if step < warmup:
                rates.append(self.lr * (step + 1) / (warmup + 1))
            else:
                rates.append(self.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total_steps - warmup))))
        return Schedule(rates)


def _one_cycle(lr: float, steps: int) -> Schedule:
    """Up from lr/25 in 30 % of the steps and down to lr/250,000, both along a cosine; the momentum goes from 0.95 to
    0.85 and back: the defaults of `torch.optim.lr_scheduler.OneCycleLR`."""
    top = 0.3 * steps - 1

    def between(begin: float, end: float, share: float) -> float:
        return end + (begin - end) / 2 * (1 + math.cos(math.pi * share))

    rates, momenta = [], []
    for step in range(steps):
        if step <= top:
            share = step / top if top else 1.0
            rates.append(between(lr / 25, lr, share))
            momenta.append(between(0.95, 0.85, share))
        else:
            share = (step - top) / (steps - 1 - top)
            rates.append(between(lr, lr / 25 / 1e4, share))
            momenta.append(between(0.85, 0.95, share))
    return Schedule(rates, momenta)
