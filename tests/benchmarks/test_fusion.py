"""If these failed, the benchmark of vidgen.fuse would compare networks that differ, or that nothing was fused in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

import vidgen
from vidgen.benchmarks import bench_fusion as bench
from vidgen.benchmarks.fusion_networks import NETWORKS, prepared
from vidgen.benchmarks.harness import measure
from vidgen.benchmarks.suite import using_threads


class NoClock:
    def time(self, run: Callable[[], object], calls: int) -> float:
        run()
        return 1e-3 * calls


def test_a_case_measures_everybody() -> None:
    case = bench._case("i3d", (1, 3, 16, 32, 32))
    assert [one.name for one in case.contenders if one.compiled] == ["torch.compile"]  # which takes a minute
    with using_threads(1):
        eager = replace(case, contenders=[one for one in case.contenders if not one.compiled])
        row = measure(eager, budget_s=0.0, clock=NoClock())
    assert [entry["failure"] for entry in row["contenders"]] == [None] * 4


@pytest.mark.parametrize(
    ("name", "chains"),
    [("c3d", 8), ("resnet18-3d", 13), ("r2plus1d18", 27), ("i3d", 56), ("densenet121-3d", 119), ("vgg16", 13)],
)
def test_every_convolution_of_stride_1_is_fused(name: str, chains: int) -> None:
    report = vidgen.fusion_report(vidgen.fuse(prepared(name)))
    assert len(report.fused) == chains, str(report)


def test_the_full_set_holds_six_networks_in_both_layouts() -> None:
    cases = bench.cases(device="cpu", full=True)
    assert len(cases) == len(NETWORKS) == 6
    layouts = {one.name.split()[-1] for case in cases for one in case.contenders if not one.compiled}
    assert layouts == {"contiguous", "channels_last"}
    assert all(one.against for case in cases for one in case.contenders if one.ours)
