"""bn_lif as PyTorch sees it: opcheck, torch.compile, saved memory, autocast, several processes."""

from __future__ import annotations

import pytest
import torch

from ckd_kernels import Neuron, bn_lif, use_backend
from ckd_kernels.call import checkpoint_count
from reference_cases import currents, make_neuron
from test_lif_autograd import fresh_dynamo  # noqa: F401
from test_lif_processes import run_python
from tolerances import assert_close, assert_same

OPS = torch.ops.ckd_kernels
NEURON = make_neuron("decay", "soft")


def leaf(shape, target, seed=0):
    return currents(shape, torch.float32, seed).to(target.device).requires_grad_()


def vectors(target, channels=3):
    return [torch.linspace(0.5, 1.0 + i, channels, device=target.device) for i in range(3)]


def test_opcheck(target):
    y = leaf((18, 2, 3, 4), target).detach()
    scale, shift, mean = vectors(target)
    v, leak, grad_sam = y[0].clone(), scale.clone(), torch.randn(2, 4, device=target.device)
    place = (NEURON.spec, target.backend, 0, 18, 2)
    torch.library.opcheck(OPS.bn_statistics.default, (y, *place[1:]))
    torch.library.opcheck(OPS.bn_statistics.default, (y[:1].contiguous(), *place[1:]))
    moments = OPS.bn_statistics(y, *place[1:])
    count = torch.tensor(3.0, dtype=torch.float64, device=target.device)
    fold = (11, 0.1, 1e-5, torch.float32, target.backend)
    torch.library.opcheck(OPS.bn_fold.default, (moments, scale, shift, mean, scale, count, *fold))
    torch.library.opcheck(OPS.bn_fold.default, (moments, None, None, None, None, None, *fold))
    torch.library.opcheck(OPS.bn_coefficients.default, (moments, scale, count, 11, target.backend))
    running = torch.zeros_like(mean), torch.ones_like(mean)
    norm = (scale, shift, *running, 0.1, 1e-5)
    forward = (y, None, *norm, y, v, leak, *place, True, True, True)
    torch.library.opcheck(OPS.bn_lif_forward.default, forward)
    folded, *_, checkpoints = OPS.bn_lif_forward(*forward)
    given = (y, folded, *(None,) * 4, 0.0, 0.0, None, None, None, *place, False, False, False)
    torch.library.opcheck(OPS.bn_lif_forward.default, given)
    backward = (y, folded, y, v, leak, checkpoints, y, v, grad_sam)
    torch.library.opcheck(OPS.bn_lif_reduce.default, (*backward, *place))
    torch.library.opcheck(OPS.bn_lif_backward.default, (*backward, None, True, *place, *(True,) * 5))
    torch.library.opcheck(OPS.bn_lif_backward.default, (*backward, folded, True, *place, True, *(False,) * 4))
    torch.library.opcheck(OPS.bn_lif_backward.default, (*backward, None, False, *place, False, True, *(False,) * 3))


@pytest.mark.parametrize("wanted", ["y", "weight", "bias", "residual", "y weight bias", "residual v_init decay"])
@pytest.mark.parametrize("training", [True, False])
def test_gradients_only_where_they_are_needed(target, wanted, training):
    scale, shift, mean = vectors(target)
    tensors = {"y": leaf((4, 2, 3, 5), target).detach(), "weight": scale, "bias": shift}
    tensors |= {"residual": leaf((4, 2, 3, 5), target, 1).detach(), "v_init": leaf((2, 3, 5), target, 2).detach()}
    tensors |= {"decay": torch.full((3,), 0.6, device=target.device)}
    upstream = torch.randn(4, 2, 3, 5, device=target.device)

    def gradients(names):
        leaves = {n: t.clone().requires_grad_(n in names) for n, t in tensors.items()}
        running = mean.clone(), torch.ones_like(mean)
        with use_backend(target.backend):
            y, weight, bias, *_ = leaves.values()
            rest = {n: leaves[n] for n in ("residual", "v_init", "decay")}
            bn_lif(y, weight, bias, *running, NEURON, training=training, **rest).backward(upstream)
        return {n: t.grad for n, t in leaves.items()}

    every, some = gradients(tensors), gradients(wanted.split())
    for name in tensors:
        assert every[name].abs().sum() > 0
        if name in wanted.split():
            assert_same(name, some[name], every[name])
        else:
            assert some[name] is None


