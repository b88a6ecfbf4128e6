"""Compiles what a launcher would launch, for a GPU that is not there.

The launchers run on CPU tensors with JITFunction.run replaced by a recorder, so the signatures, the specialisation and
the tile are the launcher's own. Each recorded launch is then compiled by triton.compile for a named target.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import JITFunction

from vidgen.kernels import gemm

# bytes of shared memory that one block may have, by compute capability
SHARED_MEMORY = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
_POINTERS = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip
_OPTIONS = ("num_warps", "num_stages", "num_ctas")


@dataclass(frozen=True)
class Launch:
    kernel: JITFunction
    arguments: dict[str, Any]
    options: dict[str, int]


@dataclass(frozen=True)
class Resources:
    registers: int
    local_bytes: int  # stack frame and local memory of a thread: spilled registers end up there
    shared_bytes: int


@contextlib.contextmanager
def recorded(capability: tuple[int, int]) -> Iterator[list[Launch]]:
    """Collects the launches of kernels instead of performing them; launchers see `capability`."""
    launches: list[Launch] = []

    def record(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in _OPTIONS if name in kwargs}
        bound = kernel.signature.bind(*args, **kwargs)
        launches.append(Launch(kernel, dict(bound.arguments), options))

    with (
        mock.patch.object(JITFunction, "run", record),
        mock.patch.object(gemm, "capability_of", return_value=capability),
    ):
        yield launches


def _specialised(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], list[list[Any]]]]:
    """Signature, constants and attributes, by the rules of Triton's own launcher."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        specialise = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (specialise and type(value) is int and value == 1):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        if isinstance(value, torch.Tensor):
            signature[parameter.name], aligned = _POINTERS[value.dtype], value.data_ptr() % 16 == 0
        else:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            aligned = value % 16 == 0
        if specialise and aligned:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def compile_launch(launch: Launch, architecture: int) -> tuple[Any, Resources]:
    signature, constants, attributes = _specialised(launch)
    source = ASTSource(launch.kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=launch.options)
    registers, local = _resource_usage(compiled.asm["cubin"])
    return compiled, Resources(registers, local, compiled.metadata.shared)


def _resource_usage(cubin: bytes) -> tuple[int, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", listing)
    assert found, f"cuobjdump told no resource usage:\n{listing}"
    registers, stack, local = map(int, found.groups())
    return registers, stack + local


def entry_kernels(modules: Iterable[ModuleType]) -> set[str]:
    """The @triton.jit functions of `modules`, as module.name, that no other of their @triton.jit functions calls."""
    functions = {
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, JITFunction) and value.fn.__module__ == module.__name__
    }
    sources = [function.src for function in functions]
    return {
        qualified_name(function)
        for function in functions
        if not any(re.search(rf"(?<!def )\b{function.fn.__name__}\(", source) for source in sources)
    }


def qualified_name(kernel: JITFunction) -> str:
    return f"{kernel.fn.__module__.rpartition('.')[2]}.{kernel.fn.__name__}"
