"""CUDA C++ kernels on a machine without a GPU: their compiler, and programs in which a CPU plays the GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def cuda_include() -> str:
    """The folder of cuda_runtime.h, as nvcc itself would use it."""
    assert NVCC is not None
    dry = subprocess.run([NVCC, "-dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.*)$", dry, re.MULTILINE)
    return str(Path(top[1].strip()) / "include") if top else "/usr/local/cuda/include"


HAS_FMA = Path("/proc/cpuinfo").exists() and " fma " in Path("/proc/cpuinfo").read_text()


class Emulation:
    """csrc/cuda/<op>.cu as a program, tests/kernels/emulate_<op>.cpp, built in `folder` once per sanitizer."""

    dtypes: ClassVar[dict[torch.dtype, int]] = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

    def __init__(self, op: str, folder: Path) -> None:
        if NVCC is None:
            pytest.skip("nvcc is not installed, and with it CUDA's headers")
        self.source, self.folder = Path(__file__).with_name(f"emulate_{op}.cpp"), folder

    def _program(self, sanitizer: str) -> Path:
        program = self.folder / (sanitizer or "plain").replace(",", "_")
        if not program.exists():
            flags = ["-std=c++20", "-O1", "-w", "-pthread"]
            if HAS_FMA:  # as nvcc does: products and sums become one operation, rounded once
                flags += ["-mfma", "-ffp-contract=fast"]
            if sanitizer:
                flags += [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
            if sanitizer == "thread":  # by volatile numbers threads tell each other how far they are
                flags.append("--param=tsan-distinguish-volatile=1")
            include = ["-I", str(ROOT / "csrc"), "-isystem", cuda_include()]
            subprocess.run(["g++", *flags, *include, str(self.source), "-o", str(program)], check=True)
        return program

    def __call__(self, numbers: Sequence[float], tensors: Sequence[Tensor | None], sanitizer: str) -> Tensor:
        """Hands over arguments and tensors (in the order of their axes); returns the output's values."""
        present = [t for t in tensors if t is not None]
        given = [t.contiguous().view(torch.uint8).numpy().tobytes() for t in present]
        command = [self._program(sanitizer), *(str(n if isinstance(n, float) else int(n)) for n in numbers)]
        done = subprocess.run(command, input=b"".join(given), capture_output=True)
        assert done.returncode == 0, done.stderr.decode()[-3000:]
        return torch.frombuffer(bytearray(done.stdout), dtype=torch.uint8).view(present[0].dtype)
