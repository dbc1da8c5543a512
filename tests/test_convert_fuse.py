"""`convert(fuse=True)`: normalisation, residual and neuron in one call, where the model's code allows."""

from __future__ import annotations

import copy
import sys
import types

import pytest
import torch
from torch import nn

import ckd_kernels as ck
from ckd_kernels.interop import spikingjelly as interop
from ckd_kernels.interop.batch_norm import DeferredNorm
from reference_cases import currents
from tolerances import assert_close, assert_same

pytest.importorskip("spikingjelly", reason="spikingjelly is not installed (make test installs it)")
from spikingjelly.activation_based import functional, layer, neuron

X = currents((4, 2, 3, 6, 6), torch.float32, 0)


@pytest.fixture
def fused_calls(monkeypatch):
    """Residuals of the calls of `bn_lif`, None where there was none."""
    calls = []
    monkeypatch.setattr(interop, "bn_lif", lambda *a, **o: calls.append(o["residual"]) or ck.bn_lif(*a, **o))
    return calls


class Block(nn.Module):
    """A residual block; ``forward`` is the test's."""

    def __init__(self, forward, norm=layer.BatchNorm2d):
        super().__init__()
        torch.manual_seed(0)
        self.conv = layer.Conv2d(3, 3, 3, padding=1, bias=False)
        self.bn = norm(3)
        self.sn = neuron.LIFNode(tau=1.3)
        self.other = neuron.IFNode()
        self.code = forward
        nn.init.uniform_(self.bn.weight, 0.5, 2.0)
        nn.init.uniform_(self.bn.bias, 0.0, 0.5)
        functional.set_step_mode(self, "m")

    def forward(self, x):
        return self.code(self, x)


def in_place_residual(block, x):
    out = block.bn(block.conv(x))
    out += x
    return block.sn(out)


FORWARDS = {
    "plain": (lambda b, x: b.sn(b.bn(b.conv(x))), 0),
    "added": (lambda b, x: b.sn(b.bn(b.conv(x)) + x), 1),
    "added before": (lambda b, x: b.sn(x + b.bn(b.conv(x))), 1),
    "torch.add": (lambda b, x: b.sn(torch.add(x, b.bn(b.conv(x)))), 1),
    "method": (lambda b, x: b.sn(b.bn(b.conv(x)).add(x)), 1),
    "in place": (in_place_residual, 1),
}


def compare(ours, theirs, x=X, calls=2):
    """Spikes, state, gradients and running statistics over calls with carried state, then in eval()."""
    for _ in range(calls):
        spikes, expected = ours(x), theirs(x)
        assert expected.mean() > 0.02
        assert_same("spikes", spikes, expected)
    weights = torch.randn(spikes.shape)
    (spikes * weights).sum().backward()
    (expected * weights).sum().backward()
    for (name, actual), parameter in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert_close(name, actual.grad, parameter.grad, scale=parameter.grad.abs().max().item() + 1.0)
    for (name, actual), buffer in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
        torch.testing.assert_close(actual, buffer[1], rtol=1e-6, atol=1e-7, msg=name)
    assert_same("spikes", ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize(("forward", "residuals"), FORWARDS.values(), ids=FORWARDS)
def test_a_block_is_fused_by_what_its_forward_does(forward, residuals, fused_calls):
    theirs = Block(forward)
    ours = copy.deepcopy(theirs)
    report = ck.convert(ours, fuse=True, strict=True)
    assert (report.entries[0].name, report.entries[0].result) == ("bn", "fused into sn")
    compare(ours, theirs)
    assert len(fused_calls) == 3
    assert sum(residual is not None for residual in fused_calls) == 3 * residuals


NORMS = {
    "BatchNorm2d": layer.BatchNorm2d,
    "cumulative": lambda c: layer.BatchNorm2d(c, momentum=None),
    "no statistics": lambda c: layer.BatchNorm2d(c, track_running_stats=False),
    "threshold-dependent": lambda c: layer.ThresholdDependentBatchNorm2d(0.8, 1.0, c),
}


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_normalisations(norm, fused_calls):
    theirs = Block(FORWARDS["plain"][0], norm)
    ours = copy.deepcopy(theirs)
    ck.convert(ours, fuse=True, strict=True)
    compare(ours, theirs)
    assert len(fused_calls) == 3


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("fuse", [False, True], ids=["", "fuse"])
def test_channels_last(fuse, before, fused_calls):
    """In whichever order; what the neuron hands to the next convolution has the format that the convolution gave."""
    theirs = Block(FORWARDS["added"][0]).to(memory_format=torch.channels_last)
    ours = Block(FORWARDS["added"][0])
    if before:
        ours.to(memory_format=torch.channels_last)
    ck.convert(ours, fuse=fuse)
    if not before:
        ours.to(memory_format=torch.channels_last)
    frames = []
    ours.sn.register_forward_hook(lambda module, args, spikes: frames.append(spikes.flatten(0, 1)))
    compare(ours, theirs)
    assert len(frames) == 3
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in frames)
    assert len(fused_calls) == 3 * fuse


