r"""TV-L1 optical flow: the displacement field between two images with the least total variation and L1 residual.

For images I₀ and I₁ of grey levels 0 … 255 the flow w = (u, v) in pixels, I₁(x + u, y + v) = I₀(x, y), minimises

    ∫ |∇u| + |∇v| + λ |I₁(x + w) - I₀(x)|

From coarse to fine, and `warps` times on each level, the residual is linearised around the present flow w°,

    ρ(w) = I₁(x + w°) - I₀(x) + g · (w - w°),     g = ∇I₁(x + w°),

and `inner_iterations` times, with dual variables p and q in place of ∇u / |∇u| and ∇v / |∇v|,

    w ← w + clamp(-ρ(w) / |g|², -λθ, λθ) g + θ (div p, div q)
    p ← (p + τ/θ ∇u) / (1 + τ/θ |∇u|),     q ← (q + τ/θ ∇v) / (1 + τ/θ |∇v|)

∇ is the forward difference, zero across the image's edge, div the negative of its adjoint. I₁ and its gradient between
pixels are those of Catmull-Rom cubics; where a displaced point lies outside I₁ there is no data term.
`outer_iterations` repeats the inner ones, each time after a median filter of u and v. p and q are zero at the start of
a level. With an ε > 0 a warp ends when the root of the mean squared change of w in one iteration is at most ε, which is
looked at after every tenth inner iteration and after the last. A level has scale_factor times the sides of the one
before, rounded, none below 16; images and flows are resized with the triangle filter (antialiased bilinear).

Shapes: images (N, 1 or 3, H, W), flow (N, 2, H, W), channel 0 = u, to the right, 1 = v, downwards. Colours become luma,
0.299 R + 0.587 G + 0.114 B. Pixels are uint8, or floating point in [0, 1]; up to half of that beyond is borne.

Dtypes: the arithmetic is float32, and so is the flow; both are float64 for float64 images. Autocast changes nothing.
Rounding moves a displaced point by millionths of a pixel, and every threshold and warp carries that on: from a start
near the true flow, float32 is off by some 5e-6 of the flow's size (relative rms against float64), by 1e-4 in an unlucky
picture, as eager PyTorch is; also for float16 and bfloat16 images, whose pixels are widened exactly.

Differentiable with differentiable=True, in eager PyTorch's operations: the unrolled iteration, to images, init, τ, λ
and θ, first order. For small images, as it keeps every iteration. The op itself has no gradient.

Sources: Zach, Pock, Bischof, "A duality based approach for realtime TV-L1 optical flow" (2007), sections 2 and 3;
Sánchez, Meinhardt-Llopis, Facciolo, "TV-L1 optical flow estimation" (2013); for the unrolled form Fan et al.,
"End-to-end learning of motion representation for video understanding" (2018).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vidgen.ops.backends import TABLE, Backend, always, cuda_row, reference_row, supports_all
from vidgen.ops.optical_flow_images import check_count, check_images, check_values, fake_flow, grey, prepared
from vidgen.ops.registration import register_selection

_OP = "optical_flow_tvl1"

#: no side of a level is shorter
MIN_SIDE = 16
#: inner iterations between two looks at the change
CHECK_EVERY = 10
#: |g|² is at least this where it divides
GRADIENT_FLOOR = 1e-6

_OPENCV = {"lambda_": 0.15, "levels": 5, "scale_factor": 0.8, "warps": 5, "epsilon": 0.01}

#: name -> the parameters that it sets; the others have the defaults of `optical_flow_tvl1`
PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "accurate": {},
        "fast": {"scale_factor": 0.5, "warps": 3, "inner_iterations": 10, "median": 0},
        # OpenCV's DualTVL1 on the CPU
        "opencv": {**_OPENCV, "outer_iterations": 10, "inner_iterations": 30, "median": 5},
        # OpenCV's DualTVL1 on CUDA, with which two-stream networks were trained
        "two_stream": {**_OPENCV, "outer_iterations": 1, "inner_iterations": 300, "median": 0},
    }
)


# Reference: eager PyTorch.


def level_sizes(height: int, width: int, levels: int, scale_factor: float) -> list[tuple[int, int]]:
    """(height, width) of every level, finest first."""
    sizes, scale = [(height, width)], 1.0
    while len(sizes) < levels:
        scale *= scale_factor
        size = math.floor(height * scale + 0.5), math.floor(width * scale + 0.5)
        if min(size) < MIN_SIDE or size == sizes[-1]:
            break
        sizes.append(size)
    return sizes


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False, antialias=True)


def _resize_flow(flow: Tensor, size: Sequence[int]) -> Tensor:
    height, width = flow.shape[2:]
    u, v = _resize(flow, size).split(1, dim=1)
    return torch.cat([u * (size[1] / width), v * (size[0] / height)], dim=1)


def _cubic(t: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Catmull-Rom weights of the pixels at -1, 0, 1 and 2 for points at t in [0, 1), and their derivatives."""
    weights = [
        ((-0.5 * t + 1) * t - 0.5) * t,
        (1.5 * t - 2.5) * t * t + 1,
        ((-1.5 * t + 2) * t + 0.5) * t,
        (0.5 * t - 0.5) * t * t,
    ]
    return weights, [(-1.5 * t + 2) * t - 0.5, (4.5 * t - 5) * t, (-4.5 * t + 4) * t + 0.5, (1.5 * t - 1) * t]


