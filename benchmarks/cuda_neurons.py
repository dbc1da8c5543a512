"""How fast the neurons that people write are on a GPU, on the backend that "auto" takes: a fraction of a device copy.

    python benchmarks/cuda_neurons.py results.json

Every neuron times storage type times number of time steps, forward (reads x, writes spikes) and backward (reads x and
dL/dspikes, writes dL/dx), on some 67 million values in all, measured as in cuda_kernels.py.  Kernels that serve several
neurons alike, as most forward ones do, are measured once.
"""

from __future__ import annotations

import functools
import itertools
import sys
from typing import Any, NamedTuple

import cuda_timing as timing
import torch
from torch import Tensor

from ckd_kernels import Neuron, surrogate
from ckd_kernels.backend import LEARNT, resolve
from ckd_kernels.call import Backward, Forward, checkpoint_count
from ckd_kernels.ops.layout import layout_of

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
STEPS = [4, 1, 2, 10, 100]
VALUES = 4 * 128 * 128 * 32 * 32
FRAME = 128 * 32 * 32  # of one sample


def neurons() -> dict[str, Neuron]:
    """By the names of the libraries that have them."""
    found = {"paper": Neuron.paper()}
    charges: dict[str, dict[str, Any]] = {
        "LIF": {"charge": "leak_input", "tau": 2.0},
        "LIF undecayed": {"charge": "leak", "tau": 2.0},  # SpikingJelly's decay_input=False
        "IF": {"charge": "integrate"},
    }
    surrogates = {"atan": surrogate.ATan(), "sigmoid": surrogate.Sigmoid()}
    for charge, reset, kind, detach in itertools.product(charges, ("hard", "soft"), surrogates, (True, False)):
        name = f"{charge}, {kind}, {reset}{', detached' if detach else ''}"
        found[name] = Neuron(**charges[charge], reset=reset, detach_reset=detach, surrogate=surrogates[kind])
    for kind, of_leaky in {"atan": surrogate.ATan(), "fast sigmoid": surrogate.FastSigmoid()}.items():
        found[f"Leaky, {kind}"] = Neuron(
            charge="decay", decay=0.9, strict=True, reset="soft_delayed", detach_reset=True, surrogate=of_leaky
        )
    return found


PLIF = "PLIF, sigmoid"  # SpikingJelly's ParametricLIFNode: tau is learnt


class Case(NamedTuple):
    """Sizes and storage of the input."""

    steps: int
    dtype: torch.dtype
    device: str
    backend: str = "auto"

    @property
    def shape(self) -> tuple[int, int]:
        if self.device == "cpu":
            return self.steps, 64
        return self.steps, VALUES // self.steps // FRAME * FRAME or FRAME

    def __str__(self) -> str:
        return f"T = {self.steps}, {str(self.dtype)[6:]}, {list(self.shape)}"


class Buffers:
    """What the calls of a case read and write, once: a set."""

    def __init__(self, case: Case) -> None:
        self.x, self.grad = (torch.randn(case.shape, device=case.device).to(case.dtype) for _ in range(2))
        self.out = torch.empty_like(self.x)
        count = checkpoint_count(case.steps)
        self.checkpoints = torch.empty(count, 1, case.shape[1], device=case.device) if count else None


class Call(NamedTuple):
    """A neuron, the backend that serves it, and its tau where that is a tensor."""

    neuron: Neuron
    backend: str
    leak: Tensor | None

    def key(self, backward: bool) -> tuple[Any, ...]:
        """What a kernel's time can depend on."""
        n = self.neuron
        alike = self.backend, n.charge, n.reset, self.leak is not None
        if not backward:
            return alike
        # Whether the reset is detached is data in the CUDA kernels, and compiled in in Triton's.
        return *alike, n.surrogate.name, n.detach_reset if self.backend == "triton" else None


def calls_of(case: Case) -> dict[str, Call]:
    plif = Call(Neuron.spikingjelly_lif(), backend_of(case, LEARNT), torch.full((), 2.0, device=case.device))
    return {name: Call(n, backend_of(case, n.spec), None) for name, n in neurons().items()} | {PLIF: plif}


def backend_of(case: Case, spec: str) -> str:
    """The one that serves it."""
    module = resolve(case.backend, "lif", torch.device(case.device), case.dtype, spec)
    name = module.__name__.rpartition(".")[2]
    return case.device if name == "native" else name


def module_of(case: Case, call: Call) -> Any:
    return resolve(call.backend, "lif", torch.device(case.device), case.dtype)