def test_fusing_after_converting(fused_calls):
    net = Block(FORWARDS["plain"][0])
    assert len(ck.convert(net).converted) == 2
    (entry,) = ck.convert(net, fuse=True).entries
    assert entry.result == "fused into sn"
    net(X)
    assert len(fused_calls) == 1
    assert ck.convert(net, fuse=True).entries == ()


def two_uses(block, x):
    out = block.bn(block.conv(x))
    return block.sn(out) + out.mean()


def conditional(block, x):
    return block.sn(block.bn(block.conv(x))) if x.sum() > 0 else x


APART = {
    "two uses": (two_uses, "more than one"),
    "called twice": (lambda b, x: b.sn(b.bn(b.bn(b.conv(x)))), "called 2 times"),
    "untraceable": (conditional, "cannot be traced"),
}


@pytest.mark.parametrize(("forward", "reason"), APART.values(), ids=APART)
def test_what_cannot_be_fused_stays_apart(forward, reason, fused_calls):
    theirs = Block(forward)
    ours = copy.deepcopy(theirs)
    (entry,) = ck.convert(ours, fuse=True).left_alone
    assert entry.name == "bn"
    assert reason in entry.reason
    compare(ours, theirs)
    assert not fused_calls


def test_a_shared_normalisation_stays_apart(fused_calls):
    """Under another name somebody else may call it."""
    theirs = Block(FORWARDS["plain"][0])
    theirs.alias = theirs.bn
    ours = copy.deepcopy(theirs)
    (entry,) = ck.convert(ours, fuse=True).left_alone
    assert (entry.name, entry.reason) == ("bn, alias", "it is shared, and may normalise for somebody else too")
    compare(ours, theirs)
    assert not fused_calls


def test_tracking_switched_off(fused_calls):
    """In training the batch's statistics, though there are running ones; those stay, and serve in evaluation."""
    theirs = Block(FORWARDS["plain"][0])
    theirs.bn.running_mean += 0.5
    theirs.bn.track_running_stats = False
    ours = copy.deepcopy(theirs)
    ck.convert(ours, fuse=True, strict=True)
    compare(ours, theirs)
    assert ours.bn.running_mean.tolist() == [0.5] * 3
    assert ours.bn.num_batches_tracked == 0
    assert len(fused_calls) == 3


def test_tracing_leaves_no_trace():
    def forward(block, x):
        block.seen = x
        block.sn.v = x[0]
        block.bn.running_mean += 1.0
        return block.sn(block.bn(block.conv(x)))

    net = Block(forward)
    ck.convert(net, fuse=True)
    assert not hasattr(net, "seen")
    assert net.sn.v == 0.0
    assert not net.bn.running_mean.any()


def in_place_twice(out, x):
    same = out
    out += x
    out += x
    return same


def test_what_tracing_did_not_see_still_computes_the_same(fused_calls):
    """The forward changes its ways after conversion: whoever looks at the normalised tensor gets it."""
    ways = {
        "mean": lambda out, x: out.mean() + out,
        "product": lambda out, x: 2.0 * out * out[0] - out,
        "torch": lambda out, x: torch.relu(out) + torch.stack([out, x]).sum(0),
        "two residuals": lambda out, x: out + x + x,
        "other dtype": lambda out, x: (out + x.double()).float(),
        "broadcast": lambda out, x: out + x[:1],
        "itself": lambda out, x: out + out,
        "in place": lambda out, x: (out.add_(x), out.mul_(2.0), out)[-1],
        "in place, twice": in_place_twice,
    }
    for name, way in ways.items():
        theirs = Block(FORWARDS["plain"][0])
        ours = copy.deepcopy(theirs)
        ck.convert(ours, fuse=True, strict=True)
        for net in (ours, theirs):
            net.code = lambda b, x, way=way: b.sn(way(b.bn(b.conv(x)), x))
        compare(ours, theirs)
        assert not fused_calls, name


