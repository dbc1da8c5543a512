"""`convert` against the real SpikingJelly: the same spikes and state, over its options, calls and resets."""

from __future__ import annotations

import copy
import io
import itertools

import pytest
import torch
from torch import nn

import ckd_kernels as ck
from ckd_kernels.interop import spikingjelly as interop
from reference_cases import currents
from tolerances import assert_close, assert_same

pytest.importorskip("spikingjelly", reason="spikingjelly is not installed (make test installs it)")
from spikingjelly.activation_based import functional, layer, neuron, surrogate

NODES = {
    "IF": lambda **o: neuron.IFNode(**o),
    "LIF": lambda **o: neuron.LIFNode(tau=2.7, **o),
    "LIF-no-decay-input": lambda **o: neuron.LIFNode(tau=2.7, decay_input=False, **o),
    # 1/tau is a power of two, by which multiplying and dividing is the same.
    "PLIF": lambda **o: neuron.ParametricLIFNode(init_tau=4.0, **o),
    "PLIF-no-decay-input": lambda **o: neuron.ParametricLIFNode(init_tau=2.0, decay_input=False, **o),
}
RESETS = [
    {"v_reset": v_reset, "detach_reset": detach, "v_threshold": threshold}
    for v_reset, detach, threshold in itertools.product((0.0, None, -0.25), (False, True), (1.0, 0.3))
]
SURROGATES = {
    "Sigmoid": surrogate.Sigmoid(),
    "ATan": surrogate.ATan(3.0),
    "PiecewiseQuadratic": surrogate.PiecewiseQuadratic(1.5),
    "PiecewiseExp": surrogate.PiecewiseExp(2.0),
    "SoftSign": surrogate.SoftSign(),
    "SuperSpike": surrogate.SuperSpike(),
    "Erf": surrogate.Erf(),
    "Rect": surrogate.Rect(0.8),
}
SHAPE = (5, 3, 4, 6)


def drive(seed, shape=SHAPE):
    """Currents strong enough for neurons that divide them by tau."""
    return currents(shape, torch.float32, seed) * 2.0


def pair(make, **options):
    """A multi-step node of theirs, and the same one converted."""
    theirs = make(step_mode="m", **options)
    ours = copy.deepcopy(theirs)
    report = ck.convert(ours)
    assert [entry.result for entry in report.entries] == [f"Fused{type(theirs).__name__}"]
    return theirs, ours


def run(node, x, weights):
    """Spikes, and gradients of x and of what the node learns."""
    x = x.clone().requires_grad_()
    spikes = node(x)
    wanted = [x, *node.parameters()]
    return spikes.detach(), torch.autograd.grad((spikes * weights).sum(), wanted)


def assert_like(ours, theirs):
    (spikes, gradients), (their_spikes, their_gradients) = ours, theirs
    assert 0.02 < their_spikes.mean() < 0.98
    assert_same("spikes", spikes, their_spikes)
    for gradient, expected in zip(gradients, their_gradients, strict=True):
        # The gradient of w is a sum over everything, whose terms cancel.
        scale = spikes.numel() ** 0.5 if expected.dim() == 0 else None
        assert_close("gradient", gradient, expected, scale=scale)


@pytest.mark.parametrize("options", RESETS, ids=lambda o: "-".join(str(v) for v in o.values()))
@pytest.mark.parametrize("make", NODES.values(), ids=NODES)
def test_calls_with_carried_state_and_a_reset(make, options):
    theirs, ours = pair(make, **options)
    for seed in range(4):
        x, weights = drive(seed), torch.randn(SHAPE)
        if seed == 3:
            for node in (theirs, ours):
                functional.reset_net(node)
            assert ours.v == theirs.v == (options["v_reset"] or 0.0)
        assert_like(run(ours, x, weights), run(theirs, x, weights))
        assert_same("v", ours.v, theirs.v)
        for node in (theirs, ours):
            functional.detach_net(node)


@pytest.mark.parametrize("decay_input", [True, False])
def test_parametric_lif_with_a_time_constant_that_is_no_power_of_two(decay_input):
    """We divide by tau where SpikingJelly multiplies by its inverse: the potential may be off in its last bits."""
    theirs, ours = pair(lambda **o: neuron.ParametricLIFNode(init_tau=2.7, decay_input=decay_input, **o))
    for seed in range(3):
        weights = torch.randn(SHAPE)
        assert_like(run(ours, drive(seed), weights), run(theirs, drive(seed), weights))
        assert_close("v", ours.v, theirs.v)
        for node in (theirs, ours):
            functional.detach_net(node)


@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize("make", NODES.values(), ids=NODES)
def test_surrogates(make, name):
    theirs, ours = pair(make, surrogate_function=SURROGATES[name])
    x, weights = drive(7), torch.randn(SHAPE)
    assert_like(run(ours, x, weights), run(theirs, x, weights))


