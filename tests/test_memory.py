"""One-bit saved spikes: what is packed, what is left alone, and that gradients are the same bits."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from ckd_kernels import layers, lif, memory, one_bit_spikes, use_backend
from memory_checks import PAPER, Network, assert_same_gradients, currents, gradients
from reference_cases import MEMORY, arrange
from tolerances import assert_same


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_gradients_are_the_same_bits(target, dtype, channels_last, packs):
    if dtype == torch.float64 and target.backend in ("cuda", "triton"):
        pytest.skip("GPU kernels have no float64")
    module = Network().to(target.device, dtype)
    if channels_last:
        module = module.to(memory_format=torch.channels_last)
    x = currents(3, 2, 3, 8, 8, dtype=dtype, device=target.device)
    with use_backend(target.backend):
        plain = gradients(module, x)
        assert packs == []
        assert_same_gradients(gradients(module, x, one_bit_spikes()), plain)
    # The first layer's spikes once, though two convolutions save them; a flattened channels-last tensor is a copy. On a
    # GPU convolutions of float64 are contiguous whatever they are asked for.
    copied = channels_last and not (torch.device(target.device).type == "cuda" and dtype == torch.float64)
    assert packs == [3 * 2 * 6 * 8 * 8, 3 * 2 * 5 * 4 * 4][: 1 if copied else 2]


def test_spikes_of_normalised_neurons(packs):
    """A residual network of BatchNormLIF: convolution, neuron, convolution, residual, neuron."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
    norms = [layers.BatchNormLIF(6) for _ in range(2)]
    head = nn.Linear(6 * 8 * 8, 7)
    module = nn.ModuleList([first, second, *norms, head])

    def run(x):
        spikes = norms[0](first(x.flatten(0, 1)).unflatten(0, x.shape[:2]))
        out = norms[1](second(spikes.flatten(0, 1)).unflatten(0, x.shape[:2]), spikes)
        return head(out.flatten(2))

    x = currents(3, 2, 3, 8, 8)
    with use_backend("reference"):
        plain = gradients(module, x, run=run)
        assert_same_gradients(gradients(module, x, one_bit_spikes(), run), plain)
    assert set(packs) == {3 * 2 * 6 * 8 * 8}
    assert len(packs) == 2


VIEWS = {
    "itself": lambda s: s,
    "flatten": lambda s: s.flatten(0, 1),
    "one step": lambda s: s[2],
    "every other step": lambda s: s[1::2],
    "some channels": lambda s: s[:, :, 1:3],
    "transposed": lambda s: s.transpose(0, 1),
    "permuted": lambda s: s.permute(2, 4, 0, 1, 3),
    "last element": lambda s: s[-1, -1, -1, -1, -1:],
    "scalar": lambda s: s[1, 1, 1, 1, 1],
    "expanded": lambda s: s.unsqueeze(1).expand(-1, 3, -1, -1, -1, -1),
    "diagonal": lambda s: s.diagonal(dim1=3, dim2=4),
    "windows": lambda s: s.unfold(4, 3, 2),
    "detached": lambda s: s.detach(),
    "a view of a view": lambda s: s.flatten()[5:].view(-1)[3:200],
}


@pytest.mark.parametrize("memory_format", MEMORY)
@pytest.mark.parametrize("name", VIEWS)
def test_views(name, memory_format, packs):
    """A view is restored with its strides, out of the bits of the whole."""
    w = torch.tensor(1.0, requires_grad=True)
    with one_bit_spikes():
        spikes = lif(arrange(currents(4, 2, 5, 3, 3), memory_format), PAPER)
        view = VIEWS[name](spikes)
        out = view * w
    is_view = view.untyped_storage().data_ptr() == spikes.untyped_storage().data_ptr()
    assert is_view or name in ("flatten", "a view of a view")
    assert len(packs) == is_view
    restored = out.grad_fn._saved_self
    assert_same("view", restored, view)
    assert restored.stride() == view.stride()
    if is_view:
        assert restored.data_ptr() != view.data_ptr()
        assert restored.data_ptr() % 64 == view.data_ptr() % 64


def sew(spikes):
    return spikes + spikes


