"""What a build chooses, what it says, and that what cannot be built ends in one line that says what to do.

Compilers, CUDA toolkits and GPUs are scripts here: nothing of the packages is compiled.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import build_cmake
import build_tools
import pytest

ROOT = Path(__file__).resolve().parent.parent


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


# --- requirements


def test_the_requirements_of_this_tree_are_there():
    programs = build_tools.check_requirements(ROOT / "pyproject.toml")
    assert {"cmake", "ninja"} <= set(programs)


def test_a_program_in_path_that_is_too_old_gives_way_to_that_beside_python(monkeypatch, tmp_path):
    old = script(tmp_path / "cmake", "echo cmake version 3.25.1")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    programs = build_tools.check_requirements(ROOT / "pyproject.toml")
    assert Path(programs["cmake"]).parent == Path(sys.executable).parent
    old.write_text(old.read_text().replace("3.25.1", "4.4.0"))
    assert build_tools.check_requirements(ROOT / "pyproject.toml")["cmake"] == str(old)


def test_makefile_and_build_read_the_same_requirements():
    makefile = (ROOT / "Makefile").read_text()
    (command,) = re.findall(r"^BUILD_REQUIRES := \$\(shell (.*)\)$", makefile, re.MULTILINE)
    said = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {re.split('[">]', name)[1] for name in said.split()} == {"setuptools", "pybind11", "cmake", "ninja"}


def test_an_old_setuptools_and_a_missing_package_are_named(monkeypatch, tmp_path):
    """Nothing else of the line: a package that is new enough is not to be installed."""
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text('[build-system]\nrequires = ["setuptools>=77", "pybind11>=2.12", "nosuchpackage", "ninja"]\n')
    version = build_tools.metadata.version
    monkeypatch.setattr(build_tools.metadata, "version", lambda n: {"setuptools": "65.5.0"}.get(n) or version(n))
    with pytest.raises(SystemExit) as stopped:
        build_tools.check_requirements(pyproject)
    assert str(stopped.value) == (
        "error: the build needs setuptools>=77 (here: 65.5.0), nosuchpackage (here: none): "
        f"{sys.executable} -m pip install 'setuptools>=77' 'nosuchpackage'"
    )


def test_setup_refuses_an_old_setuptools_before_using_it(tmp_path):
    """As `pip install --no-build-isolation` runs it."""
    (tmp_path / "setuptools").mkdir()
    (tmp_path / "setuptools" / "__init__.py").write_text("raise ImportError('an old setuptools was used')\n")
    info = tmp_path / "setuptools-65.5.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: setuptools\nVersion: 65.5.0\n")
    done = subprocess.run(
        [sys.executable, ROOT / "setup.py", "--version"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert re.fullmatch(r"error: the build needs setuptools>=77 \(here: 65.5.0\): \S+ -m pip install .*\n", done.stderr)


def test_the_release_workflow_runs_what_there_is():
    """Its make targets, the Pythons that the packages support, and the tests that it selects."""
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
    jobs = workflow["jobs"]
    commands = "\n".join(step.get("run", "") for job in jobs.values() for step in job["steps"])
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"sdist", "wheel"} <= set(re.findall(r"\bmake ([a-z-]+)", commands)) <= targets
    assert jobs["wheel"]["strategy"]["matrix"]["python"] == ["3.10", "3.11", "3.12", "3.13", "3.14"]
    assert 'requires-python = ">=3.10"' in (ROOT / "pyproject.toml").read_text()
    (selected,) = re.findall(r'-k "(.*?)"', commands)
    tests = (ROOT / "tests" / "test_packaging.py").read_text()
    assert all(name in tests for name in selected.split(" or "))


# --- the C++ compiler


def test_the_compiler_that_is_here_will_do(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    build_tools.check_compiler()


@pytest.mark.parametrize(
    ("refuses", "message"),
    [
        ("-fsyntax-only", "does not compile an empty program; repair it, or name another: CXX="),
        ("-std=c++20", r"\(g\+\+ 9.4\) is too old for C\+\+20 and _Float16; install GCC 12"),
        ("-fopenmp", "has no OpenMP; install it"),
        ("-I*", r"does not find Python.h of Python 3.\d+; install it: apt install python3"),
    ],
)
def test_a_compiler_that_lacks_something_is_refused(refuses, message, tmp_path):
    loop = f'for a in "$@"; do case "$a" in --version) echo "g++ 9.4";; {refuses}) echo "no $a"; exit 1;; esac; done'
    compiler = script(tmp_path / "g++", loop)
    with pytest.raises(
        SystemExit, match=rf"^error: the C\+\+ compiler {re.escape(str(compiler))} .*{message}"
    ) as stopped:
        build_tools.check_compiler({"CXX": str(compiler)})
    assert "\n" not in str(stopped.value)


@pytest.mark.parametrize(
    ("cxx", "reason"), [("no-such-compiler -m64", r"CXX is 'no-such-compiler', which"), ("", r"no c\+\+, g\+\+, clang")]
)
def test_no_compiler(cxx, reason, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=rf"^error: there is no C\+\+ compiler \({reason}.* apt install g\+\+$"):
        build_tools.check_compiler({"CXX": cxx})


# --- CUDA, which cmake/cuda.cmake chooses

NVCC = """[ "$1" = --list-gpu-arch ] && printf 'compute_90\\ncompute_75\\ncompute_80\\ncompute_100\\n'; exit 0"""
TOO_NEW = (
    'echo "host_config.h:137:2: error: #error -- unsupported GNU version! gcc later than 15 is not supported! The" >&2'
)
H200, A100_AND_RTX, V100, UNKNOWN = "9.0", "8.0\\n8.0\\n12.0", "7.0", "12.1"


def choose_cuda(folder: Path, nvcc: str, gpus: str = "", **options: str) -> subprocess.CompletedProcess[str]:
    """What cmake/cuda.cmake answers where the only nvcc is this script (or there is none), and these are the GPUs."""
    environment = {"PATH": f"{folder}{os.pathsep}{os.defpath}"}
    script(folder / "nvidia-smi", f"printf '{gpus}\\n'" if gpus else "echo 'No devices were found'; exit 9")
    if nvcc:
        environment["CUDACXX"] = str(script(folder / "nvcc", nvcc))
    file = folder / "choose.cmake"
    file.write_text(f'include({ROOT}/cmake/cuda.cmake)\nckd_choose_cuda()\nmessage("archs=${{CKD_CHOSEN_ARCHS}}.")\n')
    hidden = ";".join(f"{prefix}/bin" for prefix in ("/usr", "/usr/local", "/usr/local/cuda", "/opt/cuda", ""))
    chosen = {"CKD_CUDA": "AUTO", "CKD_CUDA_ARCHS": "", "CMAKE_IGNORE_PATH": hidden} | options
    command = [sys.executable, "-m", "cmake", *(f"-D{name}={value}" for name, value in chosen.items()), "-P", file]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize(
    ("gpus", "wish", "archs", "why"),
    [
        (H200, "", "90-real", "the GPU that is here"),
        (A100_AND_RTX, "", "80-real;100", "the GPU that is here"),  # 120 is unknown: PTX of the newest before it
        ("", "", "90", "no GPU here, hence compute capability 9.0 and, by PTX, later ones"),
        (V100, "", "90", "no GPU here"),  # none that is served
        ("", "all", "80-real;90-real;100", "CKD_CUDA_ARCHS=all"),
        (H200, "80-real, 90-virtual", "80-real;90-virtual", "CKD_CUDA_ARCHS=80-real, 90-virtual"),
        (H200, "90a", "90a", "CKD_CUDA_ARCHS=90a"),
    ],
)
def test_architectures_are_chosen_and_said(gpus, wish, archs, why, tmp_path):
    done = choose_cuda(tmp_path, NVCC, gpus, CKD_CUDA_ARCHS=wish)
    assert done.returncode == 0, done.stdout
    assert f"archs={archs}." in done.stdout
    assert f"-- CUDA kernels: {archs.replace(';', ' ')} ({why}" in done.stdout
    assert ("CKD_CUDA_ARCHS=all compiles for every one" in done.stdout) == (wish == "")


@pytest.mark.parametrize(
    ("nvcc", "choice", "message"),
    [
        (NVCC, "OFF", "CUDA kernels: not built (CKD_CUDA=OFF)"),
        ("", "AUTO", "CUDA kernels: not built (CKD_CUDA=AUTO, no nvcc in CUDACXX"),
    ],
)
def test_without_cuda(nvcc, choice, message, tmp_path):
    done = choose_cuda(tmp_path, nvcc, H200, CKD_CUDA=choice)
    assert done.returncode == 0
    assert message in done.stdout
    assert "archs=." in done.stdout


@pytest.mark.parametrize(
    ("nvcc", "options", "message"),
    [
        (NVCC, {"CKD_CUDA": "maybe"}, "CKD_CUDA is 'maybe'; it must be AUTO, ON or OFF."),
        ("", {"CKD_CUDA": "ON"}, "CKD_CUDA=ON, but there is no nvcc in CUDACXX"),
        (NVCC, {"CKD_CUDA_ARCHS": "sm_90"}, "CKD_CUDA_ARCHS has 'sm_90'; write all, or an architecture as 90"),
        (
            NVCC,
            {"CKD_CUDA_ARCHS": "90 120-real"},
            "'120-real', which {nvcc} does not compile for. It knows: 75, 80, 90",
        ),
        ("exit 1", {}, "{nvcc} does not run ('nvcc --list-gpu-arch' failed). Repair the CUDA toolkit"),
        ("echo compute_80", {}, "{nvcc} is too old: it does not compile for compute capability 9.0. Install CUDA 12"),
        (
            f'{NVCC.removesuffix("; exit 0")}; [ "$1" = --list-gpu-arch ] || {{ {TOO_NEW}; exit 1; }}',
            {},
            "{nvcc} and its host compiler do not fit: unsupported GNU version! gcc later than 15 is not supported! "
            "Name a compiler that it supports, such as CUDAHOSTCXX=g++-12, or build without CUDA: CKD_CUDA=OFF.",
        ),
    ],
)
def test_wrong_options_and_toolkits_are_refused_in_one_line(nvcc, options, message, tmp_path):
    done = choose_cuda(tmp_path, nvcc, H200, **options)
    assert done.returncode != 0
    assert message.replace("{nvcc}", str(tmp_path / "nvcc")) in build_cmake.first_error(done.stdout)


# --- CMake and ninja


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Tree, build folder, version and programs of a project of two files, which is built as the real one is."""
    for name in ("CXX", "CMAKE_BUILD_PARALLEL_LEVEL", "CKD_CPU_LEVELS", "CKD_CUDA_ARCHS"):
        monkeypatch.delenv(name, raising=False)
    source = tmp_path / "source"
    source.mkdir()
    (source / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.25)\nproject(p LANGUAGES CXX)\nadd_library(p OBJECT a.cpp b.cpp)\n"
        "set(CKD_CPU_LEVELS x CACHE STRING here)\nif(CKD_CPU_LEVELS STREQUAL v9)\n"
        "message(FATAL_ERROR \"CKD_CPU_LEVELS has 'v9', a name that is far too long to stand in one line of CMake, so "
        'that it breaks it.\\nWrite all.")\nendif()\nmessage(STATUS "levels: ${CKD_CPU_LEVELS}")\n'
    )
    (source / "a.cpp").write_text("int a() { return 1; }\n")
    (source / "b.cpp").write_text("int b() { return 1; }\n")
    build_cmake.configure.cache_clear()
    programs = build_tools.check_requirements(ROOT / "pyproject.toml")
    return source, tmp_path / "build", "1.0", programs["cmake"], programs["ninja"]


