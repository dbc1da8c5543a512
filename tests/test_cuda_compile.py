"""The CUDA kernels compiled for real GPUs, with none at hand: registers, spills, and 16-byte accesses."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "csrc" / "cuda"
FLAGS = (
    *("-std=c++20", "-cubin", "-fmad=false", "-prec-div=true", "-prec-sqrt=true", "-ftz=false", "-Xptxas=-v"),
    "-Werror=all-warnings",
)
# Every storage type and every architecture; all their pairs would take minutes.
UNITS = [
    *(("lif_float32", 100), ("lif_bfloat16", 90), ("lif_float16", 80), ("sam", 120), ("pack", 90)),
    *(("bn_lif_float32", 90), ("bn_lif_bfloat16", 100)),
    *(("bn_reduce_float32", 120), ("bn_reduce_float16", 90), ("bn_statistics", 80)),
]


def find_nvcc() -> str | None:
    for variable in ("CUDACXX", "CUDA_HOME", "CUDA_PATH"):
        place = os.environ.get(variable)
        found = place and shutil.which(place if variable == "CUDACXX" else f"{place}/bin/nvcc")
        if found:
            return found
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def find_disassembler() -> str | None:
    """cuobjdump of the CUDA toolkit, or the one that Triton's package carries."""
    triton = importlib.util.find_spec("triton")
    carried = (
        Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump" if triton and triton.origin else ""
    )
    return shutil.which("cuobjdump") or shutil.which(str(carried))


class Kernel(NamedTuple):
    registers: int
    stack: int
    spills: int


class Unit(NamedTuple):
    name: str
    arch: int
    cubin: Path
    kernels: dict[str, Kernel]


def compile_unit(nvcc: str, name: str, arch: int, directory: Path) -> Unit:
    cubin = directory / f"{name}_{arch}.cubin"
    command = [nvcc, *FLAGS, f"-arch=sm_{arch}", f"-I{ROOT / 'csrc' / 'include'}", "-o", cubin, KERNELS / f"{name}.cu"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kernels = {}
    for entry in re.split(r"Compiling entry function '", done.stderr)[1:]:
        stack, stores, loads = re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", entry
        ).groups()  # type: ignore[union-attr]
        registers = re.search(r"Used (\d+) registers", entry).group(1)  # type: ignore[union-attr]
        kernels[entry.split("'")[0]] = Kernel(int(registers), int(stack), int(stores) + int(loads))
    return Unit(name, arch, cubin, kernels)


@pytest.fixture(scope="session")
def units(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Unit]:
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc in CUDACXX, CUDA_HOME/bin, CUDA_PATH/bin, PATH or /usr/local/cuda/bin")
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    wanted = [(name, arch) for name, arch in UNITS if f"compute_{arch}" in known.split()]
    directory = tmp_path_factory.mktemp("cuda")
    with ThreadPoolExecutor(2) as pool:
        compiled = pool.map(lambda unit: compile_unit(nvcc, *unit, directory), wanted)
        return dict(zip(wanted, compiled, strict=True))


@pytest.fixture(params=UNITS, ids=lambda unit: f"{unit[0]}-sm_{unit[1]}")
def unit(request: pytest.FixtureRequest, units: dict[tuple[str, int], Unit]) -> Unit:
    if request.param not in units:
        pytest.skip(f"this nvcc does not compile for sm_{request.param[1]}")
    return units[request.param]


def registers(unit: Unit, *parts: str) -> list[int]:
    found = [kernel.registers for name, kernel in unit.kernels.items() if all(part in name for part in parts)]
    assert found, f"no kernel of {unit.name} has {parts} in its name"
    return found


def test_nothing_lives_in_local_memory(unit: Unit) -> None:
    assert unit.kernels
    bad = {name: kernel for name, kernel in unit.kernels.items() if kernel.stack or kernel.spills}
    assert not bad


