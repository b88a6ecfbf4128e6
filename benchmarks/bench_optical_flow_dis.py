"""optical_flow_dis, preset by preset, against OpenCV's DIS with its presets of the same names.

Everybody gets the same grey uint8 images and the number of threads that is asked for. A method is a trade of time for
accuracy, so the endpoint error against the true flow stands beside every time. OpenCV takes one pair at a time and is
called in a loop for the clip; the call that takes a batch shares its pairs out over the threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vidgen.ops import optical_flow_dis
from vidgen.ops.optical_flow_dis import PRESETS

from .contenders import baseline, forward_run, own
from .flow_problems import Pair, endpoint_errors, motorcycle, photograph
from .harness import Case, Contender, Outputs, Run
from .peers import opencv_flow

OP = "optical_flow_dis"

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Problem:
    name: str
    title: str
    pairs: int
    size: tuple[int, int]
    load: Callable[[], Pair]
    limit: float  # of the distance from the true flow relative to its size: small motions are seen less well


def _photograph(height: int, width: int, pairs: int = 1, limit: float = 0.6) -> Problem:
    title = f"photograph {width}×{height}" + (f", {pairs} pairs" if pairs > 1 else "")
    load = partial(photograph, height, width)
    return Problem(f"photograph-{width}x{height}-{pairs}", title, pairs, (height, width), load, limit)


def problems(full: bool) -> list[Problem]:
    stereo = Problem("motorcycle", "motorcycle 741×500", 1, (500, 741), motorcycle, 0.6)
    quick = [_photograph(480, 640), stereo, _photograph(112, 112, pairs=16, limit=0.8)]
    return [*quick, _photograph(1080, 1920), _photograph(480, 640, pairs=8)] if full else quick


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
    return partial(optical_flow_dis, **PRESETS[preset])


def _opencv(preset: str) -> Callable[[Tensor, Tensor], Tensor]:
    return opencv_flow.dis(preset, threads=torch.get_num_threads())


def _case(problem: Problem) -> Case:
    prepare = partial(_inputs, problem)
    # what must be read and written at least: grey images, and two numbers for each pixel
    work = {"bytes_moved": float(math.prod(problem.size) * problem.pairs * (2 + 8))}
    contenders: list[Contender] = []
    why = opencv_flow.missing()
    for preset in PRESETS:
        there = None
        if not why:
            there = f"OpenCV DIS {preset}"
            more = {"peer": opencv_flow.DISTRIBUTION, "absolute_limit": math.inf}
            build = partial(_build, partial(_opencv, preset))
            contenders.append(baseline(there, "float32", prepare, build, work, **more))
        # the limit is on the distance from the true flow, not from float64
        limits = {"absolute_limit": problem.limit, "relative_limit": math.inf}
        build = partial(_build, partial(_ours, preset))
        contenders.append(own(f"vidgen {preset}", "float32", prepare, build, work, there, **limits))

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
        left_out={"OpenCV DIS": why} if why else {},
        score=score,
    )
