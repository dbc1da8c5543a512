"""The CUDA kernels, compiled by a C++ compiler and run with fibers for threads, under AddressSanitizer and UBSan.

driver.cpp compares every result with a plain loop written from the equations (plain_loop.h).  So that the comparison is
known to notice mistakes, some are planted in a copy of the kernels, and each must be found.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
KERNELS = ROOT / "csrc" / "cuda"
COMPILER = os.environ.get("CXX", "g++")
# Of UBSan what a kernel can get wrong; all of it takes a quarter longer to compile.
SANITIZE = "-fsanitize=address,alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero"
FLAGS = (
    *("-std=c++20", "-O0", "-g1", "-ffp-contract=off", "-fno-strict-aliasing", SANITIZE, "-fno-sanitize-recover=all"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
)

# What is compiled again with mistakes.
PLANTED_UNITS = (
    "lif_float32.cu",
    "bn_lif_float32.cu",
    "bn_reduce_float32.cu",
    "bn_statistics.cu",
    "leak_gradient.cu",
    "pack.cu",
)
# file, what it says, what the copy says instead; MISTAKE is true where this mistake is asked for
MISTAKES = {
    "guard": ("lif_forward.cuh", "neuron >= call.extent.neurons", "neuron >= call.extent.neurons + (MISTAKE ? W : 0)"),
    "strictness": ("lif_forward.cuh", "h[j] >= k.fire_level", "(MISTAKE ? h[j] > k.fire_level : h[j] >= k.fire_level)"),
    "checkpoint": ("lif_forward.cuh", "done % kCheckpointEvery", "(done - (MISTAKE ? 4 : 0)) % kCheckpointEvery"),
    "repeated": (
        "current.cuh",
        "frame_(e.repeated ? 0 : e.frame) {}",
        "frame_(e.repeated && !MISTAKE ? 0 : e.frame) {}",
    ),
    "prefetch": ("series.cuh", "if (i < left_)", "if (i < left_ + (MISTAKE ? 1 : 0))"),
    "last step": ("series.cuh", "t < 2 || t < steps", "t < 2 || t < steps + (MISTAKE ? 1 : 0)"),
    "reset": ("lif_backward.cuh", "v[j] = D::after_reset", "v[j] = MISTAKE ? h[j] : D::after_reset"),
    "stride": ("current.cuh", "to_ -= frame_;", "to_ -= MISTAKE ? frame_ - 1 : frame_;"),
    "history": ("lif_backward.cuh", "(W / kPart) + p)", "(W / kPart) + p + (MISTAKE ? 1 : 0))"),
    "chunk": ("lif_backward.cuh", "kCheckpointEvery - 1)", "kCheckpointEvery - (MISTAKE ? 0 : 1))"),
    "barrier": ("locations.cuh", "__syncthreads();", "if (!MISTAKE) __syncthreads();"),
    "divergence": ("locations.cuh", "__syncthreads();", "if (!(MISTAKE && threadIdx.x < 3)) __syncthreads();"),
    "shuffle": ("locations.cuh", "sum, apart)", "sum, MISTAKE ? 1 : apart)"),
    "mask": ("locations.cuh", "0xffffffffu", "(MISTAKE ? 0xffu : 0xffffffffu)"),
    "locations": ("locations.cuh", "first + left < e.inner", "first + left < e.inner + (MISTAKE ? W : 0)"),
    "reduction": ("leak_gradient.cu", "__syncthreads();", "if (!MISTAKE) __syncthreads();"),
    "channel": ("extent.cuh", "++column < e.inner", "++column < e.inner + (MISTAKE ? 1 : 0)"),
    "channel values": ("extent.cuh", "e.inner == 1 && walk", "(MISTAKE || e.inner == 1) && walk"),
    "alignment": ("launch.h", "return std::all_of(", "return MISTAKE || std::all_of("),
    "last spikes": ("pack.cuh", "+ 1) * kPackedByBlock", "+ (MISTAKE ? 0 : 1)) * kPackedByBlock"),
    "half a byte": ("pack.cuh", "byte, apart)", "byte, MISTAKE ? 2 * apart : apart)"),
    "sign": ("pack.cuh", "word & 0x7FFFFFFFu", "word & (MISTAKE ? ~0u : 0x7FFFFFFFu)"),
    "wide access": ("pack.cuh", "call.wide && whole", "(call.wide || MISTAKE) && whole"),
    "power of two": ("rule.cuh", "frexp(tau, &exponent) == 0.5f", "frexp(tau, &exponent) < (MISTAKE ? 1.0f : 0.51f)"),
    "looked-up charge": ("rule.cuh", "? v + part : v - part + x", "? v + part : v - part + (MISTAKE ? v : x)"),
    "looked-up reset": ("rule.cuh", "? rule.k.rest : h - rule.k", "? rule.k.rest : h - (MISTAKE ? 0 : 1) * rule.k"),
    "compiled-in charge": ("rule.cuh", "{rule.tau_inverse}, rule.k);", "{MISTAKE ? 1.0f : rule.tau_inverse}, rule.k);"),
    "residual": (
        "normalise.cuh",
        "if (residual.given()) residual.next();",
        "if (residual.given() && !MISTAKE) residual.next();",
    ),
    "stored back": ("normalise.cuh", "-y_frame_}; }", "MISTAKE ? y_frame_ : -y_frame_}; }"),
    "residual gradient": ("normalise.cuh", "residual_to_ -= frame_;", "residual_to_ -= MISTAKE ? 0 : frame_;"),
    "centre": (
        "normalise.cuh",
        "gradient[j] * (y[j] - mean_[j])",
        "gradient[j] * (y[j] - (MISTAKE ? 0.0f : mean_[j]))",
    ),
    "frame's sum": ("normalise.cuh", "if (!repeated_) add_product", "if (!repeated_ || MISTAKE) add_product"),
    "pivot": ("bn_statistics.cuh", "call.pivot(share.channel + j)", "call.pivot(share.channel + (MISTAKE ? 0 : j))"),
    "share": ("channels.cuh", "channel < cut.channels}", "channel < cut.channels + (MISTAKE ? W : 0)}"),
    "slice": ("channels.cuh", "* cut.per_slice, all", "* (cut.per_slice - (MISTAKE ? 1 : 0)), all"),
    "batch": (
        "channels.cuh",
        "< end;\n        if (next.inside[b]) next.loaded[b] = load(at",
        "< end || MISTAKE;\n        if (next.inside[b]) next.loaded[b] = load(at",
    ),
    "column": ("channels.cuh", "at.remainder >= row)", "at.remainder >= row + (MISTAKE ? 1 : 0))"),
    "depths": (
        "channels.cuh",
        "        __syncthreads();\n        if (thread_",
        "        if (!MISTAKE) __syncthreads();\n        if (thread_",
    ),
    "warps": (
        "channels.cuh",
        "      __syncthreads();\n      if (threadIdx.x > 1)",
        "      if (!MISTAKE) __syncthreads();\n      if (threadIdx.x > 1)",
    ),
    "sum over a warp": (
        "channels.cuh",
        "__shfl_xor_sync(0xffffffffu, value, apart)",
        "__shfl_xor_sync(0xffffffffu, value, MISTAKE ? 1 : apart)",
    ),
    "slices of a block": (
        "channels.cuh",
        "    __syncthreads();\n    if (thread > 0)",
        "    if (!MISTAKE) __syncthreads();\n    if (thread > 0)",
    ),
    "ahead": ("channels.cuh", "        fetch(at + step);", "        fetch(at + (MISTAKE ? 0 : step));"),
    "usual shift": (
        "bn_usual.cuh",
        "x[j] = x[j] * scale[j] + shift[j];\n      if constexpr (kExtras)",
        "x[j] = x[j] * scale[j] + (MISTAKE ? 0.0f : shift[j]);\n      if constexpr (kExtras)",
    ),
    "usual map": (
        "bn_usual.cuh",
        "map[j] = map[j] * call.map_share",
        "map[j] = map[j] * (MISTAKE ? 1.0f : call.map_share)",
    ),
    "moderate divisors": ("derivative.cuh", "d <= kLargest;", "(MISTAKE || d <= kLargest);"),
    "share of the input": (
        "rule.cuh",
        "kLeakInput ? tau_inverse : 1.0f)",
        "kLeakInput && !MISTAKE ? tau_inverse : 1.0f)",
    ),
    "the paper's constants": ("rule.cuh", "* ((h >= k.fire_level ? 0", "* ((h >= k.fire_level && !MISTAKE ? 0"),
    "sums in float": ("bn_usual.cuh", "if (held > 0) sums", "if (held > (MISTAKE ? 1 : 0)) sums"),
    "division": ("extent.cuh", "(high + small) >> shift", "(high + (MISTAKE ? 0 : small)) >> shift"),
}


def sections_that_find(name: str) -> tuple[str, ...]:
    """What is run to find a mistake: the calls that its file serves."""
    file = MISTAKES[name][0]
    normalised = (
        file.startswith("bn_")
        or file in ("normalise.cuh", "channels.cuh")
        or name in ("channel values", "division", "the paper's constants")
    )
    if file == "pack.cuh":
        return ("pack",)
    return ("bn_float32",) if normalised else ("pack", "float32", "options")


class Drivers(NamedTuple):
    """The driver with the kernels, and with mistakes planted in PLANTED_UNITS."""

    right: Path
    mistaken: Path


def compile_object(source: Path, out: Path) -> Path:
    include = [source.parent, HERE / "include", ROOT / "csrc" / "include", KERNELS]
    command = [COMPILER, *FLAGS, *(f"-I{path}" for path in include), "-x", "c++", "-c", source, "-o", out]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def link(objects: list[Path], out: Path) -> Path:
    subprocess.run([COMPILER, SANITIZE, *map(str, objects), "-o", str(out)], check=True)
    return out


def run(driver: Path, *sections: str, mistake: int = -1) -> subprocess.CompletedProcess[str]:
    # LeakSanitizer does not look for pointers on the fibers' stacks.
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "CKD_MUTANT": str(mistake)}
    return subprocess.run([str(driver), *sections], capture_output=True, text=True, env=environment, timeout=300)


def plant_mistakes(copy: Path) -> None:
    for number, (name, right, planted) in enumerate(MISTAKES.values()):
        text = (copy / name).read_text()
        assert right in text, f"{name} no longer says {right!r}; plant another mistake"
        (copy / name).write_text(text.replace(right, planted.replace("MISTAKE", f"(fibers::mutant() == {number})")))


@pytest.fixture(scope="session")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> Drivers:
    if shutil.which(COMPILER) is None:
        pytest.skip(f"no C++ compiler {COMPILER!r}")
    build = tmp_path_factory.mktemp("cuda_on_cpu")
    mistaken = Path(shutil.copytree(KERNELS, build / "mistaken"))
    plant_mistakes(mistaken)
    planted = [mistaken / name for name in PLANTED_UNITS]
    sources = [*sorted(KERNELS.glob("*_*.cu")), *planted, HERE / "driver.cpp"]
    sources += sorted(set(KERNELS.glob("*.cu")) - set(sources))
    with ThreadPoolExecutor(2) as pool:
        outs = [build / f"{source.parent.name}_{source.stem}.o" for source in sources]
        objects = dict(zip(sources, pool.map(compile_object, sources, outs), strict=True))
    # Of an inline function the linker keeps the first copy: in the mistaken driver the one with mistakes.
    wrong = [objects.pop(source) for source in planted]
    right = list(objects.values())
    others = [out for source, out in objects.items() if source.name not in PLANTED_UNITS]
    return Drivers(link(right, build / "right"), link([*wrong, *others], build / "mistaken_driver"))


@pytest.mark.parametrize("section", ["options", "layouts", "bn", "pack", "launch", "divisions", "fibers"])
def test_kernels(drivers: Drivers, section: str) -> None:
    done = run(drivers.right, section)
    assert done.returncode == 0, done.stdout + done.stderr


def test_leaving_shared_memory_is_noticed(drivers: Drivers) -> None:
    done = run(drivers.right, "overflow")
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stderr


def test_nothing_is_wrong_where_no_mistake_is_asked_for(drivers: Drivers) -> None:
    done = run(drivers.mistaken, "float32", "bn_float32", "pack")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def verdicts(drivers: Drivers) -> dict[str, subprocess.CompletedProcess[str]]:
    with ThreadPoolExecutor(2) as pool:
        ended = pool.map(
            lambda mistake: run(drivers.mistaken, *sections_that_find(mistake[1]), mistake=mistake[0]),
            enumerate(MISTAKES),
        )
        return dict(zip(MISTAKES, ended, strict=True))


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_noticed(verdicts: dict[str, subprocess.CompletedProcess[str]], name: str) -> None:
    done = verdicts[name]
    assert done.returncode != 0
    assert "FAIL" in done.stdout or "Sanitizer" in done.stderr or "runtime error" in done.stderr, done.stderr