def read_late(block, x, which):
    y = block.conv(x)
    out = block.bn(y) + x
    (y if which == "y" else x).add_(1.0)
    return out.mean()


def test_operands_that_are_modified_on_the_way_are_noticed():
    def modified(which):
        def forward(block, x):
            y = block.conv(x)
            out = block.bn(y) + x
            (y if which == "y" else x).add_(1.0)
            return block.sn(out)

        return forward

    for which in ("y", "residual"):
        net = Block(modified(which)).requires_grad_(False)
        net(X.clone())
        functional.reset_net(net)
        ck.convert(net, fuse=True)
        with pytest.raises(RuntimeError, match="in place before the neuron"):
            net(X.clone())
        # Whoever looks at the normalised tensor would see it computed from other numbers, too.
        net.code = lambda b, x, which=which: read_late(b, x, which)
        functional.reset_net(net)
        with pytest.raises(RuntimeError, match="in place before the neuron"):
            net(X.clone())
    with torch.inference_mode():
        inside = Block(FORWARDS["added"][0])
        ck.convert(inside, fuse=True)
        inside(X.clone())


def test_hooks_see_tensors(fused_calls):
    theirs = Block(FORWARDS["plain"][0])
    ours = copy.deepcopy(theirs)
    ck.convert(ours, fuse=True)
    inputs, outputs = [], []
    ours.sn.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    compare(ours, theirs)
    assert len(fused_calls) == 3
    # The neuron's input is a promise, kept when somebody looks; the running statistics do not see the batch again.
    before = ours.bn.running_mean.clone()
    assert isinstance(inputs[0], DeferredNorm)
    torch.testing.assert_close(inputs[0] + 0.0, theirs.train().bn(theirs.conv(X)))
    assert torch.equal(ours.bn.running_mean, before)
    ours.bn.register_forward_hook(lambda module, args, output: outputs.append(output))
    ours(X)
    assert isinstance(outputs[0], torch.Tensor)
    assert len(fused_calls) == 3


def test_single_step_mode_after_fusing():
    theirs = Block(FORWARDS["added"][0])
    ours = copy.deepcopy(theirs)
    ck.convert(ours, fuse=True)
    for net in (ours, theirs):
        functional.set_step_mode(net, "s")
    for x in X:
        assert_same("spikes", ours(x), theirs(x))


@pytest.fixture
def zoo(monkeypatch):
    """SpikingJelly's spiking ResNets.  Their module imports a downloader of weights from torchvision, stubbed here."""
    stub = types.ModuleType("torchvision.models.utils")
    stub.load_state_dict_from_url = None
    for module in (types.ModuleType("torchvision"), types.ModuleType("torchvision.models"), stub):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    from spikingjelly.activation_based.model import spiking_resnet

    return spiking_resnet


def test_spiking_resnet18_of_the_model_zoo(zoo, fused_calls):
    torch.manual_seed(0)
    theirs = zoo.spiking_resnet18(spiking_neuron=neuron.LIFNode, num_classes=10)
    functional.set_step_mode(theirs, "m")
    ours = copy.deepcopy(theirs)
    report = ck.convert(ours, fuse=True, strict=True)
    assert len(report.converted) == 17 + 17  # neurons, and all normalisations but those of the three downsamplings
    x = torch.randn(4, 2, 3, 32, 32)
    curves = []
    for net in (theirs, ours):
        optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
        curve = []
        for _ in range(3):
            loss = nn.functional.cross_entropy(net(x).mean(0), torch.tensor([1, 2]))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            functional.reset_net(net)
            curve.append(loss.item())
        curves.append(curve)
    assert len(fused_calls) == 3 * 17
    assert sum(residual is not None for residual in fused_calls) == 3 * 8
    assert curves[0][-1] < curves[0][0]
    torch.testing.assert_close(torch.tensor(curves[1]), torch.tensor(curves[0]), rtol=1e-4, atol=1e-5)
