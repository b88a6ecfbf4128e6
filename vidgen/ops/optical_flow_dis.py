r"""Optical flow by dense inverse search (DIS): patches find displacements, pixels take the means of their patches'.

Images I₀ and I₁ of grey levels 0 … 255 are halved, by means of four pixels, min(⌊log₂(longer / 4P) + ½⌋, ⌊log₂(shorter
/ P)⌋) times, for patches of P × P pixels. From the coarsest level to level `finest_scale`, or the coarsest if there are
fewer:

1. Search. Patches lie every `patch_stride` pixels. A displacement w has the residual r(x) = I₁(x + w) - I₀(x) and the
   distance Σ r² - (Σ r)² / P², that of patches less their mean levels. With g = ∇I₀, H = Σ g gᵀ - (Σ g)(Σ g)ᵀ / P² and
   b = Σ r g - (Σ r)(Σ g) / P², steps w ← w - H⁻¹ b go on for as long as the distance falls and a step is longer than
   0.01 pixels, at most `descent_iterations` times; a patch that has moved farther than its size goes back. It begins at
   the flow of the level before, or where its neighbour to the left or above has got to if that is better; then, in a
   second pass from the end, where its neighbour to the right or below has. Neighbours above and below are looked at
   within stripes of 8 rows of patches; the last row of a stripe sees the one below as the first pass left it.
2. Flow of pixels: the mean of the w of the patches that cover a pixel, weighted by 1 / max(1, |r|).
3. Refinement, if refinement_iterations > 0: of δ Ψ(grey level constancy) + γ Ψ(gradient constancy) + α Ψ(smoothness),
   Ψ(s²) = √(s² + 10⁻⁶), the constancies linearised at the mean of I₀ and the displaced I₁ and divided by the lengths of
   their gradients (at least 0.1), smoothness that of central differences. An iteration computes all weights and makes 5
   sweeps of red-black over-relaxation (ω = 1.6). The second half of the iterations has a linearisation of its own.

Where nothing was refined, the finest flow is smoothed by ¼ (1 2 1) along both axes. It is then magnified, bilinear.

Shapes: images (N, 1 or 3, H, W), flow (N, 2, H, W), channel 0 = u, to the right, 1 = v, downwards. Colours become luma,
0.299 R + 0.587 G + 0.114 B. Pixels are uint8, or floating point in [0, 1]; up to half of that beyond is borne. Images
with a side shorter than a patch are continued by their last pixels.

Dtypes: the arithmetic is float32, and so is the flow; both are float64 for float64 images. Autocast changes nothing.
Where a patch begins and when it stops are decisions, and rounding may turn them: what follows is another of the flows
within a hundredth of a pixel, or, where patches fit equally well in two places, the other place. On images with
structure everywhere the relative rms distance from float64 is at most 5e-4 (float16, bfloat16 alike: pixels are widened
exactly), and below 1e-9 between backends in float64.

The op has no gradient.

Sources: Kroeger, Timofte, Dai, Van Gool, "Fast optical flow using dense inverse search" (2016), sections 2 and 3; the
refinement after Brox, Bruhn, Papenberg, Weickert (2004), its normalisation after Zimmer, Bruhn, Weickert (2011).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vidgen.ops.backends import TABLE, Backend, always, reference_row, requested
from vidgen.ops.optical_flow_images import check_count, check_images, check_values, grey
from vidgen.ops.registration import register_selection

_OP = "optical_flow_dis"

PATCH_SIZES = (4, 8, 16)
#: rows of patches that pass displacements on among themselves
STRIPE_ROWS = 8
#: a shorter step, in pixels, is not taken; by so many squared grey levels must a neighbour's displacement be better
LEAST_STEP, LEAST_GAIN = 0.01, 0.01
#: there is no step where the determinant of H is not more than this times 1 + (trace of H)²
LEAST_DETERMINANT = 1e-5
SWEEPS, OMEGA = 5, 1.6
EPSILON, LEAST_GRADIENT = 1e-3, 0.1

#: name -> its parameters; the others have the defaults of `optical_flow_dis`
PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "ultrafast": {"finest_scale": 2, "patch_stride": 4, "descent_iterations": 12, "refinement_iterations": 0},
        "fast": {"finest_scale": 2, "patch_stride": 4, "descent_iterations": 16, "refinement_iterations": 5},
        "medium": {"finest_scale": 1, "patch_stride": 3, "descent_iterations": 25, "refinement_iterations": 5},
    }
)


# Reference: eager PyTorch. Planes are (N, H, W).


def coarsest_scale(height: int, width: int, patch_size: int) -> int:
    """The last level of the pyramid; level 0 is the images themselves."""
    longer, shorter = max(height, width), min(height, width)
    return max(
        0, min(math.floor(math.log2(longer / (4 * patch_size)) + 0.5), math.floor(math.log2(shorter / patch_size)))
    )


def _continued(plane: Tensor, left: int, right: int, top: int, bottom: int) -> Tensor:
    return F.pad(plane[:, None], (left, right, top, bottom), mode="replicate")[:, 0]


def _halved(plane: Tensor) -> Tensor:
    height, width = plane.shape[1:]
    return F.avg_pool2d(_continued(plane, 0, width % 2, 0, height % 2)[:, None], 2)[:, 0]


def _slope_x(plane: Tensor) -> Tensor:
    wide = _continued(plane, 1, 1, 0, 0)
    return 0.5 * (wide[:, :, 2:] - wide[:, :, :-2])


def _slope_y(plane: Tensor) -> Tensor:
    return _slope_x(plane.mT).mT


def _bordered(image: Tensor, side: int) -> Tensor:
    """What `_displaced` reads squares of `side` pixels from."""
    return _continued(image, *(side + 2,) * 4)


def _displaced(pixels: Tensor, x: Tensor, y: Tensor, side: int) -> Tensor:
    """The squares of `side` pixels with corners at the points x and y, both (N, K), as (N, K, side, side).

    A square farther out than its side is moved to where it touches the image.
    """
    n, border = pixels.shape[0], side + 2
    x, y = x.clamp(-side, pixels.shape[2] - 2 * border), y.clamp(-side, pixels.shape[1] - 2 * border)
    left, top = x.floor(), y.floor()
    fx, fy = (x - left)[..., None, None], (y - top)[..., None, None]
    steps = torch.arange(side + 1, device=pixels.device)
    rows = (top.long() + border)[..., None, None] + steps[:, None]
    at = rows * pixels.shape[2] + (left.long() + border)[..., None, None] + steps
    square = pixels.flatten(1).gather(1, at.flatten(1)).view(n, x.shape[1], side + 1, side + 1)
    along = (1 - fx) * square[..., :-1] + fx * square[..., 1:]
    return (1 - fy) * along[..., :-1, :] + fy * along[..., 1:, :]


class _Patches(NamedTuple):
    """K patches in order of rows: corners (K,), pixels and gradients (N, K, P, P), H⁻¹'s three numbers (N, K)."""

    bordered: Tensor
    rows: int
    columns: int
    x: Tensor
    y: Tensor
    levels: Tensor
    gx: Tensor
    gy: Tensor
    inverse: tuple[Tensor, Tensor, Tensor]

    def distance(self, which: Tensor, w: Tensor) -> Tensor:
        """Of the patches `which` at w (2, N, len(which)): the distance and b, (3, N, len(which))."""
        residual = self.residual(which, w)
        residual = residual - residual.mean(dim=(-2, -1), keepdim=True)
        parts = torch.stack([residual, self.gx[:, which], self.gy[:, which]])
        return (parts * residual).sum(dim=(-2, -1))

    def residual(self, which: Tensor, w: Tensor) -> Tensor:
        corners = self.x[which] + w[0], self.y[which] + w[1]
        return _displaced(self.bordered, *corners, self.levels.shape[-1]) - self.levels[:, which]


