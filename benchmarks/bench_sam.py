"""Spike activation maps: beside the spikes of LIF, and of spikes that exist already."""

from __future__ import annotations

import peers
import pytest
import torch
from racing import DEVICES, OURS, floor

from ckd_kernels import Neuron, lif, sam, use_backend

SHAPES = [(1, 32, 128, 32, 32), (4, 32, 128, 32, 32), (4, 64, 512, 8, 8)]


def cases(contestants):
    for device in DEVICES:
        for shape in SHAPES:
            for dtype in (torch.float32, torch.bfloat16):
                for work in ("forward", "training"):
                    for contestant in contestants(device, work):
                        yield device, shape, dtype, work, contestant


def beside(device, work):
    return ["floor", *(f"{ours}{rest}" for ours in OURS[device] for rest in ("", "+sam", "+mean"))]


@pytest.mark.parametrize(("device", "shape", "dtype", "work", "contestant"), list(cases(beside)), ids=str)
def test_lif_with_sam(device, shape, dtype, work, contestant, enter):
    """LIF alone, with the map from the same pass, and with PyTorch's mean of its spikes."""
    torch.manual_seed(0)
    x = (torch.randn(shape) + 0.3).to(device=device, dtype=dtype).requires_grad_(work == "training")
    upstream = torch.randn(shape).to(device=device, dtype=dtype)
    upstream_map = torch.randn(shape[1], *shape[3:], device=device)
    paper = Neuron.paper()
    tensors = 5 if work == "training" else 2

    def build(name):
        if name == "floor":
            return floor(x.detach(), tensors=tensors)
        backend, _, with_map = name.removeprefix("ours-").partition("+")

        def step():
            with use_backend(backend):
                if with_map == "sam":
                    out = lif(x, paper, return_sam=True)
                    outputs, gradients = [out.spikes, out.sam], [upstream, upstream_map]
                elif with_map == "mean":
                    spikes = lif(x, paper)
                    outputs, gradients = [spikes, peers.mean_map(spikes)], [upstream, upstream_map]
                else:
                    outputs, gradients = [lif(x, paper)], [upstream]
                if work == "training":
                    torch.autograd.backward(outputs, gradients)
                    x.grad = None

        return step

    enter(build, elements=x.numel(), floor_bytes=tensors * x.numel() * x.element_size())


def apart(device, work):
    return [] if work == "training" else ["floor", *OURS[device], "mean"]


@pytest.mark.parametrize(("device", "shape", "dtype", "work", "contestant"), list(cases(apart)), ids=str)
def test_sam(device, shape, dtype, work, contestant, enter):
    """Of spikes that exist already; the floor moves the bytes that have to be read."""
    torch.manual_seed(0)
    spikes = (torch.rand(shape) < 0.2).to(device=device, dtype=dtype)

    def build(name):
        if name == "floor":
            return floor(spikes, tensors=1)
        if name == "mean":
            return lambda: peers.mean_map(spikes)
        with use_backend(name.removeprefix("ours-")):
            torch.testing.assert_close(sam(spikes), peers.mean_map(spikes))

        def ours():
            with use_backend(name.removeprefix("ours-")):
                return sam(spikes)

        return ours

    enter(build, elements=spikes.numel(), floor_bytes=spikes.numel() * spikes.element_size())
