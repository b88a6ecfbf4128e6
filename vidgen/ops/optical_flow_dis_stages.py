"""The stages of dense inverse search in eager PyTorch, whose formulas stand at the head of optical_flow_dis.py.

Planes are (N, H, W), flows (N, 2, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

#: rows of patches that pass displacements on among themselves
STRIPE_ROWS = 8
#: a shorter step, in pixels, is not taken; by so many squared grey levels must a neighbour's displacement be better
LEAST_STEP, LEAST_GAIN = 0.01, 0.01
#: part of a Gauss-Newton step that is taken
STEP = 0.25
#: there is no step where the determinant of H is not more than this times 1 + (trace of H)²
LEAST_DETERMINANT = 1e-5
SWEEPS, OMEGA = 5, 1.6
EPSILON, LEAST_GRADIENT = 1e-3, 0.1
#: with a finest level of this side the smoothness has its full weight; with a smaller one less, but not less than this
FULL_SMOOTHNESS, LEAST_SMOOTHNESS = 100.0, 0.5


def coarsest_scale(height: int, width: int, patch_size: int) -> int:
    """The last level of the pyramid; level 0 is the images themselves."""
    longer, shorter = max(height, width), min(height, width)
    return max(
        0, min(math.floor(math.log2(longer / (4 * patch_size)) + 0.5), math.floor(math.log2(shorter / patch_size)))
    )


def finest_level(finest_scale: int, coarsest: int) -> int:
    """The last level that is searched; a pyramid that ends before it has two levels searched, if it has two."""
    return finest_scale if finest_scale <= coarsest else max(0, coarsest - 1)


def smoothness_share(height: int, width: int) -> float:
    """What part of alpha images get whose finest level has this size.

    Smoothness reaches over a number of pixels, and a small image has its motions within fewer.
    """
    return min(1.0, max(LEAST_SMOOTHNESS, math.sqrt(height * width) / FULL_SMOOTHNESS))


def continued(plane: Tensor, left: int, right: int, top: int, bottom: int) -> Tensor:
    return F.pad(plane[:, None], (left, right, top, bottom), mode="replicate")[:, 0]


def halved(plane: Tensor) -> Tensor:
    height, width = plane.shape[1:]
    return F.avg_pool2d(continued(plane, 0, width % 2, 0, height % 2)[:, None], 2)[:, 0]


def _slope_x(plane: Tensor) -> Tensor:
    wide = continued(plane, 1, 1, 0, 0)
    return 0.5 * (wide[:, :, 2:] - wide[:, :, :-2])


def _slope_y(plane: Tensor) -> Tensor:
    return _slope_x(plane.mT).mT


def _sobel_x(plane: Tensor) -> Tensor:
    """Central differences by ¼ (1 2 1) across: this gradient stands for that of an image that interpolation smooths."""
    tall = continued(plane, 0, 0, 1, 1)
    return _slope_x(0.25 * (tall[:, :-2] + 2 * plane + tall[:, 2:]))


def _bordered(image: Tensor, side: int) -> Tensor:
    """What `_displaced` reads squares of `side` pixels from."""
    return continued(image, *(side + 2,) * 4)


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
    levels, gx, gy = (plane[:, rows, columns] for plane in (prev, _sobel_x(prev), _sobel_x(prev.mT).mT))
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
        step = STEP * torch.stack([xx * bx + xy * by, xy * bx + yy * by])
        moving = moving & (step.square().sum(dim=0) > LEAST_STEP**2)
        if not moving.any():
            break
        w = torch.where(moving, w - step, w)
        there = torch.where(moving, patches.distance(which, w), distance)
        # a step that does not lead down is the last, and is kept: interpolation blurs between pixels, so that the
        # distance may be greater there though the patches fit better
        moving, distance = moving & (there[0] < distance[0]), there
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


def search(prev: Tensor, next: Tensor, start: Tensor, zoom: int, size: int, stride: int, iterations: int) -> Tensor:
    """The flow (N, 2, H, W) of a level, from a flow `start` whose pixels are `zoom` of this level's."""
    patches = _patches(prev, next, size, stride)
    centers = [(corner.to(prev.dtype) + size // 2) / zoom - 0.5 for corner in (patches.x, patches.y)]
    w = _sampled(start, *centers) * zoom
    everyone = torch.arange(w.shape[2], device=w.device)
    known = patches.distance(everyone, w)
    for backward in (False, True):
        _pass(patches, w, known, (iterations + (not backward)) // 2, backward)
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
    wide = continued(plane, 1, 1, 1, 1)
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


def refine(
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


def per_component(flow: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.stack([function(plane) for plane in flow.unbind(dim=1)], dim=1)


def smoothed(plane: Tensor) -> Tensor:
    left, right, _, _ = _neighbours(plane)
    across = left + 2 * plane + right
    _, _, above, below = _neighbours(across)
    return (above + 2 * across + below) / 16


def coarse_start(init: Tensor, size: Sequence[int], level: int) -> Tensor:
    """`init` on a level of `size` pixels: means over squares of 2^level, continued, in pixels of the level."""
    side = 2**level

    def mean(plane: Tensor) -> Tensor:
        right, bottom = size[1] * side - plane.shape[2], size[0] * side - plane.shape[1]
        return F.avg_pool2d(continued(plane, 0, right, 0, bottom)[:, None], side)[:, 0] / side

    return per_component(init, mean)
