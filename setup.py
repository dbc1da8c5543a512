"""Drives CMake and ninja; what is compiled and how is said in CMakeLists.txt, the metadata is in pyproject.toml."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import ExecError

ROOT = Path(__file__).resolve().parent


def _run(command: list[str | Path]) -> None:
    try:
        subprocess.run(command, check=True)
    except subprocess.CalledProcessError as error:
        raise ExecError("cmake stopped with an error; its message is above") from error


class BuildPackages(build_py):
    """build_py from an empty directory: a module deleted since the last build must not reach the wheel."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class BuildExtension(build_ext):
    """Configure and build in build/<ABI>, which is kept, so that a second build compiles only what changed."""

    def build_extension(self, ext: Extension) -> None:
        for program in ("cmake", "ninja"):
            if shutil.which(program) is None:
                raise ExecError(f"{program} is not in PATH, and building ckd-kernels needs it: pip install {program}")
        directory = ROOT / "build" / sysconfig.get_config_var("SOABI")
        self._start_clean_unless_ours(directory)
        _run(
            [
                "cmake",
                *("-S", ROOT, "-B", directory, "-G", "Ninja"),
                # Given every time: an isolated build finds them in a directory that is gone afterwards.
                f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}",
                f"-Dpybind11_DIR={self._keep_pybind11(directory) / 'share' / 'cmake' / 'pybind11'}",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-DCKD_VERSION={self.distribution.get_version()}",
                f"-DCKD_CUDA={os.environ.get('CKD_CUDA', 'AUTO')}",
                f"-DCKD_CUDA_ARCHS={os.environ.get('CKD_CUDA_ARCHS', '')}",
            ]
        )
        self._stamp(directory).write_text(self._identity())
        _run(["cmake", "--build", directory])

        built = directory / Path(self.get_ext_filename(ext.name)).name
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        # Renamed into place: overwriting a library that a running process has mapped would crash that process.
        temporary = target.with_name(target.name + ".new")
        shutil.copy2(built, temporary)
        os.replace(temporary, target)

    @staticmethod
    def _keep_pybind11(directory: Path) -> Path:
        """A copy at a path that stays. An isolated build's own is new each time, and a new path compiles all again."""
        kept = directory / f"pybind11-{pybind11.__version__}"
        if not kept.exists():
            shutil.rmtree(directory / "pybind11.new", ignore_errors=True)
            shutil.copytree(Path(pybind11.__file__).parent, directory / "pybind11.new")
            os.replace(directory / "pybind11.new", kept)
        return kept

    def _start_clean_unless_ours(self, directory: Path) -> None:
        """CMake refuses a cache of another tree or compiler, and an interrupted first run leaves half of one."""
        stamp = self._stamp(directory)
        if directory.exists() and not (stamp.exists() and stamp.read_text() == self._identity()):
            shutil.rmtree(directory)

    @staticmethod
    def _stamp(directory: Path) -> Path:
        return directory / "configured.json"

    @staticmethod
    def _identity() -> str:
        """What a CMake cache is valid for."""
        variables = ("CC", "CXX", "CXXFLAGS", "CUDACXX", "CUDAFLAGS", "CUDA_HOME", "CUDA_PATH", "LDFLAGS")
        cmake = subprocess.run(["cmake", "--version"], check=True, capture_output=True, text=True).stdout
        return json.dumps(
            {
                "source": str(ROOT),
                "cmake": cmake.splitlines()[0],
                "include": sysconfig.get_path("include"),
                "programs": {name: shutil.which(name) for name in ("c++", "nvcc")},
                "environment": {name: os.environ.get(name) for name in variables},
            },
            indent=2,
        )


setup(
    packages=find_packages(include=["ckd_kernels*"]) + find_packages("python"),
    package_dir={"": "python", "ckd_kernels": "ckd_kernels"},
    package_data={"ckd_kernels": ["py.typed"], "ckdsnn": ["py.typed", "recipes/*.yaml"]},
    ext_modules=[Extension("ckd_kernels._C", sources=[])],
    cmdclass={"build_py": BuildPackages, "build_ext": BuildExtension},
)
