"""Shapes, memory layouts, sequence lengths and special values, on every backend."""

from __future__ import annotations

import math

import pytest
import torch

from ckd_kernels import Neuron, lif, sam, use_backend
from lif_checks import Target, check_forward, check_gradients
from reference_cases import MEMORY, Case, arrange, currents, make_neuron, plain_loop
from tolerances import assert_same

LAYOUTS = [*MEMORY, "repeated"]
DELAYED = make_neuron("leak", "soft_delayed", plain=False)


@pytest.mark.parametrize("memory", LAYOUTS)
@pytest.mark.parametrize(
    ("shape", "time_dim", "channel_dim"),
    [
        ((4, 2, 3, 5, 3), 0, 2),
        ((2, 4, 3, 5, 3), 1, 2),
        ((4, 2, 3, 5, 3), 0, 4),
        ((4, 2, 3, 5, 3), 0, -1),
        ((4, 3, 7), 0, 2),
        ((3, 4, 7), 1, 2),
        ((3, 4, 7), 1, 0),
        ((4, 129), 0, 1),
        ((129, 4), 1, 0),
        ((4, 1, 1, 17, 1), 0, 2),
        ((1, 1, 1, 1, 1), 1, 2),
        ((2, 33, 2, 1, 67), 0, 2),
        ((4, 2, 151, 2), 0, 2),
    ],
    ids=str,
)
def test_layouts(target, shape, time_dim, channel_dim, memory):
    channel_dim %= len(shape)
    # Two-byte elements in every other case.
    dtype = (torch.float32, torch.bfloat16)[(len(shape) + time_dim + LAYOUTS.index(memory)) % 2]
    check_gradients(
        target,
        Case(DELAYED, shape, time_dim, dtype, memory, v_init=True, leak="channel", channel_dim=channel_dim),
    )


@pytest.mark.parametrize("memory", ["contiguous", "channels_last", "transposed", "sliced", "offset", "repeated"])
@pytest.mark.parametrize("shape", [(6,), (4, 1134), (1, 5), (3, 2, 2, 2, 2, 2)], ids=str)
def test_without_channels(target, shape, memory):
    check_gradients(target, Case(make_neuron("decay", "hard"), shape, memory=memory, channel_dim=None))


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 48, 65])
@pytest.mark.parametrize("reset", ["hard", "soft", "soft_delayed"])
def test_sequence_lengths(target, reset, steps):
    neuron = make_neuron("leak_input", reset, plain=False)
    check_gradients(target, Case(neuron, (steps, 2, 3, 5), v_init=True, leak="scalar", seed=steps))
    check_gradients(target, Case(neuron, (2, steps, 3, 5), 1, torch.bfloat16, seed=steps))
    for dtype in (torch.float32, torch.bfloat16):
        check_gradients(target, Case(neuron, (steps, 2, 3, 5), dtype=dtype, spikes_only=True, seed=steps))


@pytest.mark.parametrize(("steps", "reset"), [(100, "hard"), (257, "soft_delayed"), (1000, "soft")])
def test_long_sequences(target, reset, steps):
    # A charge that forgets keeps float32 and float64 together over a thousand steps.
    check_gradients(target, Case(make_neuron("leak_input", reset, plain=False), (steps, 2, 3, 5), v_init=True))


@pytest.mark.parametrize("steps", [5, 40])
def test_repeated_frame(target, steps):
    """One frame at every step is read once and its gradient is one frame; as a batch-first view as well."""
    neuron = make_neuron("decay", "soft", plain=False)
    check_gradients(target, Case(neuron, (steps, 2, 3, 5), memory="repeated", v_init=True))
    check_gradients(target, Case(neuron, (2, steps, 3, 5), 1, torch.float16, memory="repeated", leak="scalar"))


