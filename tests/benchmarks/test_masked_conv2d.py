"""If these failed, the convolution's benchmark would compare the wrong things, or not run at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vidgen import _host
from vidgen.benchmarks import bench_masked_conv2d as bench
from vidgen.benchmarks import suite
from vidgen.benchmarks.harness import measure

REPOSITORY = Path(__file__).parents[2]


def test_the_quick_set_holds_every_shape_that_was_promised() -> None:
    found = {
        (shape["n"], shape["cin"], shape["height"], shape["width"], *shape["kernel"], shape["mask"])
        for shape in (case.shape for case in bench.cases(device="cpu", full=False))
    }
    main = {(16, 128, 32, 32), (16, 64, 28, 28), (4, 256, 64, 64), (1, 128, 32, 32)}
    assert {(*size, 3, 3, "B") for size in main} <= found
    assert {(16, 128, 32, 32, 5, 5, "B"), (16, 128, 32, 32, 7, 7, "B")} <= found
    assert {(1, 1, 28, 28, 7, 7, "A"), (16, 3, 32, 32, 7, 7, "A"), (16, 64, 8, 8, 3, 3, "B")} <= found


def test_case_names_are_unique_in_every_set() -> None:
    for device, full in (("cpu", False), ("cpu", True), ("cuda", False)):
        names = [case.name for case in bench.cases(device=device, full=full)]
        assert len(names) == len(set(names)) > 0
        assert all(name.isascii() for name in names)


def test_the_benchmarks_own_mask_is_the_ops() -> None:
    # written down twice on purpose: the benchmark's is the oracle of its correctness gate
    from vidgen.ops.masked_conv2d import keep_mask

    for problem in (
        bench.Problem(1, 6, 4, 4, 9, (3, 5), "A", 3),
        bench.Problem(1, 6, 4, 4, 9, (1, 3), "B", 3),
        bench.Problem(1, 2, 4, 4, 4, (7, 7), "A"),
    ):
        size = (problem.cout, problem.cin, *problem.kernel)
        assert torch.equal(problem.keep(), keep_mask(size, problem.mask, problem.colors, "interleaved"))


@pytest.mark.skipif("baseline" in _host.isa(), reason="the portable build may choose other forms")
def test_own_flops_are_those_of_the_forms_on_paper() -> None:
    """csrc/cpu/masked_conv2d_winograd.h: products per output and channel pair, where tiles fit the image."""
    for k, products in ((3, 1.5 + 1.5), (5, 3 + 2), (7, 6.5 + 2.5)):
        problem = bench.Problem(2, 64, 32, 32, 64, (k, k), "B")
        assert bench._own_work(problem, "float32")["flops"] == 2 * (2 * 32 * 32) * 64 * 64 * products
    direct = bench.Problem(1, 1, 28, 28, 64, (7, 7), "A")
    assert bench._plan(direct, torch.float32)[0].startswith("direct, ")
    assert bench._own_work(direct, "float32")["flops"] == 2 * 28 * 28 * 64 * 24


def test_work_counts_the_taps_inside_the_image_and_bytes() -> None:
    problem = bench.Problem(2, 3, 5, 7, 6, (3, 3), "B")
    inside = (4 + 5 + 4) * (6 + 7 + 6)
    assert bench._work(problem, "float32", passes=1, every_tap=True)["flops"] == 2 * 2 * 3 * 6 * inside
    kept = bench._work(problem, "bfloat16", passes=1, every_tap=False)
    assert kept["flops"] == 2 * 2 * 3 * 6 * (4 * (6 + 7 + 6) + 5 * (6 + 7))
    assert kept["bytes_moved"] == 2 * (2 * 5 * 7 * (3 + 6) + 3 * 6 * 5)


@pytest.mark.parametrize("kind", ["forward", "forward+backward"])
def test_every_contender_of_a_small_case_runs_and_is_right(kind: str) -> None:
    case = next(
        case
        for case in suite.find_cases(["masked_conv2d"], device="cpu", full=True)
        if case.kind == kind and case.shape["height"] == 1
    )
    row = measure(case, budget_s=0.05)
    assert {entry["name"]: entry["failure"] for entry in row["contenders"]} == {
        contender.name: None for contender in case.contenders
    }
    # the truth is float64: nobody is exact, nobody is far off
    for entry in row["contenders"]:
        assert all(0 < error["relative_rms"] < 2e-2 for error in entry["errors"].values()), entry["name"]


def test_a_gradient_of_masked_taps_is_not_compared() -> None:
    problem = bench.Problem(1, 2, 4, 4, 2, (3, 3), "B")
    value = torch.ones(2, 2, 3, 3)
    assert bench._compare(problem, "grad_weight", value).sum() == 2 * 2 * 5
    assert torch.equal(bench._compare(problem, "grad_x", value), value)


def test_pytest_benchmark_stores_exactly_our_samples(tmp_path: Path) -> None:
    samples = [3.0, 1.5, 2.25, 4.0, 2.5]
    good = {"name": "eager", "failure": None, "errors": {}, "samples_ms": samples}
    bad = {"name": "ours", "failure": "wrong answer: off by one"}
    row = {"op": "masked_conv2d", "case": "c", "title": "a case", "contenders": [good, bad]}
    stored, written = tmp_path / "stored.json", tmp_path / "written.json"
    stored.write_text(json.dumps({"format": 1, "rows": [row]}))
    command = [sys.executable, "-m", "pytest", str(REPOSITORY / "benchmarks"), "-q", "-p", "no:cacheprovider"]
    options = ["--benchmark-only", f"--from-results={stored}", f"--benchmark-json={written}"]
    # pytest-benchmark measures nothing in a process that xdist has made
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    shown = subprocess.run(
        [*command, *options], capture_output=True, text=True, cwd=REPOSITORY, env=environment, check=False
    ).stdout
    assert "1 failed, 1 passed" in shown, shown
    assert "wrong answer: off by one" in shown
    (benchmark,) = json.loads(written.read_text())["benchmarks"]
    assert benchmark["group"] == "masked_conv2d, a case"
    assert benchmark["stats"]["data"] == [sample / 1e3 for sample in samples]
    assert benchmark["stats"]["median"] == 2.5e-3
