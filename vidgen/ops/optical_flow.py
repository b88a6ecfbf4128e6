"""Optical flow: one function for every method, each of which is an op in a file of its own.

The flow from prev to next is (N, 2, H, W) in pixels: channel 0 points to the right, 1 downwards, and what is at (x, y)
in prev is at (x + flow[0], y + flow[1]) in next. A method's presets are named sets of its parameters; a parameter that
is given overrides the preset's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from vidgen.ops.flow_consistency import flow_consistency
from vidgen.ops.optical_flow_dis import PRESETS as DIS_PRESETS
from vidgen.ops.optical_flow_dis import optical_flow_dis
from vidgen.ops.optical_flow_images import check_images
from vidgen.ops.optical_flow_tvl1 import PRESETS as TVL1_PRESETS
from vidgen.ops.optical_flow_tvl1 import optical_flow_tvl1

Method = Literal["dis", "tvl1"]


class Kind(NamedTuple):
    """A method: its function, its presets, the one that is taken if none is named, and the names of its parameters."""

    function: Callable[..., Tensor]
    presets: Mapping[str, Mapping[str, Any]]
    default: str
    parameters: tuple[str, ...]


def _kind(function: Callable[..., Tensor], presets: Mapping[str, Mapping[str, Any]], default: str) -> Kind:
    own = [name for name in inspect.signature(function).parameters if name not in ("prev", "next", "init", "impl")]
    return Kind(function, presets, default, tuple(sorted(own)))


METHODS: Mapping[str, Kind] = {
    "dis": _kind(optical_flow_dis, DIS_PRESETS, "medium"),
    "tvl1": _kind(optical_flow_tvl1, TVL1_PRESETS, "accurate"),
}


def checked_kind(method: str, preset: str | None, params: Mapping[str, Any]) -> Kind:
    """The method of that name.

    Raises:
        ValueError: there is no such method, or it has no such preset (None is the default one).
        TypeError: it has no parameter of one of the names in ``params``.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {sorted(METHODS)}, got {method!r}")
    kind = METHODS[method]
    if preset is not None and preset not in kind.presets:
        raise ValueError(f"preset must be one of {sorted(kind.presets)} for method {method!r}, got {preset!r}")
    if unknown := [name for name in params if name not in kind.parameters]:
        raise TypeError(f"parameters of method {method!r} must be among {list(kind.parameters)}, got {unknown}")
    return kind


def optical_flow(
    prev: Tensor,
    next: Tensor,
    *,
    method: Method = "dis",
    preset: str | None = None,
    init: Tensor | None = None,
    impl: str | None = None,
    **params: Any,
) -> Tensor:
    """The optical flow from prev to next.

    Args:
        prev, next: (N, 1 or 3, H, W) or (N, H, W); uint8, or floating point in [0, 1]; one dtype; any strides.
        method: "dis", dense inverse search (`vidgen.ops.optical_flow_dis`): fast, and finds large motions; or "tvl1",
            total variation with an L1 data term (`vidgen.ops.optical_flow_tvl1`): more exact for small, smooth ones.
        preset: of dis: "medium" (None means it), "fast" and "ultrafast", equal in meaning to OpenCV's. Of tvl1:
            "accurate" (None means it); "fast"; "opencv", the parameters of OpenCV's DualTVL1 on the CPU; "two_stream",
            those of OpenCV's on CUDA, with which two-stream networks were trained.
        init: (N, 2, H, W), the flow to start from, in pixels; None starts from zero.
        impl: "cpu", "cuda" or "reference" forces a backend; None takes VIDGEN_IMPL, else the best that can.
        params: the method's parameters, by the names of its own function, which documents them.

    Returns:
        (N, 2, H, W), contiguous, pixels: float64 for float64 images, else float32.

    Raises:
        ValueError, TypeError: an argument is not as above, or not as the method's function wants it.
        RuntimeError: as the method's function says.
    """
    kind = checked_kind(method, preset, params)
    return kind.function(prev, next, init=init, impl=impl, **{**kind.presets[preset or kind.default], **params})


class BidirectionalFlow(NamedTuple):
    """forward, backward: (N, 2, H, W), pixels; from prev to next and from next to prev. consistent: (N, H, W), bool."""

    forward: Tensor
    backward: Tensor
    consistent: Tensor


def optical_flow_bidirectional(
    prev: Tensor,
    next: Tensor,
    *,
    method: Method = "dis",
    preset: str | None = None,
    impl: str | None = None,
    **params: Any,
) -> BidirectionalFlow:
    """The flow in both directions, in one call of twice the batch, and where the two agree.

    A pixel of prev that is hidden in next, or has left it, is not consistent: `vidgen.ops.flow_consistency`, which also
    gives the mask of next's pixels, or one of another tolerance.

    Args:
        prev, next, method, preset, impl, params: of `optical_flow`; no `init`, which is of one direction.

    Returns:
        `BidirectionalFlow`: (forward, backward, consistent), the last for the pixels of prev.

    Raises:
        TypeError: `init` is given.
        ValueError, TypeError, RuntimeError: as `optical_flow`.
    """
    if "init" in params:
        raise TypeError("init must not be given: it is a flow of one direction; call optical_flow for each of the two")
    check_images(prev, next, None)
    both = torch.cat([prev, next]), torch.cat([next, prev])
    forward, backward = optical_flow(*both, method=method, preset=preset, impl=impl, **params).chunk(2)
    return BidirectionalFlow(forward, backward, flow_consistency(forward, backward))
