"""The backend table: which implementations an op has, which one a call gets, and why the others do not.

An op's module declares one row per backend, best first. The same predicates serve the selection inside the op
(CUDA), `vidgen.explain` and `vidgen info`. On the CPU the choice is made in C++ from the predicate that the `cpu`
row asks through an op.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import vidgen._extension as _extension
from vidgen.ops.gate import gate


@dataclass(frozen=True)
class Backend:
    """One row.

    name: what `impl=` calls it. devices: the device types it runs on; empty means any.
    available: None, or why this machine cannot run it at all, whatever the arguments.
    supports: takes the op's arguments; None, or why it cannot serve this call.
    run: takes the op's arguments (without `impl` and what only the CPU kernel reads); None where C++ makes the choice.
    gated: a default only after its present source has passed on a GPU and a self-check passes here.
    """

    name: str
    devices: tuple[str, ...]
    available: Callable[[], str | None]
    supports: Callable[..., str | None]
    run: Callable[..., Tensor] | None
    gated: bool = False


#: op name -> rows, best first; filled by the modules of vidgen.ops
TABLE: dict[str, tuple[Backend, ...]] = {}

_warned: set[tuple[str, str]] = set()


def requested(impl: str | None) -> str | None:
    """The backend that a call asks for: its own `impl`, else VIDGEN_IMPL, else None (the best that can)."""
    return impl or os.environ.get("VIDGEN_IMPL") or None


def adjoint_impl(impl: str | None) -> str | None:
    """What to ask of an op's gradients: CUDA C++ kernels have none, and a call that forces one gets Triton's."""
    return "triton" if requested(impl) == "cuda" else impl


def why_not(op: str, row: Backend, device: torch.device, args: tuple[Any, ...], forced: bool) -> str | None:
    """None if `row` would run this call, else the reason in words. A forced backend skips the gate."""
    if row.devices and device.type not in row.devices:
        return f"runs on {' and '.join(row.devices)}, the tensors are on {device.type}"
    return row.available() or row.supports(*args) or (None if forced or not row.gated else gate(op, row.name, device))


def select(op: str, device: torch.device, impl: str | None, args: tuple[Any, ...]) -> Backend:
    """The row that serves a call. A fallback to the reference is one warning per op and reason."""
    choice = requested(impl)
    rows = TABLE[op]
    if choice is not None:
        row = next((row for row in rows if row.name == choice), None)
        if row is None:
            raise ValueError(f"impl must be one of {[row.name for row in rows]} or None for {op}, got {choice!r}")
        if reason := why_not(op, row, device, args, forced=True):
            raise RuntimeError(f"{op}: impl={choice!r} cannot run here: {reason}")
        return row
    reasons: list[str] = []
    for row in rows:
        reason = why_not(op, row, device, args, forced=False)
        if reason is None:
            if row.name == "reference" and reasons:
                warn_fallback(op, "; ".join(reasons))
            return row
        if not row.devices or device.type in row.devices:
            reasons.append(f"{row.name}: {reason}")
    raise RuntimeError(f"{op}: no backend can serve this call: {'; '.join(reasons)}")


def warn_fallback(op: str, reason: str) -> None:
    """Says once per op and reason that eager PyTorch stands in; silent while a graph is being compiled."""
    if (op, reason) in _warned or torch.compiler.is_compiling():
        return
    _warned.add((op, reason))
    warnings.warn(f"vidgen.{op} runs its eager PyTorch reference, which is slower: {reason}", stacklevel=2)


def explain_rows(op: str, device: torch.device, args: tuple[Any, ...]) -> list[tuple[str, str | None]]:
    """(backend, None or why it does not run) for every row of `op`, in the order in which they are tried."""
    if op not in TABLE:
        raise ValueError(f"op must be one of {sorted(TABLE)}, got {op!r}")
    return [(row.name, why_not(op, row, device, args, forced=False)) for row in TABLE[op]]


# What the rows of several ops say.


def always() -> str | None:
    return None


def supports_all(*_args: Any) -> str | None:
    return None


def triton_available() -> str | None:
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    try:
        import triton  # noqa: F401
    except ImportError:
        return "triton is not installed"
    return None


def cuda_available() -> str | None:
    return _extension.cuda_library_missing or (None if torch.cuda.is_available() else "torch sees no CUDA device")


def gpu_supports_dtype(x: Tensor, *_args: Any) -> str | None:
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"computes float32, float16 and bfloat16, not {x.dtype}"
    return None


def triton_row(op: str, launcher: str) -> Backend:
    """The row of a launcher of kernels/<op>.py, which is imported when it first runs: Triton is not everywhere."""

    def run(*args: Any) -> Tensor:
        kernels = importlib.import_module(f"vidgen.kernels.{op}")
        return getattr(kernels, launcher)(*args)

    return Backend("triton", ("cuda",), triton_available, gpu_supports_dtype, run, gated=True)


def cuda_row(supports: Callable[..., str | None], run: Callable[..., Tensor]) -> Backend:
    return Backend("cuda", ("cuda",), cuda_available, supports, run, gated=True)


def reference_row(run: Callable[..., Tensor]) -> Backend:
    return Backend("reference", (), always, supports_all, run)
