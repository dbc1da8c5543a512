"""Triton kernels compiled for real GPUs, with none at hand: what the machine code uses, and when it is compiled."""

from __future__ import annotations

import importlib
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

triton = pytest.importorskip("triton")
if triton.knobs.runtime.interpret:
    pytest.skip("Triton kernels are interpreted in this process", allow_module_level=True)

import triton.compiler  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import driver  # noqa: E402

from ckd_kernels import Neuron, bn_lif, lif, sam, surrogate, use_backend  # noqa: E402
from ckd_kernels.backends import triton as backend  # noqa: E402
from ckd_kernels.backends.triton.tiles import OPTIONS, Kernel  # noqa: E402

KERNELS = {
    "lif": "_forward",
    "lif_backward": "_backward",
    "sam": "_sam",
    "bn_lif": "_reduce",
    "bn_statistics": "_statistics",
}
PLAIN = (
    ("sam", "_finish"),
    ("channel_sums", "_finish"),
    ("bn_fold", "_fold"),
    ("bn_fold", "_coefficients"),
    ("pack", "_pack"),
    ("pack", "_unpack"),
)
CUDA_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
BF16, FP32 = torch.bfloat16, torch.float32


class Request(NamedTuple):
    """A compilation that a launch asked for."""

    kernel: str
    constants: dict[str, Any]
    source: Any
    options: dict[str, Any]

    def compile(self, architecture: int | str) -> Any:
        if isinstance(architecture, int):
            return _compile(self.source, target=GPUTarget("cuda", architecture, 32), options=self.options)
        return _compile(self.source, target=GPUTarget("hip", architecture, 64), options=OPTIONS | {"num_warps": 2})


_compile = triton.compiler.compile


class FakeKernel:
    """A compiled kernel whose launches are counted."""

    function = None
    packed_metadata = ()

    def __init__(self, gpu: FakeGPU) -> None:
        self.gpu = gpu

    def launch_metadata(self, *_: Any) -> None:
        return None

    def run(self, *_: Any) -> None:
        self.gpu.launches += 1