def build(project, capfd):
    """Everything that a build prints."""
    build_cmake.configure.cache_clear()
    build_cmake.configure(*project)
    build_cmake.compile_and_link(project[3], project[1])
    return capfd.readouterr().out


def test_a_build_shows_its_progress_and_the_next_one_compiles_what_changed(project, capfd):
    source, directory, *_ = project
    said = build(project, capfd)
    assert "-- levels: native" in said
    assert "[1/2] Building CXX object" in said
    assert "[2/2] Building CXX object" in said
    assert "Building" not in build(project, capfd)
    # Interrupted: one object is there, the other half written and not in ninja's log.
    (directory / "CMakeFiles" / "p.dir" / "b.cpp.o").unlink()
    (source / "b.cpp").write_text("int b() { return 2; }\n")
    said = build(project, capfd)
    assert "b.cpp.o" in said
    assert "a.cpp.o" not in said


def test_an_interrupted_first_run_of_cmake_is_thrown_away(project, capfd):
    directory = project[1]
    directory.mkdir()
    (directory / "CMakeCache.txt").write_text("half a cac")
    assert "[2/2]" in build(project, capfd)
    # Another compiler's cache is, too.
    stamp = directory / "configured.json"
    stamp.write_text(stamp.read_text().replace("cmake version", "cmake version of yesterday"))
    assert "[2/2]" in build(project, capfd)


