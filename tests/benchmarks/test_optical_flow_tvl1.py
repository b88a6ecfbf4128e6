"""If these failed, flows would be judged against a field that is not the true one, or peers measured on other work."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from vidgen.benchmarks import bench_optical_flow_tvl1 as bench
from vidgen.benchmarks import results
from vidgen.benchmarks.flow_problems import HELD_OUT, endpoint_errors, held_out, motorcycle, photograph
from vidgen.benchmarks.harness import measure
from vidgen.benchmarks.peers import opencv_flow, skimage_flow

needs_pictures = pytest.mark.skipif(skimage_flow.missing() is not None, reason=str(skimage_flow.missing()))


def warp(image: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    height, width = image.shape[2:]
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    points = torch.stack([(x + flow[0, 0]) * 2 / (width - 1) - 1, (y + flow[0, 1]) * 2 / (height - 1) - 1], dim=-1)
    return F.grid_sample(image.double(), points[None], align_corners=True)


@needs_pictures
@pytest.mark.parametrize(
    "load", [lambda: photograph(120, 160), motorcycle, *(partial(held_out, name) for name in HELD_OUT)]
)
def test_the_true_flow_takes_one_image_to_the_other(load) -> None:
    pair = load()
    there = (warp(pair.next, pair.flow) - pair.prev)[..., pair.judged].abs().mean()
    back = (warp(pair.next, -pair.flow) - pair.prev)[..., pair.judged].abs().mean()
    assert there < 0.4 * back
    assert endpoint_errors(pair.flow, pair) == {"EPE px": 0.0, "> 3 px %": 0.0}
    assert endpoint_errors(pair.flow + torch.tensor([3.0, 4.0])[:, None, None], pair)["EPE px"] == pytest.approx(5)


def test_case_names_are_unique_and_every_size_is_there() -> None:
    full = [case.name for case in bench.cases(device="cpu", full=True)]
    assert len(full) == len(set(full))
    assert {"photograph-640x480-1", "photograph-640x480-16", "photograph-1920x1080-1", "motorcycle"} <= set(full)
    for full in (False, True):
        on_gpu = {case.name: case for case in bench.cases(device="cuda", full=full)}
        assert {"photograph-640x480-1", "photograph-640x480-16"} <= set(on_gpu)
        assert {case.device for case in on_gpu.values()} == {"cuda"}
        assert "vidgen two_stream" in {contender.name for contender in on_gpu["photograph-640x480-16"].contenders}


@needs_pictures
def test_every_contender_of_a_small_case_runs_and_ours_beat_their_peers_errors() -> None:
    problem = bench._photograph(96, 128, peers=(bench.OPENCV, bench.SKIMAGE))
    row = measure(bench._case(problem), budget_s=0.05)
    entries = {entry["name"]: entry for entry in row["contenders"]}
    assert {name: entry["failure"] for name, entry in entries.items()} == dict.fromkeys(entries)
    error = {name: entry["scores"]["EPE px"] for name, entry in entries.items()}
    assert error["vidgen accurate"] < error[bench.SKIMAGE]
    if opencv_flow.missing() is None:
        assert error["vidgen opencv"] < error[bench.OPENCV]
    assert "EPE px" in results.plain(row, {})


@needs_pictures
def test_the_presets_are_as_accurate_as_the_published_figures_they_stand_beside() -> None:
    """Endpoint errors of OpenCV 5.0 (0.472) and scikit-image 0.26 (0.244; 7.28 on the stereo pair)."""
    pair, stereo = photograph(480, 640), motorcycle()
    assert endpoint_errors(bench._ours("opencv")(pair.prev, pair.next), pair)["EPE px"] <= 0.472
    assert endpoint_errors(bench._ours("accurate")(pair.prev, pair.next), pair)["EPE px"] <= 0.244
    assert endpoint_errors(bench._ours("accurate")(stereo.prev, stereo.next), stereo)["EPE px"] <= 7.28
