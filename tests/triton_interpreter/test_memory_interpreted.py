"""Which memory the Triton kernels write: all of their outputs, nothing beside them, wherever those lie."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ckd_kernels import Neuron, bn_lif, lif, sam, use_backend
from ckd_kernels.backends import reference
from ckd_kernels.backends import triton as backend
from ckd_kernels.call import Affine, Backward, Forward
from ckd_kernels.ops.layout import layout_of

CANARY = -77.0
# [T, B, C, H, W]: tiles of 64 and 16 columns, whole and cut; channels-last is by permute.
SHAPES = {"whole": (3, 1, 32, 8, 8), "cut": (2, 1, 18, 3, 16), "odd": (3, 2, 3, 3, 7), "one": (1, 1, 1, 1, 1)}


class Guarded:
    """Tensors inside larger buffers; `check` sees what was written around them and whether all of them was."""

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.buffers: list[tuple[Tensor, Tensor]] = []

    def like(self, t: Tensor, *, fill: float = float("nan"), dtype: torch.dtype | None = None) -> Tensor:
        buffer = torch.full((t.numel() + 64,), CANARY, dtype=dtype or t.dtype)
        inside = torch.as_strided(buffer, t.shape, t.stride(), self.offset)
        inside.fill_(fill)
        self.buffers.append((buffer, inside))
        return inside

    def holding(self, t: Tensor) -> Tensor:
        return self.like(t).copy_(t)

    def check(self) -> None:
        for buffer, inside in self.buffers:
            assert (buffer[: self.offset] == CANARY).all()
            assert (buffer[self.offset + inside.numel() :] == CANARY).all()
            assert not inside.isnan().any()


@pytest.mark.parametrize("offset", [16, 1], ids=["aligned", "misaligned"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", SHAPES)
def test_writes_its_outputs_and_nothing_else(shape: str, channels_last: bool, offset: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPES[shape], generator=generator) + 0.5
    if channels_last:
        x = x.movedim(2, -1).contiguous().movedim(-1, 2)
    layout = layout_of(x, time_dim=0, time_steps=x.shape[0], channel_dim=2)
    assert layout is not None
    frame, location, channel = x[0], torch.empty(x.shape[1], *x.shape[3:]), torch.rand(x.shape[2], generator=generator)
    written = []
    for implementation in (reference, backend):
        guarded = Guarded(offset)
        neuron = Neuron(charge="decay", reset="soft")
        current = guarded.holding(x)
        v_init, decay = guarded.holding(frame), guarded.holding(channel)
        spikes, v, map_ = guarded.like(x), guarded.like(frame), guarded.like(location)
        given = neuron, layout, current, v_init, decay, None
        implementation.lif_forward(Forward(*given, spikes, v, map_, None))
        grads = guarded.like(x), guarded.like(frame), guarded.like(channel)
        upstream = guarded.holding(x), guarded.holding(frame), guarded.holding(map_)
        wanted = dict(zip(("grad_x", "grad_v_init", "grad_leak"), grads, strict=True))
        implementation.lif_backward(Backward(*given, None, *upstream, **wanted))
        again = guarded.like(location)
        implementation.sam(layout, spikes, again)
        guarded.check()
        assert torch.equal(again, map_)
        written.append((spikes, v, map_, *grads))
    for expected, actual in zip(*written, strict=True):
        assert torch.equal(expected, actual)


@pytest.mark.parametrize("offset", [16, 1], ids=["aligned", "misaligned"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", SHAPES)
def test_bn_lif_writes_its_outputs_and_nothing_else(shape: str, channels_last: bool, offset: int) -> None:
    generator = torch.Generator().manual_seed(0)
    y, residual, g = (torch.randn(SHAPES[shape], generator=generator) + 0.5 for _ in range(3))
    if channels_last:
        y, residual, g = (t.movedim(2, -1).contiguous().movedim(-1, 2) for t in (y, residual, g))
    layout = layout_of(y, time_dim=0, time_steps=y.shape[0], channel_dim=2)
    assert layout is not None
    pair, channel = torch.empty(2, y.shape[2], dtype=torch.float64), torch.rand(y.shape[2], generator=generator)
    written = []
    for implementation in (reference, backend):
        guarded = Guarded(offset)
        neuron = Neuron(charge="decay", reset="soft")
        folded = torch.stack([channel, channel, channel + 0.5, channel - 0.5])
        coefficients = torch.stack([channel * 0.1, channel * 0.2])
        current, *affine = [guarded.holding(t) for t in (y, folded, residual)]
        given = neuron, layout, current, None, None, Affine(*affine)
        moments, spikes, sums = guarded.like(pair), guarded.like(y), guarded.like(pair)
        implementation.bn_statistics(layout, current, moments)
        implementation.lif_forward(Forward(*given, spikes, None, None, None))
        backward = Backward(*given, None, guarded.holding(g), None, None)
        implementation.lif_backward(backward._replace(sums=sums))
        grads = guarded.like(y), guarded.like(y)
        through = guarded.holding(coefficients)
        implementation.lif_backward(backward._replace(coefficients=through, grad_x=grads[0], grad_residual=grads[1]))
        guarded.check()
        written.append((moments, sums, spikes, *grads))
    for expected, actual in zip(*written, strict=True):
        close = 1e-13 if expected.dtype == torch.float64 else 0.0
        torch.testing.assert_close(actual, expected, rtol=close, atol=close)


def test_checkpoints_are_written_between_the_chunks() -> None:
    x = torch.randn(33, 20)
    layout = layout_of(x, time_dim=0, time_steps=33, channel_dim=-1)
    assert layout is not None
    found = []
    for implementation in (reference, backend):
        guarded = Guarded(16)
        checkpoints = guarded.like(torch.empty(2, 1, 20))
        call = Forward(Neuron(), layout, x, None, None, None, guarded.like(x), None, None, checkpoints)
        implementation.lif_forward(call)
        guarded.check()
        found.append(checkpoints)
    assert torch.equal(*found)


SPIKES = {
    "contiguous": torch.rand(5, 2, 20, 4, 4),
    "odd": torch.rand(2, 2, 35, 3, 7),
    "channels last": torch.rand(3, 2, 4, 4, 20).movedim(-1, 2),
    "many channels last": torch.rand(2, 1, 2, 2, 144).movedim(-1, 2),
    "repeated": torch.rand(1, 2, 20, 4, 4).expand(6, -1, -1, -1, -1),
    "many channels": torch.rand(1, 1, 300, 4, 4),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", SPIKES)
def test_sam_of_spikes(name: str, dtype: torch.dtype) -> None:
    spikes = (SPIKES[name] < 0.3).to(dtype)
    maps = []
    for choice in ("reference", "triton"):
        with use_backend(choice):
            maps.append(sam(spikes))
    assert torch.equal(*maps)
    assert maps[0].dtype == torch.float32
    assert torch.equal(maps[0], spikes.double().mean((0, 2)).float())


def test_float64_is_refused() -> None:
    with use_backend("triton"), pytest.raises(RuntimeError, match="float32, bfloat16 and float16"):
        lif(torch.ones(2, 3, dtype=torch.float64), Neuron())


@pytest.mark.usefixtures("poisoned")
def test_empty_tensors() -> None:
    for shape in ((0, 3), (3, 0)):
        with use_backend("triton"):
            assert lif(torch.ones(shape), Neuron()).shape == shape
            out = bn_lif(torch.ones((*shape, 2)), None, None, None, None, Neuron(), return_v=True, return_sam=True)
            assert not out.v.isnan().any()
            assert not out.sam.isnan().any()