def test_repeated_frame_without_base(target):
    """Where x itself is watched, its gradient is one value a time step, as autograd has it."""
    case = Case(make_neuron("decay", "hard"), (4, 2, 3, 5), memory="repeated")
    frame = case.make_x()[0]
    upstream = case.make_upstream()[0]
    wide = frame.expand(case.shape).double().contiguous().requires_grad_()
    (expected,) = torch.autograd.grad(plain_loop(wide, case.neuron).spikes, wide, upstream.double())
    leaf = frame.to(target.device).expand(case.shape).requires_grad_()
    with use_backend(target.backend):
        lif(leaf, case.neuron).backward(upstream.to(target.device))
    torch.testing.assert_close(leaf.grad.cpu().double(), expected, rtol=1e-5, atol=1e-5)
    retained = frame.to(target.device).requires_grad_().expand(case.shape)
    retained.retain_grad()
    with use_backend(target.backend):
        lif(retained, case.neuron).backward(upstream.to(target.device))
    torch.testing.assert_close(retained.grad.cpu().double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("strict", [False, True], ids=["ge", "gt"])
@pytest.mark.parametrize("threshold", [1.0, 0.7, 0.1, -0.3, 1e-30])
def test_exactly_at_the_threshold(target, threshold, strict, dtype):
    """The three potentials around the threshold fire, or do not, as the comparison says."""
    neuron = Neuron(charge="integrate", threshold=threshold, strict=strict)
    at = torch.tensor(threshold, dtype=dtype)
    x = torch.stack([torch.nextafter(at, torch.tensor(s * math.inf, dtype=dtype)) for s in (-1, 1)] + [at])
    x = x.repeat(41)[None]
    with use_backend(target.backend):
        spikes = lif(x.to(target.device), neuron).cpu()
    assert_same("spikes", spikes, plain_loop(x, neuron).spikes)
    if dtype == torch.float32:
        assert spikes[0, :3].tolist() == [0.0, 1.0, 0.0 if strict else 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("reset", ["hard", "soft", "soft_delayed", "none"])
@pytest.mark.parametrize("charge", ["decay", "leak", "leak_input", "integrate"])
def test_nan_and_infinity(target, charge, reset, dtype):
    """What the loop gives: NaN never fires and stays, inf fires."""
    neuron = make_neuron(charge, reset)
    x = currents((4, 3, 11), dtype, 0)
    x[1, 0, 3::4] = math.nan
    x[1, 1, 3::4] = math.inf
    x[1, 2, 3::4] = -math.inf
    x[2, 1, 7] = -math.inf
    x[0, 0, 0] = torch.finfo(dtype).max
    loop = plain_loop(x, neuron, channel_dim=2)
    with use_backend(target.backend):
        out = lif(x.to(target.device), neuron, return_v=True, return_sam=True, channel_dim=2)
    assert_same("spikes", out.spikes.cpu(), loop.spikes)
    assert_same("v", out.v.cpu(), loop.v)
    assert_same("sam", out.sam.cpu(), loop.sam)
    assert loop.spikes[1, 1, 3] == 1
    assert loop.spikes[1:, 0, 3].eq(0).all()


@pytest.mark.parametrize("reset", ["hard", "soft", "soft_delayed", "none"])
@pytest.mark.parametrize("surrogate", ["triangle", "rectangle", "atan", "sigmoid", "erf"])
def test_nan_reaches_the_gradient_of_its_own_element_only(target, surrogate, reset):
    neuron = make_neuron("decay", reset, surrogate_=surrogate)
    x = currents((4, 3, 11), torch.float32, 0)
    clean = x.clone()
    x[1, 0, 3] = math.nan
    x[1, 2, 5] = math.inf
    touched = torch.zeros(3, 11, dtype=torch.bool)
    touched[0, 3] = touched[2, 5] = True

    def gradient(values):
        leaf = values.to(target.device).requires_grad_()
        with use_backend(target.backend):
            lif(leaf, neuron).sum().backward()
        return leaf.grad.cpu()

    dirty, clean = gradient(x), gradient(clean)
    assert_same("gradient of the other elements", dirty[:, ~touched], clean[:, ~touched])
    if surrogate != "rectangle":  # whose derivative is 0 wherever |u| < 0.5/a does not hold
        assert dirty[1, 0, 3].isnan()


@pytest.mark.parametrize("where", ["v_init", "decay", "v", "sam"])
@pytest.mark.parametrize("steps", [4, 5, 20])
def test_nan_of_any_payload_stays_nan(target, steps, where):
    """Uninitialised memory may hold any; rounding one to a short type must not make a number of it."""
    shape, frame = (steps, 3, 11), {"v_init": (3, 11), "decay": (11,), "v": (3, 11), "sam": (3,)}[where]
    options = {"channel_dim": 2} if where in ("decay", "sam") else {}
    values = torch.full(frame, 0.5)
    values.view(-1)[:2] = torch.tensor([-1, 2**31 - 1], dtype=torch.int32).view(torch.float32)

    def lost(target):
        given, ones = values.to(target.device), torch.ones(shape, dtype=torch.bfloat16, device=target.device)
        x = currents(shape, torch.bfloat16, 0).to(target.device).requires_grad_()
        with use_backend(target.backend):
            if where in ("v", "sam"):
                out = lif(x, Neuron(), return_v=where == "v", return_sam=where == "sam", **options)
                return torch.autograd.grad([out.spikes, getattr(out, where)], x, [ones, given])[0].isnan().cpu()
            return torch.autograd.grad(lif(x, Neuron(), **options, **{where: given}), x, ones)[0].isnan().cpu()

    expected = lost(Target("reference", "cpu"))
    assert expected.any()
    assert not expected.all()
    assert torch.equal(lost(target), expected)


@pytest.mark.parametrize(
    ("shape", "time_dim"),
    [((0, 2, 3), 0), ((4, 0, 3), 0), ((4, 2, 0), 0), ((0, 4, 3), 1), ((2, 0, 3), 1), ((0,), 0), ((0, 0, 0), 0)],
    ids=str,
)
def test_empty(target, shape, time_dim):
    neuron = Neuron.spikingjelly_lif()
    frame = shape[:time_dim] + shape[time_dim + 1 :]
    for v_init in (None, torch.full(frame, 0.25)):
        x = torch.rand(shape, device=target.device, requires_grad=True)
        options = {}
        if len(shape) > 2:
            options = {"return_sam": True, "channel_dim": 2}
        if v_init is not None:
            v_init = options["v_init"] = v_init.to(target.device).requires_grad_()
        with use_backend(target.backend):
            out = lif(x, neuron, time_dim=time_dim, return_v=True, **options)
            total = out.spikes.sum() + (3 * out.v).sum() + (out.sam.sum() if options.get("return_sam") else 0)
            total.backward()
        assert out.spikes.shape == shape
        assert out.v.shape == frame
        # Without a time step the potential is what it was.
        assert (out.v == (0.0 if v_init is None else 0.25)).all()
        assert x.grad.shape == shape
        if v_init is not None:
            assert (v_init.grad == 3.0).all()
        if out.sam is not None:
            assert out.sam.shape == frame[:1]
            assert (out.sam == 0).all()
    if len(shape) == 3:
        with use_backend(target.backend):
            assert (sam(torch.rand(shape, device=target.device), time_dim=time_dim) == 0).all()


@pytest.mark.parametrize("memory", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reset", ["hard", "soft", "soft_delayed", "none"])
def test_chunks_continue_the_sequence(target, reset, dtype, memory):
    """A sequence in pieces, each starting from the potential that the one before returned: the same bits."""
    neuron = make_neuron("leak", reset, plain=False)
    x = arrange(currents((37, 2, 3, 5), dtype, 0), memory).to(target.device)
    with use_backend(target.backend):
        whole = lif(x, neuron, return_v=True)
        pieces, v = [], None
        for piece in x.split([1, 16, 3, 17]):
            out = lif(piece, neuron, v_init=v, return_v=True)
            pieces.append(out.spikes)
            v = out.v
    assert_same("spikes", torch.cat(pieces), whole.spikes)
    assert_same("v", v, whole.v)


def test_gradients_cross_chunks(target):
    """Backpropagation through pieces linked by v_init gives the bits of one pass over the whole."""
    neuron = make_neuron("decay", "soft_delayed", plain=False)
    case = Case(neuron, (20, 2, 3, 5), channel_dim=None)
    x = case.make_x().to(target.device)
    upstream, grad_v, _ = (None if t is None else t.to(target.device) for t in case.make_upstream())

    def gradient(lengths):
        leaf = x.clone().requires_grad_()
        v, spikes = None, []
        with use_backend(target.backend):
            for piece in leaf.split(lengths):
                out = lif(piece, neuron, v_init=v, return_v=True)
                v = out.v
                spikes.append(out.spikes)
            torch.autograd.backward([*spikes, v], [*upstream.split(lengths), grad_v])
        return leaf.grad

    torch.testing.assert_close(gradient([7, 1, 12]), gradient([20]), rtol=1e-6, atol=1e-6)


def test_v_init_of_other_dtypes_and_layouts(target):
    """v_init is read whatever its floating dtype and strides, and gets its gradient in its own dtype."""
    case = Case(make_neuron("decay", "hard"), v_init=True)
    check_forward(target, case)
    x, v = case.make_x().to(target.device), case.make_v_init().to(target.device)
    with use_backend(target.backend):
        plain = lif(x, case.neuron, v_init=v)
        for other in (arrange(v, "channels_last"), arrange(v, "sliced"), v[:1].expand_as(v), v.double()):
            leaf = other.detach().requires_grad_()
            spikes = lif(x, case.neuron, v_init=leaf)
            spikes.sum().backward()
            assert leaf.grad.dtype == other.dtype
            same = lif(x, case.neuron, v_init=other.float().contiguous())
            assert_same("spikes", spikes, same)
            if other.stride() != v[:1].expand_as(v).stride():
                assert_same("spikes", spikes, plain)
