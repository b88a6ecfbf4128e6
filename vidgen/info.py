"""What this machine is, what it can reach, and which backend of which op runs on it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import time
from typing import Any

import torch

import vidgen
from vidgen import _host
from vidgen.ops.backends import TABLE
from vidgen.ops.gate import gate

_PACKAGES = ("numpy", "triton", "accelerate", "safetensors")


def processor() -> str:
    """The processor's name, as the operating system gives it."""
    try:
        with open("/proc/cpuinfo") as cpuinfo:
            for line in cpuinfo:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {"vidgen": vidgen.__version__, "python": platform.python_version(), "torch": torch.__version__}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _backends() -> dict[str, dict[str, str]]:
    """op -> backend -> "ready", or why this machine cannot run it whatever the arguments."""
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    table: dict[str, dict[str, str]] = {}
    for op, rows in TABLE.items():
        table[op] = {}
        for row in rows:
            reason = row.available()
            if reason is None and row.devices and not (device.type in row.devices or "cpu" in row.devices):
                reason = f"runs on {' and '.join(row.devices)}; this machine has none"
            if reason is None and row.gated:
                reason = gate(op, row.name, device)
            table[op][row.name] = reason or "ready"
    return table


def _settle() -> None:
    """Waits until this process is idle: torch's threads spin for a while after a parallel region, and a probe that
    runs beside them sees half a machine."""
    for _ in range(100):
        before = time.process_time()
        time.sleep(0.02)
        if time.process_time() - before < 0.002:
            return


def measure_peaks(threads: int, seconds: float = 0.5) -> dict[str, float]:
    """What the machine can reach with `threads` threads: {"fp32_gflops", "bf16_gflops", "copy_gb_per_s"}.

    Args:
        threads: threads of each probe.
        seconds: length of one probe; there are three.
    """
    _settle()
    return {
        "fp32_gflops": _host.peak_gflops("fp32", threads, seconds),
        "bf16_gflops": _host.peak_gflops("bf16", threads, seconds),
        "copy_gb_per_s": _host.bandwidth_gb_per_s(threads, seconds),
    }


def collect(*, measure: bool = True, seconds: float = 0.5) -> dict[str, Any]:
    """Everything that `vidgen info` shows, as plain data.

    Args:
        measure: probe peak arithmetic and bandwidth (takes about three times `seconds`).
        seconds: length of one probe.
    """
    threads = torch.get_num_threads()
    peaks = measure_peaks(threads, seconds) if measure else {}
    return {
        "versions": _versions(),
        "processor": processor(),
        "platform": platform.platform(),
        "threads": threads,
        "isa": _host.isa(),
        "isa_compiled": _host.isa_compiled(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "build": _host.build_flags(),
        "peaks": peaks,
        "backends": _backends(),
    }


def info(*, as_json: bool = False, measure: bool = True) -> None:
    """Show versions, instruction set, build flags, what the machine can reach, and which backends run here.

    Args:
        as_json: print JSON instead of text.
        measure: probe peak GFLOP/s and GB/s (about two seconds); --no-measure leaves them out.
    """
    facts = collect(measure=measure)
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    print("  ".join(f"{name} {value}" for name, value in facts["versions"].items()))
    print(f"processor   {facts['processor']}, {facts['threads']} threads, {facts['platform']}")
    levels = ", ".join(facts["isa_compiled"])
    print(f"isa         {facts['isa']} (built: {levels}; VIDGEN_CPU_ISA caps it)")
    if unknown := _host.isa_unknown_request():
        print(f"            VIDGEN_CPU_ISA={unknown} names no level and is ignored")
    print(f"gpu         {', '.join(facts['gpus']) or 'none'}")
    for name, value in facts["build"].items():
        print(f"build       {name}: {value}")
    if peaks := facts["peaks"]:
        bf16 = f"{peaks['bf16_gflops']:.0f} GFLOP/s bf16" if peaks["bf16_gflops"] else "no bf16 arithmetic"
        print(f"peak        {peaks['fp32_gflops']:.0f} GFLOP/s fp32, {bf16}, copy {peaks['copy_gb_per_s']:.1f} GB/s")
    for op, rows in facts["backends"].items():
        print(op)
        for backend, state in rows.items():
            print(f"  {backend:<10} {state}")
