"""warp on GPUs in Triton: an image read where a flow points, and both gradients.

Tiling. A program owns a tile of pixels of one image, in raster order, by channels. In planes that is 128 pixels x up to
8 channels with neighbouring pixels in neighbouring lanes; in channels_last up to 64 channels x 16 pixels and more, 1024
numbers, with channels in neighbouring lanes. Footprints, the upper left of four pixels and how far beyond it, are found
once for the tile's pixels from 8 bytes of flow each. A number costs four reads and one write; of a smooth flow the
reads of neighbouring pixels overlap and come from the caches, so that memory sees little more than the floor, image and
flow read once and the output written once.

The gradient in flow adds over all channels: a program owns 128 pixels, walks the channels and adds in their order.

The gradient in x is a scatter, and floats added by atomics would depend on who comes first. So numbers are added as
integers, whose sum has no order: a first pass finds the largest finite |grad_output| of an image, below 2^(e + 1), and
one unit is 2^(e + 1 + l - 60) for an image of at most 2^l pixels, so that no sum comes near 2^61. For 1920 x 1080 the
unit is 2^-39 of the largest gradient, whose own last place is 2^-24. A number that is not finite sets its four targets
to 2^62, from where no sum leads back below 2^61, and they end as NaN. The last pass turns integers into the gradient.
That is grad_output read twice and 8 bytes of sum cleared, added to and read for each number, and no sort: same input,
same bits, whatever the batch.

The arithmetic is float32 whatever the image is.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import gemm

WARPS = 4
_ELEMENTS = 1024  # of a tile
_PLANE_PIXELS = 128
_SUM_BITS = 60


@triton.jit
def _across(values, LAST: tl.constexpr):
    """Of pixels as a tile's axis."""
    return tl.expand_dims(values, 1 if LAST else 0)


@triton.jit
def _down(values, LAST: tl.constexpr):
    """Of channels as a tile's axis."""
    return tl.expand_dims(values, 0 if LAST else 1)


@triton.jit
def _axis(displacement, at, size, BORDER: tl.constexpr):
    """The first of two neighbours along an axis, how far beyond it, and whether it moves with the flow."""
    far = size + 2.0
    bounded = tl.minimum(tl.maximum(displacement, -far), far)
    whole = tl.floor(bounded)
    fraction = bounded - whole
    first = whole.to(tl.int32) + at
    moves = fraction >= 0
    if BORDER:
        moves = (first >= 0) & ((first > 0) | (fraction > 0)) & (first < size - 1)
        fraction = tl.where(moves, fraction, 0.0)
        first = tl.minimum(tl.maximum(first, 0), size - 1)
    return first, fraction, moves


@triton.jit
def _footprints(flow, image, pixel, height, width, flow_n, flow_c, flow_h, flow_w, BORDER: tl.constexpr):
    """Of each pixel: row, column, and whether it exists with a finite flow; then both axes as `_axis` has them."""
    row = pixel // width
    column = pixel % width
    exists = pixel < height * width
    at = flow + image * flow_n + row.to(tl.int64) * flow_h + column.to(tl.int64) * flow_w
    dx = tl.load(at, mask=exists, other=0.0)
    dy = tl.load(at + flow_c, mask=exists, other=0.0)
    known = exists & (dx - dx == 0) & (dy - dy == 0)
    left, fx, moves_x = _axis(tl.where(known, dx, 0.0), column, width, BORDER)
    top, fy, moves_y = _axis(tl.where(known, dy, 0.0), row, height, BORDER)
    return row, column, exists, known, left, fx, moves_x, top, fy, moves_y


@triton.jit
def _inside(row, column, height, width):
    return (row >= 0) & (row < height) & (column >= 0) & (column < width)


