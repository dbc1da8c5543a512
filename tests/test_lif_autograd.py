"""The ops as PyTorch sees them: opcheck, torch.compile, autocast, double backward, saved memory, DDP, threads."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading

import pytest
import torch
import torch._dynamo.testing

import ckd_kernels
from ckd_kernels import Neuron, lif, sam, surrogate, use_backend
from ckd_kernels.ops.lif import checkpoint_count
from lif_checks import Target
from reference_cases import Case, currents, make_neuron
from tolerances import assert_close, assert_same

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


def test_second_derivative_is_refused(target):
    x, upstream = leaf((4, 2, 3), target), torch.ones(4, 2, 3, device=target.device, requires_grad=True)
    with use_backend(target.backend):
        (g,) = torch.autograd.grad(lif(x, Neuron.paper()), x, upstream, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            g.sum().backward()


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
    with use_backend(target.backend):
        for shape in ((4, 2, 3, 5, 6), (4, 7, 3, 5, 6), (4, 7, 3, 9, 11), (9, 7, 3, 9, 11), (33, 2, 3, 5, 6)):
            x = leaf(shape, target)
            spikes = step(x)
            spikes.sum().backward()
            assert_same("spikes", spikes, lif(x, COMPILED))
    # Beyond 16 steps the potential is checkpointed: that is another graph.
    assert counter.frame_count <= 2


# --- processes and threads


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_result_does_not_depend_on_threads(target, threads):
    """Nor on the run: the same bits with any number of threads and every time."""
    case = Case(make_neuron("decay", "hard", surrogate_="sigmoid"), (5, 4, 6, 31, 33), v_init=True, leak="channel")
    x, v, decay = (t.to(target.device).requires_grad_() for t in (case.make_x(), case.make_v_init(), case.make_leak()))

    def run():
        with use_backend(target.backend):
            out = lif(x, case.neuron, v_init=v, decay=decay, return_sam=True, return_v=True)
            loss = (out.spikes.sum(), out.v.sum(), out.sam.sum())
            return *out, *torch.autograd.grad(loss, (x, v, decay))

    before = torch.get_num_threads()
    expected = run()
    try:
        torch.set_num_threads(threads)
        for _ in range(2):
            for a, b in zip(run(), expected, strict=True):
                assert_same("output or gradient", a, b)
    finally:
        torch.set_num_threads(before)


def test_many_threads_at_once(target):
    """Calls from several Python threads do not disturb one another."""
    neurons = [make_neuron("decay", reset) for reset in ("hard", "soft", "soft_delayed", "none")]
    x = leaf((6, 3, 4, 7), target).detach()
    results = {}

    with use_backend(target.backend):
        expected = [step_of(x, n) for n in neurons]

        def work(i):
            results[i] = [step_of(x, neurons[i]) for _ in range(20)]

        workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for w in workers:
            w.start()
        for w in workers:
            w.join()
    for i, runs in results.items():
        for spikes, gradient in runs:
            assert_same("spikes", spikes, expected[i][0])
            assert_same("gradient", gradient, expected[i][1])
    assert len(results) == 4


def step_of(x, neuron):
    x = x.clone().requires_grad_()
    spikes = lif(x, neuron)
    spikes.sum().backward()
    return spikes.detach(), x.grad


def run_python(code, cwd):
    """Runs code in a process of its own, which sees the very package that this one sees."""
    script = cwd / "code.py"
    script.write_text(textwrap.dedent(code))
    paths = [os.path.dirname(os.path.dirname(ckd_kernels.__file__)), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, script], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_fork(tmp_path):
    """A forked worker, as a DataLoader makes them, can run the kernels after its parent did."""
    code = """
        import os, torch
        from ckd_kernels import Neuron, lif
        x = torch.full((4, 64, 64, 8), 0.8)
        expected = lif(x, Neuron.paper())
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            os._exit(0 if torch.equal(lif(x, Neuron.paper()), expected) else 1)
        assert os.waitpid(child, 0)[1] == 0
        """
    run_python(code, tmp_path)


def test_distributed_data_parallel(tmp_path):
    """Two gloo processes that see half the batch each end with the gradients of the whole batch."""
    code = """
        import os, torch
        import torch.distributed as dist
        from torch.nn.parallel import DistributedDataParallel
        from ckd_kernels import layers

        def gradients(rank, world):
            torch.manual_seed(0)
            x = torch.randn(4, 6, 5) + 1
            linear = torch.nn.Linear
            model = net = torch.nn.Sequential(linear(5, 7), layers.LIF(), linear(7, 7), layers.ParametricLIF())
            if world > 1:
                dist.init_process_group("gloo", init_method="file://" + os.path.abspath("rendezvous"), rank=rank,
                                        world_size=world)
                x, model = x.chunk(world, dim=1)[rank], DistributedDataParallel(net)
            for _ in range(2):
                net.zero_grad()
                model(x).mean().backward()
            if rank == 0:
                torch.save([p.grad for p in net.parameters()], f"{world}.pt")
            if world > 1:
                dist.destroy_process_group()

        torch.set_num_threads(1)
        children = []
        for rank in range(2):
            children.append(os.fork())
            if children[-1] == 0:
                gradients(rank, 2)
                os._exit(0)
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
        gradients(0, 1)
        """
    run_python(code, tmp_path)
    alone, together = (torch.load(tmp_path / f"{world}.pt", weights_only=True) for world in (1, 2))
    assert len(alone) == 5
    for a, b in zip(together, alone, strict=True):
        assert b.abs().sum() > 0
        assert_close("gradient", a, b)
