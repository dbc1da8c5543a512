"""The short way past the dispatcher: taken where nobody watches, and only there."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from ckd_kernels import Neuron, bn_lif, lif, sam

NEURON = Neuron.paper()


def normalised(y: torch.Tensor) -> torch.Tensor:
    return bn_lif(y, torch.ones(3, device=y.device), None, None, None, NEURON)


CALLS = {"lif": lambda x: lif(x, NEURON), "bn_lif": normalised, "sam": sam}
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


@pytest.mark.parametrize("name", CALLS)
def test_nothing_else_goes_through_the_dispatcher(name):
    assert not profiled(lambda: CALLS[name](x()).sum().backward())
    assert not profiled(lambda: CALLS[name](x(requires_grad=False)))


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


@pytest.mark.parametrize("name", ["lif", "bn_lif"])
def test_derivatives_that_are_not_there_are_refused(name):
    """Also where no tensor says that it requires a gradient."""
    given = x(requires_grad=False)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        CALLS[name](forward_ad.make_dual(given, given))
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.jvp(CALLS[name], (given,), (given,))
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(lambda x: CALLS[name](x).sum())(given)
