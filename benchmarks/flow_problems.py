"""Pairs of images whose optical flow is known, for the benchmarks of every method.

`photograph`: the astronaut of scikit-image, resized, and the same photograph pulled along a smooth field of some
pixels, which grows with the picture. `motorcycle`: a real stereo pair with its measured disparity, from 7 to some 60
pixels. `held_out`: three other photographs pulled along three other fields, of up to 2, 7 and 28 pixels; no method's
constants may be chosen by what comes out on these. All come with scikit-image's wheel (`pip install 'vidgen[data]'`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from vidgen.extras import require

from .contenders import forward_run
from .harness import Case, Contender, Outputs, Run

#: pixels along the edges that are not judged: what is there may have come from outside
MARGIN = 24


@dataclass(frozen=True)
class Pair:
    """prev, next: uint8 (1, 1, H, W). flow: float64 (1, 2, H, W). judged: bool (H, W), where the flow is known."""

    prev: Tensor
    next: Tensor
    flow: Tensor
    judged: Tensor


def _grey(picture: Tensor) -> Tensor:
    """uint8 (H, W, 3) -> float64 (1, 1, H, W), 0 … 255."""
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    return (picture.double() @ weights)[None, None]


def _levels(grey: Tensor) -> Tensor:
    return grey.round().clamp(0, 255).to(torch.uint8)


@cache
def photograph(height: int, width: int) -> Pair:
    """u = 6 s sin(y / 60 s) + 0.02 (x - cx), v = 4 s cos(x / 80 s) + 0.02 (y - cy), s = width / 640."""
    data = require("skimage.data", extra="data")
    picture = F.interpolate(
        _grey(torch.from_numpy(data.astronaut())), size=(height, width), mode="bicubic", antialias=True
    )
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    s = width / 640
    u = 6 * s * torch.sin(y / (60 * s)) + 0.02 * (x - width / 2)
    v = 4 * s * torch.cos(x / (80 * s)) + 0.02 * (y - height / 2)
    return _pulled(picture, u, v)


def _pulled(picture: Tensor, u: Tensor, v: Tensor) -> Pair:
    """`next` is the picture (1, 1, H, W), `prev` what the flow u, v, both (H, W), brings onto it."""
    height, width = u.shape
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    x, y = x + u, y + v
    points = torch.stack([x * 2 / (width - 1) - 1, y * 2 / (height - 1) - 1], dim=-1)
    pulled = F.grid_sample(picture, points[None], mode="bicubic", padding_mode="border", align_corners=True)
    judged = torch.zeros(height, width, dtype=torch.bool)
    judged[MARGIN:-MARGIN, MARGIN:-MARGIN] = True
    judged &= (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return Pair(_levels(pulled), _levels(picture), torch.stack([u, v])[None], judged)


# Fields by coordinates from the centre of the picture, in pixels.


def _turn(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A turn and a zoom: 2 pixels in the corners."""
    return 0.003 * x - 0.005 * y, 0.005 * x + 0.003 * y


