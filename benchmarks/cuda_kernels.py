"""How fast the CUDA and Triton kernels are, as a fraction of a device copy of the bytes that they must move.

    python benchmarks/cuda_kernels.py results.json

Each kernel is captured in a CUDA graph, so that the time is the device's own; the copy and the kernels take turns in
one run.  Bytes are those of docs/kernels.md: LIF reads x and writes spikes; backward reads x and dL/dspikes and writes
dL/dx; the map adds next to nothing.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from ckd_kernels import Neuron, build_info, surrogate
from ckd_kernels.backend import resolve
from ckd_kernels.ops.layout import layout_of
from ckd_kernels.ops.lif import checkpoint_count

PAPER = Neuron.paper()
NEURONS = {
    "paper": PAPER,
    "spikingjelly": Neuron.spikingjelly_lif(),
    "atan, soft": Neuron(charge="leak", tau=3.0, reset="soft", detach_reset=True, surrogate=surrogate.ATan()),
}
SHAPES = [
    (4, 128, 128, 32, 32),
    (4, 128, 256, 16, 16),
    (4, 128, 512, 8, 8),
    (1, 128, 128, 32, 32),
    (1, 128, 512, 8, 8),
    (4, 32, 64, 56, 56),
    (16, 128, 128, 16, 16),
    (100, 128, 7000),
]
ROUNDS, REPEATS = 7, 10


def captured(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """REPEATS calls as one graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(REPEATS):
            call()
    return graph


def race(calls: dict[str, Callable[[], object]]) -> dict[str, tuple[float, float]]:
    """Median microseconds of each call and half the distance between its quartiles, over the median."""
    graphs = {name: captured(call) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for name, graph in [*graphs.items(), *list(graphs.items()) * ROUNDS]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times[name].append(start.elapsed_time(end) / REPEATS * 1e3)
    result = {}
    for name, all_rounds in times.items():
        low, median, high = statistics.quantiles(all_rounds[1:], n=4)
        result[name] = (median, (high - low) / 2 / median)
    return result


def channels_last(x: Tensor) -> Tensor:
    return x.movedim(2, -1).contiguous().movedim(-1, 2)


def calls_for(shape: tuple[int, ...], dtype: torch.dtype, last: bool) -> tuple[dict, dict]:
    """What runs in a race, and how many bytes each call must move."""
    place = channels_last if last else torch.Tensor.contiguous
    x, g = (place(torch.randn(shape, device="cuda").to(dtype)) for _ in range(2))
    spikes, grad_x = torch.empty_like(x), torch.empty_like(x)
    size = x.numel() * x.element_size()
    source, target = (torch.empty(size // 4, device="cuda") for _ in range(2))
    calls: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(source)}
    moved = {"copy": 2 * size}
    plain = layout_of(x, time_dim=0, time_steps=shape[0], channel_dim=-1)
    count = checkpoint_count(shape[0])
    checkpoints = torch.empty(count, plain.outer, plain.frame, device="cuda") if count else None
    for backend in ("cuda", "triton"):
        module = resolve(backend, "lif", x.device, dtype)
        for name, neuron in NEURONS.items():
            if last and name != "paper":
                continue
            calls[f"{backend} | forward, {name}"] = lambda m=module, n=neuron: m.lif_forward(
                n, plain, x, None, None, spikes, None, None, checkpoints
            )
            moved[f"{backend} | forward, {name}"] = 2 * size
            calls[f"{backend} | backward, {name}"] = lambda m=module, n=neuron: m.lif_backward(
                n, plain, x, None, None, checkpoints, g, None, None, grad_x, None, None
            )
            moved[f"{backend} | backward, {name}"] = 3 * size
        if len(shape) < 5:
            continue
        layout = layout_of(x, time_dim=0, time_steps=shape[0], channel_dim=2)
        sam, grad_sam = (torch.randn(shape[1], *shape[3:], device="cuda") for _ in range(2))
        calls[f"{backend} | forward with map"] = lambda m=module, a=layout, s=sam: m.lif_forward(
            PAPER, a, x, None, None, spikes, None, s, checkpoints
        )
        moved[f"{backend} | forward with map"] = 2 * size
        calls[f"{backend} | backward with map"] = lambda m=module, a=layout, s=grad_sam: m.lif_backward(
            PAPER, a, x, None, None, checkpoints, g, None, s, grad_x, None, None
        )
        moved[f"{backend} | backward with map"] = 3 * size
        calls[f"{backend} | map alone"] = lambda m=module, a=layout, s=sam: m.sam(a, x, s)
        moved[f"{backend} | map alone"] = size
    return calls, moved


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    torch.manual_seed(0)
    rows = []
    for shape in SHAPES:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for last in (False, True) if len(shape) == 5 else (False,):
                calls, moved = calls_for(shape, dtype, last)
                times = race(calls)
                speed = {name: moved[name] / times[name][0] / 1e6 for name in calls}
                head = f"{list(shape)} {str(dtype)[6:]}{' channels-last' if last else ''}"
                print(f"{head}: copy {speed['copy']:.2f} TB/s")
                for name in calls:
                    row = {"shape": shape, "dtype": str(dtype)[6:], "channels_last": last, "call": name}
                    row |= {"microseconds": round(times[name][0], 2), "spread": round(times[name][1], 4)}
                    row |= {"bytes": moved[name], "of_copy": round(speed[name] / speed["copy"], 3)}
                    rows.append(row)
                    if name != "copy":
                        print(f"  {name:35s}{times[name][0]:9.1f} us  {row['of_copy']:5.2f} of the copy's speed")
    machine = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "build": build_info()}
    with open(sys.argv[1] + ".new", "w") as file:
        json.dump({"machine": machine, "rows": rows}, file, indent=1)
    os.replace(sys.argv[1] + ".new", sys.argv[1])


if __name__ == "__main__":
    main()
