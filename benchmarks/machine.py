"""What the numbers were measured on, and how fast that machine can possibly be."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch


def usable_cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(device: str, threads: int) -> dict[str, Any]:
    """Processor, threads, versions (those of peers, too) and instruction set; with `device="cuda"` also the card."""
    import vidgen
    from vidgen import _host
    from vidgen.info import processor

    from . import peers

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
        "peers": peers.versions(),
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


class Others:
    """Context manager; afterwards `share` is how much of the machine's cores other processes have used, 0 to 1.

    Timings on a busy machine are nonsense in both directions: a thread that has to wait for its core holds up all
    the others of its call. None where /proc/stat does not exist.
    """

    share: float | None = None

    def __enter__(self) -> Others:
        self._start = (time.monotonic(), _busy_seconds(), time.process_time())
        return self

    def __exit__(self, *_: object) -> None:
        start, busy, own = self._start
        after, elapsed = _busy_seconds(), time.monotonic() - start
        if busy is not None and after is not None and elapsed > 0:
            used = (after - busy) - (time.process_time() - own)
            self.share = round(min(1.0, max(0.0, used / elapsed / (os.cpu_count() or 1))), 3)


def _busy_seconds() -> float | None:
    """CPU seconds that all cores together have been busy or stolen since boot."""
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def peaks(device: str, threads: int) -> dict[str, float]:
    """Measured ceilings: GFLOP/s by dtype name and "gb_per_s", the bandwidth of a copy (read + write)."""
    if device == "cuda":
        return _cuda_peaks()
    from vidgen.info import measure_peaks

    found = measure_peaks(threads)
    return {"float32": found["fp32_gflops"], "bfloat16": found["bf16_gflops"], "gb_per_s": found["copy_gb_per_s"]}


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


@contextlib.contextmanager
def tf32(allowed: bool = True) -> Iterator[None]:
    """Lets fp32 matrix products and convolutions on CUDA use TF32."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = (matmul.allow_tf32, cudnn.allow_tf32)
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def floor_ms(flops: float, bytes_moved: float, dtype: str, measured: dict[str, float]) -> float | None:
    """The least time that the machine's measured ceilings allow for this work, or None where one is missing."""
    if not measured.get(dtype) or not measured.get("gb_per_s") or not flops:
        return None
    return max(flops / measured[dtype], bytes_moved / measured["gb_per_s"]) / 1e6
