"""Optimiser and learning-rate schedule as one configuration."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimiser and schedule; the schedule steps once an optimiser step.

    Attributes:
        name: "sgd" (with momentum) or "adamw".
        lr: peak learning rate.
        weight_decay: decay of all parameters, as the paper's recipe does; None: 1e-4 for sgd, 1e-2 for adamw.
        momentum: momentum of sgd; with adamw leave it at None.
        nesterov: Nesterov momentum of sgd.
        schedule: "cosine" to 0, "one_cycle" (Smith, arXiv 1708.07120) or "constant".
        warmup_epochs: linear warm-up from 0 before "cosine" or "constant".

    Raises:
        ValueError: a value out of range, or an option that the chosen optimiser or schedule does not use.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    weight_decay: float | None = None
    momentum: float | None = None
    nesterov: bool = False
    schedule: Literal["cosine", "one_cycle", "constant"] = "cosine"
    warmup_epochs: float = 0.0

    def __post_init__(self) -> None:
        for option, allowed in (("name", ("sgd", "adamw")), ("schedule", ("cosine", "one_cycle", "constant"))):
            if (value := getattr(self, option)) not in allowed:
                raise ValueError(f"optimizer.{option} must be one of {', '.join(allowed)}, got {value!r}")
        if not self.lr > 0:
            raise ValueError(f"optimizer.lr must be positive, got {self.lr}")
        if self.warmup_epochs < 0:
            raise ValueError(f"optimizer.warmup_epochs must not be negative, got {self.warmup_epochs}")
        if self.name == "adamw" and (self.momentum is not None or self.nesterov):
            raise ValueError("optimizer.momentum and optimizer.nesterov belong to sgd: remove them or choose name: sgd")
        if self.schedule == "one_cycle" and self.warmup_epochs:
            raise ValueError("optimizer.schedule one_cycle has a warm-up of its own: set optimizer.warmup_epochs to 0")

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser for `parameters`."""
        if self.name == "adamw":
            decay = 1e-2 if self.weight_decay is None else self.weight_decay
            return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=decay)
        return torch.optim.SGD(
            parameters,
            lr=self.lr,
            momentum=0.9 if self.momentum is None else self.momentum,
            weight_decay=1e-4 if self.weight_decay is None else self.weight_decay,
            nesterov=self.nesterov,
        )

    def build_schedule(
        self, optimizer: torch.optim.Optimizer, total_steps: int, steps_per_epoch: float
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The schedule over `total_steps` optimiser steps."""
        if self.schedule == "one_cycle":
            return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=self.lr, total_steps=total_steps)
        warmup = round(self.warmup_epochs * steps_per_epoch)
        if warmup >= total_steps:
            raise ValueError(
                f"optimizer.warmup_epochs {self.warmup_epochs} is {warmup} steps, the whole training is {total_steps}: "
                "lower it or train longer"
            )

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            if self.schedule == "constant":
                return 1.0
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / (total_steps - warmup))))

        return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def lightning(self, parameters: Iterable[nn.Parameter], total_steps: int, steps_per_epoch: float) -> dict[str, Any]:
        """What `LightningModule.configure_optimizers` returns."""
        optimizer = self.build(parameters)
        schedule = self.build_schedule(optimizer, total_steps, steps_per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
