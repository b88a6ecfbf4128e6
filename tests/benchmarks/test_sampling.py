"""If these failed, cached drawing would be compared with a slower form than a user's best, or with another network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vidgen.benchmarks import bench_sampling as bench
from vidgen.benchmarks.harness import measure
from vidgen.models import PixelCNN, PixelCNNPP

SMALL = {
    "pixelcnn": lambda: PixelCNN((1, 5, 6), hidden=8, blocks=1),
    "pixelcnn, three colours": lambda: PixelCNN((3, 4, 5), hidden=12, blocks=1, levels=5),
    "pixelcnn++": lambda: PixelCNNPP((3, 6, 4), resnets=1, filters=8, mixtures=2),
}


@pytest.mark.parametrize("name", SMALL)
def test_plain_pytorch_computes_what_the_network_computes(name: str) -> None:
    torch.manual_seed(0)
    model = SMALL[name]().double().eval()
    x = torch.rand(2, *model.image_shape, dtype=torch.float64) * 2 - 1
    plain = bench.in_plain_pytorch(model)
    assert not any(type(layer).__module__.startswith("vidgen.nn.masked") for layer in plain.modules())
    torch.testing.assert_close(plain(x), model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["pixelcnn", "pixelcnn++"])
def test_every_contender_of_a_small_case_runs_and_is_right(name: str) -> None:
    case = bench._case(bench.Problem("small", name, SMALL[name], 2), full=True)
    # compiling takes longer than all the rest
    case = replace(case, contenders=[c for c in case.contenders if not c.compiled])
    row = measure(case, budget_s=0.01)
    assert {entry["name"]: entry["failure"] for entry in row["contenders"]} == {c.name: None for c in case.contenders}
    passes = row["contenders"][0]
    assert passes["parts"] == case.shape["pixels"]
    exact = {e["name"]: e["errors"]["distributions"]["max"] for e in row["contenders"]}
    assert max(error for name, error in exact.items() if "bf16" not in name) < 1e-5 < exact["vidgen, cpu, bf16 weights"]


def test_time_of_a_pass_is_multiplied_by_the_pixels() -> None:
    case = bench._case(bench.Problem("small", "small", SMALL["pixelcnn"], 1), full=True)
    case = replace(case, contenders=case.contenders[:1])

    class OneMillisecond:
        def time(self, run: object, calls: int) -> float:
            return 1e-3 * calls

    (passes,) = measure(case, budget_s=0.01, clock=OneMillisecond())["contenders"]
    assert passes["samples_ms"] == pytest.approx([30.0] * len(passes["samples_ms"]))


def test_case_names_are_unique_and_the_full_set_holds_both_networks() -> None:
    names = [case.name for case in bench.cases(device="cpu", full=True)]
    assert names == [f"drawing-{network}-{n}" for network in ("pixelcnn", "pixelcnnpp") for n in (1, 16)]
    assert names[:2] == [case.name for case in bench.cases(device="cpu", full=False)]


def test_a_gpu_measures_every_executor_beside_eager_and_full_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    case = bench._case(bench.Problem("small", "small", SMALL["pixelcnn"], 1, "cuda"), full=False)
    assert case.device == "cuda"
    assert [c.name for c in case.contenders[3:]] == ["vidgen, persistent", "vidgen, graph", "vidgen, eager"]
    monkeypatch.setattr(bench, "_case", lambda problem, full: (problem.name, problem.device))
    names = [f"{network}-{n}" for network in ("pixelcnn", "pixelcnnpp") for n in (1, 16)]
    assert bench.cases(device="cuda", full=False) == [(name, "cuda") for name in names]