def modified(spikes):
    return spikes.detach().mul_(2)


def modified_through_a_view(spikes):
    spikes.detach()[0].add_(1)
    return spikes


def negative(spikes):
    return torch.view_as_complex(spikes.detach().view(*spikes.shape[:-1], -1, 2)).conj().imag


LEFT_ALONE = {
    "sum of spikes": sew,
    "pooled": lambda s: nn.functional.avg_pool2d(s.flatten(0, 1), 2),
    "greatest": lambda s: nn.functional.max_pool2d(s.flatten(0, 1), 2),
    "copy": lambda s: s.clone(),
    "another dtype": lambda s: s.to(torch.float64),
    "bits of another dtype": lambda s: s.detach().view(torch.int32),
    "modified": modified,
    "modified through a view": modified_through_a_view,
    "negative view": negative,
    "nothing": lambda s: s[:0],
    "input": lambda s: torch.ones(3),
    "sparse": lambda s: s.detach().flatten(1).to_sparse(),
    "another storage": lambda s: s.detach().set_(torch.full((4,), 3.0)),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_left_alone(name, packs):
    """The tensor itself comes back."""
    w = torch.tensor(2.0, requires_grad=True)
    saved = []
    with one_bit_spikes():
        other = LEFT_ALONE[name](lif(currents(4, 2, 4, 4, 4), PAPER))
        packs.clear()  # of what the operations themselves have saved

        class Save(torch.autograd.Function):
            @staticmethod
            def forward(ctx, t, w):
                ctx.save_for_backward(t)
                return w.clone()

            @staticmethod
            def backward(ctx, g):
                saved.append(ctx.saved_tensors[0])
                return None, g

        out = Save.apply(other, w)
    out.backward()
    assert packs == []
    if name == "sparse":
        assert_same("tensor", saved[0].to_dense(), other.to_dense())
    else:
        assert saved[0].dtype == other.dtype
        assert_same("tensor", saved[0].resolve_neg(), other.resolve_neg())
        assert saved[0].data_ptr() == other.data_ptr()


def test_spikes_made_outside_are_left_alone(packs):
    module = nn.Linear(5, 5)
    spikes = lif(currents(4, 2, 5), PAPER)
    with one_bit_spikes():
        module(spikes)
    assert packs == []


def test_modified_after_it_was_packed():
    """The bits are those of the spikes that the layer has seen."""
    module = nn.Linear(5, 5, bias=False)
    with one_bit_spikes():
        spikes = lif(currents(4, 2, 5), PAPER)
        before = spikes.clone()
        out = module(spikes)
        spikes.mul_(3)
        again = module(spikes)
    out.sum().backward()
    assert_same("gradient", module.weight.grad, before.sum((0, 1)).expand(5, 5))
    module.weight.grad = None
    again.sum().backward()
    assert_same("gradient", module.weight.grad, 3 * before.sum((0, 1)).expand(5, 5))


def test_modified_after_it_was_left_alone():
    """Autograd's own error, which hooks would have switched off."""
    x = torch.ones(3, requires_grad=True)
    with one_bit_spikes():
        y = x * 2
        out = y * y
    y.add_(1)
    with pytest.raises(
        RuntimeError, match=r"modified by an inplace operation: .*\[3\]\] is at version 1; expected .* 0"
    ):
        out.sum().backward()


def test_in_place_operations_of_the_network_itself():
    """Operations that save what they have just written."""
    x = torch.randn(4, 3, requires_grad=True)
    with one_bit_spikes():
        out = torch.relu_((torch.sigmoid_(x * 2) - 0.5).mul_(2.0))
    out.sum().backward()
    expected = x.detach().requires_grad_()
    torch.relu_((torch.sigmoid_(expected * 2) - 0.5).mul_(2.0)).sum().backward()
    assert_same("gradient", x.grad, expected.grad)


def test_spikes_are_freed_once_packed():
    module = nn.Conv2d(3, 3, 3)
    with one_bit_spikes():
        spikes = lif(currents(4, 2, 3, 8, 8), PAPER)
        alive = weakref.ref(spikes)
        storage = memory.StorageWeakRef(spikes.untyped_storage())
        out = module(spikes.flatten(0, 1))
        del spikes
        assert alive() is None
        assert storage.expired()
    out.sum().backward()


def test_nothing_is_kept_without_a_graph():
    """Bits live as long as the graphs that hold them, notes as long as the block."""
    module = nn.Linear(5, 5)
    with one_bit_spikes():
        spikes = lif(currents(4, 2, 5), PAPER)
        out = module(spikes)
        (known,) = memory._here.spikes.values()
        assert known._packed() is not None
        del out
        gc.collect()
        assert known._packed() is None
        module(spikes).sum().backward()
        for _ in range(1000):
            lif(currents(4, 2, 5), PAPER)
        assert len(memory._here.spikes) <= 66
    assert memory._here.spikes == {}


def test_graphs_have_no_cycles():
    """What is saved does not hold the graph that holds it: freed without the garbage collector."""
    gc.disable()
    try:
        x = torch.ones(3, requires_grad=True)
        with one_bit_spikes():
            y = (lif(x.expand(4, 3), PAPER) + x).sigmoid()  # saves its output
        storage = memory.StorageWeakRef(y.untyped_storage())
        del y
        assert storage.expired()
    finally:
        gc.enable()


def test_backward_again_and_again(packs):
    module, x = Network(), currents(3, 2, 3, 8, 8)
    plain = gradients(module, x)
    x = x.requires_grad_()
    with one_bit_spikes():
        out = module(x)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        found = torch.autograd.grad(out, [x, *module.parameters()], upstream, retain_graph=True)
        assert_same_gradients(found, plain)
    assert len(packs) == 2


def test_nested_and_entered_again(packs):
    module, x = Network(), currents(3, 2, 3, 8, 8)
    plain = gradients(module, x)
    context = one_bit_spikes()

    def nested(x):
        with context:
            spikes = lif(module.first(x.flatten(0, 1)).unflatten(0, x.shape[:2]), PAPER)
            with context, one_bit_spikes():
                flat = spikes.flatten(0, 1)
                y = module.second(flat) + module.shortcut(flat)
            spikes = lif(y.unflatten(0, x.shape[:2]), PAPER)
            return module.head(spikes.flatten(2))

    assert_same_gradients(gradients(module, x, run=nested), plain)
    assert len(packs) == 2
    assert_same_gradients(gradients(module, x, run=context(module)), plain)
    assert len(packs) == 4


def test_leaves_nothing_behind_after_an_error(packs):
    module = nn.Linear(5, 5)
    with pytest.raises(KeyError), one_bit_spikes():
        raise KeyError
    module(lif(currents(4, 2, 5), PAPER))
    assert packs == []
    assert memory._here.depth == 0


def test_layers_with_state_and_maps(packs):
    """Membrane potentials and activation maps are no spikes."""
    neuron, module = layers.LIF(stateful=True), nn.Linear(5, 5)
    x, maps = currents(4, 2, 5), []

    def run(x):
        neuron.reset()
        first = neuron(x)
        out = neuron(module(first), return_sam=True, channel_dim=2)
        maps.append(out.sam.square().sum() + neuron.v.square().sum())
        return module(out.spikes) + maps[-1]

    plain = gradients(module, x, run=run)
    assert_same_gradients(gradients(module, x, one_bit_spikes(), run), plain)
    assert packs == [40, 40]


def test_empty_tensors(packs):
    module = nn.Linear(5, 5)
    with one_bit_spikes():
        out = module(lif(torch.ones(4, 0, 5, requires_grad=True), PAPER))
    out.sum().backward()
    assert packs == []
    assert (module.weight.grad == 0).all()


def test_double_backward():
    """Second derivatives of what follows the spikes."""
    w = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
    found = []
    for context in (one_bit_spikes(), None):
        w.grad = None
        if context:
            context.__enter__()
        out = (lif(currents(4, 2, 5, dtype=torch.float64), PAPER) @ w).tanh().sum()
        if context:
            context.__exit__()
        (first,) = torch.autograd.grad(out, w, create_graph=True)
        first.square().sum().backward()
        found.append(w.grad)
    assert_same("second gradient", *found)