def forward(module: Any, call: Call, layout: Any, b: Buffers) -> None:
    module.lif_forward(Forward(call.neuron, layout, b.x, None, call.leak, None, b.out, None, None, b.checkpoints))


def backward(module: Any, call: Call, layout: Any, b: Buffers) -> None:
    grad_leak = None if call.leak is None else torch.empty_like(call.leak)
    of = Backward(call.neuron, layout, b.x, None, call.leak, None, b.checkpoints, b.grad, None, None)
    module.lif_backward(of._replace(grad_x=b.out, grad_leak=grad_leak))


def measure(case: Case, warm_up: bool) -> list[dict[str, Any]]:
    x = torch.empty(case.shape, dtype=case.dtype, device=case.device)
    layout = layout_of(x, time_dim=0, time_steps=case.steps, channel_dim=-1)
    calls = calls_of(case)
    runs = {}
    for call in calls.values():
        for of, function in ((False, forward), (True, backward)):
            runs.setdefault(call.key(of), functools.partial(function, module_of(case, call), call, layout))
    if warm_up:
        buffers = Buffers(case)
        timing.run_once({str(key): lambda _, run=run: run(buffers) for key, run in runs.items()})
        return []
    size = x.numel() * x.element_size()
    count = timing.buffer_sets(2 * size, case.device)
    sets = [Buffers(case) for _ in range(count)]
    halves = [
        [torch.empty(size * tensors // 2, dtype=torch.uint8, device=case.device) for _ in "ab"] for tensors in (2, 3)
    ]
    every: dict[Any, timing.Call] = {
        f"copy {tensors}": lambda _, pair=pair: pair[1].copy_(pair[0])
        for tensors, pair in zip((2, 3), halves, strict=True)
    }
    every |= {key: lambda i, run=run: run(sets[i % count]) for key, run in runs.items()}
    times = timing.race(every, case.device)
    return [row for name, call in calls.items() for row in rows_of(case, name, call, times)]


def rows_of(case: Case, name: str, call: Call, times: dict[Any, Any]) -> list[dict[str, Any]]:
    head = {"steps": case.steps, "shape": case.shape, "dtype": str(case.dtype)[6:], "neuron": name}
    found = []
    for tensors, direction in ((2, "forward"), (3, "backward")):
        time, floor = times[call.key(tensors == 3)], times[f"copy {tensors}"]
        row = head | {"direction": direction, "backend": call.backend}
        if isinstance(time, str) or isinstance(floor, str):
            found.append(row | {"failed": time if isinstance(time, str) else floor})
        else:
            found.append(row | time.row() | {"of_copy": round(floor.microseconds / time.microseconds, 3)})
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each neuron and type: its backend, and forward / backward of each number of steps."""
    lines: dict[tuple[str, str, str], dict[int, dict[str, str]]] = {}
    for row in rows:
        if "neuron" not in row:
            continue
        cells = lines.setdefault((row["neuron"], row["dtype"], row["backend"]), {}).setdefault(row["steps"], {})
        cells[row["direction"]] = f"{row['of_copy']:.2f}" if "of_copy" in row else "failed"
    text = [f"{'':44s}" + "".join(f"{f'T = {steps}':>13s}" for steps in sorted(STEPS))]
    for (neuron, dtype, backend), by_steps in sorted(lines.items()):
        cells = [by_steps.get(steps, {}) for steps in sorted(STEPS)]
        text.append(
            f"{neuron:27s} {dtype:9s}{backend:7s}"
            + "".join(f"{c.get('forward', '-'):>6s} /{c.get('backward', '-'):>5s}" for c in cells)
        )
    return "\n".join(text)


def main(argv: list[str] | None = None) -> None:
    parser = timing.arguments(__doc__ or "", seconds=80)
    parser.add_argument("--backend", default="auto", help="(the one that auto takes for each neuron)")
    options = parser.parse_args(argv)
    cases = [Case(steps, dtype, options.device, options.backend) for steps in STEPS for dtype in DTYPES]
    measured: list[dict[str, Any]] = []

    def kept(case: Case, warm_up: bool) -> list[dict[str, Any]]:
        rows = measure(case, warm_up)
        measured.extend(rows)
        return rows

    timing.run_cases(cases, kept, options)
    if options.warm_up is None:
        print(table(measured))
        if failed := sum("failed" in row for row in measured):
            sys.exit(f"{failed} of {len(measured)} kernels failed")


if __name__ == "__main__":
    main()
