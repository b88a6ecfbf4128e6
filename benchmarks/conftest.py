"""Options of `pytest benchmarks --benchmark-only`."""

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vidgen benchmarks")
    group.addoption("--full", action="store_true", help="every shape and contender instead of the quick set")
    group.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="what to measure on")
    group.addoption("--from-results", type=Path, help="store the samples of this results file instead of measuring")
