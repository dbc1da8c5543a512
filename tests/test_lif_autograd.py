"""The ops as PyTorch sees them: opcheck, torch.compile, autocast, double backward, saved memory, DDP, threads."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing

from ckd_kernels import Neuron, lif, sam, surrogate, use_backend
from ckd_kernels.call import checkpoint_count
from lif_checks import Target
from reference_cases import Case, currents, make_neuron
from tolerances import assert_same

OPS = torch.ops.ckd_kernels


def leaf(shape, target, dtype=torch.float32, seed=0):
    return currents(shape, dtype, seed).to(target.device).requires_grad_()


# --- the ops themselves


@pytest.mark.parametrize("checkpoints", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
def test_opcheck_forward(target, per_channel, checkpoints):
    neuron = make_neuron("decay", "hard")
    x = leaf((18, 2, 3, 4), target).detach()
    leak = torch.full((3,) if per_channel else (), 0.5, device=target.device)
    arguments = (x, x[0].clone(), leak, neuron.spec, target.backend, 0, 18, 2, True, True, checkpoints)
    torch.library.opcheck(OPS.lif_forward.default, arguments)
    torch.library.opcheck(OPS.lif_forward.default, (x, None, None, *arguments[3:]))
    repeated = (x[:1].contiguous(), None, None, *arguments[3:])
    torch.library.opcheck(OPS.lif_forward.default, repeated)


def test_opcheck_backward(target):
    neuron = make_neuron("decay", "soft")
    x = leaf((18, 2, 3, 4), target).detach()
    v, leak = x[0].clone(), torch.full((3,), 0.5, device=target.device)
    with use_backend(target.backend):
        *_, checkpoints = OPS.lif_forward(x, v, leak, neuron.spec, target.backend, 0, 18, 2, False, False, True)
    grad_sam = torch.randn(2, 4, device=target.device)
    options = (neuron.spec, target.backend, 0, 18, 2, True, True)
    torch.library.opcheck(OPS.lif_backward.default, (x, v, leak, checkpoints, x, v, grad_sam, *options))
    torch.library.opcheck(OPS.lif_backward.default, (x, v, leak, checkpoints, None, v, None, *options))


def test_opcheck_sam(target):
    spikes = (leaf((4, 2, 3, 5), target).detach() > 0).float()
    torch.library.opcheck(OPS.sam.default, (spikes, target.backend, 0, 4, 2))


def test_gradcheck_of_a_smooth_neuron(target):
    """A neuron that never fires and whose reset is detached is linear in x, v and decay: numerical derivatives hold."""
    if target.backend in ("cuda", "triton"):
        pytest.skip("GPU kernels have no float64")
    for charge in ("decay", "leak", "leak_input"):
        neuron = make_neuron(charge, "soft", threshold=1e6, detach_reset=True, surrogate_="rectangle")
        x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
        v = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
        leak = torch.full((3,), 1.7 if charge != "decay" else 0.6, dtype=torch.float64, requires_grad=True)

        def run(x, v, leak, neuron=neuron):
            with use_backend(target.backend):
                name = neuron.leak_name
                return lif(x, neuron, v_init=v, return_v=True, channel_dim=2, **{name: leak}).v

        assert torch.autograd.gradcheck(run, (x, v, leak))


def test_gradcheck_of_sam(target):
    if target.backend in ("cuda", "triton"):
        pytest.skip("GPU kernels have no float64")
    spikes = torch.randn(4, 2, 3, 5, dtype=torch.float64, requires_grad=True)
    with use_backend(target.backend):
        assert torch.autograd.gradcheck(lambda s: sam(s), (spikes,))


# --- autograd


def test_backward_twice(target):
    """With retain_graph the second pass gives the same bits, and accumulates."""
    x = leaf((18, 2, 3), target)
    with use_backend(target.backend):
        loss = (lif(x, Neuron.paper()) * 3).sum()
        loss.backward(retain_graph=True)
        first = x.grad.clone()
        loss.backward()
    assert_same("second gradient", x.grad, 2 * first)
    assert first.abs().sum() > 0
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("wanted", ["x", "v_init", "decay", "x v_init", "v_init decay", "x v_init decay"])
def test_gradients_only_where_they_are_needed(target, wanted):
    case = Case(make_neuron("decay", "hard"), v_init=True, leak="channel")
    tensors = {"x": case.make_x(), "v_init": case.make_v_init(), "decay": case.make_leak()}
    tensors = {name: t.to(target.device) for name, t in tensors.items()}

    def gradients(names):
        leaves = {name: t.clone().requires_grad_(name in names) for name, t in tensors.items()}
        with use_backend(target.backend):
            x, v, decay = leaves.values()
            lif(x, case.neuron, v_init=v, decay=decay, channel_dim=2).sum().backward()
        return {name: t.grad for name, t in leaves.items()}

    every, some = gradients(tensors), gradients(wanted.split())
    for name in tensors:
        if name in wanted.split():
            assert_same(name, some[name], every[name])
        else:
            assert some[name] is None


@pytest.mark.parametrize("used", ["spikes", "v", "sam"])
def test_gradient_of_one_output_alone(target, used):
    """An output that the loss does not use counts as one with gradient zero."""
    case = Case(make_neuron("leak", "soft"), v_init=True)
    x = leaf(case.shape, target)

    def gradient(weights):
        with use_backend(target.backend):
            out = lif(x, case.neuron, return_v=True, return_sam=True)
            parts = [w * getattr(out, name).sum() for name, w in weights.items()]
            return torch.autograd.grad(sum(parts), x)[0]

    zeros = dict.fromkeys(("spikes", "v", "sam"), 0.0)
    assert_same("gradient", gradient({used: 2.0}), gradient({**zeros, used: 2.0}))


def test_no_graph_without_need(target):
    x = leaf((4, 2, 3), target)
    with use_backend(target.backend):
        assert not lif(x.detach(), Neuron.paper()).requires_grad
        with torch.no_grad():
            assert not lif(x, Neuron.paper()).requires_grad
        with torch.inference_mode():
            assert not lif(x.detach(), Neuron.paper(), return_v=True).v.requires_grad
        assert lif(x, Neuron.paper()).requires_grad


@pytest.mark.parametrize("options", [{}, {"return_v": True, "return_sam": True}], ids=["spikes", "everything"])
@pytest.mark.parametrize("steps", [1, 4, 16])
def test_saved_for_backward_is_x_alone(target, steps, options):
    x = leaf((steps, 2, 3, 5), target)
    assert saved_bytes(x, target, options) == {x.data_ptr(): x.nbytes}


def test_saved_for_backward_of_long_sequences(target):
    """x and, every 16 steps, the potential."""
    x = leaf((100, 2, 3, 5), target)
    saved = saved_bytes(x, target, {})
    assert saved.pop(x.data_ptr()) == x.nbytes
    assert sum(saved.values()) == checkpoint_count(100) * x[0].nbytes == 6 * x[0].nbytes


def test_saved_for_backward_of_a_repeated_frame(target):
    frame = leaf((2, 3, 5), target)
    assert saved_bytes(frame.expand(8, 2, 3, 5), target, {}) == {frame.data_ptr(): frame.nbytes}


def saved_bytes(x, target, options):
    saved = {}

    def pack(t):
        saved[t.data_ptr()] = t.nbytes
        return t

    with use_backend(target.backend), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        lif(x, Neuron.paper(), **options)
    return saved


def test_backward_runs_on_the_forward_pass_backend(target, monkeypatch):
    """The backend is chosen once, when the forward pass runs."""
    from ckd_kernels.backends import reference

    x = leaf((4, 2, 3), target)
    with use_backend(target.backend):
        loss = lif(x, Neuron.paper()).sum()
    calls = []
    original = reference.lif_backward
    monkeypatch.setattr(reference, "lif_backward", lambda *a: (calls.append(1), original(*a)))
    with use_backend("reference"):
        loss.backward()
    assert len(calls) == (target.backend == "reference")


def test_autocast_changes_nothing(target):
    """The op computes in the dtype that it is given; under autocast that is what the layer before made."""
    x = leaf((4, 2, 3, 5), target)
    linear = torch.nn.Linear(5, 5, device=target.device)
    with use_backend(target.backend):
        plain = lif(x, Neuron.paper())
        with torch.autocast(target.device, dtype=torch.bfloat16):
            assert_same("spikes", lif(x, Neuron.paper()), plain)
            current = linear(x)
            spikes = lif(current, Neuron.paper())
            assert current.dtype == spikes.dtype == torch.bfloat16
        spikes.sum().backward()
    assert x.grad.dtype == torch.float32
    assert linear.weight.grad.dtype == torch.float32


# --- torch.compile


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def training_step(x, v, decay):
    out = lif(x * 1.5, COMPILED, v_init=v, decay=decay, return_v=True, return_sam=True)
    return out.spikes * 2.0, out.v, out.sam


COMPILED = Neuron(charge="decay", decay=0.9, surrogate=surrogate.ATan())


@pytest.mark.parametrize("shape", [(4, 2, 3, 5), (20, 2, 3, 5)], ids=str)
def test_compile(target, shape, fresh_dynamo):
    """fullgraph=True, forward and backward: the bits of eager mode."""
    check_compiled(target, shape, "aot_eager")


def test_compile_with_inductor(fresh_dynamo):
    """Generated code around the op that the machine's own choice of backend serves."""
    check_compiled(Target("auto", "cuda" if torch.cuda.is_available() else "cpu"), (20, 2, 3, 5), "inductor")


