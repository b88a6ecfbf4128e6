"""If these failed, a table could show a ratio that nobody measured, or a speed-up for a wrong answer."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import numpy as np
import pytest
import torch

from vidgen.benchmarks.harness import Case, Contender, errors, interleave, measure, quartiles

TRUTH = torch.linspace(-2, 2, 64, dtype=torch.float64)


class FakeClock:
    """Says what the script says: `seconds[name]` per call, plus `drift` more per reading."""

    def __init__(self, seconds: dict[str, float], drift: float = 0.0) -> None:
        self.seconds, self.drift, self.readings = seconds, drift, 0
        self.order: list[str] = []

    def time(self, run: Callable[[], object], calls: int) -> float:
        for _ in range(calls):
            name = run()
        self.order.append(str(name))
        self.readings += 1
        return calls * (self.seconds[str(name)] + self.drift * self.readings)


def named(*names: str) -> dict[str, Callable[[], object]]:
    return {name: (lambda name=name: name) for name in names}


def contender(name: str, value: torch.Tensor, **more: object) -> Contender:
    # the output says which contender ran, so that a fake clock can look up its time
    return Contender(name, "float32", lambda: None, lambda _: lambda: {"y": value}, **more)  # type: ignore[arg-type]


def case(*contenders: Contender) -> Case:
    return Case("op", "case", "a case", "forward", "cpu", {}, contenders, lambda dtype: {"y": TRUTH})


class CountingClock:
    """A millisecond per call, whoever calls."""

    def time(self, run: Callable[[], object], calls: int) -> float:
        run()
        return 1e-3 * calls


def test_contenders_take_turns_in_one_order() -> None:
    clock = FakeClock({"A": 1e-3, "B": 3e-3})
    interleave(named("A", "B"), clock=clock, budget_s=0.0, min_rounds=4, now=lambda: 0.0)
    warm_up = 4
    assert clock.order[warm_up:] == ["A", "B"] * 4


def test_a_drifting_machine_does_not_change_the_ratio() -> None:
    # every reading is slower than the one before; contenders timed one after the other would differ twofold
    clock = FakeClock({"A": 1e-3, "B": 1e-3}, drift=2e-5)
    timed = interleave(named("A", "B"), clock=clock, budget_s=0.0, min_rounds=50, now=lambda: 0.0)
    medians = [statistics.median(timed[name]["samples_ms"]) for name in "AB"]
    assert max(timed["A"]["samples_ms"]) > 2 * min(timed["A"]["samples_ms"])
    assert medians[1] / medians[0] == pytest.approx(1.0, abs=0.02)


def test_short_calls_are_repeated_within_a_sample_and_reported_per_call() -> None:
    timed = interleave(named("A", "B"), clock=FakeClock({"A": 1e-5, "B": 1e-1}), budget_s=0.0, now=lambda: 0.0)
    assert timed["A"]["calls_per_sample"] == 200
    assert timed["B"]["calls_per_sample"] == 1
    assert timed["A"]["samples_ms"] == pytest.approx([1e-2] * 5)
    assert timed["B"]["samples_ms"] == pytest.approx([1e2] * 5)


def test_only_short_calls_are_preceded_by_one_that_is_not_timed() -> None:
    calls = {"short": 0, "long": 0}

    def counted(name: str) -> str:
        calls[name] += 1
        return name

    runs = {name: (lambda name=name: counted(name)) for name in calls}
    clock = FakeClock({"short": 0.05, "long": 0.2})
    timed = interleave(runs, clock=clock, budget_s=0.0, min_rounds=5, now=lambda: 0.0)
    assert {name: len(timed[name]["samples_ms"]) for name in timed} == {"short": 5, "long": 5}
    assert calls == {"short": 3 + 2 * 5, "long": 1 + 5}


def test_rounds_end_with_the_budget_but_not_before_the_minimum() -> None:
    class Noisy:
        """Never settles; keeps the time that it has handed out."""

        def __init__(self) -> None:
            self.random, self.elapsed = np.random.default_rng(0), 0.0

        def time(self, run: Callable[[], object], calls: int) -> float:
            self.elapsed += 1.0
            return self.random.uniform(1e-3, 2e-3) * calls

    for budget, minimum, rounds in ((30, 5, 30), (1, 7, 7)):
        clock = Noisy()
        timed = interleave(
            named("A"), clock=clock, budget_s=budget, min_rounds=minimum, now=lambda clock=clock: clock.elapsed
        )
        assert len(timed["A"]["samples_ms"]) == rounds


def test_steady_samples_end_the_rounds_early() -> None:
    timed = interleave(named("A"), clock=FakeClock({"A": 1e-3}), budget_s=1e9, now=lambda: 0.0)
    assert len(timed["A"]["samples_ms"]) == 20


@pytest.mark.parametrize("count", [1, 2, 5, 20, 21])
def test_quartiles_are_numpys(count: int) -> None:
    samples = np.random.default_rng(count).exponential(size=count).tolist()
    assert quartiles(samples) == pytest.approx(np.quantile(samples, [0.25, 0.5, 0.75]))


def test_a_wrong_contender_gets_its_failure_and_no_sample() -> None:
    exact = TRUTH.float()
    row = measure(
        case(
            contender("eager", exact, absolute_limit=1e-6),
            contender("right", exact, ours=True, against="eager", absolute_limit=1e-6, relative_limit=16),
            contender("wrong", exact + 0.01, ours=True, against="eager", absolute_limit=1e-6, relative_limit=16),
        ),
        budget_s=0.0,
        clock=CountingClock(),
    )
    right, wrong = row["contenders"][1:]
    assert right["failure"] is None
    assert len(right["samples_ms"]) >= 5
    assert wrong["failure"].startswith("wrong answer: y is off by")
    assert "samples_ms" not in wrong


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (torch.full((64,), float("nan")), "not finite"),
        (torch.zeros(63), "misshapen"),
    ],
)
def test_nan_and_shape_are_failures(output: torch.Tensor, reason: str) -> None:
    row = measure(case(contender("bad", output, absolute_limit=1.0)), budget_s=0.0, clock=CountingClock())
    assert reason in row["contenders"][0]["failure"]


def test_error_is_held_against_the_baselines_error() -> None:
    # both are within the absolute limit, but ours errs 100 times as much as eager
    row = measure(
        case(
            contender("eager", TRUTH.float() * (1 + 1e-7), absolute_limit=1e-3),
            contender("ours", TRUTH.float() * (1 + 1e-5), ours=True, against="eager", relative_limit=16),
        ),
        budget_s=0.0,
        clock=CountingClock(),
    )
    assert "16× the error of eager" in row["contenders"][1]["failure"]


def test_a_contender_that_raises_is_a_row_and_the_others_are_measured() -> None:
    def explode(_: object) -> Callable[[], dict[str, torch.Tensor]]:
        raise RuntimeError("no such kernel\nsecond line")

    broken = Contender("broken", "float32", lambda: None, explode)
    row = measure(case(broken, contender("fine", TRUTH.float())), budget_s=0.0, clock=CountingClock())
    assert row["contenders"][0]["failure"] == "RuntimeError: no such kernel"
    assert row["contenders"][1]["samples_ms"]


def test_a_long_message_is_cut_short() -> None:
    def explode(_: object) -> Callable[[], dict[str, torch.Tensor]]:
        raise RuntimeError("no such kernel, " + "and so on " * 100)

    row = measure(case(Contender("broken", "float32", lambda: None, explode)), budget_s=0.0, clock=CountingClock())
    assert row["contenders"][0]["failure"].startswith("RuntimeError: no such kernel, and so on")
    assert len(row["contenders"][0]["failure"]) < 300


def test_a_contender_is_not_checked_against_a_baseline_that_failed() -> None:
    row = measure(
        case(
            contender("eager", TRUTH.float() + 1, absolute_limit=1e-6),
            contender("ours", TRUTH.float(), ours=True, against="missing", relative_limit=2),
        ),
        budget_s=0.0,
        clock=CountingClock(),
    )
    assert row["contenders"][1]["failure"].startswith("not checked")


def test_relative_rms_is_against_float64() -> None:
    error = errors({"y": TRUTH.float() * 1.5}, {"y": TRUTH}, lambda _, value: value)["y"]
    assert error["relative_rms"] == pytest.approx(0.5)
    assert error["max"] == pytest.approx(1.0)


def test_what_is_not_compared_does_not_count() -> None:
    mask = torch.arange(64) % 2
    polluted = TRUTH.float() + (1 - mask) * 5
    error = errors({"y": polluted}, {"y": TRUTH}, lambda _, value: value * mask)["y"]
    assert error["max"] < 1e-6
