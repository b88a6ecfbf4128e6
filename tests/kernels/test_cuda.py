"""CUDA C++ kernels compile without spilling."""

import re
import subprocess

import pytest

from tests.kernels.emulation import NVCC, ROOT

SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))


def test_there_is_something_to_compile():
    assert SOURCES


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
@pytest.mark.parametrize("architecture", ["80", "90a"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_compiles_without_spilling(source, architecture, tmp_path):
    target = f"arch=compute_{architecture},code=sm_{architecture}"
    command = [NVCC, "-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", "-gencode", target, "-Xptxas", "-v", "-c", str(source)]
    done = subprocess.run([*command, "-o", str(tmp_path / "kernel.o")], capture_output=True, text=True)
    report = done.stdout + done.stderr
    assert done.returncode == 0, report
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert spills, f"ptxas reported no kernel:\n{report}"
    assert set(spills) == {("0", "0", "0")}, report


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_every_kernel_is_emulated(source):
    tests = ROOT / "tests" / "kernels"
    assert (tests / f"emulate_{source.stem}.cpp").is_file()
    assert (tests / f"test_cuda_{source.stem}.py").is_file()
