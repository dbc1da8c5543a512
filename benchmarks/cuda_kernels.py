"""How fast the CUDA and Triton kernels are, as a fraction of a device copy of the bytes that they must move.

    python benchmarks/cuda_kernels.py results.json

Each call is captured in a CUDA graph, so that the time is the device's own; copies and calls take turns in one run, and
rotate among so many sets of buffers that no call finds its own in the cache.  Bytes are those of docs/kernels.md, in
tensors of the input's size:

    LIF               forward reads x, writes spikes: 2; backward reads x and dL/dspikes, writes dL/dx: 3; training: 5
    BN+LIF            statistics read y: 1; forward: 2; in all 3; backward reduces over y and dL/dspikes: 2, and applies
                      that to both, writing dL/dy: 3; in all 5; training: 8.  A residual adds what it moves
    maps              of spikes that exist: 1; beside a neuron they add next to nothing
    one-bit spikes    pack and unpack: 1 and one bit for each spike

"in all" and "training" are the public functions, with their work on [C] vectors and autograd.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import cuda_timing as timing
import torch
from torch import Tensor

from ckd_kernels import Neuron, bn_lif, lif, surrogate, use_backend
from ckd_kernels.backend import Backend, build_info, resolve
from ckd_kernels.call import Affine, Backward, Forward, checkpoint_count
from ckd_kernels.ops.layout import Layout, layout_of

PAPER = Neuron.paper()
OTHERS = {
    "spikingjelly": Neuron.spikingjelly_lif(),
    "atan, soft": Neuron(charge="leak", tau=3.0, reset="soft", detach_reset=True, surrogate=surrogate.ATan()),
}
# ResNet-19 at batch 128, T 4 and 1; SEW-ResNet-34 at 224x224, batch 32; long sequences.
SHAPES = [
    (4, 128, 128, 32, 32),
    (1, 128, 128, 32, 32),
    (4, 128, 512, 8, 8),
    (4, 128, 256, 16, 16),
    (4, 32, 64, 56, 56),
    (1, 128, 512, 8, 8),
    (64, 32, 128, 16, 16),
    (4, 32, 512, 7, 7),
    (4, 32, 64, 112, 112),
    (100, 128, 7000),
]
FORMATS = [
    (torch.float32, False),
    (torch.bfloat16, True),
    (torch.bfloat16, False),
    (torch.float32, True),
    (torch.float16, False),
    (torch.float16, True),
]
TINY = [(4, 2, 3, 5, 7), (18, 2, 9)]


class Case(NamedTuple):
    """An input."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool
    device: str

    @property
    def first(self) -> bool:
        """Whether it is of the shape that more is asked of."""
        return self.shape in (SHAPES[0], TINY[0])

    def __str__(self) -> str:
        return f"{list(self.shape)} {str(self.dtype)[6:]}{' channels-last' if self.channels_last else ''}"


def cases(device: str) -> list[Case]:
    """What is most worth knowing comes first, as the time may not suffice for all."""
    shapes = SHAPES if device == "cuda" else TINY
    found = []
    for dtype, last in FORMATS:
        for shape in shapes[:4] if dtype == torch.float16 else shapes:
            if len(shape) == 5 or not last:
                found.append(Case(shape, dtype, last, device))
    return found


class Buffers:
    """What the calls of a case read and write, once: a set."""

    def __init__(self, case: Case) -> None:
        shape, dtype, last, device = case
        arrange = timing.channels_last if last else torch.Tensor.contiguous
        fresh = functools.partial(torch.randn, shape, device=device)
        self.x, self.grad, self.residual = (arrange(fresh().to(dtype)) for _ in range(3))
        self.spikes, self.grad_x, self.grad_residual = (torch.empty_like(self.x) for _ in range(3))
        count, frame = checkpoint_count(shape[0]), self.x[0].numel()
        self.checkpoints = torch.empty(count, 1, frame, device=device) if count else None
        self.leaf = self.x.detach().requires_grad_()
        if len(shape) == 5:
            self.sam, self.grad_sam = (torch.randn(shape[1], *shape[3:], device=device) for _ in range(2))
            channels = shape[2]
            self.pairs = torch.empty(2, channels, dtype=torch.float64, device=device)
            self.folded, self.coefficients = torch.rand(2, 4, channels, device=device)
            self.weight, self.bias = (torch.ones(channels, device=device).requires_grad_() for _ in range(2))
            self.running = torch.zeros(channels, device=device), torch.ones(channels, device=device)