@triton.jit
def _corner(plane, row, column, kept, height, width, x_h, x_w, LAST: tl.constexpr):
    """One of four neighbours of a tile, zero outside the image. `plane` points to the channels, `kept` is a tile."""
    inside = _across(_inside(row, column, height, width), LAST) & kept
    at = plane + _across(row.to(tl.int64) * x_h + column.to(tl.int64) * x_w, LAST)
    return tl.load(at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _corners(plane, top, left, kept, height, width, x_h, x_w, LAST: tl.constexpr):
    top_left = _corner(plane, top, left, kept, height, width, x_h, x_w, LAST)
    top_right = _corner(plane, top, left + 1, kept, height, width, x_h, x_w, LAST)
    bottom_left = _corner(plane, top + 1, left, kept, height, width, x_h, x_w, LAST)
    bottom_right = _corner(plane, top + 1, left + 1, kept, height, width, x_h, x_w, LAST)
    return top_left, top_right, bottom_left, bottom_right


@triton.jit
def _place(tiles, channel_tiles, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    """Image, pixels and channels of this program."""
    program = tl.program_id(0)
    channel = program % channel_tiles * CHANNELS + tl.arange(0, CHANNELS)
    pixel = program // channel_tiles % tiles * PIXELS + tl.arange(0, PIXELS)
    return (program // channel_tiles // tiles).to(tl.int64), pixel, channel


@triton.jit
def _forward(
    x, flow, out,
    tiles, channel_tiles, channels, height, width, x_n, x_c, x_h, x_w, flow_n, flow_c, flow_h, flow_w,
    out_n, out_c, out_h, out_w,
    BORDER: tl.constexpr, LAST: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    image, pixel, channel = _place(tiles, channel_tiles, PIXELS, CHANNELS)
    row, column, exists, known, left, fx, _mx, top, fy, _my = _footprints(
        flow, image, pixel, height, width, flow_n, flow_c, flow_h, flow_w, BORDER
    )
    written = _across(exists, LAST) & _down(channel < channels, LAST)
    plane = x + image * x_n + _down(channel.to(tl.int64) * x_c, LAST)
    kept = written & _across(known, LAST)
    top_left, top_right, bottom_left, bottom_right = _corners(plane, top, left, kept, height, width, x_h, x_w, LAST)
    fx = _across(fx, LAST)
    fy = _across(fy, LAST)
    above = (1.0 - fx) * top_left + fx * top_right
    below = (1.0 - fx) * bottom_left + fx * bottom_right
    value = tl.where(_across(known, LAST), (1.0 - fy) * above + fy * below, float("nan"))
    at = out + image * out_n + _across(row.to(tl.int64) * out_h + column.to(tl.int64) * out_w, LAST)
    tl.store(at + _down(channel.to(tl.int64) * out_c, LAST), value.to(out.dtype.element_ty), mask=written)


@triton.jit
def _grad_flow(
    grad_output, x, flow, grad,
    tiles, channels, height, width, go_n, go_c, go_h, go_w, x_n, x_c, x_h, x_w, flow_n, flow_c, flow_h, flow_w,
    grad_n, grad_c, grad_h, grad_w,
    BORDER: tl.constexpr, LAST: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    image, pixel, channel = _place(tiles, 1, PIXELS, CHANNELS)
    row, column, exists, known, left, fx, moves_x, top, fy, moves_y = _footprints(
        flow, image, pixel, height, width, flow_n, flow_c, flow_h, flow_w, BORDER
    )
    weights = grad_output + image * go_n + _across(row.to(tl.int64) * go_h + column.to(tl.int64) * go_w, LAST)
    wide_fx = _across(fx, LAST)
    wide_fy = _across(fy, LAST)
    by_x = tl.zeros((PIXELS,), tl.float32)
    by_y = tl.zeros((PIXELS,), tl.float32)
    for first in range(0, channels, CHANNELS):
        present = first + channel
        kept = _across(known, LAST) & _down(present < channels, LAST)
        weight = tl.load(weights + _down(present.to(tl.int64) * go_c, LAST), mask=kept, other=0.0).to(tl.float32)
        plane = x + image * x_n + _down(present.to(tl.int64) * x_c, LAST)
        top_left, top_right, bottom_left, bottom_right = _corners(plane, top, left, kept, height, width, x_h, x_w, LAST)
        slope_x = (1.0 - wide_fy) * (top_right - top_left) + wide_fy * (bottom_right - bottom_left)
        slope_y = (1.0 - wide_fx) * (bottom_left - top_left) + wide_fx * (bottom_right - top_right)
        by_x += tl.sum(weight * slope_x, 1 if LAST else 0)
        by_y += tl.sum(weight * slope_y, 1 if LAST else 0)
    at = grad + image * grad_n + row.to(tl.int64) * grad_h + column.to(tl.int64) * grad_w
    tl.store(at, tl.where(moves_x, by_x, 0.0), mask=exists)
    tl.store(at + grad_c, tl.where(moves_y, by_y, 0.0), mask=exists)


@triton.jit
def _largest(
    grad_output, flow, largest,
    tiles, channel_tiles, channels, height, width, go_n, go_c, go_h, go_w, flow_n, flow_c, flow_h, flow_w,
    LAST: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The largest finite |grad_output| of each image, as the bits of its float, which have the order of integers."""
    image, pixel, channel = _place(tiles, channel_tiles, PIXELS, CHANNELS)
    row, column, _exists, known, _l, _fx, _mx, _t, _fy, _my = _footprints(
        flow, image, pixel, height, width, flow_n, flow_c, flow_h, flow_w, False
    )
    kept = _across(known, LAST) & _down(channel < channels, LAST)
    at = grad_output + image * go_n + _across(row.to(tl.int64) * go_h + column.to(tl.int64) * go_w, LAST)
    weight = tl.load(at + _down(channel.to(tl.int64) * go_c, LAST), mask=kept, other=0.0).to(tl.float32)
    size = tl.where(weight - weight == 0, tl.abs(weight), 0.0)
    tl.atomic_max(largest + image, tl.max(tl.max(size, 1), 0).to(tl.int32, bitcast=True))


@triton.jit
def _exponent(largest, image, BITS: tl.constexpr):
    """k of the unit 2^-k, such that an image's numbers add up to 2^60 at most."""
    return BITS + 126 - (tl.load(largest + image) >> 23)


@triton.jit
def _power(k):
    return ((k + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _scaled(values, k):
    """values times 2^k, in two steps, as no float has all of these powers."""
    return values * _power(k // 2) * _power(k - k // 2)


@triton.jit
def _add(sums, weight, row, column, kept, height, width, sums_h, sums_w, LAST: tl.constexpr):
    """Adds a tile's numbers to their targets, or sets a target beyond all sums."""
    inside = _across(_inside(row, column, height, width), LAST) & kept
    at = sums + _across(row.to(tl.int64) * sums_h + column.to(tl.int64) * sums_w, LAST)
    finite = weight - weight == 0
    tl.atomic_add(at, tl.where(finite, weight, 0.0).to(tl.int64), mask=inside & finite, sem="relaxed")
    beyond = tl.zeros_like(weight).to(tl.int64) + (1 << 62)
    tl.atomic_max(at, beyond, mask=inside & (weight - weight != 0), sem="relaxed")


@triton.jit
def _scatter(
    grad_output, flow, largest, sums,
    tiles, channel_tiles, channels, height, width, go_n, go_c, go_h, go_w, flow_n, flow_c, flow_h, flow_w,
    sums_n, sums_c, sums_h, sums_w,
    BITS: tl.constexpr, BORDER: tl.constexpr, LAST: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    image, pixel, channel = _place(tiles, channel_tiles, PIXELS, CHANNELS)
    row, column, _exists, known, left, fx, _mx, top, fy, _my = _footprints(
        flow, image, pixel, height, width, flow_n, flow_c, flow_h, flow_w, BORDER
    )
    kept = _across(known, LAST) & _down(channel < channels, LAST)
    at = grad_output + image * go_n + _across(row.to(tl.int64) * go_h + column.to(tl.int64) * go_w, LAST)
    weight = tl.load(at + _down(channel.to(tl.int64) * go_c, LAST), mask=kept, other=0.0).to(tl.float32)
    weight = _scaled(weight, _exponent(largest, image, BITS))
    plane = sums + image * sums_n + _down(channel.to(tl.int64) * sums_c, LAST)
    fx = _across(fx, LAST)
    fy = _across(fy, LAST)
    above = weight * (1.0 - fy)
    below = weight * fy
    _add(plane, above * (1.0 - fx), top, left, kept, height, width, sums_h, sums_w, LAST)
    _add(plane, above * fx, top, left + 1, kept, height, width, sums_h, sums_w, LAST)
    _add(plane, below * (1.0 - fx), top + 1, left, kept, height, width, sums_h, sums_w, LAST)
    _add(plane, below * fx, top + 1, left + 1, kept, height, width, sums_h, sums_w, LAST)


@triton.jit
def _settle(sums, largest, grad, tiles, numbers, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """Integers to the gradient; an image's `numbers` lie in the same order in both."""
    image = (tl.program_id(0) // tiles).to(tl.int64)
    number = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = number < numbers
    total = tl.load(sums + image * numbers + number, mask=exists, other=0)
    value = _scaled(total.to(tl.float32), -_exponent(largest, image, BITS))
    value = tl.where(total > (1 << 61), float("nan"), value)
    tl.store(grad + image * numbers + number, value.to(grad.dtype.element_ty), mask=exists)


def _tile(x: torch.Tensor) -> tuple[int, int, dict[str, int | bool]]:
    """Tiles of pixels and of channels of images (N, C, H, W), and what the kernels are told of their tile."""
    _, channels, height, width = x.shape
    last = x.stride(1) == 1 and channels > 1
    block = min(64 if last else _ELEMENTS // _PLANE_PIXELS, triton.next_power_of_2(channels))
    pixels = min(_ELEMENTS // block, 256) if last else _PLANE_PIXELS
    meta: dict[str, int | bool] = {"LAST": last, "PIXELS": pixels, "CHANNELS": block, "num_warps": WARPS}
    return triton.cdiv(height * width, pixels), triton.cdiv(channels, block), meta


def _bits(height: int, width: int) -> int:
    return _SUM_BITS - (height * width - 1).bit_length()


def forward(x: torch.Tensor, flow: torch.Tensor, padding: str) -> torch.Tensor:
    """x (N, C, H, W) read along flow (N, 2, H, W), float32; in x's dtype and memory format."""
    images, channels, height, width = x.shape
    out = gemm.empty_image(x, channels, (height, width))
    if out.numel() == 0:
        return out
    tiles, channel_tiles, meta = _tile(x)
    with gemm.on_device_of(x):
        _forward[(images * tiles * channel_tiles,)](
            x, flow, out, tiles, channel_tiles, channels, height, width, *x.stride(), *flow.stride(), *out.stride(),
            BORDER=padding == "border", **meta,
        )  # fmt: skip
    return out


def grad_flow(grad_output: torch.Tensor, x: torch.Tensor, flow: torch.Tensor, padding: str) -> torch.Tensor:
    """The gradient (N, 2, H, W) in flow, float32, in flow's memory format."""
    images, channels, height, width = x.shape
    grad = gemm.empty_image(flow, 2, (height, width))
    if grad.numel() == 0:
        return grad
    if channels == 0:
        return grad.zero_()
    tiles, _, meta = _tile(x)
    with gemm.on_device_of(x):
        _grad_flow[(images * tiles,)](
            grad_output, x, flow, grad, tiles, channels, height, width, *grad_output.stride(), *x.stride(),
            *flow.stride(), *grad.stride(), BORDER=padding == "border", **meta,
        )  # fmt: skip
    return grad


def grad_x(grad_output: torch.Tensor, flow: torch.Tensor, padding: str) -> torch.Tensor:
    """The gradient (N, C, H, W) in x, in grad_output's dtype and memory format."""
    images, channels, height, width = grad_output.shape
    grad = gemm.empty_image(grad_output, channels, (height, width))
    if grad.numel() == 0:
        return grad
    tiles, channel_tiles, meta = _tile(grad_output)
    sums = torch.zeros_like(grad, dtype=torch.int64)
    largest = torch.zeros(images, dtype=torch.int32, device=grad.device)
    numbers, bits = channels * height * width, _bits(height, width)
    where = (tiles, channel_tiles, channels, height, width, *grad_output.stride(), *flow.stride())
    with gemm.on_device_of(grad):
        _largest[(images * tiles * channel_tiles,)](grad_output, flow, largest, *where, **meta)
        _scatter[(images * tiles * channel_tiles,)](
            grad_output, flow, largest, sums, *where, *sums.stride(), BITS=bits, BORDER=padding == "border", **meta
        )
        blocks = triton.cdiv(numbers, _ELEMENTS)
        _settle[(images * blocks,)](sums, largest, grad, blocks, numbers, BITS=bits, BLOCK=_ELEMENTS, num_warps=WARPS)
    return grad
