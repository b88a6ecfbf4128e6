"""What the numbers were measured on, and how fast that machine can possibly be."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch


def usable_cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(device: str, threads: int) -> dict[str, Any]:
    """Processor, threads, versions and instruction set; with `device="cuda"` also the card."""
    import vidgen
    from vidgen import _host
    from vidgen.info import processor

    machine: dict[str, Any] = {
        "device": device,
        "cpu": processor(),
        "architecture": platform.machine(),
        "threads": threads,
        "cores": usable_cores(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "vidgen": vidgen.__version__,
        "isa": _host.isa(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        machine |= {
            "gpu": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
        }
    return machine


def peaks(device: str, threads: int) -> dict[str, float]:
    """Measured ceilings: GFLOP/s by dtype name and "gb_per_s", the bandwidth of a copy (read + write)."""
    if device == "cuda":
        return _cuda_peaks()
    from vidgen import _host

    return {
        "float32": _host.peak_gflops("fp32", threads, 0.4),
        "bfloat16": _host.peak_gflops("bf16", threads, 0.4),
        "gb_per_s": _host.bandwidth_gb_per_s(threads, 0.6),
    }


def _cuda_peaks() -> dict[str, float]:
    """No probe of ours runs on a GPU, so its ceilings are what the vendor's own matmul and copy reach."""
    from .harness import CudaClock, quartiles

    def best(run: Any) -> float:
        CudaClock().time(run, 3)
        return quartiles([CudaClock().time(run, 5) / 5 for _ in range(5)])[1]

    size = 8192
    result = {}
    for name, dtype in (("tf32", torch.float32), ("bfloat16", torch.bfloat16)):
        a = torch.randn(size, size, device="cuda", dtype=dtype)
        with tf32():
            result[name] = 2 * size**3 / best(lambda a=a: a @ a) / 1e9
    block = torch.empty(2**30, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(block)
    result["gb_per_s"] = 2 * block.numel() / best(lambda: target.copy_(block)) / 1e9
    return result


class tf32:
    """Context manager that lets fp32 matrix products and convolutions on CUDA use TF32."""

    def __enter__(self) -> None:
        self._before = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True

    def __exit__(self, *_: object) -> None:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = self._before


def floor_ms(flops: float, bytes_moved: float, dtype: str, measured: dict[str, float]) -> float | None:
    """The least time that the machine's measured ceilings allow for this work, or None where one is missing."""
    if not measured.get(dtype) or not measured.get("gb_per_s") or not flops:
        return None
    return max(flops / measured[dtype], bytes_moved / measured["gb_per_s"]) / 1e6