class FakeGPU:
    """Stands for a GPU: keeps what is to be compiled and launched, and does none of it."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.launches = 0

    def compile(self, source: Any, target: Any = None, options: Any = None, **_: Any) -> Any:
        names = source.fn.arg_names
        constants = {names[path[0]]: value for path, value in source.constants.items()}
        # Every target has its own notion of an architecture.
        options = {name: value for name, value in options.items() if name != "arch"}
        self.requests.append(Request(source.fn.fn.__name__.strip("_"), constants, source, options))
        return FakeKernel(self)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGPU]:
    """CPU tensors are launched on a fake GPU, by kernels that were never compiled."""
    fake = FakeGPU()
    monkeypatch.setattr(triton.compiler, "compile", fake.compile)
    monkeypatch.setattr(backend, "unavailable", lambda *_: None)
    for name, function in KERNELS.items():
        module = importlib.import_module(f"{backend.__name__}.{name}")
        monkeypatch.setattr(module, "_KERNEL", Kernel(getattr(module, function)))
    for name, function in PLAIN:
        module = importlib.import_module(f"{backend.__name__}.{name}")
        f = getattr(module, function)
        again = triton.jit(
            f.fn,
            do_not_specialize=f.do_not_specialize,
            do_not_specialize_on_alignment=f.do_not_specialize_on_alignment,
        )
        monkeypatch.setattr(module, function, again)
    monkeypatch.setattr(type(driver), "active", fake)
    with use_backend("triton"):
        yield fake


def train(x: torch.Tensor, neuron: Neuron, function: Callable = lif, **options: Any) -> None:
    leaves = {"x" if function is lif else "y": x}
    leaves |= {name: value for name, value in options.items() if isinstance(value, torch.Tensor)}
    leaves = {name: value.detach().requires_grad_() for name, value in leaves.items()}
    out = function(**leaves, neuron=neuron, **{k: v for k, v in options.items() if k not in leaves})
    outputs = [out] if isinstance(out, torch.Tensor) else [o for o in out if o is not None]
    torch.autograd.backward(outputs, [torch.zeros_like(o) for o in outputs])


def normalised(y: torch.Tensor, *, residual: bool = False, neuron: Neuron | None = None, **options: Any) -> None:
    """A training step of bn_lif."""
    channels = y.shape[2]
    vectors = {"weight": torch.ones(channels), "bias": torch.zeros(channels)}
    if residual:
        vectors["residual"] = torch.zeros_like(y)
    train(y, neuron or Neuron(), bn_lif, **vectors, running_mean=None, running_var=None, **options)


def test_another_size_compiles_nothing(gpu: FakeGPU) -> None:
    def step(*shape: int, offset: int = 0, threshold: float = 1.0) -> None:
        x = torch.zeros(torch.Size(shape).numel() + offset)[offset:].view(shape)
        train(x, Neuron(charge="leak_input", tau=2.5 * threshold, threshold=threshold), return_sam=True)

    step(4, 2, 16, 8, 8)
    compiled = [request.kernel for request in gpu.requests]
    assert sorted(compiled) == ["backward"] * 3 + ["finish"] + ["forward"] * 2
    launched = gpu.launches
    for time_steps in (1, 2, 7, 8, 16, 17, 40):
        step(time_steps, 2, 16, 8, 8)
    step(4, 1, 1, 1, 2)
    step(1, 1, 16, 4, 4)
    step(4, 16, 16, 8, 16)
    step(6, 3, 21, 7, 7)
    step(4, 2, 16, 8, 8, offset=1)
    step(4, 2, 16, 8, 8, threshold=0.9)
    assert gpu.launches == launched + 13 * 3
    assert len(gpu.requests) == 6


def test_another_size_of_bn_lif_compiles_nothing(gpu: FakeGPU) -> None:
    def step(*shape: int, offset: int = 0) -> None:
        normalised(torch.zeros(torch.Size(shape).numel() + offset)[offset:].view(shape), residual=True)

    step(4, 2, 16, 8, 8)
    compiled = [request.kernel for request in gpu.requests]
    # One that finishes statistics, and one that finishes the sums of the backward pass.
    once = ["coefficients", "finish", "finish", "fold"]
    assert sorted(compiled) == sorted(["backward", "reduce"] * 3 + ["forward", "statistics"] * 2 + once)
    launched = gpu.launches
    for time_steps in (1, 2, 7, 8, 16, 40):
        step(time_steps, 2, 16, 8, 8)
    step(4, 16, 64, 32, 32)
    step(6, 3, 21, 7, 7)
    step(4, 2, 16, 8, 8, offset=1)
    assert gpu.launches == launched + 9 * 8
    assert len(gpu.requests) == len(compiled)


def test_vectors_of_an_odd_number_of_channels_do_not_make_accesses_narrow(gpu: FakeGPU) -> None:
    # They are rows of one tensor, so that they start anywhere.
    normalised(torch.zeros(4, 2, 16, 8, 8))
    compiled = len(gpu.requests)
    chosen = []
    launch = Kernel.launch

    def seen(self: Kernel, tiles: Any, variants: Any, variant: Any, *others: Any, **constants: Any) -> None:
        chosen.append(variant)
        launch(self, tiles, variants, variant, *others, **constants)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Kernel, "launch", seen)
        normalised(torch.zeros(4, 2, 19, 8, 8))
    assert len(chosen) == 4
    assert all(variant.aligned for variant in chosen)
    assert len(gpu.requests) == compiled


def test_another_option_compiles(gpu: FakeGPU) -> None:
    # The test above sees compilations at all.
    x = torch.zeros(4, 2, 16)
    for neuron in (Neuron(), Neuron(reset="soft"), Neuron(surrogate=surrogate.ATan())):
        train(x, neuron)
    assert len(gpu.requests) == 5 + 5 + 3
    sam(x)
    assert len(gpu.requests) == 5 + 5 + 3 + 3


def plain(dtype: torch.dtype) -> None:
    train(torch.zeros(4, 2, 16, dtype=dtype), Neuron())


def parametric(dtype: torch.dtype) -> None:
    x = torch.zeros(4, 2, 16, 8, 8, dtype=dtype)
    train(x, Neuron(charge="leak_input", surrogate=surrogate.Sigmoid()), tau=torch.full((16,), 2.0), return_sam=True)


def channels_last(dtype: torch.dtype) -> None:
    x = torch.zeros(4, 2, 8, 8, 16, dtype=dtype).movedim(-1, 2)
    train(x, Neuron(), decay=torch.full((16,), 0.5), return_sam=True)


def bn(dtype: torch.dtype) -> None:
    normalised(torch.zeros(4, 2, 16, 8, 8, dtype=dtype))


def bn_residual_channels_last(dtype: torch.dtype) -> None:
    normalised(torch.zeros(4, 2, 8, 8, 16, dtype=dtype).movedim(-1, 2), residual=True)


def accesses(ptx: str) -> list[int]:
    """Bytes of each access to global memory."""
    found = re.findall(r"(?:ld|st)\.global[.\w:]*?(?:\.v(\d))?\.[bfus](\d+)\b", ptx)
    return [int(count or 1) * int(bits) // 8 for count, bits in found]


def resources(kernel: Any, tmp_path: Path) -> tuple[int, int]:
    """Registers, and bytes of the stack (where spilled registers go)."""
    binary = tmp_path / "kernel.cubin"
    binary.write_bytes(kernel.asm["cubin"])
    command = [str(CUDA_TOOLS / "cuobjdump"), "-res-usage", str(binary)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    registers, stack, local = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", done.stdout + done.stderr).groups()
    return int(registers), int(stack) + int(local)


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("call", [plain, parametric, channels_last, bn, bn_residual_channels_last])
def test_machine_code(gpu: FakeGPU, call: Callable[[torch.dtype], None], dtype: torch.dtype, tmp_path: Path) -> None:
    call(dtype)
    for request in gpu.requests:
        kernel = request.compile(90)
        registers, spilled = resources(kernel, tmp_path)
        what = f"{request.kernel} {request.constants}"
        assert spilled == 0, f"{what}: {spilled} bytes spilled, {registers} registers"
        ptx = kernel.asm["ptx"]
        # Approximate division or a contracted multiply-add would change spikes.
        assert not re.search(r"div\.(full|approx)", ptx), what
        if call is not parametric:  # whose exp has multiply-adds of its own
            assert "fma." not in ptx, what
        if request.constants.get("UNIT") == 16 and call is plain:
            assert set(accesses(ptx)) == {16}, what
        elif request.constants.get("UNIT") == 16:
            # A learnable decay or tau, or sums in float64, leave registers for 8 bytes of a 2-byte type.  What has one
            # value a channel, a location or a program is narrow.
            assert sum(size >= 8 for size in accesses(ptx)) >= 6, what


@pytest.mark.parametrize("architecture", [80, 100, 120, "gfx942"])
@pytest.mark.parametrize("call", [plain, bn])
def test_every_architecture(
    gpu: FakeGPU, call: Callable[[torch.dtype], None], architecture: int | str, tmp_path: Path
) -> None:
    call(BF16)
    for request in gpu.requests:
        if request.constants.get("UNIT") != 16 or request.constants["STEPS"] == 8:
            continue
        kernel = request.compile(architecture)
        if architecture == "gfx942":
            assert set(re.findall(r"\.vgpr_spill_count: +(\d+)", kernel.asm["amdgcn"])) == {"0"}
            found = re.findall(r"(?:global|buffer)_((?:load|store)_\w+)", kernel.asm["amdgcn"])
            assert found.count("load_dwordx4") + found.count("load_dwordx2") >= 4
            assert call is bn or set(found) == {"load_dwordx4", "store_dwordx4"}
        else:
            assert resources(kernel, tmp_path)[1] == 0
            widths = accesses(kernel.asm["ptx"])
            assert sum(size >= 8 for size in widths) >= 6
            assert call is bn or min(widths) >= 16


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_packing(gpu: FakeGPU, dtype: torch.dtype, tmp_path: Path) -> None:
    """One program for all sizes, whose accesses to spikes are 16 bytes wide but for the last few of them."""
    for count in (20_000, 16, 1, 5, 4096, 100_001):
        spikes = torch.zeros(count, dtype=dtype)
        bits = torch.ops.ckd_kernels.pack_bits(spikes, "triton")
        torch.ops.ckd_kernels.unpack_bits(bits, count, dtype, "triton")
        torch.ops.ckd_kernels.unpack_bits(bits[4:], max(count - 32, 0), dtype, "triton")
    assert [request.kernel for request in gpu.requests] == ["pack", "unpack"]
    for request in gpu.requests:
        kernel = request.compile(90)
        registers, spilled = resources(kernel, tmp_path)
        assert spilled == 0
        assert registers <= 64
        ptx = kernel.asm["ptx"]
        found = re.findall(r"(ld|st)\.global[.\w:]*?\.v4\.[bfus]32\b", ptx)
        vectors = 512 * 8 * dtype.itemsize // 16 // (4 * 32)  # of a thread
        assert found.count("ld" if request.kernel == "pack" else "st") == vectors
        for architecture in (80, 100, 120):
            assert resources(request.compile(architecture), tmp_path)[1] == 0
        assembly = request.compile("gfx942").asm["amdgcn"]
        assert set(re.findall(r"\.vgpr_spill_count: +(\d+)", assembly)) == {"0"}
        assert f"{'load' if request.kernel == 'pack' else 'store'}_dwordx4" in assembly
