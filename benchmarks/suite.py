"""Finds the benchmarks, runs their cases one after the other, and remembers what it has measured."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import json
import os
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from vidgen.files import write_atomically

from . import machine, results
from .harness import Case, measure
from .memory import MemoryProbe

#: (index, how many, case, None before it and its row after it, peaks)
Progress = Callable[[int, int, Case, dict[str, Any] | None, dict[str, float]], None]


def ops() -> list[str]:
    """The ops that have a benchmark: every bench_<op>.py beside this file."""
    names = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return sorted(name.removeprefix("bench_") for name in names if name.startswith("bench_"))


def find_cases(chosen: Sequence[str], *, device: str, full: bool) -> list[Case]:
    """The cases of the chosen ops (all where none is chosen); ValueError for an op that has none."""
    known = ops()
    for op in chosen:
        if op not in known:
            raise ValueError(f"op must be one of {known}, got {op!r}")
    found: list[Case] = []
    for op in chosen or known:
        of_op = importlib.import_module(f"{__package__}.bench_{op}").cases(device=device, full=full)
        if op in chosen and not of_op:
            raise ValueError(f"op {op!r} has no cases on {device}{'' if full else ' in the quick set; give --full'}")
        found += of_op
    return found


def run(
    chosen: Sequence[str] = (),
    *,
    device: str = "cpu",
    full: bool = False,
    threads: int | None = None,
    seconds: float = 1.5,
    cache: Path | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measures the chosen ops and returns the content of a results file, with the rows of all of them.

    Args:
        chosen: op names; none means every op that has a benchmark.
        device: "cpu" or "cuda".
        full: every shape and contender instead of the quick set.
        threads: CPU threads; None takes every core that this process may use.
        seconds: time budget of a case's timed rounds. Warm-up, checks and memory probes come on top.
        cache: folder in which finished cases are kept, so that an interrupted run goes on where it stopped. A case is
            reused only where the code, torch, the machine and the settings are the same.
        fresh: measure again what the cache holds.
        progress: called before each case without a row and after it with one.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device must be 'cpu' on this machine, got 'cuda': torch sees no CUDA device")
    if not seconds > 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    threads = machine.usable_cores() if threads is None else threads
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    found = find_cases(chosen, device=device, full=full)
    if not full:  # where rounds take seconds, three say what a reader of the quick set wants to know
        found = [replace(case, least_rounds=min(case.least_rounds, 3)) for case in found]
    described = machine.describe(device, threads)
    peaks = machine.peaks(device, threads)  # before any process of ours runs beside
    with using_threads(threads), MemoryProbe(threads, full) as memory:
        answer: dict[str, Any] = {
            "format": results.FORMAT,
            "set": "full" if full else "quick",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": described,
            "peaks": peaks,
            "rows": [],
        }
        for index, case in enumerate(found):
            if progress:
                progress(index, len(found), case, None, answer["peaks"])
            path = cache and cache / f"{_key(case, described, seconds)}.json"
            row = _remembered(path) if path and not fresh else None
            if row is None:
                row = measure(case, budget_s=seconds, memory=memory)
                if path:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_atomically(path, json.dumps(row, allow_nan=True).encode())
            answer["rows"].append(row)
            if progress:
                progress(index, len(found), case, row, answer["peaks"])
    # a ceiling is what the machine can do: where it has neighbours, the better of two moments is nearer to that
    again = machine.peaks(device, threads)
    answer["peaks"] = {name: max(value, again[name]) for name, value in peaks.items()}
    return answer


@contextlib.contextmanager
def using_threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _remembered(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _key(case: Case, described: dict[str, Any], seconds: float) -> str:
    contenders = [contender.name for contender in case.contenders]
    measured = code_hash(skip=("report", "train", "models", "data"))
    facts = [case.op, case.name, contenders, case.least_rounds, described, seconds, measured]
    return f"{case.op}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}"


@functools.cache
def code_hash(skip: tuple[str, ...] = ()) -> str:
    """Hash of vidgen's Python sources and compiled libraries, without the named sub-packages."""
    import vidgen

    root = Path(vidgen.__file__).parent
    digest = hashlib.sha256()
    # os.walk and not rglob: the benchmarks and kernels are symlinks in a checkout
    for path in sorted(_files(root)):
        name = path.relative_to(root)
        if name.parts[0] not in skip:
            digest.update(str(name).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _files(root: Path) -> Iterator[Path]:
    for folder, _, files in os.walk(root, followlinks=True):
        yield from (Path(folder, name) for name in files if name.endswith((".py", ".so")))
