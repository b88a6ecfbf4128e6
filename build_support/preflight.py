"""What a build of vidgen needs from the machine, each need with one sentence that says what to type.

setup.py runs BUILD before CMake, build_support/environment.py runs VENV before it makes `.venv`. Only the standard
library is used, and only syntax that Python 3.7 reads, so that an interpreter that is too old reports its age and not a
syntax error.

A check is a function without arguments that returns None where all is well, else the sentence.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import sys
import sysconfig

OLDEST_PYTHON = (3, 11)
OLDEST_TORCH = (2, 11)
TORCH_INSTRUCTIONS = "https://pytorch.org/get-started/locally/"


def _version(pair):
    return ".".join(str(part) for part in pair)


def _python_name():
    """`python3.11`, which is also the stem of the names under which Linux packages its parts."""
    return f"python{sys.version_info[0]}.{sys.version_info[1]}"


def python_version():
    if sys.version_info[:2] >= OLDEST_PYTHON:
        return None
    return (
        f"Python {_version(OLDEST_PYTHON)} or newer is needed and {sys.executable} is "
        f"{_version(sys.version_info[:3])}: name a newer one, as in `make PYTHON=python3.12`."
    )


def venv_module():
    try:
        importlib.import_module("venv")
        importlib.import_module("ensurepip")
    except ImportError:
        return (
            f"{sys.executable} cannot make virtual environments: type `sudo apt-get install {_python_name()}-venv` "
            "(Debian, Ubuntu; elsewhere install the package that holds Python's venv and ensurepip modules)."
        )
    return None


def installed_torch():
    """The version string of the torch that this interpreter would import, or None."""
    if importlib.util.find_spec("torch") is None:
        return None
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return str(importlib.import_module("torch").__version__)


def usable_torch():
    """Like installed_torch, but None also where that torch is older than vidgen's binaries accept."""
    version = installed_torch()
    if version is None or tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TORCH:
        return None
    return version


def torch():
    if usable_torch() is not None:
        return None
    found = installed_torch()
    return (
        f"the build needs PyTorch {_version(OLDEST_TORCH)} or newer and {sys.executable} has "
        f"{'none' if found is None else found}: type `pip install torch` (how to get a CPU-only one: "
        f"{TORCH_INSTRUCTIONS}), then `pip install --no-build-isolation .`."
    )


def compiler():
    named = os.environ.get("CXX")
    candidates = [shlex.split(named)[0]] if named else ["c++", "g++", "clang++"]
    if any(shutil.which(candidate) for candidate in candidates):
        return None
    looked = f"CXX={named} does not exist" if named else "there is no C++ compiler on the PATH"
    return f"{looked}: type `sudo apt-get install g++` (Debian, Ubuntu) or set CXX to a compiler that knows C++20."


def python_headers():
    include = sysconfig.get_path("include")
    if os.path.isfile(os.path.join(include, "Python.h")):
        return None
    return (
        f"Python.h is not in {include}: type `sudo apt-get install {_python_name()}-dev` (Debian, Ubuntu; "
        f"elsewhere install the development package of {_python_name()})."
    )


def find_tool(name):
    """The path of cmake or ninja: pip's if this interpreter has it, whether or not its scripts are on the PATH."""
    folder = {"cmake": "CMAKE_BIN_DIR", "ninja": "BIN_DIR"}[name]
    if importlib.util.find_spec(name) is not None:
        inside = getattr(importlib.import_module(name), folder, None)
        found = shutil.which(name, path=inside) if inside else None
        if found:
            return found
    return shutil.which(name)


def build_tools():
    missing = [name for name in ("setuptools", "pybind11") if importlib.util.find_spec(name) is None]
    missing += [name for name in ("cmake", "ninja") if find_tool(name) is None]
    if not missing:
        return None
    return (
        f"the build needs {', '.join(missing)}, which {sys.executable} does not have: type "
        "`pip install -c constraints.txt setuptools cmake ninja pybind11`."
    )


def find_nvcc():
    """The path of nvcc, by CMake's own order: CUDACXX, the PATH, CUDA_HOME, the usual place; None if nowhere."""
    places = [os.environ.get("CUDACXX"), "nvcc"]
    places += [os.path.join(home, "bin", "nvcc") for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    return next((found for place in places if place for found in [shutil.which(place)] if found), None)


def cuda_note():
    """One line on whether the CUDA kernels are built; never an error."""
    nvcc = find_nvcc()
    if nvcc is None:
        return "no nvcc found: building the CPU kernels only (Triton kernels need no nvcc)."
    return f"nvcc found at {nvcc}: building the CUDA kernels too."


VENV = (python_version, venv_module)
BUILD = (python_version, torch, compiler, python_headers, build_tools)


def check(checks=BUILD):
    """Ends the process with the first sentence that a check returns."""
    for one in checks:
        message = one()
        if message is not None:
            raise SystemExit(f"vidgen: {message}")


if __name__ == "__main__":
    check({"venv": VENV, "build": BUILD}[sys.argv[1]])