def _waves(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Up to 7 pixels."""
    return 5 * torch.sin(2 * math.pi * y / 150), 2 + 3 * torch.cos(2 * math.pi * x / 200)


def _bump(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """16 pixels, and 28 in the middle."""
    bump = torch.exp(-(x.square() + y.square()) / (2 * 100**2))
    return 14 + 10 * bump, -8 - 6 * bump


#: photograph of scikit-image -> (height, width), its field, and what the field is called
HELD_OUT: Mapping[str, tuple[tuple[int, int], Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], str]] = {
    "coffee": ((400, 600), _turn, "2 px"),
    "chelsea": ((300, 451), _waves, "7 px"),
    "rocket": ((427, 640), _bump, "28 px"),
}


@cache
def held_out(name: str) -> Pair:
    """One of `HELD_OUT`, in its own size."""
    data = require("skimage.data", extra="data")
    picture = _grey(torch.from_numpy(getattr(data, name)()))
    height, width = picture.shape[2:]
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    return _pulled(picture, *HELD_OUT[name][1](x - width / 2, y - height / 2))


@cache
def motorcycle() -> Pair:
    """500 × 741 pixels; the flow is (-disparity, 0)."""
    data = require("skimage.data", extra="data")
    left, right, disparity = (torch.from_numpy(array) for array in data.stereo_motorcycle())
    judged = disparity.isfinite()
    u = torch.where(judged, -disparity, 0).double()
    return Pair(_levels(_grey(left)), _levels(_grey(right)), torch.stack([u, torch.zeros_like(u)])[None], judged)


def endpoint_errors(flow: Tensor, pair: Pair) -> dict[str, float]:
    """ "EPE px", the mean length of the error vectors, and "> 3 px %", the share of those longer than 3 pixels."""
    lengths = (flow.double() - pair.flow).norm(dim=1)[..., pair.judged]
    return {"EPE px": lengths.mean().item(), "> 3 px %": (lengths > 3).double().mean().item() * 100}


@dataclass(frozen=True)
class FlowProblem:
    """`pairs` copies of a pair of `size` (height, width) at once."""

    name: str
    title: str
    pairs: int
    size: tuple[int, int]
    load: Callable[[], Pair]
    weighed: bool = field(default=True, kw_only=True)  # its memory is measured, too


def photographs(height: int, width: int, pairs: int) -> tuple[str, str, int, tuple[int, int], Callable[[], Pair]]:
    """The fields of the problem of warped photographs."""
    title = f"photograph {width}×{height}" + (f", {pairs} pairs" if pairs > 1 else "")
    return f"photograph-{width}x{height}-{pairs}", title, pairs, (height, width), partial(photograph, height, width)


def held_out_photograph(name: str) -> tuple[str, str, int, tuple[int, int], Callable[[], Pair]]:
    """Those of the problem of a photograph to which no constant was fitted."""
    (height, width), _, amplitude = HELD_OUT[name]
    return (
        f"{name}-{width}x{height}",
        f"{name} {width}×{height}, {amplitude}",
        1,
        (height, width),
        partial(held_out, name),
    )


#: those of the stereo pair
STEREO = ("motorcycle", "motorcycle 741×500", 1, (500, 741), motorcycle)


def flow_inputs(problem: FlowProblem, device: str = "cpu") -> dict[str, Tensor]:
    pair = problem.load()
    return {
        "prev": pair.prev.expand(problem.pairs, -1, -1, -1).to(device).contiguous(),
        "next": pair.next.expand(problem.pairs, -1, -1, -1).to(device).contiguous(),
    }


def flow_run(make: Callable[[], Callable[[Tensor, Tensor], Tensor]], inputs: Mapping[str, Tensor]) -> Run:
    """The run of what `make` makes, a function of the two images."""
    call = make()
    return forward_run(lambda: call(inputs["prev"], inputs["next"]))


def flow_case(
    op: str,
    problem: FlowProblem,
    contenders: Sequence[Contender],
    left_out: Mapping[str, str],
    device: str = "cpu",
) -> Case:
    """A case whose truth is the true flow, and whose answers are judged by endpoint errors."""

    def truth(_dtype: str) -> Outputs:
        return {"y": problem.load().flow.expand(problem.pairs, -1, -1, -1)}

    def score(outputs: Outputs) -> dict[str, float]:
        return endpoint_errors(outputs["y"].cpu(), problem.load())

    return Case(
        op=op,
        name=problem.name,
        title=problem.title,
        kind="forward",
        device=device,
        shape={"pairs": problem.pairs, "height": problem.size[0], "width": problem.size[1]},
        contenders=contenders,
        truth=truth,
        compare=lambda _, flow: flow[..., problem.load().judged],
        left_out=left_out,
        weighed=problem.weighed,
        score=score,
    )