Calls = dict[str, tuple[Callable[[Buffers], object], float]]  # with the bytes to be moved, in tensors of x's size


def forward_call(
    b: Buffers, neuron: Neuron, layout: Layout, affine: Affine | None = None, sam: Tensor | None = None
) -> Forward:
    return Forward(neuron, layout, b.x, None, None, affine, b.spikes, None, sam, b.checkpoints)


def backward_call(
    b: Buffers,
    neuron: Neuron,
    layout: Layout,
    affine: Affine | None = None,
    grad_sam: Tensor | None = None,
    **outputs: Tensor | None,
) -> Backward:
    return Backward(neuron, layout, b.x, None, None, affine, b.checkpoints, b.grad, None, grad_sam, **outputs)


def dense_layout(case: Case, channel_dim: int) -> Layout:
    layout = layout_of(probe(case), time_dim=0, time_steps=case.shape[0], channel_dim=channel_dim)
    assert layout is not None
    return layout


def lif_calls(case: Case, module: Backend, backend: str) -> Calls:
    plain = dense_layout(case, -1)
    calls: Calls = {}
    neurons = {"paper": PAPER} | (OTHERS if case.first and not case.channels_last else {})
    for name, neuron in neurons.items():
        calls[f"forward, {name}"] = (lambda b, n=neuron: module.lif_forward(forward_call(b, n, plain)), 2)
        calls[f"backward, {name}"] = (
            lambda b, n=neuron: module.lif_backward(backward_call(b, n, plain, grad_x=b.grad_x)),
            3,
        )

    def training(b: Buffers) -> object:
        with use_backend(backend):
            return torch.autograd.grad(lif(b.leaf, PAPER), b.leaf, b.grad)

    calls["training, paper"] = training, 5
    return calls


def map_calls(case: Case, module: Backend) -> Calls:
    layout = dense_layout(case, 2)
    return {
        "forward with map": (lambda b: module.lif_forward(forward_call(b, PAPER, layout, sam=b.sam)), 2),
        "backward with map": (
            lambda b: module.lif_backward(backward_call(b, PAPER, layout, grad_sam=b.grad_sam, grad_x=b.grad_x)),
            3,
        ),
        "map alone": (lambda b: module.sam(layout, b.x, b.sam), 1),
    }


def bn_calls(case: Case, module: Backend, backend: str) -> Calls:
    layout = dense_layout(case, 2)

    def forward(b: Buffers, residual: Tensor | None) -> None:
        module.lif_forward(forward_call(b, PAPER, layout, Affine(b.folded, residual)))

    def reduce(b: Buffers, residual: Tensor | None) -> None:
        module.lif_backward(backward_call(b, PAPER, layout, Affine(b.folded, residual), sums=b.pairs))

    def apply(b: Buffers, residual: Tensor | None) -> None:
        grad_residual = b.grad_residual if residual is not None else None
        outputs = {"coefficients": b.coefficients, "grad_x": b.grad_x, "grad_residual": grad_residual}
        module.lif_backward(backward_call(b, PAPER, layout, Affine(b.folded, residual), **outputs))

    def whole(b: Buffers, y: Tensor) -> Tensor:
        with use_backend(backend):
            return bn_lif(y, b.weight, b.bias, *b.running, PAPER)

    def whole_forward(b: Buffers) -> Tensor:
        with torch.no_grad():
            return whole(b, b.x)

    def training(b: Buffers) -> object:
        return torch.autograd.grad(whole(b, b.leaf), (b.leaf, b.weight, b.bias), b.grad)

    calls: Calls = {
        "bn_lif statistics": (lambda b: module.bn_statistics(layout, b.x, b.pairs), 1),
        "bn_lif forward": (lambda b: forward(b, None), 2),
        "bn_lif reduce": (lambda b: reduce(b, None), 2),
        "bn_lif apply": (lambda b: apply(b, None), 3),
        "bn_lif forward, in all": (whole_forward, 3),
        "bn_lif training": (training, 8),
    }
    if case.first:
        calls |= {
            "bn_lif forward, residual": (lambda b: forward(b, b.residual), 3),
            "bn_lif reduce, residual": (lambda b: reduce(b, b.residual), 3),
            "bn_lif apply, residual": (lambda b: apply(b, b.residual), 5),
        }
    return calls