@pytest.mark.parametrize("steps", [1, 4, 40])
def test_saved_for_backward(target, steps):
    """y, the residual, one value a channel, and the potential every 16 steps."""
    shape = (steps, 2, 3, 5, 4)
    y, residual = leaf(shape, target), leaf(shape, target, 1)
    weight = torch.ones(3, device=target.device, requires_grad=True)
    saved = {}

    def pack(t):
        saved[t.data_ptr()] = t.nbytes
        return t

    with use_backend(target.backend), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = bn_lif(y, weight, None, None, None, NEURON, residual=residual, return_v=True, return_sam=True)
    assert saved.pop(y.data_ptr()) == y.nbytes
    assert saved.pop(residual.data_ptr()) == residual.nbytes
    assert saved.pop(weight.data_ptr()) == weight.nbytes  # the parameter itself
    if steps > 16:
        assert checkpoint_count(steps) * y[0].nbytes in saved.values()
    per_channel = [n for n in saved.values() if n != checkpoint_count(steps) * y[0].nbytes]
    assert per_channel == [4 * 3 * 4]  # mean, 1/deviation, scale and shift
    assert out.spikes.requires_grad


def test_second_backward_gives_the_same_bits(target):
    y = leaf((4, 2, 3, 5), target)
    with use_backend(target.backend):
        loss = (bn_lif(y, None, None, None, None, NEURON) * y.detach()).sum()
    (first,) = torch.autograd.grad(loss, y, retain_graph=True)
    (second,) = torch.autograd.grad(loss, y)
    assert first.abs().sum() > 0
    assert_same("second gradient", second, first)


def test_autocast_changes_nothing(target):
    y = leaf((4, 2, 3, 5), target)
    weight = torch.ones(3, device=target.device)
    with use_backend(target.backend):
        plain = bn_lif(y, weight, None, None, None, NEURON)
        with torch.autocast(target.device, dtype=torch.bfloat16):
            assert_same("spikes", bn_lif(y, weight, None, None, None, NEURON), plain)
            spikes = bn_lif(y.bfloat16(), weight, None, None, None, NEURON)
    assert spikes.dtype == torch.bfloat16
    spikes.sum().backward()
    assert y.grad.dtype == torch.float32


