"""Which tile a convolution's launch uses: rules, not measurements, so that bits never depend on timing.

Every rule is a function of the shape without N, the dtype and the compute capability. The bounds behind them: a
pipeline stage holds BLOCK_M x BLOCK_K of one operand and BLOCK_K x BLOCK_N of the other in shared memory, of which a
program has 163 KB on sm_80, 99 KB on sm_86 and sm_89, 227 KB on sm_90 and sm_100; and 128 x 128 fp32 accumulators are
64 registers of each thread of 8 warps (twice that at a coloured centre tap of masked_conv2d, where a slice's product is
apart).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import triton


class Tile(NamedTuple):
    """Block sizes, warps and pipeline stages of one launch."""

    m: int
    n: int
    k: int
    warps: int
    stages: int

    def meta(self) -> dict[str, int]:
        return {
            "BLOCK_M": self.m, "BLOCK_N": self.n, "BLOCK_K": self.k, "num_warps": self.warps, "num_stages": self.stages,
        }  # fmt: skip


def _block(size: int, least: int, most: int) -> int:
    return min(most, max(least, triton.next_power_of_2(size)))


@functools.cache
def convolve_tile(
    channels_in: int, channels_out: int, area: int, itemsize: int, precision: str, capability: tuple[int, int]
) -> Tile:
    """The shipped tile of `_convolve` for a shape without N; `capability` is the GPU's compute capability."""
    if itemsize == 4 and precision == "ieee":  # no matrix units: 32 accumulators per thread
        return Tile(64, _block(channels_out, 16, 64), 16, 4, 2)
    n = _block(channels_out, 16, 128)
    if channels_in < 16:  # every element has an address of its own: few of them per thread
        return Tile(64, n, 64 // itemsize, 4 if n <= 64 else 8, 2)
    m = 64 if area <= 256 else 128
    slice_bytes = 64 if capability[0] < 9 else 128  # one slice of one pixel: half or all of a cache line
    k = _block(channels_in, 16, slice_bytes // itemsize)
    return Tile(m, n, k, 8 if m * n >= 128 * 128 else 4, 4 if capability[0] < 9 else 3)


@functools.cache
def grad_weight_tile(channels_out: int, lanes: int, itemsize: int, precision: str, capability: tuple[int, int]) -> Tile:
    """The shipped tile of `_grad_weight`; `lanes` is the input channels of a tap, or taps x channels with FLAT."""
    if itemsize == 4 and precision == "ieee":
        return Tile(_block(channels_out, 16, 64), _block(lanes, 16, 64), 16, 4, 2)
    m, n = _block(channels_out, 16, 128), _block(lanes, 16, 64)
    return Tile(m, n, 32 if itemsize == 4 else 64, 8 if m == 128 else 4, 3)


def routing_tile(tile: Tile, channels_last: bool) -> Tile:
    """The same for a kernel that needs more registers than the sums: at most 32 sums per thread instead of 64.

    16 where voxels that are not channels_last each need an address.
    """
    sums = 32 if channels_last else 16
    return tile._replace(n=max(16, min(tile.n, sums * 32 * tile.warps // tile.m)))


def convolve_candidates(tile: Tile) -> list[Tile]:
    """What autotuning tries for `_convolve` beside the shipped tile."""
    sizes = [(128, 256, 8), (128, 128, 8), (256, 64, 8), (128, 64, 4), (64, 128, 4), (64, 64, 4), (64, 32, 4)]
    return [
        Tile(m, n, k, warps, stages)
        for m, n, warps in sizes
        if n <= max(16, 2 * tile.n)
        for k in {tile.k, max(16, tile.k // 2)}
        for stages in (3, 4)
    ]


def split_pixels(pixels: int, tiles: int, block: int, programs: int = 512) -> tuple[int, int]:
    """How many pixels a run has (a multiple of `block`) and how many runs there are.

    Aims at `programs` programs in all, a constant, so that the order of the sum does not depend on the card, and at
    runs of at least eight blocks.
    """
    splits = max(1, min(triton.cdiv(programs, tiles), triton.cdiv(pixels, 8 * block)))
    run = triton.cdiv(triton.cdiv(pixels, splits), block) * block
    return run, triton.cdiv(pixels, run)
