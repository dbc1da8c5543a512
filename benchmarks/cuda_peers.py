"""The public functions on a GPU, against SpikingJelly 2.0.0, torch.compile, plain loops and cuDNN's BatchNorm.

    python benchmarks/cuda_peers.py results.json

Two parts.  Large inputs (`mode: graph`): forward without autograd, and training, that is forward and backward with all
gradients; time of the device, in CUDA graphs where a contestant can be captured, and the memory that training holds at
its peak.  Small inputs (`mode: eager`, `compiled`, `graph`): the time that one call takes from the host, a
launch after the other; `compiled` is `torch.compile` of the whole step.

SpikingJelly 2.0.0 has three contestants: its fused kernels, `spikingjelly-triton` or `spikingjelly-native` (CUDA, where
it was built from source with SJ_BUILD_NATIVE_CUDA=1), with the membrane potential in float32, which the 2-byte types
need for that; and `spikingjelly-torch`, its loop, which its modules use for 2-byte types.  A process has one kind of
fused kernels, native ones where there are any: SJ_LIF_CUDA_IMPLEMENTATION=triton chooses the other, and the contestant
that does not run is recorded with the reason.  `spikingjelly-cupy` is that of 0.0.0.0.14, where it is installed.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import cuda_timing as timing
import peers
import torch
from torch import Tensor, nn

from ckd_kernels import Neuron, bn_lif, lif, use_backend

PAPER = Neuron.paper()
LARGE = [(4, 128, 128, 32, 32), (4, 128, 512, 8, 8), (1, 128, 128, 32, 32)]
SMALL = (4, 16, 64, 8, 8)
TINY = (4, 2, 3, 5, 7)
CALLS = 200  # of a small one, between two looks at the clock

Op = Callable[[Tensor, Tensor, Tensor], Tensor]  # x, weight, bias -> spikes


class Case(NamedTuple):
    """One race."""

    op: str  # "lif" or "bn_lif"
    work: str  # "forward" or "training"
    mode: str  # "graph", "eager", "compiled"
    shape: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool
    device: str

    def __str__(self) -> str:
        last = " channels-last" if self.channels_last else ""
        return f"{self.op} {self.work}, {self.mode}, {list(self.shape)} {str(self.dtype)[6:]}{last}"


def cases(device: str) -> list[Case]:
    """What is most worth knowing comes first."""
    large, small = (LARGE, SMALL) if device == "cuda" else ([TINY], TINY)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        for op, last in (("lif", False), ("bn_lif", False), ("bn_lif", True)):
            found.append(Case(op, "training", "graph", large[0], dtype, last, device))
    for op in ("lif", "bn_lif"):
        for mode in ("eager", "graph", "compiled") if device == "cuda" else ("eager",):
            found.append(Case(op, "training", mode, small, torch.float32, False, device))
    for dtype in (torch.float32, torch.bfloat16):
        for op in ("lif", "bn_lif"):
            found.append(Case(op, "forward", "graph", large[0], dtype, False, device))
            found += [Case(op, "training", "graph", shape, dtype, False, device) for shape in large[1:]]
    return found


def spikingjelly_lif(kernels: str, device: str) -> Callable[[Tensor], Tensor]:
    """SpikingJelly's function that its `LIFNode` calls, at rest before every call.

    Args:
        kernels: ``"cuda"`` or ``"triton"``, which must be what SpikingJelly chose in this process, or ``"torch"``.
    """
    functional = peers.library("spikingjelly", "spikingjelly.activation_based.functional")
    surrogate = peers.library("spikingjelly", "spikingjelly.activation_based.surrogate")
    if not hasattr(functional, "neuron_implementation"):
        raise peers.Unavailable("this release of SpikingJelly is not 2.0.0")
    fused = kernels != "torch"
    if fused:
        chosen = functional.neuron_implementation("lif", torch.device(device))
        if chosen["implementation"] != kernels:
            why = chosen["unavailable"].get(kernels, f"SJ_LIF_CUDA_IMPLEMENTATION={kernels} chooses it")
            raise peers.Unavailable(f"SpikingJelly runs {chosen['implementation']!r} here, not {kernels!r}: {why}")
    triangle = surrogate.PiecewiseQuadratic(alpha=1.0)

    def run(x: Tensor) -> Tensor:
        v = torch.zeros(x.shape[1:], device=x.device, dtype=torch.float32 if fused else x.dtype)
        # Of a surrogate that it does not know, SpikingJelly runs the loop.
        function = triangle if fused else lambda u: triangle(u)
        spikes: Tensor = functional.lif_multi_step(x, v, 2.0, False, 1.0, 0.0, function, False, False)[0]
        return spikes

    return run


def neurons(device: str) -> dict[str, Callable[[], Callable[[Tensor], Tensor]]]:
    """LIF over [T, ...] by name; calling a value makes it, or raises `peers.Unavailable`."""
    ours = ("cuda", "triton") if device == "cuda" else ("reference",)
    return {f"ours-{name}": functools.partial(our_lif, name) for name in ours} | {
        "spikingjelly-native": functools.partial(spikingjelly_lif, "cuda", device),
        "spikingjelly-triton": functools.partial(spikingjelly_lif, "triton", device),
        "spikingjelly-torch": functools.partial(spikingjelly_lif, "torch", device),
        "spikingjelly-cupy": functools.partial(peers.spikingjelly, backend="cupy"),
        "compiled-loop": peers.compiled_loop,
        "fair-loop": lambda: peers.fair_loop,
    }


def our_lif(backend: str) -> Callable[[Tensor], Tensor]:
    return lambda x: lif(x, PAPER)


def normalised(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """PyTorch's BatchNorm with statistics of the batch, which on a GPU is cuDNN's."""
    flat = x.flatten(0, 1)
    return nn.functional.batch_norm(flat, None, None, weight, bias, training=True).unflatten(0, x.shape[:2])


def contestants(case: Case) -> dict[str, Callable[[], Op]]:
    found: dict[str, Callable[[], Op]] = {}
    if case.op == "lif":
        for name, make in neurons(case.device).items():
            found[name] = lambda make=make: alone(make())
        return found
    for name, make in neurons(case.device).items():
        if name.startswith("ours-"):
            found[name] = lambda: lambda x, weight, bias: bn_lif(x, weight, bias, None, None, PAPER)
        if name != "fair-loop":
            found[f"batchnorm + {name}"] = lambda make=make: after_norm(make())
    found["compiled batchnorm and loop"] = lambda: compiled(after_norm(peers.fair_loop))
    return found


def alone(neuron: Callable[[Tensor], Tensor]) -> Op:
    return lambda x, weight, bias: neuron(x)


def after_norm(neuron: Callable[[Tensor], Tensor]) -> Op:
    return lambda x, weight, bias: neuron(normalised(x, weight, bias))


def compiled(op: Op) -> Op:
    result: Op = torch.compile(op, dynamic=False)
    return result


def step_of(name: str, op: Op, case: Case, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    """One call of a contestant."""
    x, weight, bias, upstream = inputs
    backend = next((b for b in ("cuda", "triton", "reference") if f"ours-{b}" in name), "auto")
    wanted = (x, weight, bias) if case.op == "bn_lif" else (x,)

    def forward() -> Tensor:
        with torch.no_grad(), use_backend(backend):
            return op(x, weight, bias)

    def training() -> object:
        with use_backend(backend):
            return torch.autograd.grad(op(x, weight, bias), wanted, upstream)

    return forward if case.work == "forward" else training


def make_inputs(case: Case) -> tuple[Tensor, ...]:
    place = timing.channels_last if case.channels_last else torch.Tensor.contiguous
    x, upstream = (place(torch.randn(case.shape, device=case.device).to(case.dtype)) for _ in range(2))
    weight, bias = torch.ones(case.shape[2], device=case.device), torch.zeros(case.shape[2], device=case.device)
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), upstream


def copy_of(case: Case) -> tuple[Callable[[], object], float]:
    """A copy of the bytes that our kernels move, and how many tensors of x's size these are."""
    tensors = {"lif": {"forward": 2, "training": 5}, "bn_lif": {"forward": 3, "training": 8}}[case.op][case.work]
    size = torch.Size(case.shape).numel() * case.dtype.itemsize * tensors // 2
    source, target = (torch.randint(256, (size,), dtype=torch.uint8, device=case.device) for _ in range(2))
    return lambda: target.copy_(source), tensors


