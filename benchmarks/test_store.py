"""Hands our interleaved samples to pytest-benchmark, which stores and compares them.

    pytest benchmarks --benchmark-only --benchmark-autosave
    pytest benchmarks --benchmark-only --benchmark-compare
    pytest benchmarks --benchmark-only --from-results benchmarks/results/FILE.json --benchmark-save=published

One test per contender; the first of a case measures them all by turns. pytest-benchmark times one function after
another, so it is given a timer that replays the samples, and a function that does nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest

from vidgen.benchmarks import machine, results, suite
from vidgen.benchmarks.harness import Case, measure


class Replay:
    """A timer whose readings, taken in pairs, differ by the next sample."""

    __name__ = "replay"

    def __init__(self) -> None:
        self._readings: Iterator[float] = iter(())

    def load(self, samples_ms: list[float]) -> None:
        self._readings = iter([reading for sample in samples_ms for reading in (0.0, sample / 1e3)])

    def __call__(self) -> float:
        return next(self._readings)


_replay = Replay()


@functools.cache
def _measured(case: Case) -> dict[str, Any]:
    with suite.using_threads(machine.usable_cores()):
        return measure(case, budget_s=1.5)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    options = metafunc.config.option
    if options.from_results:
        stored = results.load(options.from_results)
        pairs = [(row, entry["name"]) for row in stored["rows"] for entry in row["contenders"]]
        ids = [f"{row['op']}-{row['case']}-{name}" for row, name in pairs]
    else:
        cases = suite.find_cases([], device=options.device, full=options.full)
        pairs = [(case, contender.name) for case in cases for contender in case.contenders]
        ids = [f"{case.op}-{case.name}-{name}" for case, name in pairs]
    metafunc.parametrize(("source", "contender"), pairs, ids=ids)


@pytest.mark.benchmark(timer=_replay)
def test_contender(benchmark: Any, source: Any, contender: str) -> None:
    row = source if isinstance(source, dict) else _measured(source)
    entry = next(e for e in row["contenders"] if e["name"] == contender)
    if entry["failure"]:
        pytest.fail(entry["failure"], pytrace=False)
    benchmark.group = f"{row['op']}, {row['title']}"
    benchmark.extra_info["errors"] = entry["errors"]
    _replay.load(entry["samples_ms"])
    benchmark.pedantic(lambda: None, rounds=len(entry["samples_ms"]), iterations=1)