def check_compiled(target, shape, compiler):
    inputs = [leaf(shape, target), leaf(shape[1:], target, seed=1), torch.full((3,), 0.9, device=target.device)]
    inputs[2].requires_grad_()
    upstream = [torch.randn(shape), torch.randn(shape[1:]), torch.randn(shape[1], shape[3])]
    upstream = [t.to(target.device) for t in upstream]
    with use_backend(target.backend):
        eager = training_step(*inputs)
        eager_gradients = torch.autograd.grad(eager, inputs, upstream)
        compiled = torch.compile(training_step, fullgraph=True, backend=compiler)(*inputs)
        gradients = torch.autograd.grad(compiled, inputs, upstream)
    for name, a, b in zip(("spikes", "v", "sam"), compiled, eager, strict=True):
        assert_same(name, a, b)
    for name, a, b in zip(("x", "v_init", "decay"), gradients, eager_gradients, strict=True):
        assert_same(name, a, b)


def test_compile_once_for_every_shape(target, fresh_dynamo):
    """A new batch size, resolution or T compiles nothing."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    step = torch.compile(lambda x: lif(x, COMPILED), fullgraph=True, dynamic=True, backend=counter)
    graphs = []
    with use_backend(target.backend):
        for shape in ((4, 2, 3, 5, 6), (4, 7, 3, 5, 6), (4, 7, 3, 9, 11), (9, 7, 3, 9, 11), (33, 2, 3, 5, 6)):
            x = leaf(shape, target)
            spikes = step(x)
            spikes.sum().backward()
            assert_same("spikes", spikes, lif(x, COMPILED))
            graphs.append(counter.frame_count)
    # Beyond 16 steps the potential is checkpointed: that is another graph.  None is made twice, either.
    assert graphs == [1, 1, 1, 1, 2]
