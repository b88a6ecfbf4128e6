"""Forward-backward consistency: where two flows, there and back again, say the same.

A point x of the first image lies at x + f(x) in the second, whose own flow back is b(x + f(x)). Both are right only if
they cancel out. The point is consistent where

    |f(x) + b(x + f(x))|² < alpha (|f(x)|² + |b(x + f(x))|²) + beta

with b bilinear between pixels: a tolerance of √beta pixels that grows with the motion. What is hidden in the second
image, or has left it by more than half a pixel, is not consistent; nor is a flow that is not finite.

Source: Sundaram, Brox, Keutzer, "Dense point trajectories by GPU-accelerated large displacement optical flow" (2010),
section 3, with its alpha and beta.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vidgen.ops.warp import warp


def _check(forward: Tensor, backward: Tensor, alpha: float, beta: float) -> None:
    flows: tuple[tuple[str, Any], ...] = (("forward", forward), ("backward", backward))
    for name, flow in flows:
        if not isinstance(flow, Tensor) or not flow.is_floating_point():
            got = flow.dtype if isinstance(flow, Tensor) else type(flow).__name__
            raise TypeError(f"{name} must be a floating-point tensor, got {got}")
    if forward.dim() != 4 or forward.shape[1] != 2:
        raise ValueError(f"forward must have shape (N, 2, H, W), got {tuple(forward.shape)}")
    if backward.shape != forward.shape:
        raise ValueError(f"backward must have the shape of forward {tuple(forward.shape)}, got {tuple(backward.shape)}")
    if backward.device != forward.device:
        raise ValueError(f"backward must be on the device of forward ({forward.device}), got {backward.device}")
    for name, value in (("alpha", alpha), ("beta", beta)):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} must be a number, got {type(value).__name__}")
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be finite and at least 0, got {value}")


def flow_consistency(
    forward: Tensor, backward: Tensor, *, alpha: float = 0.01, beta: float = 0.5, impl: str | None = None
) -> Tensor:
    """Where `forward` and `backward` cancel out (formula: the head of this module).

    Args:
        forward: (N, 2, H, W), floating point, pixels: the flow from the first images to the second.
        backward: the same, from the second to the first; of any floating dtype.
        alpha: how much the tolerance grows with the squared lengths of the flows.
        beta: tolerance where nothing moves, in squared pixels.
        impl: of `vidgen.ops.warp`.

    Returns:
        (N, H, W), bool: True for the pixels of the first images whose flow is consistent. No gradient.

    Raises:
        ValueError, TypeError: an argument is not as above; the message names it, what was expected and what came.
        RuntimeError: `impl` cannot serve the call.
    """
    _check(forward, backward, alpha, beta)
    height, width = forward.shape[2:]
    wide = torch.float64 if torch.float64 in (forward.dtype, backward.dtype) else torch.float32
    there, back = forward.detach().to(wide), backward.detach().to(wide)
    back = warp(back, there, padding="border", impl=impl)
    distance = (there + back).square().sum(dim=1)
    tolerance = alpha * (there.square() + back.square()).sum(dim=1) + beta
    x = torch.arange(width, dtype=wide, device=there.device) + there[:, 0]
    y = torch.arange(height, dtype=wide, device=there.device)[:, None] + there[:, 1]
    inside = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
    return inside & (distance < tolerance)