def pack_calls(case: Case, module: Backend) -> Calls:
    x = probe(case)
    bits = torch.empty((x.numel() + 7) // 8, dtype=torch.uint8, device=x.device)
    tensors = 1 + 1 / (8 * x.element_size())
    return {
        "pack": (lambda b: module.pack_bits(flat(b.x), bits), tensors),
        "unpack": (lambda b: module.unpack_bits(bits, flat(b.spikes)), tensors),
    }


def flat(x: Tensor) -> Tensor:
    return x.as_strided((x.numel(),), (1,))


@functools.lru_cache(maxsize=1)
def probe(case: Case) -> Tensor:
    """A tensor laid out as the case has it."""
    x = torch.empty(case.shape, dtype=case.dtype, device=case.device)
    return timing.channels_last(x) if case.channels_last else x


def available(device: str) -> list[str]:
    """Backends to measure; on a CPU those that exercise the script."""
    names = ("cuda", "triton") if device == "cuda" else ("reference",)
    return [name for name in names if build_info()["backends"][name] == "available"]


def calls_for(case: Case) -> Calls:
    calls: Calls = {}
    for backend in available(case.device):
        module = resolve(backend, "lif", torch.device(case.device), case.dtype)
        found = lif_calls(case, module, backend)
        if len(case.shape) == 5:
            found |= map_calls(case, module) | bn_calls(case, module, backend)
        found |= pack_calls(case, module)
        calls |= {f"{backend} | {name}": call for name, call in found.items()}
    return calls


def copies(calls: Calls, sets: list[Buffers], size: int, device: str) -> Calls:
    """A copy of the bytes of every call."""
    found: Calls = {}
    for tensors in sorted({tensors for _, tensors in calls.values()}):
        name = "copy" if tensors == 2 else f"copy, {tensors:g} tensors"
        half = max(1, round(size * tensors / 2))
        fresh = functools.partial(torch.randint, 256, (half,), dtype=torch.uint8, device=device)
        pairs = [(fresh(), fresh()) for _ in sets]
        at = {id(b): pair for b, pair in zip(sets, pairs, strict=True)}
        found[name] = (lambda b, at=at: at[id(b)][1].copy_(at[id(b)][0])), tensors
    return found


def measure(case: Case, warm_up: bool) -> list[dict[str, Any]]:
    calls = calls_for(case)
    if warm_up:
        buffers = Buffers(case)
        timing.run_once({name: lambda _, call=call: call(buffers) for name, (call, _) in calls.items()})
        return []
    size = probe(case).numel() * case.dtype.itemsize
    count = timing.buffer_sets(2 * size, case.device)
    sets = [Buffers(case) for _ in range(count)]
    every = copies(calls, sets, size, case.device) | calls
    times = timing.race(
        {name: lambda i, call=call: call(sets[i % count]) for name, (call, _) in every.items()}, case.device
    )
    floors = {tensors: times[name] for name, (_, tensors) in every.items() if name.startswith("copy")}
    head = {"shape": case.shape, "dtype": str(case.dtype)[6:], "channels_last": case.channels_last}
    rows = []
    print(case, flush=True)
    for name, (_, tensors) in every.items():
        time, floor = times[name], floors[tensors]
        if isinstance(time, str) or isinstance(floor, str):
            rows.append(head | {"call": name, "failed": time if isinstance(time, str) else floor})
            print(f"  {name:35s} failed: {rows[-1]['failed']}", flush=True)
            continue
        moved, of_copy = round(size * tensors), floor.microseconds / time.microseconds
        rows.append(head | {"call": name} | time.row() | {"bytes": moved, "of_copy": round(of_copy, 3)})
        said = f"{moved / time.microseconds / 1e6:5.2f} TB/s" if name == "copy" else f"{of_copy:5.2f} of the copy"
        print(f"  {name:35s}{time.microseconds:9.1f} us  {said}{'' if time.captured else '  no graph'}", flush=True)
    return rows


def main(argv: list[str] | None = None) -> None:
    options = timing.arguments(__doc__ or "", seconds=150).parse_args(argv)
    timing.run_cases(cases(options.device), measure, options)


if __name__ == "__main__":
    main()