def _sample(image: Tensor, flow: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value (N, 1, H, W) and gradient (N, 2, H, W) at the displaced points, and which of them lie inside."""
    n, _, height, width = image.shape
    x = torch.arange(width, dtype=flow.dtype, device=flow.device) + flow[:, 0]  # [N, H, W]
    y = torch.arange(height, dtype=flow.dtype, device=flow.device)[:, None] + flow[:, 1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    x, y = torch.where(inside, x, 0), torch.where(inside, y, 0)
    left, top = x.detach().floor(), y.detach().floor()
    (weights_x, slopes_x), (weights_y, slopes_y) = _cubic(x - left), _cubic(y - top)
    columns = [(left.long() + i).clamp(0, width - 1) for i in (-1, 0, 1, 2)]
    value, gx, gy = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(x)
    for j in range(4):
        start = (top.long() + j - 1).clamp(0, height - 1) * width
        row = [image.flatten(1).gather(1, (start + c).flatten(1)).view(n, height, width) for c in columns]
        along = sum(weight * pixel for weight, pixel in zip(weights_x, row, strict=True))
        value = value + weights_y[j] * along
        gx = gx + weights_y[j] * sum(slope * pixel for slope, pixel in zip(slopes_x, row, strict=True))
        gy = gy + slopes_y[j] * along
    return value[:, None], torch.stack([gx, gy], dim=1), inside[:, None]


def _median_filter(flow: Tensor, size: int) -> Tensor:
    reach = size // 2
    padded = F.pad(flow, (reach,) * 4, mode="replicate")
    return padded.unfold(2, size, 1).unfold(3, size, 1).flatten(4).median(dim=-1).values


def _gradient(flow: Tensor) -> Tensor:
    """(N, 2, H, W) -> (N, 2 components, 2 axes, H, W)."""
    along_x = F.pad(flow[..., 1:] - flow[..., :-1], (0, 1))
    along_y = F.pad(flow[..., 1:, :] - flow[..., :-1, :], (0, 0, 0, 1))
    return torch.stack([along_x, along_y], dim=2)


def _divergence(dual: Tensor) -> Tensor:
    """(N, 2 components, 2 axes, H, W) -> (N, 2, H, W)."""
    along_x, along_y = dual.unbind(dim=2)
    return along_x - F.pad(along_x, (1, 0))[..., :-1] + along_y - F.pad(along_y, (0, 0, 1, 0))[..., :-1, :]


def _norm(gradient: Tensor) -> Tensor:
    """|∇u| and |∇v|, whose derivative is taken to be zero where they are."""
    squares = gradient.square().sum(dim=2, keepdim=True)
    return torch.where(squares > 0, torch.where(squares > 0, squares, 1).sqrt(), 0)


def _solve_level(
    prev: Tensor, next: Tensor, flow: Tensor, tau: Any, lambda_: Any, theta: Any, warps: int, outer_iterations: int,
    inner_iterations: int, median: int, epsilon: float,
) -> Tensor:  # fmt: skip
    limit, ratio = lambda_ * theta, tau / theta
    dual = _gradient(torch.zeros_like(flow))
    for _ in range(warps):
        value, g, inside = _sample(next, flow)
        g = torch.where(inside, g, 0)
        rho = torch.where(inside, value - prev, 0) - (g * flow).sum(dim=1, keepdim=True)
        inverse = 1 / g.square().sum(dim=1, keepdim=True).clamp(min=GRADIENT_FLOOR)
        # a pair that has come to rest keeps what it has
        moving = flow.new_ones(flow.shape[0], 1, 1, 1, dtype=torch.bool)
        for _ in range(outer_iterations):
            if median:
                flow = torch.where(moving, _median_filter(flow, median), flow)
            for i in range(1, inner_iterations + 1):
                residual = rho + (g * flow).sum(dim=1, keepdim=True)
                step = torch.clamp(-residual * inverse, -limit, limit)
                moved = flow + step * g + theta * _divergence(dual)
                gradient = _gradient(moved)
                pulled = (dual + ratio * gradient) / (1 + ratio * _norm(gradient))
                change, flow = moved - flow, torch.where(moving, moved, flow)
                dual = torch.where(moving[..., None], pulled, dual)
                if epsilon > 0 and (i % CHECK_EVERY == 0 or i == inner_iterations):
                    mean = change.detach().square().sum(dim=1).mean(dim=(1, 2)).view(-1, 1, 1, 1)
                    moving = moving & (mean > epsilon**2)
    return flow


def reference(
    prev: Tensor, next: Tensor, init: Tensor | None, tau: Any, lambda_: Any, theta: Any, levels: int,
    scale_factor: float, warps: int, outer_iterations: int, inner_iterations: int, median: int, epsilon: float,
) -> Tensor:  # fmt: skip
    """optical_flow_tvl1 in eager PyTorch, any device; differentiable in prev, next, init, tau, lambda_ and theta."""
    if prev.device.type == "cpu" and not torch.compiler.is_compiling():
        check_values(prev, next, init)
    sizes = level_sizes(prev.shape[2], prev.shape[3], levels, scale_factor)
    pyramid = [(grey(prev), grey(next))]
    for size in sizes[1:]:
        finer = pyramid[-1]
        pyramid.append((_resize(finer[0], size), _resize(finer[1], size)))
    coarsest = pyramid[-1][0]
    flow = coarsest.new_zeros(coarsest.shape[0], 2, *sizes[-1]) if init is None else _resize_flow(init, sizes[-1])
    for size, (level_prev, level_next) in zip(reversed(sizes), reversed(pyramid), strict=True):
        flow = _resize_flow(flow, size)
        rest = (warps, outer_iterations, inner_iterations, median, epsilon)
        flow = _solve_level(level_prev, level_next, flow, tau, lambda_, theta, *rest)
    return flow


# Backends. The CPU kernel is registered in C++ (csrc/bind/); its row here serves explain and info.


def _cpu_supports(prev: Tensor, *_args: Any) -> str | None:
    return torch.ops.vidgen.optical_flow_tvl1_cpu_supports(prev.dtype) or None


def _run_cuda(*args: Any) -> Tensor:
    return torch.ops.vidgen.optical_flow_tvl1_cuda(*args)


TABLE[_OP] = (
    Backend("cpu", ("cpu",), always, _cpu_supports, run=None),
    # whatever the signature allows comes as uint8, float32 or float64, and those it reads
    cuda_row(supports_all, _run_cuda),
    reference_row(reference),
)


# Registration: shapes, selection.


torch.library.register_fake("vidgen::optical_flow_tvl1", fake_flow)

_op = torch.ops.vidgen.optical_flow_tvl1.default

register_selection(_OP, reference, lambda *args: args)


# The public function.


def _check_number(name: str, value: Any, above: float, most: float, differentiable: bool) -> None:
    if isinstance(value, Tensor):
        if not differentiable:
            raise TypeError(f"{name} must be a number unless differentiable=True, got a tensor")
        if value.numel() != 1 or not value.is_floating_point():
            raise ValueError(f"{name} must be one floating-point number, got {value.dtype} of {tuple(value.shape)}")
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    elif not above < value <= most:
        raise ValueError(f"{name} must be above {above:g} and at most {most:g}, got {value}")


def optical_flow_tvl1(
    prev: Tensor,
    next: Tensor,
    *,
    init: Tensor | None = None,
    tau: float | Tensor = 0.25,
    lambda_: float | Tensor = 0.2,
    theta: float | Tensor = 0.3,
    levels: int = 32,
    scale_factor: float = 0.7,
    warps: int = 5,
    outer_iterations: int = 1,
    inner_iterations: int = 20,
    median: int = 5,
    epsilon: float = 0.0,
    differentiable: bool = False,
    impl: str | None = None,
) -> Tensor:
    """TV-L1 optical flow from prev to next (formula: the head of this module). The defaults are preset "accurate".

    Args:
        prev, next: (N, 1 or 3, H, W) or (N, H, W); uint8, or floating point in [0, 1]; one dtype; any strides.
        init: (N, 2, H, W), the flow to start from, in pixels; None starts from zero.
        tau: time step of the dual variables, no unit, in (0, 10]. Above 0.25 the iteration may not converge.
        lambda_: weight of the data term, in 1 / grey level of 255, in (0, 1000]. More follows the images, less is
            smoother.
        theta: how tightly data and smoothness are coupled, in pixels², in (0, 1000]. More converges faster and blurs.
        levels: of the pyramid, at most, up to 64. 1 serves motions of a pixel or two; 32 is as many as the size bears.
        scale_factor: sides of a level over those of the one before, in (0, 0.95].
        warps: linearisations of the data term on each level.
        outer_iterations: rounds of a median filter and of inner iterations for each warp.
        inner_iterations: iterations of each round.
        median: side of the median filter's window in pixels: 3, 5, or 0 for none.
        epsilon: a warp ends when the flow changes by at most so many pixels (root mean square) in one iteration; 0 does
            all iterations. Each pair of a batch ends by itself.
        differentiable: computes by eager PyTorch operations, through which gradients reach prev, next, init and tau,
            lambda_ and theta, which may then be tensors of one number. Needs epsilon=0.
        impl: "cpu", "cuda" or "reference" forces a backend; None takes VIDGEN_IMPL, else the best that can.

    Returns:
        (N, 2, H, W), contiguous, pixels: float64 for float64 images, else float32.

    Raises:
        ValueError, TypeError: an argument is not as above; the message names it, what was expected and what came.
        RuntimeError: a pixel or a number of `init` is not finite, or far from what is asked for (checked on the CPU
            alone); `impl` cannot serve the call; or an image carries a forward-mode tangent.
    """
    check_images(prev, next, init)
    _check_number("tau", tau, 0, 10, differentiable)
    _check_number("lambda_", lambda_, 0, 1000, differentiable)
    _check_number("theta", theta, 0, 1000, differentiable)
    _check_number("scale_factor", scale_factor, 0, 0.95, False)
    check_count("levels", levels, 64)
    check_count("warps", warps, 100_000)
    check_count("outer_iterations", outer_iterations, 100_000)
    check_count("inner_iterations", inner_iterations, 100_000)
    if isinstance(median, bool) or median not in (0, 3, 5):
        raise ValueError(f"median must be 0, 3 or 5, got {median!r}")
    if isinstance(epsilon, bool) or not isinstance(epsilon, (int, float)) or not 0 <= epsilon < math.inf:
        raise ValueError(f"epsilon must be a finite number of at least 0, got {epsilon!r}")
    rest = (levels, float(scale_factor), warps, outer_iterations, inner_iterations, int(median), float(epsilon))
    if differentiable:
        if epsilon > 0:
            raise ValueError(f"epsilon must be 0 where differentiable=True: all iterations are done, got {epsilon}")
        if impl not in (None, "reference"):
            raise ValueError(f"impl must be None or 'reference' where differentiable=True, got {impl!r}")
        prev, next, init = prepared(prev, next, init, None)
        with torch.autocast(prev.device.type, enabled=False):
            return reference(prev, next, init, tau, lambda_, theta, *rest)
    for name, tensor in (("prev", prev), ("next", next), ("init", init)):
        if tensor is not None and tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} must not require a gradient unless differentiable=True; pass {name}.detach()")
    prev, next, init = prepared(prev, next, init, impl)
    return _op(prev, next, init, float(tau), float(lambda_), float(theta), *rest, impl)
