"""Tests of a kernel on every instruction set, each in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

from vidgen import _host

LEVELS = ("baseline", "avx2", "avx512", "avx512_bf16")


def run_on(level: str, files: Sequence[str], selected: str) -> None:
    """Runs the tests that pytest's -k selects, held to a level; not where another level would run in its place."""
    environment = {**os.environ, "VIDGEN_CPU_ISA": level}
    ask = [sys.executable, "-c", "from vidgen import _host; print(_host.isa())"]
    taken = subprocess.run(ask, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    if taken != level:
        pytest.skip(f"this processor has no {level}")
    if level == _host.isa():
        return  # that is what every other test runs
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", selected, *files]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
