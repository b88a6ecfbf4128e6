"""corr_lookup on GPUs in Triton: both of its forms, forward.

Tiling. A program owns a level and BLOCK queries of one image in raster order, and walks down the n + 1 rows of their
windows. A tile is queries by columns, n + 1 of these and up to the next power of two: 16 for radius 4. A row of windows
is interpolated horizontally, and with the row above it, which is still in registers, vertically; then n values of each
query are stored, neighbouring queries side by side in memory. Bits of a query depend on nothing around it.

- Correlations: 32 queries, 512 numbers in 4 warps. Each row is read twice, a column apart; the second comes from L1. A
  program reads 32 windows of 100 numbers and writes 32 * 81: 12.8 and 10.4 KB.
- On demand: 2,048 numbers are the features of BLOCK queries, 8 of 256 channels, and stay in 16 registers of each of the
  128 threads. For each of the window's pixels 8 rows of features are read, 1 KB each in channels_last, multiplied and
  added up: 0.41 MFLOP of a program at radius 4. Neighbouring queries read nearly the same rows, so that L1 and L2 serve
  most of its 0.8 MB. There is no tl.dot: a query shares its pixels with no other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from . import gemm

WARPS = 4


@triton.jit
def _along(position, size, RADIUS: tl.constexpr):
    """The first pixel of windows along an axis, and how far beyond it they begin."""
    bounded = tl.minimum(tl.maximum(position, -RADIUS - 2.0), size + RADIUS + 1.0)
    whole = tl.floor(bounded)
    return whole.to(tl.int32) - RADIUS, bounded - whole


@triton.jit
def _queries(
    coords, tiles, area, width, level_height, level_width, coords_n, coords_c, coords_h, coords_w,
    SCALE: tl.constexpr, RADIUS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The program's image and queries: row, column, exists, is finite; first row and column of windows, fractions."""
    image = (tl.program_id(0) // tiles).to(tl.int64)
    place = (tl.program_id(0) % tiles) * BLOCK + tl.arange(0, BLOCK)
    exists = place < area
    row = (place // width).to(tl.int64)
    column = (place % width).to(tl.int64)
    at = coords + (image * coords_n + row * coords_h + column * coords_w)
    x = tl.load(at, mask=exists, other=0.0)
    y = tl.load(at + coords_c, mask=exists, other=0.0)
    known = (x - x == 0.0) & (y - y == 0.0)
    first_column, fx = _along(tl.where(known, x, 0.0) * SCALE, level_width, RADIUS)
    first_row, fy = _along(tl.where(known, y, 0.0) * SCALE, level_height, RADIUS)
    return image, row, column, exists, known, first_row, first_column, fy, fx


@triton.jit
def _store_row(
    out, row, above, below, fy, exists, known, columns, channel_stride,
    RADIUS: tl.constexpr,
):  # fmt: skip
    """Values between rows row - 1 and row of the windows; `out` points to a query's first value of the level."""
    n: tl.constexpr = 2 * RADIUS + 1
    values = tl.where(known[:, None], (1.0 - fy)[:, None] * above + fy[:, None] * below, float("nan"))
    to = out[:, None] + (columns.to(tl.int64) * n + (row - 1))[None, :] * channel_stride
    tl.store(to, values, mask=exists[:, None] & (columns < n)[None, :] & (row > 0))


@triton.jit
def _correlations(
    level, coords, out, tiles, area, width, level_height, level_width,
    level_n, level_y, level_x, level_h, level_w, coords_n, coords_c, coords_h, coords_w, out_n, out_c, out_h, out_w,
    SCALE: tl.constexpr, RADIUS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    image, row, column, exists, known, first_row, first_column, fy, fx = _queries(
        coords, tiles, area, width, level_height, level_width, coords_n, coords_c, coords_h, coords_w,
        SCALE, RADIUS, BLOCK,
    )  # fmt: skip
    columns = tl.arange(0, COLUMNS)
    left = first_column[:, None] + columns[None, :]
    reads = (exists & known)[:, None]
    reads_left = reads & (left >= 0) & (left < level_width)
    reads_right = reads & (left >= -1) & (left < level_width - 1)
    plane = level + (image * level_n + row * level_y + column * level_x)
    to = out + (image * out_n + row * out_h + column * out_w)
    above = tl.zeros((BLOCK, COLUMNS), tl.float32)
    for r in range(2 * RADIUS + 2):
        at_row = first_row + r
        inside = ((at_row >= 0) & (at_row < level_height))[:, None]
        at = (plane + at_row.to(tl.int64) * level_h)[:, None] + left.to(tl.int64) * level_w
        one = tl.load(at, mask=inside & reads_left, other=0.0).to(tl.float32)
        other = tl.load(at + level_w, mask=inside & reads_right, other=0.0).to(tl.float32)
        below = (1.0 - fx)[:, None] * one + fx[:, None] * other
        _store_row(to, r, above, below, fy, exists, known, columns, out_c, RADIUS)
        above = below


@triton.jit
def _on_demand(
    fmap1, level, coords, out, tiles, area, width, level_height, level_width, channels,
    fmap1_n, fmap1_c, fmap1_h, fmap1_w, level_n, level_c, level_h, level_w,
    coords_n, coords_c, coords_h, coords_w, out_n, out_c, out_h, out_w,
    SCALE: tl.constexpr, INVERSE_ROOT: tl.constexpr, RADIUS: tl.constexpr, COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    image, row, column, exists, known, first_row, first_column, fy, fx = _queries(
        coords, tiles, area, width, level_height, level_width, coords_n, coords_c, coords_h, coords_w,
        SCALE, RADIUS, BLOCK,
    )  # fmt: skip
    columns = tl.arange(0, COLUMNS)
    channel = tl.arange(0, CHANNELS).to(tl.int64)
    real = (channel < channels)[None, :]
    at = (fmap1 + (image * fmap1_n + row * fmap1_h + column * fmap1_w))[:, None] + (channel * fmap1_c)[None, :]
    features = tl.load(at, mask=exists[:, None] & real, other=0.0).to(tl.float32)
    pixels = level + image * level_n + (channel * level_c)[None, :]
    to = out + (image * out_n + row * out_h + column * out_w)
    above = tl.zeros((BLOCK, COLUMNS), tl.float32)
    for r in range(2 * RADIUS + 2):
        at_row = first_row + r
        in_row = exists & known & (at_row >= 0) & (at_row < level_height)
        below = tl.zeros((BLOCK, COLUMNS), tl.float32)
        for c in range(2 * RADIUS + 2):
            at_column = first_column + c
            inside = in_row & (at_column >= 0) & (at_column < level_width)
            pixel = at_row.to(tl.int64) * level_h + at_column.to(tl.int64) * level_w
            other = tl.load(pixels + pixel[:, None], mask=inside[:, None] & real, other=0.0).to(tl.float32)
            product = tl.sum(features * other, axis=1) * INVERSE_ROOT
            # the pixel is the left one of its own column, and the right one of the column before
            below += tl.where(columns[None, :] == c, ((1.0 - fx) * product)[:, None], 0.0)
            below += tl.where(columns[None, :] == c - 1, (fx * product)[:, None], 0.0)
        _store_row(to, r, above, below, fy, exists, known, columns, out_c, RADIUS)
        above = below


def forward(
    pyramid: Sequence[torch.Tensor], coords: torch.Tensor, radius: int, fmap1: torch.Tensor | None
) -> torch.Tensor:
    """Looked-up correlations (B, L * n * n, H, W) in float32, in the memory format of coords (B, 2, H, W), float32."""
    batch, _, height, width = coords.shape
    taps = (2 * radius + 1) ** 2
    out = gemm.empty_image(coords, len(pyramid) * taps, (height, width))
    if out.numel() == 0:
        return out
    area = height * width
    with gemm.on_device_of(coords):
        for number, level in enumerate(pyramid):
            part = out[:, number * taps :]
            constants = {"SCALE": 0.5**number, "RADIUS": radius, "COLUMNS": triton.next_power_of_2(2 * radius + 2)}
            if fmap1 is None:
                block = 32
                tiles = triton.cdiv(area, block)
                _correlations[(tiles * batch,)](
                    level, coords, part, tiles, area, width, *level.shape[3:], *level.stride(), *coords.stride(),
                    *part.stride(), **constants, BLOCK=block, num_warps=WARPS,
                )  # fmt: skip
                continue
            channels = fmap1.shape[1]
            padded = triton.next_power_of_2(channels)
            block = max(1, min(32, 2048 // padded))
            tiles = triton.cdiv(area, block)
            _on_demand[(tiles * batch,)](
                fmap1, level, coords, part, tiles, area, width, *level.shape[2:], channels, *fmap1.stride(),
                *level.stride(), *coords.stride(), *part.stride(), **constants, INVERSE_ROOT=channels**-0.5,
                CHANNELS=padded, BLOCK=block, num_warps=WARPS,
            )  # fmt: skip
    return out