def _patches(prev: Tensor, next: Tensor, size: int, stride: int) -> _Patches:
    height, width = prev.shape[1:]
    corners = [
        [min(i * stride, side - size) for i in range(1 + -(-(side - size) // stride))] for side in (height, width)
    ]
    top, left = (torch.tensor(places, device=prev.device) for places in corners)
    y, x = (grid.flatten() for grid in torch.meshgrid(top, left, indexing="ij"))
    steps = torch.arange(size, device=prev.device)
    rows, columns = (y[:, None] + steps)[:, :, None], (x[:, None] + steps)[:, None, :]
    levels, gx, gy = (plane[:, rows, columns] for plane in (prev, _slope_x(prev), _slope_y(prev)))
    cx, cy = (g - g.mean(dim=(-2, -1), keepdim=True) for g in (gx, gy))
    xx, xy, yy = ((a * b).sum(dim=(-2, -1)) for a, b in ((cx, cx), (cx, cy), (cy, cy)))
    determinant = xx * yy - xy * xy
    scale = torch.where(determinant > LEAST_DETERMINANT * (1 + (xx + yy).square()), 1 / determinant, 0)
    inverse = (yy * scale, -xy * scale, xx * scale)
    return _Patches(_bordered(next, size), len(top), len(left), x, y, levels, gx, gy, inverse)


def _pass(patches: _Patches, w: Tensor, known: Tensor, iterations: int, backward: bool) -> None:
    """One pass over all patches: updates w (2, N, K) and their distances (3, N, K).

    A patch waits for its neighbours in both directions, so that those of one diagonal of a stripe, and of all stripes,
    go together.
    """
    columns, first = patches.columns, w.clone()
    for diagonal in range(STRIPE_ROWS + columns - 1):
        places = []
        for row in range(patches.rows):
            last = min(patches.rows - row // STRIPE_ROWS * STRIPE_ROWS, STRIPE_ROWS) - 1
            line = last - row % STRIPE_ROWS if backward else row % STRIPE_ROWS
            if 0 <= diagonal - line < columns:
                places.append((row, columns - 1 - (diagonal - line) if backward else diagonal - line))
        if not places:
            continue
        which = torch.tensor([row * columns + column for row, column in places], device=w.device)
        here, distance = w[:, :, which], known[:, :, which]
        step = 1 if backward else -1
        for down, across in ((0, step), (step, 0)):
            there, exists = [], []
            for row, column in places:
                to = (row + down, column + across)
                inside = 0 <= to[0] < patches.rows and 0 <= to[1] < columns
                # forward, a stripe knows nothing of the one above
                exists.append(inside and (backward or to[0] // STRIPE_ROWS == row // STRIPE_ROWS))
                there.append(to[0] * columns + to[1] if inside else 0)
            crossing = torch.tensor(
                [row // STRIPE_ROWS != (row + down) // STRIPE_ROWS for row, _ in places], device=w.device
            )
            neighbour = torch.where(crossing, first[:, :, there], w[:, :, there])
            offered = patches.distance(which, neighbour)
            better = torch.tensor(exists, device=w.device) & (offered[0] + LEAST_GAIN < distance[0])
            here, distance = torch.where(better, neighbour, here), torch.where(better, offered, distance)
        w[:, :, which], known[:, :, which] = _descend(patches, which, here, distance, iterations)


def _descend(
    patches: _Patches, which: Tensor, start: Tensor, distance: Tensor, iterations: int
) -> tuple[Tensor, Tensor]:
    xx, xy, yy = (number[:, which] for number in patches.inverse)
    w, at_start, size = start, distance, patches.levels.shape[-1]
    moving = torch.ones_like(distance[0], dtype=torch.bool)
    for _ in range(iterations):
        _, bx, by = distance
        step = torch.stack([xx * bx + xy * by, xy * bx + yy * by])
        moving = moving & (step.square().sum(dim=0) > LEAST_STEP**2)
        if not moving.any():
            break
        moved = w - step
        there = patches.distance(which, moved)
        moving = moving & (there[0] < distance[0])
        w, distance = torch.where(moving, moved, w), torch.where(moving, there, distance)
    lost = (w - start).square().sum(dim=0) > size**2
    return torch.where(lost, start, w), torch.where(lost, at_start, distance)


def _sampled(flow: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(N, 2, H, W) at the points (K,), bilinear and continued: (2, N, K)."""
    height, width = flow.shape[2:]
    x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    left, top = x.long(), y.long()
    right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    fx, fy = x - left, y - top
    above = (1 - fx) * flow[:, :, top, left] + fx * flow[:, :, top, right]
    below = (1 - fx) * flow[:, :, bottom, left] + fx * flow[:, :, bottom, right]
    return ((1 - fy) * above + fy * below).transpose(0, 1)


def _search(prev: Tensor, next: Tensor, start: Tensor, zoom: int, size: int, stride: int, iterations: int) -> Tensor:
    """The flow (N, 2, H, W) of a level, from a flow `start` whose pixels are `zoom` of this level's."""
    patches = _patches(prev, next, size, stride)
    centers = [(corner.to(prev.dtype) + size // 2) / zoom - 0.5 for corner in (patches.x, patches.y)]
    w = _sampled(start, *centers) * zoom
    everyone = torch.arange(w.shape[2], device=w.device)
    known = patches.distance(everyone, w)
    for backward in (False, True):
        _pass(patches, w, known, iterations, backward)
    weight = 1 / patches.residual(everyone, w).abs().clamp(min=1)
    steps = torch.arange(size, device=prev.device)
    pixels = (patches.y[:, None] + steps)[:, :, None] * prev.shape[2] + (patches.x[:, None] + steps)[:, None, :]
    total = torch.zeros_like(prev).flatten(1).index_add(1, pixels.flatten(), weight.flatten(1))
    flows = []
    for component in w:
        weighted = (weight * component[..., None, None]).flatten(1)
        sums = torch.zeros_like(prev).flatten(1).index_add(1, pixels.flatten(), weighted)
        flows.append((sums / total).view_as(prev))
    return torch.stack(flows, dim=1)


def _neighbours(plane: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of every pixel, those to the left and right, above and below; across the edge, the pixel itself."""
    wide = _continued(plane, 1, 1, 1, 1)
    return wide[:, 1:-1, :-2], wide[:, 1:-1, 2:], wide[:, :-2, 1:-1], wide[:, 2:, 1:-1]


def _residuals(prev: Tensor, next: Tensor, u: Tensor, v: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(a, b, c) of the grey level's and its gradient's residuals a u + b v + c, linearised at the flow (u, v)."""
    height, width = prev.shape[1:]
    x = torch.arange(width, dtype=u.dtype, device=u.device) + u
    y = torch.arange(height, dtype=u.dtype, device=u.device)[:, None] + v
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    value = _displaced(_bordered(next, 1), x.flatten(1), y.flatten(1), 1).view_as(prev)
    mean, change = 0.5 * (prev + value), value - prev
    mean_x, mean_y = _slope_x(mean), _slope_y(mean)
    rows = [
        (mean_x, mean_y, change),
        (_slope_x(mean_x), _slope_y(mean_x), _slope_x(change)),
        (_slope_y(mean_x), _slope_y(mean_y), _slope_y(change)),
    ]
    normalised = []
    for a, b, c in rows:
        scale = inside / (a.square() + b.square() + LEAST_GRADIENT**2).sqrt()
        normalised.append((a * scale, b * scale, (c - a * u - b * v) * scale))
    return normalised


def _refine(
    prev: Tensor, next: Tensor, flow: Tensor, iterations: int, alpha: float, delta: float, gamma: float
) -> Tensor:
    u, v = flow.unbind(dim=1)
    residuals = _residuals(prev, next, u, v)
    height, width = prev.shape[1:]
    y, x = torch.arange(height, device=u.device)[:, None], torch.arange(width, device=u.device)
    # no pixel has a neighbour across the edge
    exists = [place.expand(height, width) for place in (x > 0, x < width - 1, y > 0, y < height - 1)]
    red = (x + y) % 2 == 0
    for _ in range(iterations):
        differences = torch.full_like(u, EPSILON**2)
        for plane in (u, v):
            left, right, above, below = _neighbours(plane)
            differences = differences + (0.5 * (right - left)).square() + (0.5 * (below - above)).square()
        smooth = alpha / differences.sqrt()
        edges = [0.5 * (smooth + other) * there for other, there in zip(_neighbours(smooth), exists, strict=True)]
        squares = [(a * u + b * v + c).square() for a, b, c in residuals]
        grey_weight = delta / (squares[0] + EPSILON**2).sqrt()
        slope_weight = gamma / (squares[1] + squares[2] + EPSILON**2).sqrt()
        a11 = a22 = sum(edges) + 1e-9
        a12 = c1 = c2 = torch.zeros_like(u)
        for weight, (a, b, c) in zip((grey_weight, slope_weight, slope_weight), residuals, strict=True):
            a11, a12, a22 = a11 + weight * a * a, a12 + weight * a * b, a22 + weight * b * b
            c1, c2 = c1 - weight * a * c, c2 - weight * b * c
        determinant = a11 * a22 - a12 * a12
        for half_sweep in range(2 * SWEEPS):
            here = red if half_sweep % 2 == 0 else ~red
            r1, r2 = (
                c + sum(edge * other for edge, other in zip(edges, _neighbours(plane), strict=True))
                for c, plane in ((c1, u), (c2, v))
            )
            solved = (a22 * r1 - a12 * r2) / determinant, (a11 * r2 - a12 * r1) / determinant
            u, v = (
                torch.where(here, (1 - OMEGA) * old + OMEGA * new, old) for old, new in zip((u, v), solved, strict=True)
            )
    return torch.stack([u, v], dim=1)


def _per_component(flow: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.stack([function(plane) for plane in flow.unbind(dim=1)], dim=1)


def _smoothed(plane: Tensor) -> Tensor:
    left, right, _, _ = _neighbours(plane)
    across = left + 2 * plane + right
    _, _, above, below = _neighbours(across)
    return (above + 2 * across + below) / 16


def _coarse_start(init: Tensor, size: Sequence[int], level: int) -> Tensor:
    """`init` on a level of `size` pixels: means over squares of 2^level, continued, in pixels of the level."""
    side = 2**level

    def mean(plane: Tensor) -> Tensor:
        right, bottom = size[1] * side - plane.shape[2], size[0] * side - plane.shape[1]
        return F.avg_pool2d(_continued(plane, 0, right, 0, bottom)[:, None], side)[:, 0] / side

    return _per_component(init, mean)


def reference(
    prev: Tensor, next: Tensor, init: Tensor | None, finest_scale: int, patch_size: int, patch_stride: int,
    descent_iterations: int, refinement_iterations: int, alpha: float, delta: float, gamma: float,
) -> Tensor:  # fmt: skip
    """optical_flow_dis in eager PyTorch, any device."""
    if prev.device.type == "cpu" and not torch.compiler.is_compiling():
        check_values(prev, next, init)
    n, _, height, width = prev.shape
    wanting = max(patch_size - width, 0), max(patch_size - height, 0)
    planes = [_continued(grey(images)[:, 0], 0, wanting[0], 0, wanting[1]) for images in (prev, next)]
    pyramid = [(planes[0], planes[1])]
    dtype = planes[0].dtype
    if n == 0:
        return torch.zeros(0, 2, height, width, dtype=dtype, device=prev.device)
    coarsest = coarsest_scale(height, width, patch_size)
    finest = min(finest_scale, coarsest)
    for _ in range(coarsest):
        pyramid.append((_halved(pyramid[-1][0]), _halved(pyramid[-1][1])))
    size = pyramid[coarsest][0].shape[1:]
    flow = torch.zeros(n, 2, *size, dtype=dtype, device=prev.device)
    if init is not None:
        flow = _coarse_start(init.to(dtype), size, coarsest)
    for level in range(coarsest, finest - 1, -1):
        zoom = 1 if level == coarsest else 2
        flow = _search(*pyramid[level], flow, zoom, patch_size, patch_stride, descent_iterations)
        second = refinement_iterations // 2
        for iterations in (refinement_iterations - second, second):
            if iterations > 0:
                flow = _refine(*pyramid[level], flow, iterations, alpha, delta, gamma)
    if refinement_iterations == 0:
        flow = _per_component(flow, _smoothed)
    large = F.interpolate(flow, scale_factor=2**finest, mode="bilinear", align_corners=False) * 2**finest
    return large[:, :, :height, :width].contiguous()


# Backends. The CPU kernel is registered in C++ (csrc/bind/); its row here serves explain and info.


def _cpu_supports(prev: Tensor, *_args: Any) -> str | None:
    return torch.ops.vidgen.optical_flow_dis_cpu_supports(prev.dtype) or None


TABLE[_OP] = (Backend("cpu", ("cpu",), always, _cpu_supports, run=None), reference_row(reference))


# Registration: shapes, selection.


@torch.library.register_fake("vidgen::optical_flow_dis")
def _(prev, next, init, *_args):  # type: ignore[no-untyped-def]
    dtype = torch.float64 if prev.dtype == torch.float64 else torch.float32
    return torch.empty((prev.shape[0], 2, *prev.shape[2:]), dtype=dtype, device=prev.device)


_op = torch.ops.vidgen.optical_flow_dis.default

register_selection(_OP, reference, lambda *args: args)


# The public function.


def _check_weight(name: str, value: Any, least: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not least <= value <= 1e6:
        raise ValueError(f"{name} must be from {least:g} to 1e6, got {value}")


def optical_flow_dis(
    prev: Tensor,
    next: Tensor,
    *,
    init: Tensor | None = None,
    finest_scale: int = 1,
    patch_size: int = 8,
    patch_stride: int = 3,
    descent_iterations: int = 25,
    refinement_iterations: int = 5,
    alpha: float = 20.0,
    delta: float = 5.0,
    gamma: float = 10.0,
    impl: str | None = None,
) -> Tensor:
    """Optical flow by dense inverse search, from prev to next (the head of this module). The defaults are "medium".

    Args:
        prev, next: (N, 1 or 3, H, W) or (N, H, W); uint8, or floating point in [0, 1]; one dtype; any strides.
        init: (N, 2, H, W), the flow to start from, in pixels; None starts from zero.
        finest_scale: the last level that is searched, up to 30: its pixels are 2^finest_scale of the images'.
        patch_size: side of a patch in pixels of its level: 4, 8 or 16.
        patch_stride: pixels between neighbouring patches, from 1 to patch_size.
        descent_iterations: of a patch in each of the two passes over a level, at most.
        refinement_iterations: of the variational refinement on each level; 0 for none.
        alpha, delta, gamma: weights of smoothness (at least 1e-3), of grey levels and of their gradients.
        impl: "cpu" or "reference" forces a backend; None takes VIDGEN_IMPL, else the best that can.

    Returns:
        (N, 2, H, W), contiguous, pixels: float64 for float64 images, else float32.

    Raises:
        ValueError, TypeError: an argument is not as above; the message names it, what was expected and what came.
        RuntimeError: a pixel or a number of `init` is not finite, or far from what is asked for (checked on the CPU
            alone); `impl` cannot serve the call; or an image carries a forward-mode tangent.
    """
    check_images(prev, next, init)
    check_count("finest_scale", finest_scale, 30, 0)
    if isinstance(patch_size, bool) or patch_size not in PATCH_SIZES:
        raise ValueError(f"patch_size must be 4, 8 or 16, got {patch_size!r}")
    check_count("patch_stride", patch_stride, patch_size)
    check_count("descent_iterations", descent_iterations, 100_000)
    check_count("refinement_iterations", refinement_iterations, 100_000, 0)
    _check_weight("alpha", alpha, 1e-3)
    _check_weight("delta", delta, 0)
    _check_weight("gamma", gamma, 0)
    for name, tensor in (("prev", prev), ("next", next), ("init", init)):
        if tensor is not None and tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} must not require a gradient; pass {name}.detach()")
    if prev.dim() == 3:
        prev, next = prev.unsqueeze(1), next.unsqueeze(1)
    if prev.dtype not in (torch.uint8, torch.float32, torch.float64):
        prev, next = prev.float(), next.float()
    if init is not None:
        init = init.to(torch.float64 if prev.dtype == torch.float64 else torch.float32)
    if requested(impl) == "reference" and prev.device.type == "cpu" and not torch.compiler.is_compiling():
        check_values(prev, next, init)  # C++ hands the call over, and such a sentence does not find its way back
    numbers = float(alpha), float(delta), float(gamma)
    rest = (finest_scale, patch_size, patch_stride, descent_iterations, refinement_iterations, *numbers, impl)
    return _op(prev, next, init, *rest)
