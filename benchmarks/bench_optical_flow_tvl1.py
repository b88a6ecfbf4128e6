"""optical_flow_tvl1, preset by preset, against TV-L1 of OpenCV and of scikit-image.

Everybody gets the same grey uint8 images and the number of threads that is asked for; scikit-image has but one. A
method is a trade of time for accuracy, so the endpoint error against the true flow stands beside every time. Presets
"opencv" and "two_stream" have OpenCV's parameters and stopping rule (looked at every tenth iteration only) and are set
against it; the others against scikit-image, whose pyramid also goes down as far as it can.

OpenCV takes seconds for a VGA pair, so that the quick set shows the peers on a sixth of that.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vidgen.ops import optical_flow_tvl1
from vidgen.ops.optical_flow_tvl1 import PRESETS, level_sizes

from .contenders import baseline, forward_run, own
from .flow_problems import Pair, endpoint_errors, motorcycle, photograph
from .harness import Case, Contender, Outputs, Run
from .peers import opencv_flow, skimage_flow

OP = "optical_flow_tvl1"

Inputs = Mapping[str, Tensor]

OPENCV, SKIMAGE = "OpenCV DualTVL1", "scikit-image TV-L1"


@dataclass(frozen=True)
class Problem:
    name: str
    title: str
    pairs: int
    size: tuple[int, int]
    load: Callable[[], Pair]
    presets: tuple[str, ...]
    peers: tuple[str, ...] = ()


def _photograph(height: int, width: int, pairs: int = 1, peers: tuple[str, ...] = ()) -> Problem:
    load = partial(photograph, height, width)
    title = f"photograph {width}×{height}" + (f", {pairs} pairs" if pairs > 1 else "")
    return Problem(f"photograph-{width}x{height}-{pairs}", title, pairs, (height, width), load, tuple(PRESETS), peers)


def problems(full: bool) -> list[Problem]:
    quick = [_photograph(192, 256, peers=(OPENCV, SKIMAGE)), _photograph(480, 640)]
    if not full:
        return quick
    # OpenCV's pyramid is too short for this pair's motion, and it takes most of a minute to miss it
    stereo = Problem("motorcycle", "motorcycle 741×500", 1, (500, 741), motorcycle, ("accurate", "fast"), (SKIMAGE,))
    return [
        quick[0], _photograph(480, 640, peers=(OPENCV, SKIMAGE)), stereo, _photograph(480, 640, pairs=8),
        _photograph(1080, 1920), _photograph(1080, 1920, pairs=2),
    ]  # fmt: skip


def cases(*, device: str, full: bool) -> list[Case]:
    """The cases of a device. Building the list makes no inputs."""
    return [_case(problem) for problem in problems(full)] if device == "cpu" else []


def _inputs(problem: Problem) -> dict[str, Tensor]:
    pair = problem.load()
    return {
        "prev": pair.prev.expand(problem.pairs, -1, -1, -1).contiguous(),
        "next": pair.next.expand(problem.pairs, -1, -1, -1).contiguous(),
    }


def _build(make: Callable[[], Callable[[Tensor, Tensor], Tensor]], inputs: Inputs) -> Run:
    call = make()
    return forward_run(lambda: call(inputs["prev"], inputs["next"]))


def _ours(preset: str) -> Callable[[Tensor, Tensor], Tensor]:
    return partial(optical_flow_tvl1, **PRESETS[preset])


def _opencv() -> Callable[[Tensor, Tensor], Tensor]:
    return opencv_flow.tvl1(threads=torch.get_num_threads())


def _work(problem: Problem, preset: str | None) -> dict[str, float]:
    """Compulsory bytes, and the operations of the iterations: 21 for the flow, 30 for the dual variables of a pixel."""
    pixels = math.prod(problem.size) * problem.pairs
    work = {"bytes_moved": float(pixels * (2 + 8))}
    if preset is None:
        return work
    defaults = {name: one.default for name, one in inspect.signature(optical_flow_tvl1).parameters.items()}
    params: dict[str, Any] = defaults | dict(PRESETS[preset])
    if params["epsilon"] == 0:  # else it depends on the images
        sizes = level_sizes(*problem.size, params["levels"], params["scale_factor"])
        iterations = params["warps"] * params["outer_iterations"] * params["inner_iterations"]
        work["flops"] = 51.0 * iterations * sum(map(math.prod, sizes)) * problem.pairs
    return work


def _case(problem: Problem) -> Case:
    prepare = partial(_inputs, problem)
    contenders: list[Contender] = []
    left_out = {}
    for name, peer, make in ((OPENCV, opencv_flow, _opencv), (SKIMAGE, skimage_flow, skimage_flow.tvl1)):
        if name not in problem.peers:
            continue
        if why := peer.missing():
            left_out[name] = why
            continue
        more = {"peer": peer.DISTRIBUTION, "absolute_limit": math.inf}
        contenders.append(baseline(name, "float32", prepare, partial(_build, make), _work(problem, None), **more))
    for preset in problem.presets:
        against = OPENCV if preset in ("opencv", "two_stream") else SKIMAGE
        there = against if any(contender.name == against for contender in contenders) else None
        # the limit is on the distance from the true flow, not from float64
        limits = {"absolute_limit": 0.6, "relative_limit": math.inf}
        build = partial(_build, partial(_ours, preset))
        contenders.append(own(f"vidgen {preset}", "float32", prepare, build, _work(problem, preset), there, **limits))

    def truth(_dtype: str) -> Outputs:
        return {"y": problem.load().flow.expand(problem.pairs, -1, -1, -1)}

    def score(outputs: Outputs) -> dict[str, float]:
        return endpoint_errors(outputs["y"], problem.load())

    return Case(
        op=OP,
        name=problem.name,
        title=problem.title,
        kind="forward",
        device="cpu",
        shape={"pairs": problem.pairs, "height": problem.size[0], "width": problem.size[1]},
        contenders=contenders,
        truth=truth,
        compare=lambda _, flow: flow[..., problem.load().judged],
        left_out=left_out,
        score=score,
    )
