"""Derivatives beyond one backward pass: second ones, forward mode, and the transforms of `torch.func`."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from ckd_kernels import Neuron, bn_lif, layers, lif, sam, surrogate, use_backend
from reference_cases import make_neuron
from tolerances import assert_same

SHAPE = (5, 2, 3, 4)


def values(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def spike(h, neuron):
    """A spike with the surrogate's derivatives of any order: those of the step that it is the derivative of."""
    fired = h > neuron.threshold if neuron.strict else h >= neuron.threshold
    smooth = neuron.surrogate.primitive(h - neuron.threshold)
    return smooth + (fired.to(h.dtype) - smooth).detach()


def loop(x, neuron, v=None, leak=None):
    """The neuron written out, for autograd alone; spikes, last potential and map."""
    rest = neuron.rest
    v = torch.full_like(x[0], rest) if v is None else v
    if leak is None and neuron.leak_name:
        leak = torch.tensor(getattr(neuron, neuron.leak_name), dtype=x.dtype)
    elif leak is not None and leak.dim():
        leak = leak[:, None]
    spikes = []
    for frame in x:
        before = v
        h = {
            "decay": lambda v=v, f=frame: v * leak + f,
            "leak": lambda v=v, f=frame: v - (v - rest) / leak + f,
            "leak_input": lambda v=v, f=frame: v + (f - (v - rest)) / leak,
            "integrate": lambda v=v, f=frame: v + f,
        }[neuron.charge]()
        if neuron.reset == "soft_delayed":
            late = spike(before, neuron)
            h = h - (late.detach() if neuron.detach_reset else late) * neuron.threshold
        s = spike(h, neuron)
        spikes.append(s)
        s = s.detach() if neuron.detach_reset else s
        v = {"hard": (1 - s) * h + s * rest, "soft": h - s * neuron.threshold}.get(neuron.reset, h)
    stacked = torch.stack(spikes)
    return stacked, v, stacked.mean((0, 2))


def penalty(run, inputs):
    """Gradients of what a gradient penalty adds, and the first gradients."""
    out = run(*inputs)
    weights = [torch.randn(o.shape, dtype=o.dtype, generator=torch.Generator().manual_seed(5)) for o in out]
    loss = sum((o.square() * w).sum() for o, w in zip(out, weights, strict=True))
    first = torch.autograd.grad(loss, inputs, create_graph=True)
    total = sum((g * g).sum() for g in first)
    second = torch.autograd.grad(total, inputs, allow_unused=True)
    return [g.detach() for g in first], second


def compare(actual, expected):
    for ours, theirs in zip(itertools.chain(*actual), itertools.chain(*expected), strict=True):
        theirs = torch.zeros_like(ours) if theirs is None else theirs
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-7, atol=1e-9)
    assert any(g is not None and g.abs().sum() > 0 for g in expected[1])


NEURONS = [
    make_neuron(charge, reset, plain=False, surrogate_="sigmoid", detach_reset=detach)
    for charge, reset, detach in itertools.product(
        ("decay", "leak", "leak_input", "integrate"), ("hard", "soft", "soft_delayed", "none"), (False, True)
    )
    if not (detach and reset == "none")
]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("neuron", NEURONS, ids=lambda n: f"{n.charge}-{n.reset}-{n.detach_reset}")
def test_a_gradient_penalty(neuron, backend):
    """Of spikes, potential and map, by x, the first potential and a leak a channel."""
    leak = [torch.linspace(1.6, 2.4, 3, dtype=torch.float64) if neuron.leak_name == "tau" else values(3).sigmoid()]
    given = [values(*SHAPE) * 2, values(*SHAPE[1:], seed=1), *(leak if neuron.leak_name else [])]
    inputs = [t.requires_grad_() for t in given]

    def ours(x, v, leak=None):
        options = {} if leak is None else {neuron.leak_name: leak}
        return lif(x, neuron, v_init=v, return_v=True, return_sam=True, **options)

    with use_backend(backend):
        actual = penalty(lambda *t: [o.double() for o in ours(*t)], inputs)
    expected = penalty(lambda x, v, leak=None: loop(x, neuron, v, leak), inputs)
    for ours_, theirs in zip(itertools.chain(*actual), itertools.chain(*expected), strict=True):
        torch.testing.assert_close(ours_, torch.zeros_like(ours_) if theirs is None else theirs, rtol=1e-5, atol=1e-6)
    assert all(g is not None and g.abs().sum() > 0 for g in expected[0])


