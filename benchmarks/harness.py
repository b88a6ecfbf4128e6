"""Measures contenders side by side in one process, and refuses a number to those whose answer is wrong.

A *case* is one question ("masked_conv2d forward, this shape"); its *contenders* are the ways to answer it.
`measure` builds every contender, compares its output with float64, times those that pass by turns (A B A B ...)
and returns a row of plain values ready for JSON. Turns matter: a machine drifts (other tenants, frequency,
heat), and contenders timed one after the other differ by the drift. A turn begins with a call that is not
timed, so that every contender finds its own data in the cache, whoever ran before it.
"""

from __future__ import annotations

import gc
import math
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from .machine import Others

Outputs = Mapping[str, Tensor]
Run = Callable[[], Outputs]


class Clock(Protocol):
    """Times `calls` calls of `run` and returns seconds."""

    def time(self, run: Callable[[], object], calls: int) -> float: ...


class CpuClock:
    """Wall time; for code that has finished when it returns."""

    def time(self, run: Callable[[], object], calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            run()
        return time.perf_counter() - start


class CudaClock:
    """Device time between two events on the current stream, so that a queue of earlier work is not counted."""

    def time(self, run: Callable[[], object], calls: int) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        for _ in range(calls):
            run()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3


def clock_for(device: str) -> Clock:
    return CudaClock() if device == "cuda" else CpuClock()


@dataclass(frozen=True)
class Contender:
    """One way to answer a case.

    `prepare` makes the inputs and nothing else; `build` takes them and returns the call to be timed, after
    whatever is done once (masking a weight, packing, compiling). They are apart so that the memory probe can
    tell the inputs from what the contender adds to them.
    """

    name: str
    dtype: str
    prepare: Callable[[], Any]
    build: Callable[[Any], Run]
    ours: bool = False
    against: str | None = None  # name of the like-for-like baseline: same dtype, same memory layout
    compiled: bool = False
    peer: str | None = None  # distribution of the library that answers, where that is neither vidgen nor PyTorch
    flops: float = 0.0  # floating-point operations that this contender's algorithm does in one call
    bytes_moved: float = 0.0  # compulsory traffic: every input read once, every output written once
    parts: int = 1  # a run does one of so many equal parts of the answer: samples are multiplied by them
    absolute_limit: float = math.inf  # on the relative rms error
    relative_limit: float = math.inf  # as a multiple of the error of `against`
    own_limits: Mapping[str, float] = field(default_factory=dict)  # output -> absolute limit, in place of both


@dataclass(frozen=True, eq=False)
class Case:
    """One question. `truth(dtype)` is the float64 answer for the inputs as rounded to that dtype."""

    op: str
    name: str  # unique within the op, plain ASCII
    title: str  # the same for people
    kind: str  # "forward" or "forward+backward"
    device: str
    shape: Mapping[str, Any]
    contenders: Sequence[Contender]
    truth: Callable[[str], Outputs]
    compare: Callable[[str, Tensor], Tensor] = field(default=lambda _, value: value)
    left_out: Mapping[str, str] = field(default_factory=dict)  # who cannot be measured here: name -> why not
    weighed: bool = True  # its memory says something
    least_rounds: int = 5
    score: Callable[[Outputs], Mapping[str, float]] | None = None  # what the field judges an answer by: name -> figure

    def contender(self, name: str) -> Contender:
        return next(c for c in self.contenders if c.name == name)


def errors(outputs: Outputs, truth: Outputs, compare: Callable[[str, Tensor], Tensor]) -> dict[str, dict[str, float]]:
    """Relative rms and largest absolute error of each output; NaN and missing or misshapen outputs give NaN."""
    result = {}
    for name, expected in truth.items():
        got = outputs.get(name)
        if got is None or got.shape != expected.shape:
            result[name] = {"relative_rms": math.nan, "max": math.nan}
            continue
        expected = compare(name, expected)
        difference = compare(name, got.detach().to(expected.device, torch.float64)) - expected
        scale = expected.square().mean().sqrt().item() or 1.0
        result[name] = {
            "relative_rms": difference.square().mean().sqrt().item() / scale,
            "max": difference.abs().max().item() if difference.numel() else 0.0,
        }
    return result


def verdict(contender: Contender, own: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> str | None:
    """None where every output is within its limits, else the sentence that is printed in place of the number."""
    for name, error in own.items():
        rms = error["relative_rms"]
        if not math.isfinite(rms):
            return f"wrong answer: {name} is missing, misshapen or not finite"
        limit, why = contender.own_limits.get(name, contender.absolute_limit), "the absolute limit"
        if math.isfinite(contender.relative_limit) and name not in contender.own_limits:
            if baseline is None:
                return f"not checked: its baseline {contender.against!r} gave no answer to compare errors with"
            # below the rounding of a single operation the baseline's error is luck, not accuracy
            floor = torch.finfo(getattr(torch, contender.dtype, torch.float32)).eps / 16
            allowed = contender.relative_limit * max(baseline[name]["relative_rms"], floor)
            if allowed < limit:
                limit, why = allowed, f"{contender.relative_limit:g}× the error of {contender.against}"
        if not rms <= limit:
            return f"wrong answer: {name} is off by {rms:.1e} (relative rms against float64), limit {limit:.1e}, {why}"
    return None


def interleave(
    runs: Mapping[str, Callable[[], object]],
    *,
    clock: Clock,
    budget_s: float,
    min_rounds: int = 5,
    max_rounds: int = 400,
    sample_s: float = 2e-3,
    long_s: float = 0.1,
    now: Callable[[], float] = time.monotonic,
) -> dict[str, dict[str, Any]]:
    """Times the runs by turns and returns {"calls_per_sample", "samples_ms"} for each, one sample per round.

    A sample is the mean over as many calls as fill `sample_s` seconds. Rounds go on until the medians are known
    to 0.3% or the budget is used up, and never stop before `min_rounds`. Before its sample a run is called once
    untimed, unless it takes `long_s` seconds, of which filling the caches would be a thousandth.
    """
    calls, warms_up = {}, {}
    for name, run in runs.items():
        # the first calls allocate, page in and fill caches; they are never samples
        once = clock.time(run, 1)
        if once < long_s:
            once = clock.time(run, 2) / 2
        calls[name] = max(1, min(10_000, round(sample_s / max(once, 1e-9))))
        warms_up[name] = once < long_s
    samples: dict[str, list[float]] = {name: [] for name in runs}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        start = now()
        for done in range(1, max_rounds + 1):
            for name, run in runs.items():
                if warms_up[name]:
                    run()
                samples[name].append(clock.time(run, calls[name]) / calls[name] * 1e3)
            if done >= min_rounds and (now() - start >= budget_s or all(map(_settled, samples.values()))):
                break
    finally:
        if collecting:
            gc.enable()
    return {name: {"calls_per_sample": calls[name], "samples_ms": samples[name]} for name in runs}


def quartiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile, linearly interpolated between order statistics."""
    ordered = sorted(samples)

    def at(fraction: float) -> float:
        position = fraction * (len(ordered) - 1)
        below = math.floor(position)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (position - below) * (ordered[above] - ordered[below])

    return at(0.25), at(0.5), at(0.75)


def _settled(samples: Sequence[float]) -> bool:
    if len(samples) < 20:
        return False
    low, median, high = quartiles(samples)
    # standard error of a median of normal samples, from the inter-quartile range
    return 0.93 * (high - low) / math.sqrt(len(samples)) <= 0.003 * median


def measure(
    case: Case,
    *,
    budget_s: float,
    clock: Clock | None = None,
    memory: Callable[[Case, Contender], Mapping[str, float] | None] | None = None,
) -> dict[str, Any]:
    """Checks, times and weighs every contender of a case; a contender that fails keeps its row and gets no number."""
    # every case compiles afresh: shapes of one function pile up, and past a limit compiling gives way to eager
    torch.compiler.reset()
    entries: dict[str, dict[str, Any]] = {}
    runs: dict[str, Run] = {}
    found: dict[str, dict[str, dict[str, float]]] = {}
    truths: dict[str, Outputs] = {}
    for contender in case.contenders:
        entries[contender.name] = {
            "name": contender.name,
            "ours": contender.ours,
            "against": contender.against,
            "peer": contender.peer,
            "dtype": contender.dtype,
            "flops": contender.flops,
            "bytes_moved": contender.bytes_moved,
            "parts": contender.parts,
            "failure": None,
        }
        try:
            run = contender.build(contender.prepare())
            outputs = run()
            if contender.dtype not in truths:
                truths[contender.dtype] = case.truth(contender.dtype)
            found[contender.name] = errors(outputs, truths[contender.dtype], case.compare)
            if case.score is not None:
                entries[contender.name]["scores"] = dict(case.score(outputs))
            runs[contender.name] = run
        except Exception as error:  # a contender that cannot run is a finding, not the end of the benchmark
            # some libraries' messages are pages; the beginning says what is wrong
            reason = textwrap.shorten(str(error).strip().partition("\n")[0], 240, placeholder=" …")
            entries[contender.name]["failure"] = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    truths.clear()
    for contender in case.contenders:
        entry = entries[contender.name]
        if contender.name not in found:
            continue
        entry["errors"] = found[contender.name]
        entry["failure"] = verdict(contender, found[contender.name], found.get(contender.against or ""))
        if entry["failure"]:
            del runs[contender.name]
    with Others() as others:
        timings = interleave(
            runs, clock=clock or clock_for(case.device), budget_s=budget_s, min_rounds=case.least_rounds
        )
    for name, timing in timings.items():
        parts = entries[name]["parts"]
        entries[name].update(timing, samples_ms=[sample * parts for sample in timing["samples_ms"]])
    names = list(runs)
    runs.clear()
    if memory is not None and case.weighed:
        for name in names:
            entries[name]["memory"] = memory(case, case.contender(name))
    return {
        "op": case.op,
        "case": case.name,
        "title": case.title,
        "kind": case.kind,
        "device": case.device,
        "shape": dict(case.shape),
        "others_busy": others.share,
        "left_out": dict(case.left_out),
        "contenders": list(entries.values()),
    }
