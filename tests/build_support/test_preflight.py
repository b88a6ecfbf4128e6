"""Whoever lacks something reads one sentence with a command in it, not a compiler's or an importer's traceback."""

import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest


def assert_one_sentence(message: str | None, *, says: str, command: str) -> None:
    assert message is not None, "nothing was reported"
    assert "\n" not in message
    assert message.endswith(".")
    assert message.count(". ") == 0, f"more than one sentence: {message}"
    assert says in message
    assert command in message


def test_a_machine_that_builds_vidgen_passes_every_check(preflight: ModuleType) -> None:
    for check in (*preflight.VENV, *preflight.BUILD):
        assert check() is None, check.__name__


def test_no_torch(preflight: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    # setitem to None makes `import torch` fail; find_spec then reads the parent path, so hide the finder's answer too
    real = preflight.importlib.util.find_spec
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: None if name == "torch" else real(name))
    message = preflight.torch()
    assert_one_sentence(message, says="has none", command="`pip install torch`")
    assert "pytorch.org/get-started" in message
    assert "`pip install --no-build-isolation .`" in message


@pytest.mark.parametrize(
    ("version", "usable"),
    [
        ("2.10.1", False),
        ("1.13.0", False),
        ("2.11.0", True),
        ("2.11.0a0+git1f2e", True),
        ("2.13.0+cpu", True),
        ("3.0.0", True),
    ],
)
def test_a_torch_older_than_the_binary_interface_counts_as_none(
    preflight: ModuleType, monkeypatch: pytest.MonkeyPatch, version: str, usable: bool
) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: version)
    assert preflight.usable_torch() == (version if usable else None)
    if not usable:
        assert_one_sentence(preflight.torch(), says=f"has {version}", command="`pip install torch`")


def test_no_compiler(preflight: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert_one_sentence(preflight.compiler(), says="no C++ compiler", command="`sudo apt-get install g++`")


def test_a_compiler_that_was_named_and_is_not_there(preflight: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    assert_one_sentence(preflight.compiler(), says="CXX=no-such-compiler -m64 does not exist", command="set CXX")


def test_no_python_headers(preflight: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    assert_one_sentence(preflight.python_headers(), says="Python.h", command=f"`sudo apt-get install {python}-dev`")


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_no_venv_module(preflight: ModuleType, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    assert_one_sentence(
        preflight.venv_module(), says="virtual environments", command=f"`sudo apt-get install {python}-venv`"
    )


def test_python_too_old(preflight: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 4, "final", 0))
    assert_one_sentence(preflight.python_version(), says="is 3.10.4", command="`make PYTHON=")


@pytest.mark.parametrize("tool", ["cmake", "ninja", "pybind11", "setuptools"])
def test_no_build_tool(preflight: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tool: str) -> None:
    real = preflight.importlib.util.find_spec
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: None if name == tool else real(name))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert_one_sentence(preflight.build_tools(), says=f"needs {tool}", command="`pip install -c constraints.txt")


def test_no_nvcc_is_a_note_and_no_error(preflight: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "find_nvcc", lambda: None)
    note = preflight.cuda_note()
    assert "\n" not in note
    assert "CPU" in note
    assert all(check() is None for check in preflight.BUILD)


def test_cudacxx_goes_before_the_path(preflight: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    named, found = tmp_path / "named" / "nvcc", tmp_path / "path" / "nvcc"
    for nvcc in (named, found):
        nvcc.parent.mkdir()
        nvcc.write_text("#!/bin/sh\n")
        nvcc.chmod(0o755)
    monkeypatch.setenv("PATH", str(found.parent))
    monkeypatch.delenv("CUDACXX", raising=False)
    assert preflight.find_nvcc() == str(found)
    monkeypatch.setenv("CUDACXX", str(named))
    assert preflight.find_nvcc() == str(named)


def test_the_sentence_is_all_that_a_failing_command_prints(root: Path, tmp_path: Path) -> None:
    """Without PATH there is no compiler; the exit status must be an error for pip and make to stop."""
    command = [sys.executable, root / "build_support" / "preflight.py", "build"]
    done = subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("vidgen: there is no C++ compiler")