def test_gradient_flows_through_the_carried_state():
    theirs, ours = pair(NODES["LIF"])
    gradients = []
    for node in (theirs, ours):
        first, second = (drive(seed).requires_grad_() for seed in (0, 1))
        node(first)
        (node(second).sum() + node.v.sum()).backward()
        gradients.append(first.grad)
    assert gradients[1].abs().max() > 0
    assert_close("gradient", gradients[1], gradients[0])


@pytest.mark.parametrize("make", NODES.values(), ids=NODES)
def test_autocast_computes_in_float32(make):
    """SpikingJelly keeps a bfloat16 state there, ours float32: compared with SpikingJelly in float32 on that input."""
    theirs, ours = pair(make)
    linear = nn.Linear(6, 6)
    x, weights = drive(0), torch.randn(SHAPE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = linear(x).detach() * 3.0
        spikes, gradients = run(ours, y, weights.bfloat16())
        theirs_in_bfloat16 = copy.deepcopy(theirs)(y)
    assert y.dtype == spikes.dtype == gradients[0].dtype == torch.bfloat16
    assert ours.v.dtype == torch.float32
    assert theirs_in_bfloat16.dtype == torch.bfloat16
    their_spikes, their_gradients = run(theirs, y.float(), weights.bfloat16().float())
    assert_same("spikes", spikes.float(), their_spikes)
    assert_close("gradient", gradients[0], their_gradients[0])


def test_conversion_in_the_middle_of_a_sequence():
    theirs = neuron.LIFNode(step_mode="m")
    theirs(drive(0))
    ours = copy.deepcopy(theirs)
    ck.convert(ours)
    assert_same("v", ours.v, theirs.v)
    x = drive(1)
    assert_same("spikes", ours(x), theirs(x))
    assert_same("v", ours.v, theirs.v)


def test_a_state_set_by_hand_and_one_that_does_not_fit():
    theirs, ours = pair(NODES["LIF"])
    for node in (theirs, ours):
        node.v = 0.6
    for shape in (SHAPE, (5, 2, 4, 6)):  # the second finds the first's state, which SpikingJelly forgets
        x = drive(2, shape)
        assert_same("spikes", ours(x), theirs(x))
        assert_same("v", ours.v, theirs.v)


def small_net():
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Conv2d(2, 8, 3, padding=1, bias=False),
        layer.BatchNorm2d(8),
        neuron.LIFNode(),
        layer.Conv2d(8, 8, 3, padding=1, bias=False),
        neuron.ParametricLIFNode(detach_reset=True),
    )
    functional.set_step_mode(net, "m")
    return net


X = currents((4, 2, 2, 6, 6), torch.float32, 0)


def test_a_converted_net_stays_the_net_that_it_was():
    net = small_net()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    seen = []
    net[2].register_forward_hook(lambda module, inputs, output: seen.append(output))
    keys, modules, parameters = list(net.state_dict()), list(net.modules()), list(net.parameters())
    functional.reset_net(net)  # SpikingJelly remembers which modules to reset
    report = ck.convert(net)
    assert [(e.name, e.result) for e in report.entries] == [("2", "FusedLIFNode"), ("4", "FusedParametricLIFNode")]
    assert list(net.state_dict()) == keys
    assert all(a is b for a, b in zip(net.modules(), modules, strict=True))
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    before = net[4].w.item()
    net(X).sum().backward()
    assert len(seen) == 1
    optimiser.step()
    assert net[4].w.item() != before
    assert isinstance(net[4].v, torch.Tensor)
    functional.reset_net(net)
    assert net[4].v == 0.0


def test_step_mode_can_change_after_conversion():
    theirs, ours = small_net(), small_net()
    ck.convert(ours)
    for net in (theirs, ours):
        functional.set_step_mode(net, "s")
    for x in X:
        assert_same("spikes", ours(x), theirs(x))
    for net in (theirs, ours):
        functional.set_step_mode(net, "m")
    assert_same("spikes", ours(X), theirs(X))


def test_attributes_that_change_after_conversion_count():
    theirs, ours = pair(NODES["LIF"])
    weights = torch.randn(SHAPE)
    x = drive(0)
    for node in (theirs, ours):
        node.surrogate_function.alpha = 1.5
        node.v_threshold = 0.5
    assert_like(run(ours, x, weights), run(theirs, x, weights))
    for node in (theirs, ours):
        functional.reset_net(node)
        node.store_v_seq = True  # nothing of ours: SpikingJelly's own code runs
    assert_same("spikes", ours(x), theirs(x))
    assert_same("v_seq", ours.v_seq, theirs.v_seq)


class Derived(neuron.LIFNode):
    pass


