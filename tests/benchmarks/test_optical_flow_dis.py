"""If these failed, presets would be less accurate than the tool they stand beside, or peers measured on other work."""

from __future__ import annotations

import pytest

from vidgen.benchmarks import bench_optical_flow_dis as bench
from vidgen.benchmarks.flow_problems import HELD_OUT, endpoint_errors, held_out, motorcycle, photograph
from vidgen.benchmarks.harness import measure
from vidgen.benchmarks.peers import opencv_flow, skimage_flow

needs_pictures = pytest.mark.skipif(skimage_flow.missing() is not None, reason=str(skimage_flow.missing()))


def test_case_names_are_unique_and_every_size_is_there() -> None:
    full = [case.name for case in bench.cases(device="cpu", full=True)]
    assert len(full) == len(set(full))
    assert {"photograph-640x480-1", "photograph-112x112-16", "photograph-1920x1080-1", "motorcycle"} <= set(full)
    assert {"photograph-640x480-16", "photograph-1920x1080-16", "coffee-600x400", "rocket-640x427"} <= set(full)
    on_gpu = {case.name for case in bench.cases(device="cuda", full=True)}
    assert on_gpu == {f"photograph-{size}-{pairs}" for size in ("640x480", "1920x1080") for pairs in (1, 16)}


@needs_pictures
def test_every_contender_of_a_small_case_runs() -> None:
    row = measure(bench._case(bench._photograph(112, 112, pairs=2, limit=0.8)), budget_s=0.05)
    failures = {entry["name"]: entry["failure"] for entry in row["contenders"]}
    assert failures == dict.fromkeys(failures)
    assert len(failures) == (3 if opencv_flow.missing() else 6)


@needs_pictures
@pytest.mark.parametrize(
    ("preset", "photo", "stereo", "small"),
    [("ultrafast", 0.81, 3.77, 0.482), ("fast", 0.58, 3.23, 0.502), ("medium", 0.375, 2.63, 0.218)],
)
def test_the_presets_are_as_accurate_as_opencv_s(preset: str, photo: float, stereo: float, small: float) -> None:
    """Endpoint errors of OpenCV 5.0's presets of the same names."""
    for pair, theirs in ((photograph(480, 640), photo), (motorcycle(), stereo), (photograph(112, 112), small)):
        assert endpoint_errors(bench._ours(preset)(pair.prev, pair.next), pair)["EPE px"] <= theirs


@needs_pictures
@pytest.mark.parametrize("name", HELD_OUT)
@pytest.mark.parametrize("preset", ["ultrafast", "fast", "medium"])
def test_so_are_they_on_other_photographs_and_fields(preset: str, name: str) -> None:
    """Endpoint errors of OpenCV 5.0 by photograph."""
    theirs = {
        "coffee": {"ultrafast": 0.285, "fast": 0.216, "medium": 0.136},
        "chelsea": {"ultrafast": 0.876, "fast": 0.661, "medium": 0.309},
        "rocket": {"ultrafast": 0.998, "fast": 0.598, "medium": 0.179},
    }
    pair = held_out(name)
    assert endpoint_errors(bench._ours(preset)(pair.prev, pair.next), pair)["EPE px"] <= theirs[name][preset]
