"""Calls every GPU kernel on small and awkward inputs, for compute-sanitizer to watch; spikes must be the CPU's.

    compute-sanitizer --tool memcheck python scripts/sanitizer_cases.py

Unlike the tests it leaves fresh memory as it is, so that initcheck can see what is read before it was written.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ckd_kernels import Neuron, bn_lif, build_info, lif, sam, surrogate, use_backend

# Odd sizes; a tail behind the last vector; more steps than fit into registers; several blocks for one channel.
SHAPES = [(1, 2, 3, 5, 7), (1, 3, 8, 4, 4), (4, 2, 8, 8, 8), (4, 3, 130, 1, 3), (20, 2, 6, 3, 3), (4, 8, 16, 32, 32)]
NEURONS = [
    Neuron.paper(),
    Neuron(charge="leak", tau=3.0, reset="soft", detach_reset=True, surrogate=surrogate.ATan()),
]


def gradients(outputs: tuple[Tensor | None, ...], inputs: list[Tensor]) -> None:
    present = [out for out in outputs if out is not None]
    torch.autograd.grad(present, inputs, [torch.randn_like(out) for out in present])


def run(backend: str, device: str, shape: tuple[int, ...], dtype: torch.dtype, last: bool, neuron: Neuron) -> None:
    def fresh(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(size).to(device, dtype).requires_grad_()

    def placed(t: Tensor) -> Tensor:
        return (t.movedim(2, -1).contiguous().movedim(-1, 2) if last else t).detach().requires_grad_()

    x, residual = (placed(fresh(*shape, dtype=dtype)) for _ in range(2))
    v_init, weight, bias = fresh(*shape[1:]), fresh(shape[2]), fresh(shape[2])
    leak = torch.full((shape[2],), 0.5 if neuron.leak_name == "decay" else 3.0, device=device).requires_grad_()
    learnt: dict[str, Any] = {neuron.leak_name or "": leak}
    wanted: dict[str, Any] = {"return_v": True, "return_sam": True}
    with use_backend(backend):
        plain = lif(x, neuron)
        gradients((plain,), [x])
        gradients(tuple(lif(x, neuron, channel_dim=2, v_init=v_init, **learnt, **wanted)), [x, v_init, leak])
        gradients((bn_lif(x, weight, bias, None, None, neuron),), [x, weight, bias])
        out = bn_lif(x, weight, bias, None, None, neuron, residual=residual, v_init=v_init, **learnt, **wanted)
        gradients(tuple(out), [x, weight, bias, residual, v_init, leak])
        usual = bn_lif(x, weight, bias, None, None, neuron, residual=residual, return_sam=True)
        gradients(tuple(usual), [x, weight, bias, residual])
        frame = x[:1].detach().requires_grad_()
        gradients((bn_lif(frame.expand(shape), weight, bias, None, None, neuron),), [frame, weight, bias])
        sam(plain)
        if hasattr(torch.ops.ckd_kernels, "pack_bits"):
            bits = torch.ops.ckd_kernels.pack_bits(plain.reshape(-1), backend)
            torch.ops.ckd_kernels.unpack_bits(bits, plain.numel(), dtype, backend)
    with use_backend("reference"):
        expected = lif(x.detach().cpu(), neuron)
    assert torch.equal(plain.cpu(), expected), f"{backend}: other spikes for {shape}, {dtype}"


def cases(backend: str) -> Iterator[tuple[tuple[int, ...], torch.dtype, bool, Neuron]]:
    every = itertools.product(SHAPES, (torch.float32, torch.bfloat16), (False, True), NEURONS)
    for shape, dtype, last, neuron in every:
        # Triton compiles anew for nearly every case, and the watched time is short.
        if backend != "triton" or (
            shape in SHAPES[1::2] + SHAPES[-1:] and dtype == torch.float32 and neuron.detach_reset
        ):
            yield shape, dtype, last, neuron


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: to try the script")
    parser.add_argument(
        "--backends", nargs="+", help="default: cuda and triton, or reference, as far as they are available"
    )
    options = parser.parse_args(argv)
    chosen = options.backends or (["cuda", "triton"] if options.device == "cuda" else ["reference"])
    backends = [name for name in chosen if build_info()["backends"][name] == "available"]
    torch.manual_seed(0)
    count = 0
    for backend in backends:
        for shape, dtype, last, neuron in cases(backend):
            run(backend, options.device, shape, dtype, last, neuron)
            count += 1
            print(backend, shape, dtype, "channels-last" if last else "", flush=True)
    if options.device == "cuda":
        torch.cuda.synchronize()
    print(f"{count} cases on {', '.join(backends)}")


if __name__ == "__main__":
    main()