LEFT_ALONE = {
    "single step": (lambda: neuron.LIFNode(), "step_mode is 's'"),
    "v_seq": (lambda: neuron.IFNode(step_mode="m", store_v_seq=True), "store_v_seq"),
    "derived": (lambda: Derived(step_mode="m"), "Derived is none of IFNode"),
    "another": (lambda: neuron.QIFNode(step_mode="m"), "QIFNode is none of"),
    "surrogate": (
        lambda: neuron.IFNode(step_mode="m", surrogate_function=surrogate.S2NN()),
        "S2NN has no counterpart",
    ),
    "not spiking": (
        lambda: neuron.IFNode(step_mode="m", surrogate_function=surrogate.ATan(spiking=False)),
        "spiking=False",
    ),
    "scripted": (lambda: torch.jit.script(nn.Linear(2, 2)), "scripted"),
}


@pytest.mark.parametrize(("make", "reason"), LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_what_is_left_alone_is_listed_with_the_reason(make, reason):
    net = nn.Sequential(neuron.LIFNode(step_mode="m"), make())
    with pytest.raises(ValueError, match="nothing was"):
        ck.convert(net, strict=True)
    assert type(net[0]) is neuron.LIFNode
    own = type(net[1])
    report = ck.convert(net)
    (entry,) = report.left_alone
    assert entry.name == "1"
    assert reason in entry.reason
    assert reason in str(report)
    assert type(net[1]) is own
    assert type(net[0]).__name__ == "FusedLIFNode"


def test_shared_by_two_parents_converted_once_and_twice_is_once():
    node = neuron.LIFNode(step_mode="m")
    net = nn.ModuleDict({"a": nn.Sequential(nn.Identity(), node), "b": nn.Sequential(node)})
    (entry,) = ck.convert(net).entries
    assert entry.name == "a.1, b.0"
    assert net["a"][1] is net["b"][0] is node
    converted = type(node)
    assert ck.convert(net, strict=True).entries == ()
    assert type(node) is converted
    assert isinstance(node, neuron.LIFNode)


def test_copies_and_pickles():
    net = small_net()
    ck.convert(net, fuse=True)
    net.requires_grad_(False)(X)  # a state to copy
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    for other in (copy.deepcopy(net), torch.load(file, weights_only=False)):
        assert [type(m) for m in other] == [type(m) for m in net]
        assert_same("v", other[2].v, net[2].v)
        assert other[2].v is not net[2].v
        assert_same("spikes", other(X), copy.deepcopy(net)(X))


def test_a_class_of_pytorchs_in_front_of_ours():
    """Parametrisation changes a module's class too, as FSDP2 does."""
    theirs, ours = pair(NODES["PLIF"])
    for node in (theirs, ours):
        nn.utils.parametrize.register_parametrization(node, "w", nn.Identity())
    assert ours.__class__.__name__ == "ParametrizedFusedParametricLIFNode"
    expected = theirs(drive(0))
    assert_same("spikes", copy.deepcopy(ours)(drive(0)), expected)
    assert_same("spikes", ours(drive(0)), expected)
    for node in (theirs, ours):
        node.store_v_seq = True
    assert_same("spikes", ours(drive(1)), theirs(drive(1)))


@pytest.mark.parametrize("before", [True, False], ids=["converted-then-compiled", "compiled-then-converted"])
@pytest.mark.parametrize("fuse", [False, True], ids=["", "fuse"])
def test_torch_compile(before, fuse, monkeypatch):
    torch._dynamo.reset()
    theirs, ours = small_net(), small_net()
    compiled = torch.compile(ours, backend="aot_eager")
    if before:
        ck.convert(ours, fuse=fuse)
    else:
        compiled(X)
        functional.reset_net(ours)
        ours[1].reset_running_stats()
        ck.convert(compiled, fuse=fuse)
    calls = []
    monkeypatch.setattr(interop, "lif", lambda *a, **o: calls.append(a) or ck.lif(*a, **o))
    for _ in range(2):
        expected, spikes = theirs(X), compiled(X)
        assert_same("spikes", spikes, expected)
        assert_same("v", ours[4].v, theirs[4].v)
    spikes.sum().backward()
    expected.sum().backward()
    assert_close("gradient", ours[0].weight.grad, theirs[0].weight.grad)
    assert calls, "compiled code did not run on our kernels"


def test_scripted_models_are_refused():
    scripted = torch.jit.script(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(TypeError, match=r"before torch\.jit\.script"):
        ck.convert(scripted)
    with pytest.raises(TypeError, match="must be an nn"):
        ck.convert([small_net()])


def test_wrapped_in_ddp(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        theirs, ours = small_net(), small_net()
        wrapped = nn.parallel.DistributedDataParallel(ours)
        assert len(ck.convert(wrapped).converted) == 2
        spikes, expected = wrapped(X), theirs(X)
        assert_same("spikes", spikes, expected)
        spikes.sum().backward()
        expected.sum().backward()
        for parameter, their in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert_close("gradient", parameter.grad, their.grad)
    finally:
        torch.distributed.destroy_process_group()
