"""The short way past the dispatcher: taken where nobody watches, and only there; and who may watch."""

from __future__ import annotations

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ckd_kernels import Neuron, bn_lif, layers, lif, sam

NEURON = Neuron.paper()


def normalised(y: torch.Tensor) -> torch.Tensor:
    return bn_lif(y, torch.ones(3, device=y.device), None, None, None, NEURON)


CALLS = {"lif": lambda x: lif(x, NEURON), "bn_lif": normalised, "sam": lambda x: sam(x)}
OPS = {"lif": {"lif_forward", "lif_backward"}, "bn_lif": {"bn_lif_forward", "bn_lif_backward"}, "sam": {"sam"}}


class Seen(TorchDispatchMode):
    """The names of our ops that the dispatcher hands to this mode."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "ckd_kernels":
            self.names.add(func._opname)
        return func(*args, **(kwargs or {}))


def x(requires_grad: bool = True) -> torch.Tensor:
    return torch.randn(4, 2, 3, 5, 5, generator=torch.Generator().manual_seed(0)).requires_grad_(requires_grad)


def profiled(call) -> set[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    return {event.key.removeprefix("ckd_kernels::") for event in profile.key_averages() if "ckd_kernels::" in event.key}


@pytest.mark.parametrize("name", CALLS)
def test_modes_see_every_op(name):
    given = x()
    with Seen() as seen:
        CALLS[name](given).sum().backward()
    assert seen.names == OPS[name]
    with Seen() as seen, torch.no_grad():
        CALLS[name](given)
    assert seen.names == {op for op in OPS[name] if "backward" not in op}


@pytest.fixture
def dispatched(monkeypatch) -> list[str]:
    """The names of our ops that were called by way of the dispatcher."""
    names: list[str] = []
    call = torch._ops.OpOverloadPacket.__call__

    def counting(self, *args, **kwargs):
        if self._qualified_op_name.startswith("ckd_kernels::"):
            names.append(self.__name__)
        return call(self, *args, **kwargs)

    monkeypatch.setattr(torch._ops.OpOverloadPacket, "__call__", counting)
    return names


@pytest.mark.parametrize("name", CALLS)
def test_nothing_goes_through_the_dispatcher_where_nobody_watches(name, dispatched):
    CALLS[name](x()).sum().backward()
    CALLS[name](x(requires_grad=False))
    assert dispatched == []
    with Seen():
        CALLS[name](x(requires_grad=False))
    assert dispatched


@pytest.mark.parametrize("grad", [False, True])
def test_a_traced_call_passes_the_dispatcher_once(grad, dispatched):
    """A graph calls the overload itself; behind it nothing comes back to the dispatcher, but where somebody watches."""
    op, plan = torch.ops.ckd_kernels.lif_forward.default, (NEURON.spec, "auto", 0, 4, -1, False, False, False)
    expected = lif(x(), NEURON)
    with torch.set_grad_enabled(grad):
        (spikes,) = op(x(), None, None, *plan)
    assert dispatched == []
    assert torch.equal(spikes, expected)
    assert spikes.requires_grad == grad
    with Seen() as seen:
        op(x(requires_grad=False), None, None, *plan)
    assert seen.names == {"lif_forward"}


def test_a_traced_call_on_what_a_transform_wraps():
    """Such tensors are of no other class, but have no memory that a kernel could read."""
    op, plan = torch.ops.ckd_kernels.lif_forward.default, (NEURON.spec, "auto", 0, 4, -1, False, False, False)

    def weighed(t):
        with torch.no_grad():
            (spikes,) = op(t, None, None, *plan)
        return (spikes * t).sum()

    given = x(requires_grad=False)
    assert torch.equal(torch.func.grad(weighed)(given), lif(given, NEURON))


@pytest.mark.parametrize("name", CALLS)
def test_the_profiler_shows_every_op(name):
    given = x()
    assert OPS[name] <= profiled(lambda: CALLS[name](given).sum().backward())


@pytest.mark.parametrize("name", CALLS)
def test_function_modes_see_every_op(name):
    class Heard(torch.overrides.TorchFunctionMode):
        names: tuple[str, ...] = ()

        def __torch_function__(self, func, types, args=(), kwargs=None):
            Heard.names += (getattr(func, "__name__", ""),)
            return func(*args, **(kwargs or {}))

    with Heard():
        CALLS[name](x(requires_grad=False))
    assert any(name in heard for heard in Heard.names)


def test_flops_of_a_network_are_counted():
    """A neuron has no matrix product: what its neighbours take is all."""
    net = torch.nn.Sequential(torch.nn.Linear(5, 7), layers.LIF(), torch.nn.Linear(7, 5), layers.BatchNormLIF(3))
    with FlopCounterMode(display=False) as flops:
        net(x()).sum().backward()
    assert flops.get_total_flops() == 2 * 3 * (2 * 5 * 7 * 4 * 2 * 3 * 5)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("name", CALLS)
def test_make_fx_records_the_ops(name, mode):
    def both_ways(given):
        leaf = given.detach().requires_grad_()
        out = CALLS[name](leaf)
        return out, torch.autograd.grad(out, leaf, torch.ones_like(out))[0]

    graph = make_fx(both_ways, tracing_mode=mode)(x(requires_grad=False))
    other = torch.randn(4, 2, 3, 5, 5)
    for actual, expected in zip(graph(other), both_ways(other), strict=True):
        assert torch.equal(actual, expected)
    recorded = {node.target._opname for node in graph.graph.nodes if "ckd_kernels" in str(node.target)}
    assert recorded == OPS[name]


@pytest.mark.parametrize("name", CALLS)
def test_without_a_graph_the_result_is_the_same(name):
    assert torch.equal(CALLS[name](x(requires_grad=False)), CALLS[name](x()))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_meta_tensors_have_shapes_only(name, requires_grad):
    out = CALLS[name](torch.empty_like(x(), device="meta").requires_grad_(requires_grad))
    assert out.is_meta
    assert out.shape == CALLS["sam" if name == "sam" else "lif"](x()).shape
    assert out.requires_grad == requires_grad


class Marked(torch.Tensor):
    """A tensor of another class, which hears of the ops that it is given to."""

    heard: tuple[str, ...] = ()

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        Marked.heard += (getattr(func, "__name__", ""),)
        return super().__torch_function__(func, types, args, kwargs)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_tensors_of_other_classes_hear_of_the_op(requires_grad):
    Marked.heard = ()
    lif(x().detach().as_subclass(Marked).requires_grad_(requires_grad), NEURON)
    assert any("lif_forward" in name for name in Marked.heard)
