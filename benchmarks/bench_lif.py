"""LIF over all time steps: ours, a copy of the same bytes, PyTorch loops."""

from __future__ import annotations

import peers
import pytest
import torch
from racing import DEVICES, floor

from ckd_kernels import Neuron, lif, use_backend

CONTESTANTS = ["floor", "ours-cpu", "ours-cuda", "ours-triton", "published-loop", "fair-loop", "compiled-loop"]
SHAPES = [(1, 32, 128, 32, 32), (4, 32, 128, 32, 32), (1, 64, 512, 8, 8), (4, 64, 512, 8, 8), (100, 128, 700)]


def applies(contestant: str, device: str, work: str, shape: tuple[int, ...]) -> bool:
    if contestant.startswith("ours-"):
        return (contestant == "ours-cpu") == (device == "cpu")
    if contestant == "compiled-loop":
        # Unrolled 100 times it compiles for minutes.
        return work == "training" and shape[0] <= 4
    return True


def cases():
    for device in DEVICES:
        for shape in SHAPES:
            for dtype in (torch.float32, torch.bfloat16):
                for work in ("forward", "training"):
                    for contestant in CONTESTANTS:
                        if applies(contestant, device, work, shape):
                            yield device, shape, dtype, work, contestant


@pytest.mark.parametrize(("device", "shape", "dtype", "work", "contestant"), list(cases()), ids=str)
def test_lif(device, shape, dtype, work, contestant, enter):
    """forward: without a graph, x in and spikes out; training: forward and backward."""
    torch.manual_seed(0)
    x = (torch.randn(shape) + 0.3).to(device=device, dtype=dtype).requires_grad_(work == "training")
    upstream = torch.randn(shape).to(device=device, dtype=dtype)

    def build(name):
        if name == "floor":
            return floor(x.detach(), backward=work == "training")
        spikes_of = neuron(name)

        def step():
            spikes = spikes_of(x)
            if work == "training":
                spikes.backward(upstream)
                x.grad = None

        check_spikes(name, spikes_of, shape, device)
        return step

    enter(build)


def neuron(name):
    if not name.startswith("ours-"):
        return {
            "published-loop": peers.published_loop,
            "fair-loop": peers.fair_loop,
            "compiled-loop": peers.compiled_loop(),
        }[name]

    paper, backend = Neuron.paper(), name.removeprefix("ours-")

    def ours(x):
        with use_backend(backend):
            return lif(x, paper)

    return ours


def check_spikes(name, spikes_of, shape, device):
    """Contestants that compute something else are no contestants."""
    if name == "compiled-loop":
        return  # it may fuse multiplications and additions; and each check would be a compilation
    x = torch.randn(shape[0], 2, 300, device=device) + 0.3
    assert torch.equal(spikes_of(x), peers.fair_loop(x))