@pytest.mark.parametrize("name", ["atan", "piecewise_exp", "soft_sign", "erf", "triangle"])
def test_surrogates_have_second_derivatives(name):
    neuron = make_neuron("leak_input", "hard", plain=False, surrogate_=name)
    x = (values(*SHAPE) * 2).requires_grad_()
    compare(penalty(lambda x: [lif(x, neuron)], [x]), penalty(lambda x: [loop(x, neuron)[0]], [x]))


def test_third_derivatives():
    neuron, x = Neuron(surrogate=surrogate.Sigmoid(2.0)), (values(4, 2, 3) * 2).requires_grad_()
    results = []
    for run in (lambda x: lif(x, neuron), lambda x: loop(x[..., None], neuron)[0][..., 0]):
        g = run(x).square().sum()
        for _ in range(3):
            (g,) = torch.autograd.grad(g.square().sum(), x, create_graph=True)
        results.append(g.detach())
    assert results[1].abs().sum() > 0
    torch.testing.assert_close(*results, rtol=1e-7, atol=1e-9)


def normalised(y, weight, bias, residual, mean=None, var=None, eps=1e-3):
    dims = (0, 1, 3)
    mean = y.mean(dims) if mean is None else mean
    var = y.var(dims, unbiased=False) if var is None else var
    return ((y - mean[:, None]) / torch.sqrt(var[:, None] + eps)) * weight[:, None] + bias[:, None] + residual


@pytest.mark.parametrize("training", [True, False])
def test_a_gradient_penalty_through_normalisation(training):
    neuron = make_neuron("leak", "soft", plain=False, surrogate_="sigmoid")
    inputs = [values(*SHAPE) * 2, values(3, seed=1) + 1, values(3, seed=2), values(*SHAPE, seed=3)]
    inputs = [t.requires_grad_() for t in inputs]
    running = values(3, seed=4), values(3, seed=5).square() + 0.5

    def ours(y, weight, bias, residual):
        moved = [t.clone() for t in running]
        given = {"training": training, "eps": 1e-3, "residual": residual}
        return [bn_lif(y, weight, bias, *moved, neuron, **given)]

    def theirs(*given):
        return [loop(normalised(*given, *(() if training else running)), neuron)[0]]

    compare(penalty(ours, inputs), penalty(theirs, inputs))


def test_a_residual_that_depends_on_the_input():
    """Each input is differentiated by on its own, though one is made of the other."""
    neuron = Neuron(surrogate=surrogate.Sigmoid(3.0))
    y, ones = values(*SHAPE).requires_grad_(), torch.ones(3, dtype=torch.float64)
    given = {"eps": 1e-3}
    ours = penalty(lambda y: [bn_lif(y, ones, None, None, None, neuron, residual=y.tanh() * 2, **given)], [y])
    compare(ours, penalty(lambda y: [loop(normalised(y, ones, ones * 0, y.tanh() * 2), neuron)[0]], [y]))


def test_first_gradients_are_the_kernels_own():
    """`create_graph` changes no bit of them."""
    x = values(*SHAPE).float().requires_grad_()
    for run in (lambda: lif(x, Neuron.paper()), lambda: bn_lif(x, None, None, None, None, Neuron.paper())):
        plain, graph = (torch.autograd.grad(run().square().sum(), x, create_graph=c)[0] for c in (False, True))
        assert graph.requires_grad
        assert_same("gradient", graph.detach(), plain)