def test_registers_leave_room_for_enough_threads(unit: Unit) -> None:
    """A multiprocessor has 65,536 registers; memory latency is hidden by its threads, each with its loads in flight."""
    if unit.name == "sam":
        assert max(registers(unit, "sam_kernel")) <= 80
    elif unit.name == "pack":
        assert max(registers(unit, "pack_bits_kernel")) <= 32
    elif unit.name == "bn_statistics":
        assert max(registers(unit, "statistics_kernel")) <= 96
    elif unit.name.startswith("lif"):
        assert max(registers(unit, "lif_forward_kernel")) <= 96
        assert max(registers(unit, "lif_forward_sam_kernel")) <= 128
        # The neurons compiled in, at 1 step, at 4 and at any number: 1,024 and 512 threads at least.
        assert max(registers(unit, "lif_backward_kernel", "OneNeuron", "Li1ELb0ELb0E")) <= 64
        assert max(registers(unit, "lif_backward_kernel", "OneNeuron")) <= 128
    elif unit.name.startswith("bn_lif"):
        assert max(registers(unit, "lif_forward_kernel")) <= 128
        assert max(registers(unit, "lif_forward_sam_kernel")) <= 128
        assert max(registers(unit, "bn_usual_forward_kernel")) <= 128
        # Without a residual and a map, 1 step and 4: 640 and 512 threads.
        assert max(registers(unit, "bn_usual_apply_kernel", "Li1ELb0E")) <= 96
        assert max(registers(unit, "bn_usual_apply_kernel")) <= 168
    else:
        assert max(registers(unit, "bn_usual_reduce_kernel", "Li1ELb0E")) <= 96
        assert max(registers(unit, "bn_usual_reduce_kernel")) <= 168
    # Any neuron: 256 threads.
    assert max(kernel.registers for kernel in unit.kernels.values()) <= 255


def test_accesses_are_16_bytes_wide(unit: Unit) -> None:
    """What W neighbours have in storage is one access; W*4 bytes in float32, W*2 otherwise, and never less than 8."""
    disassembler = find_disassembler()
    if disassembler is None:
        pytest.skip("no cuobjdump in PATH or in an installed Triton")
    text = subprocess.run([disassembler, "-sass", str(unit.cubin)], capture_output=True, text=True, check=True).stdout
    if unit.name == "pack":
        # As many wide accesses as vectors that a thread has in flight; narrow ones are for the last block.
        counts = {
            re.search("(un)?pack_bits_kernelI[tj]", function)[0]: (  # type: ignore[index]
                len(re.findall(r"LDG\.E\.128", function)),
                len(re.findall(r"STG\.E\.128", function)),
            )
            for function in text.split("Function : ")[1:]
        }
        kernels = {"pack_bits_kernelI": (4, 0), "unpack_bits_kernelI": (0, 4)}
        assert counts == {kernel + raw: wide for kernel, wide in kernels.items() for raw in "tj"}
        return
    vector = 0
    for function in text.split("Function : ")[1:]:
        name = function.split("\n", 1)[0].strip()
        half = "6__half" in name or "__nv_bfloat16" in name
        # Template arguments of the vector kernels: the types, then W; one pass always takes the widest access.
        found = re.search(r"(?:sam|backward|forward|statistics|reduce|apply)_kernelI\S*?Li(\d)E", name)
        if found is None or (found[1] == "1" and "usual_forward" not in name):
            continue
        vector += 1
        bits = 128 if "usual_forward" in name else int(found[1]) * (16 if half else 32)
        assert re.search(rf"LDG\.E\.{bits}\b", function), name
        if "forward" in name or "backward" in name or "apply" in name:
            assert re.search(rf"STG\.E\.{bits}\b", function), name
        assert not re.search(r"\b(LDL|STL)\b", function), name
        # Nothing is stored in 2-byte pieces.
        assert not re.search(r"STG\.E\.U?16", function), name
        usual = "forward" in name or "OneNeuron" in name
        if unit.name.startswith("lif") and usual and not re.search(r"Li0ELb|Li0ENS", name):
            # Four neighbours where a division's arithmetic takes the registers of the other four.
            divides = "Sigmoid" in name or "ATan" in name
            assert bits == (64 if half and divides and found[1] == "4" else 128), name
    assert vector >= (3 if unit.name in ("sam", "bn_statistics") else 8)


@pytest.mark.parametrize("name", ["lif_float32", "bn_lif_float32", "bn_reduce_float32"])
def test_nothing_is_fused(units: dict[tuple[str, int], Unit], tmp_path: Path, name: str) -> None:
    """Products and sums of a neuron stay apart.  (Divisions become FFMAs in machine code, hence PTX.)"""
    nvcc = find_nvcc()
    assert nvcc is not None
    ptx = tmp_path / "lif.ptx"
    flags = [flag.replace("-cubin", "-ptx") for flag in FLAGS]
    source = KERNELS / f"{name}.cu"
    subprocess.run([nvcc, *flags, "-arch=sm_90", f"-I{ROOT / 'csrc' / 'include'}", "-o", ptx, source], check=True)
    entries = [text for text in ptx.read_text().split(".entry ")[1:] if "Triangle" in text.split("(", 1)[0]]
    assert entries
    for entry in entries:
        assert "mul.f32" in entry or "mul.rn.f32" in entry
        assert "fma." not in entry