def test_a_mistake_that_cmake_finds_ends_in_one_line(project, monkeypatch):
    monkeypatch.setenv("CKD_CPU_LEVELS", "v9")
    with pytest.raises(SystemExit) as stopped:
        build_cmake.configure(*project)
    assert str(stopped.value) == (
        "error: CKD_CPU_LEVELS has 'v9', a name that is far too long to stand in one line of CMake, so that it breaks "
        "it. Write all."
    )
    assert not (project[1] / "configured.json").exists()


def test_a_file_that_does_not_compile_ends_in_one_line(project, capfd):
    (project[0] / "a.cpp").write_text("int a() { return nothing; }\n")
    with pytest.raises(SystemExit, match=r"^error: compiling stopped, and why is said above; .*goes on from here$"):
        build(project, capfd)
    assert "was not declared in this scope" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("processors", "gigabytes", "jobs"), [(16, 64, "16"), (16, 5.9, "5"), (4, 0.3, "1"), (2, 2, "2")]
)
def test_as_many_compilers_as_memory_allows(processors, gigabytes, jobs, tmp_path, monkeypatch, capfd):
    monkeypatch.delenv("CMAKE_BUILD_PARALLEL_LEVEL", raising=False)
    monkeypatch.setattr(build_cmake, "processors", lambda: processors)
    monkeypatch.setattr(build_cmake, "free_memory", lambda: int(gigabytes * 2**30))
    cmake = script(tmp_path / "cmake", 'echo "$@"')
    build_cmake.compile_and_link(str(cmake), tmp_path)
    said = capfd.readouterr().out
    assert said.endswith(f"--build {tmp_path} --parallel {jobs}\n")
    assert (f"{jobs} of {processors} processors compile: of memory {gigabytes:.1f} GiB" in said) == (
        int(jobs) < processors
    )
    # Whoever says how many knows.
    monkeypatch.setenv("CMAKE_BUILD_PARALLEL_LEVEL", "7")
    build_cmake.compile_and_link(str(cmake), tmp_path)
    assert capfd.readouterr().out == f"--build {tmp_path}\n"


def test_limits_of_a_container(tmp_path, monkeypatch):
    monkeypatch.setattr(build_cmake, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    free = build_cmake.free_memory()
    assert free > 0
    assert build_cmake.processors() == 8
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert build_cmake.processors() == 8
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    (tmp_path / "memory.max").write_text(f"{1000 << 10}\n")
    (tmp_path / "memory.current").write_text(f"{900 << 10}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {100 << 10}\nactive_file {50 << 10}\n")
    assert build_cmake.processors() == 2
    assert build_cmake.free_memory() == 250 << 10
