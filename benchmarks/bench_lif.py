"""LIF over all time steps: ours, a copy of the same bytes, PyTorch loops, and what the libraries have.

``relu`` is no neuron: it shows what PyTorch's own operation needs for as many bytes, call and backward pass included.
"""

from __future__ import annotations

import peers
import pytest
import torch
from racing import DEVICES, OURS, floor

from ckd_kernels import Neuron, lif, use_backend

LOOPS = ["published-loop", "fair-loop"]
LIBRARIES = ["compiled-loop", "spikingjelly", "spikingjelly-cupy", "snntorch", "norse"]
SHAPES = [(1, 32, 128, 32, 32), (4, 32, 128, 32, 32), (1, 64, 512, 8, 8), (4, 64, 512, 8, 8), (100, 128, 700)]
WITH_LIBRARIES = (4, 64, 512, 8, 8)


def contestants(device: str, shape: tuple[int, ...], work: str) -> list[str]:
    found = ["floor", *OURS[device], "relu"]
    if shape == WITH_LIBRARIES:
        # Compiling takes longer than everything else.
        found += LOOPS + [name for name in LIBRARIES if work == "training" or name != "compiled-loop"]
    elif work == "training" and shape[0] > 1:
        # With 100 steps the published loop's backward is quadratic: it says nothing of the neuron.
        found += ["fair-loop"] if shape[0] > 4 else LOOPS
    return [name for name in found if name != "spikingjelly-cupy" or device == "cuda"]


def cases():
    for device in DEVICES:
        for shape in SHAPES:
            for dtype in (torch.float32, torch.bfloat16):
                for work in ("forward", "training"):
                    for contestant in contestants(device, shape, work):
                        yield device, shape, dtype, work, contestant


@pytest.mark.parametrize(("device", "shape", "dtype", "work", "contestant"), list(cases()), ids=str)
def test_lif(device, shape, dtype, work, contestant, enter):
    """forward: without a graph, x in and spikes out; training: forward and backward."""
    torch.manual_seed(0)
    x = (torch.randn(shape) + 0.3).to(device=device, dtype=dtype).requires_grad_(work == "training")
    upstream = torch.randn(shape).to(device=device, dtype=dtype)
    tensors = 5 if work == "training" else 2

    def build(name):
        if name == "floor":
            return floor(x.detach(), tensors=tensors)
        spikes_of = neuron(name, device)
        check_spikes(name, spikes_of, shape, device)
        return peers.neuron_step(spikes_of, x, upstream)

    enter(build, elements=x.numel(), floor_bytes=tensors * x.numel() * x.element_size())


def neuron(name, device):
    if not name.startswith("ours-"):
        return {
            "relu": lambda: torch.relu,
            "published-loop": lambda: peers.published_loop,
            "fair-loop": lambda: peers.fair_loop,
            "compiled-loop": peers.compiled_loop,
            "spikingjelly": peers.spikingjelly,
            "spikingjelly-cupy": lambda: peers.spikingjelly(backend="cupy"),
            "snntorch": lambda: peers.snntorch().to(device),
            "norse": lambda: peers.norse().to(device),
        }[name]()

    paper, backend = Neuron.paper(), name.removeprefix("ours-")

    def ours(x):
        with use_backend(backend):
            return lif(x, paper)

    return ours


def check_spikes(name, spikes_of, shape, device):
    """Contestants that compute something else are no contestants."""
    if name in ("relu", "compiled-loop", "norse"):
        return  # the loop may fuse multiplications and additions, the others are no such neuron
    x = torch.randn(shape[0], 2, 300, device=device) + 0.3
    assert torch.equal(spikes_of(x), peers.fair_loop(x))
