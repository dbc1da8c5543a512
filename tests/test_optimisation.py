"""Optimisers and schedules are what their configuration says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ckdsnn.optimisation import OptimizerConfig


def built(**options):
    optimizer = OptimizerConfig(**options).build(nn.Linear(2, 2).parameters())
    (group,) = optimizer.param_groups
    return type(optimizer).__name__, group


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({}, {"momentum": 0.9, "weight_decay": 1e-4, "nesterov": False}),
        ({"momentum": 0.0, "weight_decay": 0.0}, {"momentum": 0.0, "weight_decay": 0.0}),
        (
            {"momentum": 0.8, "weight_decay": 5e-4, "nesterov": True},
            {"momentum": 0.8, "weight_decay": 5e-4, "nesterov": True},
        ),
        ({"name": "adamw"}, {"weight_decay": 1e-2, "betas": (0.9, 0.999)}),
        ({"name": "adamw", "weight_decay": 0.05}, {"weight_decay": 0.05}),
    ],
    ids=str,
)
def test_options_reach_the_optimiser(options, values):
    name, group = built(**options)
    assert name == ("AdamW" if options.get("name") == "adamw" else "SGD")
    assert group["fused"]
    assert {key: group[key] for key in values} == values


def test_decay_of_weights_alone_keeps_its_value():
    optimizer = OptimizerConfig(decay="weights", weight_decay=0.3).build(nn.Linear(2, 2).parameters())
    assert [(g["weight_decay"], [p.dim() for p in g["params"]]) for g in optimizer.param_groups] == [
        (0.3, [2]),
        (0.0, [1]),
    ]
    optimizer = OptimizerConfig(decay="weights").build([nn.Parameter(torch.zeros(3))])
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.0]


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({"schedule": "constant"}, [1.0]),
        ({"schedule": "constant", "warmup_epochs": 1.5}, [0.25, 0.5, 0.75, 1.0]),
        ({"schedule": "cosine", "warmup_epochs": 0.5}, [0.5, 1.0, 0.75, 0.25]),
        ({"schedule": "cosine"}, [1.0, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4]),
    ],
    ids=str,
)
def test_rates(options, rates):
    schedule = OptimizerConfig(lr=1.0, **options).build_schedule(4, 2)
    assert schedule.rates == pytest.approx(rates)
    assert schedule.momenta is None


def test_one_cycle_changes_the_momentum():
    schedule = OptimizerConfig(lr=1.0, schedule="one_cycle").build_schedule(10, 5)
    assert (schedule.rates[0], schedule.rates[2], schedule.rates[9]) == pytest.approx((0.04, 1.0, 4e-6))
    assert (schedule.momenta[0], schedule.momenta[2], schedule.momenta[9]) == pytest.approx((0.95, 0.85, 0.95))


def test_nesterov_needs_a_momentum():
    with pytest.raises(ValueError, match=r"optimizer\.nesterov needs a momentum"):
        OptimizerConfig(nesterov=True, momentum=0.0)
