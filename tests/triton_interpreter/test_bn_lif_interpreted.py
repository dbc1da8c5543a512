"""Batch normalisation and LIF in Triton, bit by bit against the reference backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ckd_kernels import Neuron, bn_lif, surrogate, use_backend
from ckd_kernels.backends import reference
from ckd_kernels.backends import triton as backend
from ckd_kernels.ops.layout import Layout, layout_of

pytestmark = pytest.mark.usefixtures("poisoned")

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
SOFT = Neuron(charge="leak_input", tau=2.7, reset="soft", threshold=0.6, surrogate=surrogate.ATan())
DELAYED = Neuron(charge="leak", tau=3.0, reset="soft_delayed", threshold=0.8)
INTEGRATE = Neuron(charge="integrate", strict=True, detach_reset=True, v_reset=-0.2, threshold=0.9)
# [T, B, C, H, W] or [B, T, C, H, W]: rows of 16 elements or odd ones, tiles that are cut, channels-last, more tiles of
# the same channels than one; few steps, chunks of eight, and checkpoints.
CASES: dict[str, dict[str, Any]] = {
    "aligned": {"shape": (4, 2, 20, 4, 4)},
    "odd": {"shape": (3, 2, 19, 3, 5), "dtype": FP16, "neuron": SOFT},
    "wide": {"shape": (2, 1, 6, 9, 16), "dtype": BF16, "neuron": DELAYED},
    "one step": {"shape": (1, 3, 16, 4, 4), "dtype": BF16, "neuron": INTEGRATE},
    "channels-last": {"shape": (4, 2, 32, 3, 5), "last": True, "dtype": BF16, "neuron": SOFT},
    "channels-last, odd": {"shape": (3, 2, 19, 3, 5), "last": True, "neuron": DELAYED},
    "time second": {"shape": (2, 3, 5, 4, 4), "time_dim": 1, "dtype": FP16, "neuron": DELAYED},
    "time second, channels-last": {"shape": (2, 5, 16, 3, 3), "time_dim": 1, "last": True, "neuron": INTEGRATE},
    "no space": {"shape": (3, 20, 48), "neuron": SOFT},
    "chunks": {"shape": (9, 1, 3, 4, 4), "dtype": BF16, "neuron": SOFT},
    "checkpoints": {"shape": (35, 1, 2, 3, 3), "neuron": DELAYED},
    "checkpoints, channels-last": {"shape": (18, 2, 16, 1, 3), "last": True, "dtype": BF16},
}


def values(shape: tuple[int, ...], dtype: torch.dtype, last: bool, seed: int) -> Tensor:
    t = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 1.3 + 0.4).to(dtype)
    return t.movedim(2, -1).contiguous().movedim(-1, 2) if last else t


def results(
    name: str, y: Tensor, neuron: Neuron, *, training: bool, time_dim: int, **tensors: Tensor
) -> dict[str, Tensor]:
    """Everything that bn_lif returns and changes, and for random upstream gradients those of all that has one."""
    channels = y.shape[2]
    leaves = {
        "y": y,
        "weight": torch.linspace(0.6, 1.4, channels),
        "bias": torch.linspace(-0.2, 0.5, channels),
        **tensors,
    }
    leaves = {key: t.detach().requires_grad_() for key, t in leaves.items()}
    mean, var = torch.full((channels,), 0.3), torch.full((channels,), 1.7)
    with use_backend(name):
        out = bn_lif(
            **leaves,
            running_mean=mean,
            running_var=var,
            neuron=neuron,
            training=training,
            time_dim=time_dim,
            return_v=True,
            return_sam=True,
        )
        generator = torch.Generator().manual_seed(1)
        upstream = [torch.randn(o.shape, generator=generator).to(o.dtype) for o in out]
        gradients = torch.autograd.grad(list(out), list(leaves.values()), upstream)
    found = {**out._asdict(), "running_mean": mean, "running_var": var}
    return {k: t.detach() for k, t in found.items()} | {f"grad_{k}": g for k, g in zip(leaves, gradients, strict=True)}


def check(y: Tensor, neuron: Neuron, *, training: bool = True, time_dim: int = 0, **tensors: Tensor) -> None:
    # All that the backends sum in another order is a float64 sum, and rounds to the same float32 but for rare
    # accidents, which these inputs do not have.
    expected = results("reference", y, neuron, training=training, time_dim=time_dim, **tensors)
    actual = results("triton", y, neuron, training=training, time_dim=time_dim, **tensors)
    assert 0 < expected["spikes"].float().mean() < 1
    assert set(expected) == set(actual)
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype
        torch.testing.assert_close(actual[name], value, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("name", CASES)
def test_training(name: str, residual: bool) -> None:
    case = {"dtype": FP32, "last": False, "neuron": Neuron(), "time_dim": 0, **CASES[name]}
    y = values(case["shape"], case["dtype"], case["last"], 0)
    tensors = {"residual": values(case["shape"], case["dtype"], case["last"], 1)} if residual else {}
    check(y, case["neuron"], time_dim=case["time_dim"], **tensors)


@pytest.mark.parametrize("name", ["aligned", "channels-last, odd", "checkpoints"])
def test_running_statistics_and_a_first_potential(name: str) -> None:
    case = {"last": False, "neuron": Neuron(), **CASES[name]}
    y, residual = (values(case["shape"], FP32, case["last"], seed) for seed in (0, 1))
    check(y, case["neuron"], training=False, residual=residual, v_init=residual[0])


@pytest.mark.parametrize("per_channel", [False, True], ids=["one", "channel"])
@pytest.mark.parametrize("charge", ["decay", "leak", "leak_input"])
def test_learnable_leak(charge: str, per_channel: bool) -> None:
    neuron = Neuron(charge=charge, reset="soft_delayed" if charge == "leak" else "hard")
    leak = torch.linspace(0.3, 0.8, 5) + (charge != "decay")
    tensors = {str(neuron.leak_name): leak if per_channel else leak[:1]}
    last = charge == "leak"
    y, residual = (values((3, 2, 5, 3, 3), FP32, last, seed) for seed in (0, 1))
    check(y, neuron, residual=residual, **tensors)


@pytest.mark.parametrize("time_dim", [0, 1])
@pytest.mark.parametrize("time_steps", [3, 18])
def test_repeated_frame(time_steps: int, time_dim: int) -> None:
    frame = values((2, 3, 6, 4, 4)[1:], BF16, False, 0).unsqueeze(time_dim)
    y = frame.expand([time_steps if d == time_dim else -1 for d in range(5)])
    if time_dim == 0:
        check(y, SOFT, residual=values(tuple(y.shape), BF16, False, 1))
    else:
        check(y, DELAYED, time_dim=1)


def statistics(y: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    found = torch.empty(2, layout.channels, dtype=torch.float64), torch.empty(2, layout.channels, dtype=torch.float64)
    for implementation, moments in zip((reference, backend), found, strict=True):
        implementation.bn_statistics(layout, y, moments)
    return found


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize(
    ("size", "dtype"),
    [((1, 24, 18, 5, 16), FP32), ((2, 5, 16, 8, 8), BF16), ((2, 3, 7, 3, 3), FP16), ((1, 1, 3, 1, 2), FP32)],
    ids=str,
)
def test_statistics_are_within_two_ulp_of_float64(size: tuple[int, ...], last: bool, dtype: torch.dtype) -> None:
    # A mean of a thousand standard deviations: E[y^2] - E[y]^2 in float32 would have no correct digit.
    y = (values(size, FP32, last, 0) * 0.1 + 100.0 * torch.arange(size[2]).reshape(-1, 1, 1)).to(dtype)
    layout = layout_of(y, time_dim=0, time_steps=size[0], channel_dim=2)
    assert layout is not None
    expected, actual = (moments.float() for moments in statistics(y, layout))
    ulp = torch.nextafter(expected.abs(), torch.full_like(expected, float("inf"))) - expected.abs()
    assert ((actual - expected).abs() <= 2 * ulp).all()


def test_statistics_of_not_a_number_are_not_a_number() -> None:
    y = values((2, 2, 3, 2, 2), FP32, False, 0)
    y[1, 0, 1, 1, 1] = float("nan")
    layout = layout_of(y, time_dim=0, time_steps=2, channel_dim=2)
    assert layout is not None
    moments = statistics(y, layout)[1]
    assert moments[:, 1].isnan().all()
    assert not moments[:, [0, 2]].isnan().any()


def test_statistics_of_a_constant_have_no_variance() -> None:
    y = torch.full((2, 1, 2, 3, 3), 0.1)
    layout = layout_of(y, time_dim=0, time_steps=2, channel_dim=2)
    assert layout is not None
    assert torch.equal(statistics(y, layout)[1], torch.tensor([[0.1] * 2, [0.0] * 2]).double())