def test_frames_that_are_repeated():
    neuron, frame = Neuron(surrogate=surrogate.Sigmoid(3.0)), values(2, 3, 4).requires_grad_()
    actual = penalty(lambda f: [lif(f.expand(5, -1, -1, -1), neuron)], [frame])
    compare(actual, penalty(lambda f: [loop(f.expand(5, -1, -1, -1), neuron)[0]], [frame]))


def test_a_batch_of_gradients():
    x = values(4, 2, 3).requires_grad_()
    neuron, upstream = Neuron(surrogate=surrogate.Sigmoid(3.0)), values(6, 4, 2, 3, seed=1)
    spikes = lif(x, neuron)
    (together,) = torch.autograd.grad(spikes, x, upstream, is_grads_batched=True, retain_graph=True)
    alone = torch.stack([torch.autograd.grad(spikes, x, g, retain_graph=True)[0] for g in upstream])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)


def test_shared_statistics_have_no_second_derivatives(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        y, group = values(*SHAPE).requires_grad_(), torch.distributed.group.WORLD
        spikes = bn_lif(y, None, None, None, None, Neuron.paper(), process_group=group)
        with pytest.raises(RuntimeError, match=r"bn_lif with a process_group .*leave out create_graph"):
            torch.autograd.grad(spikes.sum(), y, create_graph=True)
        with pytest.raises(RuntimeError, match=r"process_group is not supported by torch.func"):
            torch.vmap(lambda y: bn_lif(y, None, None, None, None, Neuron.paper(), process_group=group))(y[None])
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("options", [{}, {"return_v": True, "return_sam": True}], ids=str)
def test_vmap(options):
    """Over networks' batches, as `torch.vmap` over a loop of calls."""
    neuron, x = Neuron.snntorch_leaky(0.8), values(6, 4, 2, 3, 5).float()
    run = functools.partial(lif, neuron=neuron, **options)
    together = torch.vmap(run)(x)
    alone = [run(one) for one in x]
    if not options:
        assert_same("spikes", together, torch.stack(alone))
        return
    for name in ("spikes", "v", "sam"):
        assert_same(name, getattr(together, name), torch.stack([getattr(one, name) for one in alone]))


def test_vmap_of_a_map_and_of_normalisation():
    x = values(6, 4, 2, 3, 5).float()
    assert_same("sam", torch.vmap(lambda s: sam(s))((x > 0).float()), torch.stack([sam((s > 0).float()) for s in x]))
    layer = layers.BatchNormLIF(3, track_running_stats=False)
    assert_same("spikes", torch.vmap(layer)(x).detach(), torch.stack([layer(one) for one in x]).detach())
    tracking = layers.BatchNormLIF(3).eval()
    assert_same("eval", torch.vmap(tracking)(x).detach(), torch.stack([tracking(one) for one in x]).detach())


def test_vmap_over_running_statistics_says_what_to_do():
    with pytest.raises(RuntimeError, match=r"running_mean and .*torch.vmap .*track_running_stats=False"):
        torch.vmap(layers.BatchNormLIF(3))(values(6, 4, 2, 3, 5).float())


def test_gradients_of_each_sample():
    """`torch.func`'s example: vmap of grad of a functional call."""
    net = nn.Sequential(nn.Linear(5, 6), layers.LIF(), nn.Linear(6, 4), layers.ParametricLIF()).double()
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    x = values(6, 4, 1, 5)

    def loss(parameters, x):
        return torch.func.functional_call(net, parameters, (x,)).square().sum()

    together = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for i, one in enumerate(x):
        net.zero_grad()
        net(one).square().sum().backward()
        for name, p in net.named_parameters():
            torch.testing.assert_close(together[name][i], p.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["lif", "bn_lif", "sam"])
def test_forward_mode(name):
    """A product with the Jacobian, by dual numbers and by `torch.func.jvp`, is the backward pass's."""
    neuron = Neuron(surrogate=surrogate.Sigmoid(3.0))
    run = {
        "lif": lambda x: lif(x, neuron),
        "bn_lif": lambda x: bn_lif(x, None, None, None, None, neuron),
        "sam": lambda x: sam(x),
    }[name]
    x, tangent = values(3, 2, 3), values(3, 2, 3, seed=1)
    jacobian = torch.autograd.functional.jacobian(run, x)
    expected = torch.einsum("...ijk,ijk->...", jacobian, tangent)
    assert expected.abs().sum() > 0
    with forward_ad.dual_level():
        spikes, product = forward_ad.unpack_dual(run(forward_ad.make_dual(x, tangent)))
    torch.testing.assert_close(spikes, run(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(product, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(torch.func.jvp(run, (x,), (tangent,))[1], expected, rtol=1e-9, atol=1e-12)


def test_functional_hessian():
    neuron, x = Neuron(surrogate=surrogate.Sigmoid(3.0)), values(3, 1, 2)
    hessian = torch.func.hessian(lambda x: lif(x, neuron).square().sum())(x)
    expected = torch.autograd.functional.hessian(lambda x: lif(x, neuron).square().sum(), x)
    assert expected.abs().sum() > 0
    torch.testing.assert_close(hessian, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("time_dim", "channel_dim"), [(0, 1), (0, 3), (1, 0), (1, 2), (1, 3)])
def test_axis_orders(time_dim, channel_dim):
    """Composed as by the kernels, wherever time and channels are: spikes, potential and map."""
    x = values(3, 3, 3, 3, 4).float()[:, :, :, :, :3]
    neuron, options = Neuron.paper(), {"time_dim": time_dim, "channel_dim": channel_dim}
    decay, both = torch.tensor([0.3, 0.6, 0.9]), {"return_v": True, "return_sam": True}
    weight, bias = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([0.1, 0.2, -0.3])
    calls = [
        lambda x: lif(x, neuron, decay=decay, **options, **both),
        lambda x: bn_lif(x, weight, bias, None, None, neuron, decay=decay, **options, **both),
        lambda x: bn_lif(x, weight, bias, bias, weight, neuron, training=False, **options, **both),
    ]
    for call in calls:
        together = torch.vmap(call)(x)
        for i, one in enumerate(x):
            for name, expected in call(one)._asdict().items():
                assert_same(name, getattr(together, name)[i], expected)
    together = torch.vmap(lambda s: sam(s, **options))((x > 0).float())
    assert_same("sam", together, torch.stack([sam((one > 0).float(), **options) for one in x]))


def test_running_statistics_move_in_forward_mode():
    """As without derivatives, and they carry none."""
    y = values(4, 2, 3, 5)
    plain, dual = layers.BatchNormLIF(3).double(), layers.BatchNormLIF(3).double()
    plain(y)
    with forward_ad.dual_level():
        dual(forward_ad.make_dual(y, torch.ones_like(y)))
        assert forward_ad.unpack_dual(dual.running_mean).tangent is None
    torch.testing.assert_close(dual.running_mean, plain.running_mean, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(dual.running_var, plain.running_var, rtol=1e-12, atol=1e-14)


def test_two_byte_types():
    """Storage is two bytes, arithmetic four; second derivatives come in the input's type."""
    x = values(*SHAPE).bfloat16().requires_grad_()
    wide = x.detach().float().requires_grad_()
    neuron, results = Neuron(surrogate=surrogate.Sigmoid(3.0)), []
    for t in (x, wide):
        (first,) = torch.autograd.grad(lif(t, neuron).float().square().sum(), t, create_graph=True)
        results.append(torch.autograd.grad(first.float().square().sum(), t)[0])
    assert results[0].dtype == torch.bfloat16
    torch.testing.assert_close(results[0].float(), results[1], rtol=0.05, atol=0.05)
