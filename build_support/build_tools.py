"""The programs that a build needs: where they are, and whether they can do it. What cannot ends the build in one line.

Compilers and old packages say the same in screens that do not name what to do, and after minutes.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import NoReturn

COMPILERS = ("c++", "g++", "clang++")  # in the order in which CMake looks for them
PYTHON = sysconfig.get_python_version()

# What the C++ compiler is asked to check, and what to do where it cannot.
PROBES = (
    ((), "int main() {}", "does not compile an empty program; repair it, or name another: CXX=g++-12"),
    (
        ("-std=c++20",),
        "#include <bit>\n_Float16 half = 1; static_assert(std::popcount(3u) == 2);",
        "is too old for C++20 and _Float16; install GCC 12 or Clang 18, or later, and name it: CXX=g++-12",
    ),
    (("-fopenmp",), "#include <omp.h>", "has no OpenMP; install it (apt install libomp-dev), or name GCC: CXX=g++"),
    (
        (f"-I{sysconfig.get_path('include')}",),
        "#include <Python.h>",
        f"does not find Python.h of Python {PYTHON}; install it: apt install python{PYTHON}-dev",
    ),
)


def stop(message: str) -> NoReturn:
    """Ends the build with one line, without a traceback."""
    raise SystemExit(f"error: {message}")


def check_requirements(pyproject: Path) -> dict[str, str]:
    """The programs that a build requires, by name. Stops where a package or program is missing or too old.

    Only a build without isolation can meet that. An old setuptools would reject pyproject.toml in two screens that do
    not name setuptools.
    """
    listed = re.search(r"^requires = \[(.*?)\]", pyproject.read_text(), re.MULTILINE | re.DOTALL)
    assert listed is not None
    programs, wrong = {}, {}
    for requirement in re.findall(r'"(.*?)"', listed[1]):
        name, _, least = requirement.partition(">=")
        found = _program_versions(name) if name in ("cmake", "ninja") else _package_versions(name)
        fitting = [path for path, version in found.items() if _numbers(version) >= _numbers(least)]
        if fitting:
            programs[name] = fitting[0]
        else:
            wrong[requirement] = f"{requirement} (here: {', '.join(found.values()) or 'none'})"
    if wrong:
        install = " ".join(f"'{requirement}'" for requirement in wrong)
        stop(f"the build needs {', '.join(wrong.values())}: {sys.executable} -m pip install {install}")
    return programs


def _package_versions(name: str) -> dict[str, str]:
    try:
        return {name: metadata.version(name)}
    except metadata.PackageNotFoundError:
        return {}


def _program_versions(name: str) -> dict[str, str]:
    """By path: of the first in PATH, and of that beside Python, because no virtual environment need be activated."""
    versions = {}
    for path in filter(None, (shutil.which(name), shutil.which(name, path=sysconfig.get_path("scripts")))):
        status, text = _run([path, "--version"])
        found = re.search(r"\d+(\.\d+)+", text)
        if status == 0 and found:
            versions[path] = found[0]
    return versions


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def check_compiler(environment: Mapping[str, str] = os.environ) -> None:
    """Stops unless the C++ compiler that CMake will take compiles what the sources need."""
    wish = shlex.split(environment.get("CXX", ""))
    found = shutil.which(wish[0]) if wish else next(filter(None, map(shutil.which, COMPILERS)), None)
    if found is None:
        reason = f"CXX is '{wish[0]}', which is no program" if wish else f"no {', '.join(COMPILERS)} in PATH"
        stop(f"there is no C++ compiler ({reason}); install one: apt install g++")
    compiler = [found, *wish[1:]]
    flags = shlex.split(environment.get("CXXFLAGS", ""))
    for options, code, remedy in PROBES:
        status, text = _run([*compiler, *flags, *options, "-fsyntax-only", "-x", "c++", "-"], code + "\n")
        if status:
            print(text, file=sys.stderr)
            version = _run([*compiler, "--version"])[1].partition("\n")[0]
            stop(f"the C++ compiler {' '.join(compiler)} ({version}) {remedy}")


def _run(command: list[str], given: str = "") -> tuple[int, str]:
    """Exit status and everything printed; 127 where the program does not start."""
    try:
        done = subprocess.run(command, input=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        return 127, str(error)
    return done.returncode, done.stdout
