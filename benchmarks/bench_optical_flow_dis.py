"""optical_flow_dis, preset by preset, against OpenCV's DIS with its presets of the same names.

Everybody gets the same grey uint8 images and the number of threads that is asked for. A method is a trade of time for
accuracy, so the endpoint error against the true flow stands beside every time. OpenCV takes one pair at a time and is
called in a loop for the clip; the call that takes a batch shares its pairs out over the threads.

On a GPU the images are there already. OpenCV has no DIS for GPUs: what stands beside is the one on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vidgen.ops import optical_flow_dis
from vidgen.ops.optical_flow_dis import PRESETS

from .contenders import baseline, own
from .flow_problems import STEREO, FlowProblem, flow_case, flow_inputs, flow_run, held_out_photograph, photographs
from .harness import Case, Contender
from .peers import opencv_flow

OP = "optical_flow_dis"


@dataclass(frozen=True)
class Problem(FlowProblem):
    limit: float  # of the distance from the true flow relative to its size: small motions are seen less well


def _photograph(height: int, width: int, pairs: int = 1, limit: float = 0.6) -> Problem:
    return Problem(*photographs(height, width, pairs), limit)


def _held_out(name: str) -> Problem:
    # worse than no flow at all is no answer
    return Problem(*held_out_photograph(name), 1.0, weighed=False)


def problems(full: bool) -> list[Problem]:
    # what a pair needs in memory the photographs show
    stereo = Problem(*STEREO, 0.6, weighed=False)
    quick = [_photograph(480, 640), stereo, _photograph(112, 112, pairs=16, limit=0.8), _held_out("chelsea")]
    if not full:
        return quick
    large = [_photograph(480, 640, pairs=16), _photograph(1080, 1920), _photograph(1080, 1920, pairs=16)]
    return [*quick, _held_out("coffee"), _held_out("rocket"), *large]


def gpu_problems() -> list[Problem]:
    """One pair, whose latency counts, and as many as fill a GPU."""
    return [_photograph(*size, pairs=pairs) for size in ((480, 640), (1080, 1920)) for pairs in (1, 16)]


def cases(*, device: str, full: bool) -> list[Case]:
    """The cases of a device. Building the list makes no inputs."""
    return [_case(problem, device) for problem in (problems(full) if device == "cpu" else gpu_problems())]


def _ours(preset: str) -> Callable[[Tensor, Tensor], Tensor]:
    return partial(optical_flow_dis, **PRESETS[preset])


def _opencv(preset: str) -> Callable[[Tensor, Tensor], Tensor]:
    return opencv_flow.dis(preset, threads=torch.get_num_threads())


def _case(problem: Problem, device: str = "cpu") -> Case:
    prepare = partial(flow_inputs, problem, device)
    # what must be read and written at least: grey images, and two numbers for each pixel
    work = {"bytes_moved": float(math.prod(problem.size) * problem.pairs * (2 + 8))}
    contenders: list[Contender] = []
    why = opencv_flow.missing()
    for preset in PRESETS:
        there = None
        if not why:
            there = f"OpenCV DIS {preset}" + ("" if device == "cpu" else ", on the CPU")
            more = {"peer": opencv_flow.DISTRIBUTION, "absolute_limit": math.inf}
            build = partial(flow_run, partial(_opencv, preset))
            contenders.append(baseline(there, "float32", partial(flow_inputs, problem), build, work, **more))
        # the limit is on the distance from the true flow, not from float64
        limits = {"absolute_limit": problem.limit, "relative_limit": math.inf}
        build = partial(flow_run, partial(_ours, preset))
        contenders.append(own(f"vidgen {preset}", "float32", prepare, build, work, there, **limits))

    return flow_case(OP, problem, contenders, {"OpenCV DIS": why} if why else {}, device)
