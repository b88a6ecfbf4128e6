"""optical_flow_tvl1, preset by preset, against TV-L1 of OpenCV and of scikit-image.

Everybody gets the same grey uint8 images and the number of threads that is asked for; scikit-image has but one. A
method is a trade of time for accuracy, so the endpoint error against the true flow stands beside every time. Presets
"opencv" and "two_stream" have OpenCV's parameters and stopping rule (looked at every tenth iteration only) and are set
against it; the others against scikit-image, whose pyramid also goes down as far as it can.

OpenCV takes seconds for a VGA pair, so that the quick set shows the peers on a sixth of that.

On a GPU the images are there already. OpenCV's wheels have no TV-L1 for GPUs: preset "two_stream" has its parameters,
and what stands beside it is the eager reference on the same GPU.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vidgen.ops import optical_flow_tvl1
from vidgen.ops.optical_flow_tvl1 import PRESETS, level_sizes

from .contenders import baseline, own
from .flow_problems import (
    HELD_OUT,
    STEREO,
    FlowProblem,
    flow_case,
    flow_inputs,
    flow_run,
    held_out_photograph,
    photographs,
)
from .harness import Case, Contender
from .peers import opencv_flow, skimage_flow

OP = "optical_flow_tvl1"

OPENCV, SKIMAGE = "OpenCV DualTVL1", "scikit-image TV-L1"
EAGER = "eager two_stream"


@dataclass(frozen=True)
class Problem(FlowProblem):
    presets: tuple[str, ...]
    peers: tuple[str, ...] = ()


def _photograph(height: int, width: int, pairs: int = 1, peers: tuple[str, ...] = ()) -> Problem:
    return Problem(*photographs(height, width, pairs), tuple(PRESETS), peers)


def problems(full: bool) -> list[Problem]:
    quick = [_photograph(192, 256, peers=(OPENCV, SKIMAGE)), _photograph(480, 640)]
    if not full:
        return quick
    # OpenCV's pyramid is too short for this pair's motion, and it takes most of a minute to miss it
    stereo = Problem(*STEREO, ("accurate", "fast"), (SKIMAGE,))
    presets = ("accurate", "fast")
    held_out = [Problem(*held_out_photograph(name), presets, (SKIMAGE,), weighed=False) for name in HELD_OUT]
    batch = Problem(*photographs(1080, 1920, 16), ("fast",))
    return [
        quick[0], _photograph(480, 640, peers=(OPENCV, SKIMAGE)), stereo, *held_out, _photograph(480, 640, pairs=16),
        _photograph(1080, 1920), batch,
    ]  # fmt: skip


def gpu_problems(full: bool) -> list[Problem]:
    """One pair, whose latency counts, and as many as fill a GPU; two-stream networks take theirs in batches."""
    sizes = [(192, 256, 1), (480, 640, 1), (480, 640, 16), *([(1080, 1920, 1), (1080, 1920, 8)] if full else [])]
    return [_photograph(*size, peers=(EAGER,) if size == (192, 256, 1) else ()) for size in sizes]


def cases(*, device: str, full: bool) -> list[Case]:
    """The cases of a device. Building the list makes no inputs."""
    return [_case(problem, device) for problem in (problems(full) if device == "cpu" else gpu_problems(full))]


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


def _eager() -> Callable[[Tensor, Tensor], Tensor]:
    return partial(optical_flow_tvl1, **PRESETS["two_stream"], impl="reference")


def _case(problem: Problem, device: str = "cpu") -> Case:
    prepare = partial(flow_inputs, problem, device)
    contenders: list[Contender] = []
    left_out = {}
    for name, peer, make in ((OPENCV, opencv_flow, _opencv), (SKIMAGE, skimage_flow, skimage_flow.tvl1)):
        if name not in problem.peers:
            continue
        if why := peer.missing():
            left_out[name] = why
            continue
        more = {"peer": peer.DISTRIBUTION, "absolute_limit": math.inf}
        contenders.append(baseline(name, "float32", prepare, partial(flow_run, make), _work(problem, None), **more))
    if EAGER in problem.peers:
        build = partial(flow_run, _eager)
        contenders.append(baseline(EAGER, "float32", prepare, build, _work(problem, "two_stream"), absolute_limit=0.6))
    for preset in problem.presets:
        against = OPENCV if preset in ("opencv", "two_stream") else SKIMAGE
        if device == "cuda" and preset == "two_stream":
            against = EAGER
        there = against if any(contender.name == against for contender in contenders) else None
        # the limit is on the distance from the true flow, not from float64
        limits = {"absolute_limit": 0.6, "relative_limit": math.inf}
        build = partial(flow_run, partial(_ours, preset))
        contenders.append(own(f"vidgen {preset}", "float32", prepare, build, _work(problem, preset), there, **limits))

    return flow_case(OP, problem, contenders, left_out, device)
