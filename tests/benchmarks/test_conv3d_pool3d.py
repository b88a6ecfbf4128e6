"""If these failed, the benchmark of 3-d convolutions would compare the wrong things, count them wrongly, or not run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from vidgen.benchmarks import bench_conv3d_pool3d as bench
from vidgen.benchmarks.conv3d_problems import C3D_LAYERS, FULL, SMALL_C3D, TOY, Layer, Problem, c3d, net, trunk
from vidgen.benchmarks.harness import Case, measure, verdict
from vidgen.benchmarks.peers import openvino_peer, ort
from vidgen.benchmarks.suite import using_threads

PACKS = torch._C._dispatch_has_kernel_for_dispatch_key("vidgen::conv3d_pool3d_pack", "CPU")
PEERS = {ort.NAME: ort, openvino_peer.NAME: openvino_peer, f"{openvino_peer.NAME} bf16": openvino_peer}


class NoClock:
    """Runs once and says a millisecond per call: nothing here depends on how long anything takes."""

    def time(self, run: Callable[[], object], calls: int) -> float:
        run()
        return 1e-3 * calls


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny calls of several threads spend their time waiting for each other where the machine is busy."""
    with using_threads(1):
        yield


@pytest.fixture(autouse=True)
def packing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no kernel packs, the reference computes, which reads no packed bytes: anything will do."""
    if not PACKS:
        monkeypatch.setattr(bench, "conv3d_pool3d_pack", lambda *_, **__: torch.empty(0, dtype=torch.uint8))


def shrunk(problem: Problem) -> Problem:
    """The same structure with a sixteenth of the channels, on clips that are as small as its windows allow."""

    def fewer(channels: int) -> int:
        return max(2, channels // 16)

    n, cin, *size = problem.shape
    depth, height, width = (16, 32, 48) if len(problem.layers) > 2 else (min(s, 8 + i) for i, s in enumerate(size))
    layers = tuple(replace(layer, cout=fewer(layer.cout)) for layer in problem.layers)
    dense = tuple(fewer(width) for width in problem.dense)
    return Problem(problem.label, (min(n, 2), fewer(cin), depth, height, width), layers, dense)


def check(case: Case) -> None:
    row = measure(case, budget_s=0.0, clock=NoClock())
    assert {entry["name"]: entry["failure"] for entry in row["contenders"]} == {
        contender.name: None for contender in case.contenders
    }
    # the truth is float64: nobody is exact, nobody is far off
    for entry in row["contenders"]:
        assert all(0 < error["relative_rms"] < 2e-2 for error in entry["errors"].values()), entry["name"]


def quickly(case: Case) -> Case:
    """Without those who compile or convert for seconds: one case does that for all."""
    slow = [one.name for one in case.contenders if one.compiled or one.peer]
    return replace(case, contenders=[one for one in case.contenders if one.name not in slow])


def test_the_full_set_holds_every_layer_of_c3d_and_the_trunk() -> None:
    shapes = [case.shape for case in bench.cases(device="cpu", full=True) if case.kind == "forward"]
    found = {
        (s["cin"], s["depth"], s["height"], s["width"], s["layers"][0]["cout"], tuple(s["layers"][0]["pool"]))
        for s in shapes
        if len(s["layers"]) == 1
    }
    one, two, flat = (1, 1, 1), (2, 2, 2), (1, 2, 2)
    assert found >= {
        (3, 16, 112, 112, 64, flat),
        (64, 16, 56, 56, 128, two),
        (128, 8, 28, 28, 256, one),
        (256, 8, 28, 28, 256, two),
        (256, 4, 14, 14, 512, one),
        (512, 4, 14, 14, 512, two),
        (512, 2, 7, 7, 512, one),
        (512, 2, 7, 7, 512, two),
    }
    assert any(len(s["layers"]) == 8 for s in shapes)


def test_case_names_are_unique_in_every_set() -> None:
    for device, full in (("cpu", False), ("cpu", True), ("cuda", False)):
        cases = bench.cases(device=device, full=full)
        assert len({case.name for case in cases}) == len(cases) > 0
        assert len({case.title for case in cases}) == len(cases)
        assert all(case.name.isascii() and " " not in case.name for case in cases)


def test_the_full_set_holds_the_quick_one() -> None:
    quick, full = ({case.name for case in bench.cases(device="cpu", full=full)} for full in (False, True))
    assert quick < full


# The shapes.


def test_c3d_is_that_of_the_paper() -> None:
    assert net(1).output_shape() == (1, 487)
    assert trunk(8).output_shape() == (8, 512, 1, 4, 4)
    assert net(1).compulsory()[1] == pytest.approx(79.99e6, rel=1e-3)
    assert [str(one.shape) for one in C3D_LAYERS[1:3]] == ["(1, 64, 16, 56, 56)", "(1, 128, 8, 28, 28)"]


@pytest.mark.parametrize("problem", [*TOY, SMALL_C3D, *C3D_LAYERS[-1:]], ids=lambda p: p.label)
def test_output_shapes_are_pytorchs(problem: Problem) -> None:
    values = bench._values(problem)
    y = bench._eager(problem, values["x"][:1], values["weights"], values["biases"])
    assert y.shape == (1, *problem.output_shape()[1:])


# The counts.


def test_multiply_adds_are_those_of_the_paper() -> None:
    assert trunk(1).multiply_adds() / 1e9 == pytest.approx(38.50, abs=0.005)
    assert net(1).multiply_adds() / 1e9 == pytest.approx(38.55, abs=0.005)
    # conv2 by hand: a 3×3×3 kernel over 64 channels for 128 of 16×56×56 outputs, unpooled
    assert C3D_LAYERS[1].multiply_adds() == 27 * 64 * 128 * 16 * 56 * 56


@pytest.mark.parametrize(("kernel", "size"), [((3, 3, 3), (2, 5, 4)), ((1, 3, 5), (3, 1, 2)), ((3, 1, 3), (1, 4, 7))])
def test_taps_in_the_padding_are_no_work(kernel: Any, size: Any) -> None:
    layer = Layer(6, kernel)
    # how many taps of every output lie inside: the convolution of ones with ones
    inside = F.conv3d(torch.ones(1, 1, *size), torch.ones(1, 1, *kernel), padding=[k // 2 for k in kernel]).sum()
    assert layer.products(5, size, in_padding=False) == 5 * 6 * inside
    problem = Problem("one", (2, 5, *size), (layer,))
    assert bench._work(problem, "float32", ours=False)["flops"] == 2 * 2 * 5 * 6 * inside


def test_bytes_are_the_input_the_weights_and_the_pooled_output() -> None:
    problem = Problem("one", (2, 3, 5, 6, 7), (Layer(4, pool=(1, 2, 2), ceil_mode=True),))
    numbers = 2 * 3 * 5 * 6 * 7 + (4 * 3 * 27 + 4) + 2 * 4 * 5 * 3 * 4
    assert bench._work(problem, "float32", ours=False)["bytes_moved"] == 4 * numbers
    assert bench._work(problem, "bfloat16", ours=True)["bytes_moved"] == 2 * numbers


def test_a_training_step_counts_each_convolution_that_it_does() -> None:
    layers = (Layer(4, pool=(1, 2, 2)), Layer(6))
    problem = Problem("two", (3, 2, 4, 8, 8), layers)
    first, second = (bench._direct_flops(*step) for step in problem.steps())
    # forward and weights of both; x only of the second, whose input is the first's output
    step = bench._backward_work(problem, wrt_x=False, ours=False)
    assert step["flops"] == 3 * (2 * first + 3 * second)
    assert bench._backward_work(problem, wrt_x=True, ours=False)["flops"] == 3 * (3 * first + 3 * second)


def test_own_flops_are_the_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem("two", (3, 2, 4, 8, 8), (Layer(4, pool=(1, 2, 2)), Layer(6)))
    asked = []

    def plan(layer: Layer, cin: int, size: Any, dtype: torch.dtype) -> tuple[str, float]:
        asked.append((layer.cout, cin, size, dtype))
        return "words", 100.0 * cin

    monkeypatch.setattr(bench, "_plan", plan)
    assert bench._work(problem, "float32", ours=True)["flops"] == 3 * (200.0 + 400.0)
    assert asked == [(4, 2, (4, 8, 8), torch.float32), (6, 4, (4, 4, 4), torch.float32)]

    def none(*_: object) -> tuple[str, float]:
        raise RuntimeError("no kernel for it")

    monkeypatch.setattr(bench, "_plan", none)
    assert bench._work(problem, "float32", ours=True) == bench._work(problem, "float32", ours=False)


@pytest.mark.skipif(not PACKS, reason="the CPU kernel is not built")
def test_the_plan_answers_for_every_layer() -> None:
    for problem in FULL:
        for layer, cin, size in problem.steps():
            words, flops = bench._plan(layer, cin, size, torch.float32)
            assert words
            # no known form does less than a tenth of the direct one's work, or twice as much
            assert 0.1 < flops / bench._direct_flops(layer, cin, size) < 2, (problem.label, words)


# The contenders.


@pytest.mark.parametrize("problem", FULL, ids=lambda p: p.name)
def test_the_answers_to_a_small_relative_of_every_case_are_right(problem: Problem) -> None:
    check(quickly(bench._cpu_case(shrunk(problem), full=True)))


def test_compilers_and_peers_are_right_too() -> None:
    layers = (Layer(8, pool=(1, 2, 2)), Layer(6, (1, 3, 3), (2, 2, 2), ceil_mode=True), Layer(4, activation="identity"))
    check(bench._cpu_case(Problem("three", (2, 3, 5, 10, 12), layers, dense=(5, 3)), full=True))


def test_a_training_step_of_everybody_is_right() -> None:
    problem = Problem("two", (2, 3, 4, 8, 9), (Layer(6, pool=(1, 2, 2)), Layer(5, pool=(2, 2, 2), ceil_mode=True)))
    case = bench._cpu_backward_case(problem, True, wrt_x=False)
    check(case)
    names = {"y", *(f"grad_{kind}_{i}" for kind, i in product(("weight", "bias"), range(2)))}
    assert case.truth("float32").keys() == names
    smooth = Problem("one", (1, 4, 3, 5, 6), (Layer(3, activation="identity"),))
    case = quickly(bench._cpu_backward_case(smooth, True, wrt_x=True))
    check(case)
    assert case.truth("float32").keys() == {"y", "grad_x", "grad_weight_0", "grad_bias_0"}


def test_gradients_are_held_to_the_usual_limits_where_nothing_jumps() -> None:
    smooth = Problem("one", (1, 4, 3, 5, 6), (Layer(3, activation="identity"),))
    ours = bench._cpu_backward_case(smooth, True, wrt_x=True).contender("vidgen NDHWC, packing")
    assert (ours.absolute_limit, ours.relative_limit, ours.own_limits) == (5e-6, 16.0, {})
    # where a gradient jumps it has a limit of its own, and the output keeps the usual one
    ours = bench._cpu_backward_case(SMALL_C3D, True, wrt_x=False).contender("vidgen NDHWC, packing")
    right = {name: {"relative_rms": 1e-6} for name in ("y", "grad_weight_0")}
    assert verdict(ours, right | {"grad_weight_0": {"relative_rms": 5e-3}}, right) is None
    assert "grad_weight_0 is off" in str(verdict(ours, right | {"grad_weight_0": {"relative_rms": 2e-2}}, right))
    assert "y is off" in str(verdict(ours, right | {"y": {"relative_rms": 1e-5}}, right))


@pytest.mark.parametrize("broken", ["pool", "activation", "ceil_mode"])
def test_a_wrong_answer_gets_no_number(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = bench.conv3d_pool3d
    wrong = {"pool": None, "activation": "identity", "ceil_mode": False}[broken]
    monkeypatch.setattr(bench, "conv3d_pool3d", lambda *args, **more: right(*args, **{**more, broken: wrong}))
    problem = Problem("one", (1, 3, 3, 5, 7), (Layer(4, pool=(2, 2, 2), ceil_mode=True),))
    row = measure(quickly(bench._cpu_case(problem, full=False)), budget_s=0.0, clock=NoClock())
    for entry in row["contenders"]:
        if entry["ours"]:
            assert entry["failure"].startswith("wrong answer"), entry
            assert "samples_ms" not in entry
        else:
            assert entry["failure"] is None, entry


def test_chains_stay_in_channels_last_3d() -> None:
    problem = shrunk(trunk(1))
    inputs = bench._inputs(problem, dtype=torch.float32, memory_format=torch.channels_last_3d)
    y = bench._build_packed(problem, inputs)()["y"]
    assert y.is_contiguous(memory_format=torch.channels_last_3d)


def test_every_layer_is_packed_for_the_size_that_it_will_see(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def pack(weight: torch.Tensor, **more: Any) -> torch.Tensor:
        seen.append((tuple(weight.shape[:2]), more["input_size"], more["pool"]))
        return torch.empty(0, dtype=torch.uint8)

    monkeypatch.setattr(bench, "conv3d_pool3d_pack", pack)
    problem = Problem("two", (1, 2, 4, 8, 8), (Layer(4, pool=(1, 2, 2)), Layer(6, pool=(2, 2, 2))))
    bench._build_packed(problem, bench._inputs(problem, dtype=torch.float32, memory_format=torch.channels_last_3d))
    assert seen == [((4, 2), (4, 8, 8), (1, 2, 2)), ((6, 4), (4, 4, 4), (2, 2, 2))]


# Peers.


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_measures_or_says_why_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem("one", (1, 3, 4, 6, 6), (Layer(4),))
    dtype = "bfloat16" if "bf16" in name else "float32"

    def case() -> Case:
        return bench._cpu_case(problem, full=False)

    assert (name in {one.name for one in case().contenders}) == (PEERS[name].missing(dtype) is None)
    monkeypatch.setattr(PEERS[name], "missing", lambda _: "it is not installed")
    assert name not in {one.name for one in case().contenders}
    assert case().left_out[name] == "it is not installed"
    row = measure(replace(case(), contenders=case().contenders[:1]), budget_s=0.0, clock=NoClock())
    assert row["left_out"][name] == "it is not installed"


def test_small_c3d_is_c3d() -> None:
    assert SMALL_C3D.shape == (16, 3, 16, 32, 32)
    assert [layer.pool for layer in SMALL_C3D.layers] == [layer.pool for layer in c3d(64)]
    assert SMALL_C3D.layers[0].cout == 16
