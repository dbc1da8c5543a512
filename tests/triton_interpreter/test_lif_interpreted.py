"""LIF in Triton, bit by bit against the reference backend."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from ckd_kernels import Neuron, lif, surrogate, use_backend

TRANSCENDENTAL = ("sigmoid", "piecewise_exp", "erf")
pytestmark = pytest.mark.usefixtures("poisoned")


def results(backend: str, x: Tensor, neuron: Neuron, **options: Any) -> dict[str, Tensor]:
    """Outputs of lif and, for random upstream gradients, the gradients of everything that has one."""
    leaves = {"x": x, **{name: value for name, value in options.items() if isinstance(value, Tensor)}}
    leaves = {name: value.detach().requires_grad_() for name, value in leaves.items()}
    with use_backend(backend):
        out = lif(**leaves, neuron=neuron, **{k: v for k, v in options.items() if k not in leaves})
    named = {"spikes": out} if isinstance(out, Tensor) else {k: v for k, v in out._asdict().items() if v is not None}
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(o.shape, generator=generator).to(o.dtype) for o in named.values()]
    with use_backend(backend):
        gradients = torch.autograd.grad(list(named.values()), list(leaves.values()), upstream)
    assert named["spikes"].stride() == x.stride() or 0 in x.stride()
    return {k: v.detach() for k, v in named.items()} | {f"grad_{k}": g for k, g in zip(leaves, gradients, strict=True)}


def check(x: Tensor, neuron: Neuron, *, some_spikes: bool = True, **options: Any) -> None:
    expected = results("reference", x, neuron, **options)
    actual = results("triton", x, neuron, **options)
    assert 0 < expected["spikes"].float().mean() < 1 or not some_spikes
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype
        if name.startswith("grad") and neuron.surrogate.name in TRANSCENDENTAL:
            torch.testing.assert_close(actual[name], value, rtol=2e-6, atol=1e-6)
        else:
            torch.testing.assert_close(actual[name], value, rtol=0, atol=0, equal_nan=True, msg=name)


def neurons() -> list[Neuron]:
    found = []
    for charge, reset, detach in itertools.product(
        ("decay", "leak", "leak_input", "integrate"), ("hard", "soft", "soft_delayed", "none"), (False, True)
    ):
        if not (reset == "none" and detach):
            tau = {"leak": 3.0, "leak_input": 2.0 if detach else 2.7}.get(charge)
            v_reset = -0.2 if reset == "hard" else None
            found.append(
                Neuron(
                    charge=charge,
                    reset=reset,
                    detach_reset=detach,
                    tau=tau,
                    v_reset=v_reset,
                    strict=detach,
                    threshold=0.9,
                )
            )
    return found


def current(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 0.4).to(dtype)


@pytest.mark.parametrize("neuron", neurons(), ids=lambda n: f"{n.charge}-{n.reset}-{'detach' * n.detach_reset}")
def test_every_neuron(neuron: Neuron) -> None:
    dtype = (torch.float32, torch.bfloat16, torch.float16)[len(neuron.spec) % 3]
    check(current(5, 1, 2, 4, 4, dtype=dtype), neuron, v_init=current(1, 2, 4, 4), return_v=True, return_sam=True)


@pytest.mark.parametrize("per_channel", [False, True], ids=["one", "channel"])
@pytest.mark.parametrize("charge", ["decay", "leak", "leak_input"])
def test_learnable_leak(charge: str, per_channel: bool) -> None:
    neuron = Neuron(charge=charge, reset="soft_delayed" if charge == "leak" else "hard")
    leak = torch.tensor([0.3, 0.8, 0.5]) + (charge != "decay")
    check(current(3, 2, 3, 3, 5), neuron, return_v=True, **{str(neuron.leak_name): leak if per_channel else leak[:1]})


@pytest.mark.parametrize("name", sorted(surrogate.BY_NAME))
def test_every_surrogate(name: str) -> None:
    check(current(3, 64), Neuron(charge="leak_input", surrogate=surrogate.BY_NAME[name]()))


@pytest.mark.parametrize("time_steps", [1, 2, 3, 4, 5, 8, 9, 16, 17, 41])
@pytest.mark.parametrize("frame", [16, 7], ids=["aligned", "odd"])
def test_every_length_of_time(time_steps: int, frame: int) -> None:
    # Groups of four steps and the rest; backward, short sequences, chunks of eight, and checkpoints.
    check(current(time_steps, frame), Neuron(reset="soft_delayed"), return_v=True)


LAYOUTS = {
    "time second": (current(3, 4, 2, 4, 4), {"time_dim": 1}),
    "channels last": (current(3, 2, 4, 4, 16).permute(0, 1, 4, 2, 3), {}),
    "channels last, odd": (current(3, 2, 4, 3, 5).permute(0, 1, 4, 2, 3), {}),
    "channels last, time second": (current(2, 3, 4, 4, 16).permute(0, 1, 4, 2, 3), {"time_dim": 1}),
    "wide": (current(2, 1, 20, 9, 16), {}),
    "odd": (current(2, 2, 20, 7, 7), {}),
    "no space": (current(3, 20, 80), {}),
    "channels innermost": (current(3, 2, 5, 4), {"channel_dim": 3}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout: str) -> None:
    x, where = LAYOUTS[layout]
    channels = x.shape[where.get("channel_dim", 2)]
    decay = torch.linspace(0.2, 0.9, channels)
    check(x, Neuron(), decay=decay, return_v=True, return_sam=True, **where)


@pytest.mark.parametrize("time_dim", [0, 1])
@pytest.mark.parametrize("time_steps", [3, 18])
def test_repeated_frame(time_steps: int, time_dim: int) -> None:
    frame = current(2, 3, 4, 4).unsqueeze(time_dim)
    sizes = [time_steps if d == time_dim else -1 for d in range(5)]
    check(frame.expand(sizes), Neuron(charge="leak_input"), time_dim=time_dim, return_sam=True)


def test_not_a_number_never_fires_and_infinity_does() -> None:
    x = current(6, 32)
    x[1, 3], x[2, 4], x[2, 5] = float("nan"), float("inf"), -float("inf")
    for reset in ("hard", "soft", "soft_delayed", "none"):
        check(x, Neuron(reset=reset), return_v=True)


def test_a_threshold_that_is_met_exactly() -> None:
    x = torch.full((2, 16), 1.0)
    for strict in (False, True):
        check(x, Neuron(charge="integrate", strict=strict), some_spikes=False, return_v=True)


def test_what_a_tile_has_beyond_the_tensor_counts_nowhere() -> None:
    # With this v_reset it would fire, and have a gradient.
    neuron = Neuron(v_reset=1.5, reset="hard")
    check(current(3, 1, 3, 3, 3), neuron, decay=torch.tensor([0.8]), return_sam=True)


def test_without_a_gradient_of_spikes() -> None:
    x = current(5, 1, 2, 4, 4)
    gradients = []
    for backend in ("reference", "triton"):
        leaf = x.clone().requires_grad_()
        with use_backend(backend):
            out = lif(leaf, Neuron(), return_v=True, return_sam=True)
            (out.v.sum() + (out.sam**2).sum()).backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)
