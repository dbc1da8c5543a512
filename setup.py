"""Drives CMake and ninja. CMakeLists.txt and cmake/ say what is compiled and how, pyproject.toml has the metadata, and
build_support/ checks beforehand what a build needs, and runs it.
"""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_support"))

import build_tools  # noqa: E402

# Before setuptools, which may be the one that is too old.
PROGRAMS = build_tools.check_requirements(ROOT / "pyproject.toml")

import build_cmake  # noqa: E402
from setuptools import Extension, find_packages, setup  # noqa: E402
from setuptools.command.build_ext import build_ext  # noqa: E402
from setuptools.command.build_py import build_py  # noqa: E402

DIRECTORY = ROOT / "build" / sysconfig.get_config_var("SOABI")


def configure(version: str) -> None:
    build_cmake.configure(ROOT, DIRECTORY, version, PROGRAMS["cmake"], PROGRAMS["ninja"])


class BuildPackages(build_py):
    """build_py into an empty directory: a module deleted since the last build must not reach the wheel."""

    def run(self) -> None:
        # First, so that nothing stands between an error and the command that met it.
        configure(self.distribution.get_version())
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class BuildExtension(build_ext):
    def build_extension(self, ext: Extension) -> None:
        configure(self.distribution.get_version())
        build_cmake.compile_and_link(PROGRAMS["cmake"], DIRECTORY)
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        # Renamed into place: overwriting a library that a running process has mapped would crash that process.
        temporary = target.with_name(target.name + ".new")
        shutil.copy2(DIRECTORY / Path(self.get_ext_filename(ext.name)).name, temporary)
        os.replace(temporary, target)


setup(
    packages=find_packages(include=["ckd_kernels*"]) + find_packages("python"),
    package_dir={"": "python", "ckd_kernels": "ckd_kernels"},
    package_data={"ckd_kernels": ["py.typed"], "ckdsnn": ["py.typed", "recipes/*.yaml", "grids/*.yaml", "demo/*.csv"]},
    ext_modules=[Extension("ckd_kernels._C", sources=[])],
    cmdclass={"build_py": BuildPackages, "build_ext": BuildExtension},
)
