"""Builds vidgen's libraries with CMake and puts them into the package; everything else is in pyproject.toml."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
sys.path.insert(0, str(ROOT / "build_support"))
import preflight  # noqa: E402  (the path above is how a build without an installed package finds it)


class CMakeBuild(build_ext):
    """Configures, builds and installs the CMake project; `pip install .`, `-e .` and wheels all come through here."""

    def run(self) -> None:
        preflight.check(preflight.BUILD)
        print(f"vidgen: {preflight.cuda_note()}", flush=True)
        import pybind11
        import torch

        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-torch{torch.__version__}"
        build.mkdir(parents=True, exist_ok=True)
        jobs = os.environ.get("MAX_JOBS") or str(len(os.sched_getaffinity(0)))
        cmake = preflight.find_tool("cmake")
        configure = [
            cmake,
            f"-S{ROOT}",
            f"-B{build}",
            "-GNinja",
            f"-DCMAKE_MAKE_PROGRAM={preflight.find_tool('ninja')}",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DVIDGEN_TORCH_DIR={Path(torch.__file__).parent}",
            f"-DVIDGEN_TORCH_VERSION={torch.__version__}",
            f"-DVIDGEN_VERSION={self.distribution.get_version()}",
        ]
        if nvcc := preflight.find_nvcc():
            configure.append(f"-DCMAKE_CUDA_COMPILER={nvcc}")
        subprocess.run(configure, check=True)
        subprocess.run([cmake, "--build", str(build), "--parallel", jobs], check=True)
        target = ROOT / "vidgen" if self.inplace else Path(self.build_lib).resolve() / "vidgen"
        target.mkdir(parents=True, exist_ok=True)
        # installed beside, then moved one by one: a running process keeps the old file, no one sees half of one
        with tempfile.TemporaryDirectory(dir=target) as staging:
            subprocess.run([cmake, "--install", str(build), "--prefix", staging], check=True, stdout=subprocess.DEVNULL)
            for library in Path(staging).iterdir():
                library.replace(target / library.name)

    # setuptools would copy one file per declared extension; CMake has already put all of them in place.
    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def copy_extensions_to_source(self) -> None:
        pass


setup(ext_modules=[Extension("vidgen._host", sources=[])], cmdclass={"build_ext": CMakeBuild})
