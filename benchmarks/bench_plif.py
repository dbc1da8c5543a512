"""LIF whose decay is learnt, one number for all neurons: ours, a copy of the bytes of LIF, and the others."""

from __future__ import annotations

import functools

import peers
import pytest
import torch
from racing import DEVICES, OURS, floor

from ckd_kernels import Neuron, layers, use_backend

SHAPE = (4, 64, 512, 8, 8)
PEERS = ["fair-loop", "spikingjelly", "spikingjelly-cupy", "snntorch"]


def cases():
    for device in DEVICES:
        for dtype in (torch.float32, torch.bfloat16):
            for contestant in ["floor", *OURS[device], *PEERS]:
                if contestant != "spikingjelly-cupy" or device == "cuda":
                    yield device, SHAPE, dtype, "training", contestant


@pytest.mark.parametrize(("device", "shape", "dtype", "work", "contestant"), list(cases()), ids=str)
def test_plif(device, shape, dtype, work, contestant, enter):
    """Forward and backward, with the gradient of the decay."""
    torch.manual_seed(0)
    x = (torch.randn(shape) + 0.3).to(device=device, dtype=dtype).requires_grad_()
    upstream = torch.randn(shape).to(device=device, dtype=dtype)

    def build(name):
        if name == "floor":
            return floor(x.detach(), tensors=5)
        return peers.neuron_step(neuron(name, device), x, upstream)

    enter(build, elements=x.numel(), floor_bytes=5 * x.numel() * x.element_size())


def neuron(name, device):
    if name == "fair-loop":
        return functools.partial(peers.fair_loop, decay=torch.full((), 0.5, device=device, requires_grad=True))
    if not name.startswith("ours-"):
        return {
            "spikingjelly": lambda: peers.spikingjelly(learn=True).to(device),
            "spikingjelly-cupy": lambda: peers.spikingjelly(learn=True, backend="cupy").to(device),
            "snntorch": lambda: peers.snntorch(learn=True).to(device),
        }[name]()
    layer, backend = layers.ParametricLIF(Neuron.paper()).to(device), name.removeprefix("ours-")

    def ours(x):
        with use_backend(backend):
            return layer(x)

    return ours