@pytest.mark.parametrize("shape", [(4, 2, 3, 5), (20, 2, 3, 5)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_compile(target, shape, training, fresh_dynamo):  # noqa: F811
    """fullgraph=True, forward and backward, running statistics included: the bits of eager mode."""

    def step(y, weight, bias, residual, mean, var):
        out = bn_lif(y * 1.5, weight, bias, mean, var, NEURON, training=training, residual=residual, return_sam=True)
        return out.spikes * 2.0, out.sam

    scale, shift, mean = vectors(target)
    inputs = [leaf(shape, target), scale.requires_grad_(), shift.requires_grad_(), leaf(shape, target, 1)]
    upstream = [torch.randn(shape, device=target.device), torch.randn(shape[1], shape[3], device=target.device)]
    results = []
    with use_backend(target.backend):
        for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
            running = [mean.clone(), torch.ones_like(mean)]
            out = function(*inputs, *running)
            results.append([*out, *torch.autograd.grad(out, inputs, upstream), *running])
    for eager, compiled in zip(*results, strict=True):
        assert_same("output, gradient or running statistics", compiled, eager)
    assert (results[0][-1] != 1).all() == training


def test_statistics_over_two_processes(tmp_path):
    """Two gloo processes with parts of a batch, of different sizes, compute what one does with all of it."""
    code = """
        import os, torch
        import torch.distributed as dist
        from ckd_kernels import Neuron, bn_lif

        def run(rank, world):
            torch.manual_seed(0)
            y, residual, upstream = (torch.randn(4, 6, 3, 5, 5) for _ in range(3))
            group = None
            if world > 1:
                dist.init_process_group("gloo", init_method="file://" + os.path.abspath("rendezvous"), rank=rank,
                                        world_size=world)
                group = dist.group.WORLD
            part = slice(0, 6) if world == 1 else (slice(0, 4), slice(4, 6))[rank]
            y, residual, upstream = (t[:, part] for t in (y, residual, upstream))
            y = y.clone().requires_grad_()
            weight, bias = (torch.full((3,), value, requires_grad=True) for value in (0.8, 0.1))
            mean, var = torch.zeros(3), torch.ones(3)
            spikes = bn_lif(y, weight, bias, mean, var, Neuron.paper(), residual=residual, process_group=group)
            spikes.backward(upstream)
            result = [spikes.detach(), y.grad, weight.grad, bias.grad, mean, var]
            torch.save(result, f"{world}-{rank}.pt")
            if world > 1:
                dist.destroy_process_group()

        torch.set_num_threads(1)
        children = []
        for rank in range(2):
            children.append(os.fork())
            if children[-1] == 0:
                run(rank, 2)
                os._exit(0)
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
        run(0, 1)
        """
    run_python(code, tmp_path)
    alone, *parts = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1"))
    spikes, grad_y, *rest = alone
    assert_same("spikes", torch.cat([part[0] for part in parts], 1), spikes)
    assert_close("grad_y", torch.cat([part[1] for part in parts], 1), grad_y)
    for i, name in enumerate(("weight", "bias")):  # each process has its own part's, which DDP averages
        assert_close(name, parts[0][2 + i] + parts[1][2 + i], rest[i])
    for i, name in enumerate(("running_mean", "running_var"), start=2):
        assert_close(name, parts[0][2 + i], rest[i])
        assert_same(name, parts[1][2 + i], parts[0][2 + i])


# --- bad input


def call(**changed):
    arguments = {
        "y": torch.zeros(4, 2, 3, 5),
        "weight": torch.ones(3),
        "bias": torch.zeros(3),
        "running_mean": torch.zeros(3),
        "running_var": torch.ones(3),
        "neuron": Neuron.paper(),
    }
    return bn_lif(**{**arguments, **changed})


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"y": torch.zeros(4, 2, 3, 5, dtype=torch.int32)}, TypeError, "y must be float32.*int32"),
        ({"y": [1.0]}, TypeError, "y must be a torch.Tensor"),
        ({"neuron": "paper"}, TypeError, "neuron must be a ckd_kernels.Neuron"),
        ({"residual": torch.zeros(4, 2, 3, 4)}, ValueError, r"residual must have y's shape \(4, 2, 3, 5\)"),
        ({"residual": torch.zeros(4, 2, 3, 5).half()}, TypeError, "residual is torch.float16 but y is torch.float32"),
        ({"weight": torch.ones(4)}, ValueError, r"weight must have one value for each of the 3 channels.*\(4,\)"),
        ({"weight": torch.ones(3, dtype=torch.int64)}, TypeError, "weight must be a floating-point tensor.*int64"),
        ({"bias": 0.0}, TypeError, "bias must be a floating-point tensor of 3 values, got float"),
        ({"running_mean": torch.zeros(5)}, ValueError, "running_mean must have one value"),
        ({"running_var": None}, ValueError, "running_mean and running_var belong together"),
        ({"running_mean": None, "running_var": None, "training": False}, ValueError, "training=False"),
        ({"eps": 0.0}, ValueError, "eps must be a finite number > 0, got 0.0"),
        ({"eps": float("nan")}, ValueError, "eps must be a finite number > 0, got nan"),
        ({"momentum": 1.5}, ValueError, r"momentum must be a number in \[0, 1\], got 1.5"),
        ({"momentum": None}, TypeError, "momentum must be a number in .*got None"),
        ({"channel_dim": 0}, ValueError, "channel_dim and time_dim are both 0"),
        ({"channel_dim": 7}, ValueError, "channel_dim 7 is out of range"),
        ({"tau": torch.tensor(2.0)}, ValueError, "tau is not used with charge='decay'"),
        ({"v_init": torch.zeros(4)}, ValueError, "v_init must have"),
        ({"process_group": object()}, TypeError, "process_group must be a torch.distributed process group or None"),
        ({"process_group": torch.distributed.ProcessGroup(0, 1)}, RuntimeError, "torch.distributed is not initialised"),
        ({"y": torch.zeros(1, 1, 3, 1)}, ValueError, "Expected more than 1 value per channel"),
    ],
)
def test_bad_input_is_refused_before_any_launch(changed, error, message, no_launch):
    with pytest.raises(error, match=message):
        call(**changed)


def test_good_input_launches(no_launch):
    with pytest.raises(pytest.fail.Exception, match="launched"):
        call()
