"""Runs CMake and ninja: progress as it comes, errors in one line, no more compilers at a time than memory allows."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from build_tools import check_compiler, stop

# What a CMake cache is valid for, beside the tree and the programs.
VARIABLES = ("CC", "CXX", "CXXFLAGS", "CUDACXX", "CUDAHOSTCXX", "CUDAFLAGS", "CUDA_HOME", "CUDA_PATH", "LDFLAGS")
# The most that a compiler of one file has been seen to take is half of this, g++ and nvcc alike.
JOB_MEMORY = 1 << 30
CGROUP = Path("/sys/fs/cgroup")  # of a container, which sees its own limits there


@functools.cache  # once a build, whichever command of setuptools comes first
def configure(source: Path, directory: Path, version: str, cmake: str, ninja: str) -> None:
    """Chooses what is compiled, and refuses what cannot be.

    Args:
        source: the tree, with CMakeLists.txt.
        directory: where is built. It is kept, so that a second build compiles only what changed.
        version: of the packages.
        cmake, ninja: paths of the programs.
    """
    check_compiler()
    # Written when CMake has ended: a first run that is interrupted leaves half a cache, and nothing says so.
    stamp, identity = directory / "configured.json", _identity(source, cmake)
    if directory.exists() and not (stamp.exists() and stamp.read_text() == identity):
        shutil.rmtree(directory)
    options = {
        # Given every time: an isolated build finds them in a directory that is gone afterwards.
        "CMAKE_MAKE_PROGRAM": ninja,
        "pybind11_DIR": _kept_pybind11(directory) / "share" / "cmake" / "pybind11",
        "Python_EXECUTABLE": sys.executable,
        "CKD_VERSION": version,
        "CKD_CPU_LEVELS": os.environ.get("CKD_CPU_LEVELS") or "native",
        "CKD_CUDA": os.environ.get("CKD_CUDA") or "AUTO",
        "CKD_CUDA_ARCHS": os.environ.get("CKD_CUDA_ARCHS", ""),
    }
    definitions = [f"-D{name}={value}" for name, value in options.items()]
    _run_cmake([cmake, "-S", str(source), "-B", str(directory), "-G", "Ninja", *definitions])
    stamp.write_text(identity)


def _identity(source: Path, cmake: str) -> str:
    version = subprocess.run([cmake, "--version"], check=True, capture_output=True, text=True).stdout
    return json.dumps(
        {
            "source": str(source),
            "cmake": version.splitlines()[0],
            "include": sysconfig.get_path("include"),
            "programs": {name: shutil.which(name) for name in ("c++", "nvcc")},
            "environment": {name: os.environ.get(name) for name in VARIABLES},
        },
        indent=2,
    )


def _kept_pybind11(directory: Path) -> Path:
    """A copy at a path that stays. An isolated build's own is new each time, and a new path compiles all again."""
    kept = directory / f"pybind11-{pybind11.__version__}"
    if not kept.exists():
        temporary = directory / "pybind11.new"
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(Path(pybind11.__file__).parent, temporary)
        os.replace(temporary, kept)
    return kept


def _run_cmake(command: list[str]) -> None:
    """Shows what CMake says. Where it stops, the last line is its first error, in one piece."""
    said = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            said += line
    if process.returncode:
        stop(first_error(said))


def first_error(said: str) -> str:
    """The message of the first `CMake Error`, which CMake breaks into indented lines; of a long one how it begins."""
    found = re.search(r"^CMake Error[^\n:]*(?::\d+ \(\w+\))?:(.*?)(?=\n\S|\Z)", said, re.MULTILINE | re.DOTALL)
    if found is None:
        return "CMake stopped; what it said is above"
    first, *more = [" ".join(paragraph.split()) for paragraph in found[1].strip().split("\n\n")]
    whole = " ".join([first, *filter(None, more)])
    return whole if len(whole) <= 500 else f"{first} CMake says above why."


def compile_and_link(cmake: str, directory: Path) -> None:
    """ninja writes its progress where the build prints: [12/60] is the twelfth of sixty files."""
    command = [cmake, "--build", str(directory)]
    if not os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL"):
        wanted, memory = processors(), free_memory()
        number = max(1, min(wanted, memory // JOB_MEMORY))
        if number < wanted:
            print(
                f"{number} of {wanted} processors compile: of memory {memory / JOB_MEMORY:.1f} GiB are free, and a "
                "compiler may take 1 (CMAKE_BUILD_PARALLEL_LEVEL chooses another number)",
                flush=True,
            )
        command += ["--parallel", str(number)]
    if subprocess.run(command).returncode:
        stop(
            "compiling stopped, and why is said above; where a compiler was 'Killed' memory ran out: "
            "CMAKE_BUILD_PARALLEL_LEVEL=1 needs least. The next build goes on from here"
        )


def processors() -> int:
    """As many as this process may use, within the share of its container."""
    number = len(os.sched_getaffinity(0))
    share = re.match(r"(\d+) (\d+)", _read(CGROUP / "cpu.max"))
    return max(1, min(number, int(share[1]) // int(share[2]))) if share else number


def free_memory() -> int:
    """Bytes that can be had without swapping, within the limit of the container."""
    found = re.search(r"^MemAvailable: *(\d+) kB", _read(Path("/proc/meminfo")), re.MULTILINE)
    free = int(found[1]) * 1024 if found else JOB_MEMORY * 1024
    limit = re.match(r"\d+", _read(CGROUP / "memory.max"))
    if limit:
        # The page cache counts as used, and gives way.
        cache = re.findall(r"^(?:in)?active_file (\d+)", _read(CGROUP / "memory.stat"), re.MULTILINE)
        used = int(_read(CGROUP / "memory.current") or 0) - sum(map(int, cache))
        free = min(free, max(0, int(limit[0]) - used))
    return free


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