def microseconds_a_call(step: Callable[[], object], device: str) -> timing.Timing:
    """From the host: so many calls one after the other, until the device is done."""
    for _ in range(5):
        step()
    times = []
    for _ in range(timing.ROUNDS):
        timing.wait(device)
        begin = time.perf_counter()
        for _ in range(CALLS):
            step()
        timing.wait(device)
        times.append((time.perf_counter() - begin) / CALLS * 1e6)
    return timing.summary(times)


def measure(case: Case, warm_up: bool) -> list[dict[str, Any]]:
    inputs = make_inputs(case)
    steps: dict[str, Callable[[], object]] = {}
    failed: dict[str, str] = {}
    for name, make in contestants(case).items():
        if case.mode == "compiled" and "compiled" in name:
            continue  # it is that in every mode
        try:
            op = make()
            steps[name] = step_of(name, compiled(op) if case.mode == "compiled" else op, case, inputs)
        except Exception as error:
            failed[name] = timing.describe(error)
    if warm_up:
        timing.run_once({name: lambda _, step=step: step() for name, step in steps.items()})
        return []
    times: dict[str, timing.Timing | str] = {}
    if case.mode == "graph":
        copy, _ = copy_of(case)
        calls = {"copy": copy} | steps
        times = timing.race({name: lambda _, step=step: step() for name, step in calls.items()}, case.device)
    else:
        for name, step in steps.items():
            try:
                times[name] = microseconds_a_call(step, case.device)
            except Exception as error:
                times[name] = timing.describe(error)
    return [row for name, time in (times | failed).items() for row in rows(case, name, time, times, steps)]


def rows(
    case: Case,
    name: str,
    time: timing.Timing | str,
    times: dict[str, timing.Timing | str],
    steps: dict[str, Callable[[], object]],
) -> list[dict[str, Any]]:
    row: dict[str, Any] = {"op": case.op, "work": case.work, "mode": case.mode, "shape": case.shape}
    row |= {"dtype": str(case.dtype)[6:], "channels_last": case.channels_last, "contestant": name}
    if isinstance(time, str):
        print(f"{case}: {name} failed: {time}", flush=True)
        return [row | {"failed": time}]
    row |= time.row()
    copy = times.get("copy")
    if isinstance(copy, timing.Timing):
        row["of_copy"] = round(copy.microseconds / time.microseconds, 3)
    if name in steps and case.work == "training":
        row["peak_bytes"] = timing.peak_bytes(steps[name], case.device)
    print(f"{case}: {name} {time.microseconds:.1f} us, {row.get('of_copy', '-')} of the copy", flush=True)
    return [row]


def main(argv: list[str] | None = None) -> None:
    options = timing.arguments(__doc__ or "", seconds=90).parse_args(argv)
    # Every shape, dtype and kind of work compiles anew; past the limit PyTorch would go on without compiling.
    torch._dynamo.config.recompile_limit = 256
    timing.run_cases(cases(options.device), measure, options)


if __name__ == "__main__":
    main()
