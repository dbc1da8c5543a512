"""A SpikingJelly net trained with its own neurons and with converted ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ckd_kernels as ck

pytest.importorskip("spikingjelly", reason="spikingjelly is not installed (make test installs it)")
from spikingjelly.activation_based import functional, layer, neuron, surrogate


def losses(net, steps=20):
    """Loss curve of the example: a convolutional net over four time steps, classes read off the firing rates.

    In double precision: in float32 a last bit tips a spike after some fifteen steps, and the curves part.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 1, 12, 12, generator=generator).double()
    target = torch.randint(0, 10, (32,), generator=generator)
    x[torch.arange(32), 0, target] += 2.0
    net.double()
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    curve = []
    for _ in range(steps):
        loss = nn.functional.mse_loss(net(x.expand(4, *x.shape)).mean(0), nn.functional.one_hot(target, 10).double())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        functional.reset_net(net)
        curve.append(loss.item())
    return torch.tensor(curve)


def csnn():
    """The convolutional SNN of SpikingJelly's tutorial for Fashion-MNIST (Fang et al.), narrower, for 12x12."""
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Conv2d(1, 16, kernel_size=3, padding=1, bias=False),
        layer.BatchNorm2d(16),
        neuron.IFNode(surrogate_function=surrogate.ATan()),
        layer.MaxPool2d(2, 2),
        layer.Conv2d(16, 16, kernel_size=3, padding=1, bias=False),
        layer.BatchNorm2d(16),
        neuron.IFNode(surrogate_function=surrogate.ATan()),
        layer.MaxPool2d(2, 2),
        layer.Flatten(),
        layer.Linear(16 * 3 * 3, 32, bias=False),
        neuron.IFNode(surrogate_function=surrogate.ATan()),
        layer.Linear(32, 10, bias=False),
        neuron.IFNode(surrogate_function=surrogate.ATan()),
    )
    functional.set_step_mode(net, "m")
    return net


@pytest.mark.parametrize("fuse", [False, True], ids=["", "fuse"])
def test_training_gives_the_same_loss_curve(fuse):
    theirs, ours = csnn(), csnn()
    report = ck.convert(ours, fuse=fuse, strict=True)
    assert len(report.converted) == (6 if fuse else 4)
    expected = losses(theirs)
    assert expected[-1] < 0.7 * expected[0]
    torch.testing.assert_close(losses(ours), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("fuse", [False, True], ids=["", "fuse"])
def test_a_gradient_penalty_is_the_same(fuse):
    """The input's gradient, squared, and what it adds to the gradients of the parameters."""
    results = []
    for convert in (False, True):
        net = csnn().double()
        if convert:
            ck.convert(net, fuse=fuse, strict=True)
        x = torch.randn(4, 8, 1, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        penalty = gradient.square().sum() * 1e3
        penalty.backward()
        results.append([penalty.detach(), x.grad, *(p.grad for p in net.parameters())])
    for ours, theirs in zip(*results[::-1], strict=True):
        assert theirs.abs().sum() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


def test_vmap_over_a_converted_network():
    x, results = torch.randn(5, 4, 3, 6, generator=torch.Generator().manual_seed(0)) * 2, []
    for convert in (False, True):
        torch.manual_seed(0)
        node = neuron.LIFNode(step_mode="m", surrogate_function=surrogate.Sigmoid())
        net = nn.Sequential(layer.Linear(6, 7, step_mode="m"), node)
        if convert:
            ck.convert(net, strict=True)
        results.append(torch.vmap(net)(x))
        functional.reset_net(net)
    assert results[0].any()
    assert torch.equal(*results)
