"""The Triton kernels compute the right thing, as far as a machine without a GPU can tell."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vidgen.ops.backends import TABLE

pytest.importorskip("triton", reason="triton is not installed")

HERE = Path(__file__).parent
CASES = sorted(HERE.glob("cases_*_triton.py"))


def test_every_op_with_triton_kernels_has_cases():
    with_kernels = {op for op, rows in TABLE.items() if any(row.name == "triton" for row in rows)}
    with_cases = {path.stem.removeprefix("cases_").removesuffix("_triton") for path in CASES}
    assert {re.sub(r"_grad_\w+$", "", op) for op in with_kernels} == with_cases


@pytest.fixture(scope="module")
def processes():
    """One for each file of cases, on one thread each, all at once; they take a minute and more."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    options = {"cwd": HERE.parents[1], "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    started = {path: subprocess.Popen([*command, str(path)], text=True, **options) for path in CASES}
    yield started
    for process in started.values():
        process.kill()
        process.wait()


@pytest.mark.parametrize("cases", CASES, ids=lambda path: path.stem)
def test_in_the_interpreter(cases, processes):
    said, _ = processes[cases].communicate(timeout=900)
    if "TypeError('only 0-dimensional arrays can be converted to Python scalars')" in said:
        pytest.skip("this triton is too old for this numpy: its interpreter cannot loop to a run-time bound")
    assert processes[cases].returncode == 0, said[-6000:]
    assert " passed" in said
