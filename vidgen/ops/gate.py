"""Whether a GPU kernel, or a way of launching many, may be a default on this machine.

A kernel written without a GPU at hand may be wrong on one, so a GPU backend serves calls that do not name it only if

1. its present source stands in `vidgen/gpu_manifest.json` for the card's compute capability: `make gpu` wrote it
   there after the whole op matrix had passed on such a card, and any later change of the source takes it out again;
2. a self-check against the reference, tiny, passes on the user's own card at the backend's first use.

Otherwise the user gets eager PyTorch, and `vidgen.explain` the reason. `impl=` and VIDGEN_IMPL do not ask the gate;
VIDGEN_EXPERIMENTAL=1 opens it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib
import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vidgen.ops.source_hash import executor_hash, triton_hash

PACKAGE = Path(__file__).resolve().parents[1]
MANIFEST = PACKAGE / "gpu_manifest.json"
MANIFEST_FORMAT = 1

#: (op, backend) of what launches ordinary ops from Python -> its module in vidgen/sampling
PYTHON_BACKENDS = {("sampling", "graph"): "graphed"}

#: Takes the device to check on; returns None, or what was wrong.
SelfCheck = Callable[[torch.device], str | None]

_checks: dict[tuple[str, str], SelfCheck] = {}
_verdicts: dict[tuple[str, str, int], str | None] = {}
_lock = threading.Lock()


def register_self_check(op: str, backend: str, check: SelfCheck) -> None:
    """Names the function that tries `backend` of `op` on a card before its first use there."""
    _checks[op, backend] = check


def gate(op: str, backend: str, device: torch.device) -> str | None:
    """None if `backend` of `op` may serve calls on `device` that do not name it, else the reason in words.

    The verdict is reached once per process, card, op and backend. Where the self-check cannot run now (a graph is
    being compiled or captured) the answer is no, and the next call asks again.
    """
    if os.environ.get("VIDGEN_EXPERIMENTAL", "0") not in ("", "0"):
        return None
    if device.type != "cuda":
        return f"is for CUDA devices, got {device.type}"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    index = torch.cuda.current_device() if device.index is None else device.index
    key = (op, backend, index)
    if key in _verdicts:
        return _verdicts[key]
    with _lock:  # hashing too: threads that parse source at one time upset Python 3.11
        if key not in _verdicts:
            reason = _not_in_manifest(op, backend, torch.cuda.get_device_capability(index))
            if reason is None and (torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing()):
                return "its self-check cannot run while a graph is compiled or captured; call the op once before"
            _verdicts[key] = reason or _self_check(op, backend, torch.device("cuda", index))
        return _verdicts[key]


def reset() -> None:
    """Forgets manifest, hashes and verdicts, as a new process would."""
    with _lock:
        _verdicts.clear()
        manifest_entries.cache_clear()
        source_hash.cache_clear()


@functools.cache
def manifest_entries() -> tuple[dict[str, Any], ...]:
    """What `make gpu` has passed; empty where the file is missing or of another format."""
    try:
        manifest = json.loads(MANIFEST.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ()
    return tuple(manifest["entries"]) if manifest.get("format") == MANIFEST_FORMAT else ()


@functools.cache
def source_hash(op: str, backend: str) -> str:
    """Hash of the source of `op`'s kernel that this process would run; "" if it cannot be told.

    Triton kernels are compiled from the .py files beside this package, and executors are such files; the CUDA library
    carries the hash of the source that it was compiled from.
    """
    if (op, backend) in PYTHON_BACKENDS:
        try:
            return executor_hash(PACKAGE / "sampling", PYTHON_BACKENDS[op, backend])
        except OSError:
            return ""
    if (op, backend) == ("sampling", "persistent"):
        # a kernel, and the Python that writes its program
        kernel = source_hash("sample_causal", "cuda")
        words = executor_hash(PACKAGE / "sampling", backend)
        return kernel and hashlib.sha256(f"{kernel}{words}".encode()).hexdigest()[: len(kernel)]
    family = re.sub(r"_grad_\w+$", "", op)  # an op and its gradients live in one file
    if backend == "triton":
        try:
            return triton_hash(PACKAGE / "kernels", family)
        except OSError:
            return ""
    try:
        told = ctypes.CDLL(str(PACKAGE / "_C_cuda.so")).vidgen_cuda_source_hash
    except (OSError, AttributeError):
        return ""
    told.restype, told.argtypes = ctypes.c_char_p, [ctypes.c_char_p]
    return str(told(family.encode()).decode())


def capability_name(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def _not_in_manifest(op: str, backend: str, capability: tuple[int, int]) -> str | None:
    present, card = source_hash(op, backend), capability_name(capability)
    if not present:
        return "the hash of its source cannot be told"
    passed = [e["source_hash"] for e in manifest_entries() if (e["op"], e["backend"]) == (op, backend)]
    here = [
        e["source_hash"]
        for e in manifest_entries()
        if (e["op"], e["backend"], e["compute_capability"]) == (op, backend, card)
    ]
    if present in here:
        return None
    way_out = f"impl='{backend}' or VIDGEN_EXPERIMENTAL=1 uses it all the same"
    if here:
        return f"its source has changed since it was tested on compute capability {card}; {way_out}"
    if present in passed:
        return f"it has been tested on other GPUs, not on compute capability {card}; {way_out}"
    return f"it has not been tested on a GPU of compute capability {card}; {way_out}"


def _self_check(op: str, backend: str, device: torch.device) -> str | None:
    """Runs the registered check in a thread of its own, out of reach of the caller's autocast, inference mode,
    dispatch modes and gradient recording."""
    importlib.import_module("vidgen.ops.self_check")  # registers the checks
    check = _checks.get((op, backend))
    if check is None:
        return "it has no self-check"
    found: list[str | None] = []

    def run() -> None:
        try:
            with torch.cuda.device(device), torch.no_grad():
                found.append(check(device))
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=run, name=f"vidgen self-check of {op}, {backend}")
    thread.start()
    thread.join()
    return f"its self-check failed on this GPU: {found[0]}" if found[0] is not None else None
