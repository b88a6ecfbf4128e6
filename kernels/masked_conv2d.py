"""masked_conv2d on GPUs in Triton: forward, gradient of the input, gradient of the weight.

Kept taps. Counted row by row, the taps of a causal mask are the first `CENTRE = kh//2 * kw + kw//2` ones (the
past), then possibly the centre. So "visit only kept taps" is a loop over a range, and no masked weight, no later
pixel and no later colour is ever an operand of a product that reaches an output.

Tiling of `_convolve`. An implicit GEMM: rows are pixels (N*H*W, flattened), columns are output channels, the inner
dimension is kept taps x input channels. A program owns BLOCK_M pixels x BLOCK_N channels, e.g. 128 x 128 with fp32
accumulators in the registers of 8 warps, and walks the inner dimension in slices of BLOCK_K channels of one tap: for
k=3, mask B and 128 channels in bf16 that is 5 taps x 2 slices of 64. Each slice loads 128 x 64 of the image, shifted
by the tap (16 KB), and 64 x 128 of the weight (16 KB), three slices in flight (96 KB of shared memory). With fewer
than 16 input channels a slice of one tap would be mostly padding, so there (`FLAT`) taps and channels are one index.
The programs that share pixels are neighbours in the grid and meet in L2. Images of 16 channels and more are brought
into channels_last first: a row of pixels that a tap has shifted is not aligned, a pixel's channels are.

The gradient of the input is the same kernel (`ADJOINT`): shifts change sign, the weight's channel axes change roles.

Colours. At the centre tap an output channel sees only some input channels. A slice there holds channels of one
colour; its product is formed by itself and selected from, so 0 * NaN never happens.

Tiling of `_grad_weight`. A GEMM with the pixels as the inner dimension: a program owns BLOCK_M output channels x
BLOCK_N lanes (input channels of one tap; with FLAT taps x channels) and one of SPLITS runs of pixels, and stores an
fp32 partial sum. `_reduce_partials` adds the partials in the order of their runs and writes exact zeros at masked
taps. No atomics, so the same input gives the same bits.

Which tile runs is a function of the shape without N, the dtype and the GPU generation, so a sample's bits do not
depend on the batch around it (tiles.py); VIDGEN_AUTOTUNE=1 gives that up (autotune.py).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import autotune, gemm
from .gemm import multiply, sum_of_runs
from .tiles import Tile, convolve_candidates, convolve_tile, grad_weight_tile, split_pixels


@triton.jit
def _colour(channel, CHANNELS: tl.constexpr, COLORS: tl.constexpr, INTERLEAVED: tl.constexpr):
    if INTERLEAVED:
        return channel % COLORS
    else:
        return channel // (CHANNELS // COLORS)


@triton.jit
def _keeps(colour_in, colour_out, MASK_B: tl.constexpr):
    if MASK_B:
        return colour_in <= colour_out
    else:
        return colour_in < colour_out


@triton.jit(do_not_specialize=["images"])
def _convolve(
    x, w, bias, y,
    images, area, height, width,
    x_n, x_c, x_h, x_w,
    w_out, w_in, w_tap,
    y_n, y_c, y_pixel,
    IN: tl.constexpr, OUT: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, DILATION: tl.constexpr,
    MASK_B: tl.constexpr, COLORS: tl.constexpr, INTERLEAVED: tl.constexpr, ADJOINT: tl.constexpr,
    HAS_BIAS: tl.constexpr, FLAT: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    CENTRE: tl.constexpr = (KERNEL_H // 2) * KERNEL_W + KERNEL_W // 2
    TAPS: tl.constexpr = CENTRE + (1 if COLORS == 1 and MASK_B else 0)
    REACH: tl.constexpr = -DILATION if ADJOINT else DILATION
    SLICES: tl.constexpr = (IN + BLOCK_K - 1) // BLOCK_K
    STEPS: tl.constexpr = (TAPS * IN + BLOCK_K - 1) // BLOCK_K if FLAT else TAPS * SLICES
    COLUMNS: tl.constexpr = (OUT + BLOCK_N - 1) // BLOCK_N

    tile = tl.program_id(0)
    if WIDE:
        tile = tile.to(tl.int64)
    pixel = (tile // COLUMNS) * BLOCK_M + tl.arange(0, BLOCK_M)  # [M]
    channel = (tile % COLUMNS).to(tl.int32) * BLOCK_N + tl.arange(0, BLOCK_N)  # [N]
    lane = tl.arange(0, BLOCK_K)  # [K]
    is_channel = channel < OUT
    image = (pixel // area).to(tl.int64)
    is_pixel = image < images  # and not `pixel < pixels`: of this the compiler knows that 16 neighbours agree
    place = pixel % area
    row = (place // width).to(tl.int32)
    column = (place % width).to(tl.int32)
    x_pixel = x + (image * x_n + row.to(tl.int64) * x_h + column.to(tl.int64) * x_w)  # pointers: offsets are 64-bit
    w_channel = w + channel.to(tl.int64) * w_out

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(STEPS):
        if FLAT:
            k = step * BLOCK_K + lane
            tap = k // IN
            c = k % IN
            is_lane = tap < TAPS
            dy = REACH * (tap // KERNEL_W - KERNEL_H // 2)
            dx = REACH * (tap % KERNEL_W - KERNEL_W // 2)
            r = row[:, None] + dy[None, :]
            s = column[:, None] + dx[None, :]
            inside = (r >= 0) & (r < height) & (s >= 0) & (s < width)
        else:
            tap = step // SLICES
            c = (step % SLICES) * BLOCK_K + lane
            is_lane = c < IN
            dy = REACH * (tap // KERNEL_W - KERNEL_H // 2)
            dx = REACH * (tap % KERNEL_W - KERNEL_W // 2)
            r = row + dy
            s = column + dx
            inside = ((r >= 0) & (r < height) & (s >= 0) & (s < width))[:, None]
        x_lane = tl.cast(dy, tl.int64) * x_h + tl.cast(dx, tl.int64) * x_w + c.to(tl.int64) * x_c
        w_lane = tl.cast(tap, tl.int64) * w_tap + c.to(tl.int64) * w_in
        x_mask = inside & is_pixel[:, None] & is_lane[None, :]
        a = tl.load(x_pixel[:, None] + x_lane[None, :], mask=x_mask, other=0.0)  # [M, K]
        b = tl.load(w_channel[None, :] + w_lane[:, None], mask=is_channel[None, :] & is_lane[:, None], other=0.0)
        acc = multiply(a, b, acc, PRECISION, WIDEN)

    if COLORS > 1:
        GROUP: tl.constexpr = IN // COLORS
        GROUP_SLICES: tl.constexpr = (GROUP + BLOCK_K - 1) // BLOCK_K
        own = _colour(channel, OUT, COLORS, INTERLEAVED)  # [N]
        for step in range(COLORS * GROUP_SLICES):
            other = step // GROUP_SLICES  # the colour that is read
            j = (step % GROUP_SLICES) * BLOCK_K + lane
            c = j * COLORS + other if INTERLEAVED else other * GROUP + j
            kept = _keeps(own, other, MASK_B) if ADJOINT else _keeps(other, own, MASK_B)
            kept = kept & is_channel
            is_lane = j < GROUP
            x_lane = c.to(tl.int64) * x_c
            w_lane = CENTRE * w_tap + c.to(tl.int64) * w_in
            a = tl.load(x_pixel[:, None] + x_lane[None, :], mask=is_pixel[:, None] & is_lane[None, :], other=0.0)
            b = tl.load(w_channel[None, :] + w_lane[:, None], mask=kept[None, :] & is_lane[:, None], other=0.0)
            part = multiply(a, b, tl.zeros((BLOCK_M, BLOCK_N), tl.float32), PRECISION, WIDEN)
            acc += tl.where(kept[None, :], part, 0.0)

    if HAS_BIAS:
        acc += tl.load(bias + channel, mask=is_channel, other=0.0).to(tl.float32)[None, :]
    y_image = y + (image * y_n + place.to(tl.int64) * y_pixel)
    tl.store(
        y_image[:, None] + (channel.to(tl.int64) * y_c)[None, :],
        acc.to(y.dtype.element_ty),
        mask=is_pixel[:, None] & is_channel[None, :],
    )


@triton.jit(do_not_specialize=["images", "run"])
def _grad_weight(
    g, x, partial,
    images, run, area, height, width,
    g_n, g_c, g_h, g_w,
    x_n, x_c, x_h, x_w,
    IN: tl.constexpr, OUT: tl.constexpr, TAPS: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    DILATION: tl.constexpr, FLAT: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    SLICES: tl.constexpr = (IN + BLOCK_N - 1) // BLOCK_N
    LANES: tl.constexpr = TAPS * IN
    COLUMNS: tl.constexpr = (LANES + BLOCK_N - 1) // BLOCK_N if FLAT else TAPS * SLICES

    tile = tl.program_id(0)
    split = tl.program_id(1)
    channel = (tile // COLUMNS) * BLOCK_M + tl.arange(0, BLOCK_M)  # [M]
    if FLAT:
        k = (tile % COLUMNS) * BLOCK_N + tl.arange(0, BLOCK_N)  # [N]
        tap = k // IN
        c = k % IN
        is_lane = k < LANES
        dy = DILATION * (tap // KERNEL_W - KERNEL_H // 2)[None, :]
        dx = DILATION * (tap % KERNEL_W - KERNEL_W // 2)[None, :]
        x_lane = x + (tl.cast(dy, tl.int64) * x_h + tl.cast(dx, tl.int64) * x_w + c.to(tl.int64)[None, :] * x_c)
    else:
        tap = (tile % COLUMNS) // SLICES
        c = (tile % COLUMNS) % SLICES * BLOCK_N + tl.arange(0, BLOCK_N)
        is_lane = c < IN
        dy = DILATION * (tap // KERNEL_W - KERNEL_H // 2)
        dx = DILATION * (tap % KERNEL_W - KERNEL_W // 2)
        x_lane = x + (tl.cast(dy, tl.int64) * x_h + tl.cast(dx, tl.int64) * x_w + c.to(tl.int64)[None, :] * x_c)
    is_channel = channel < OUT
    g_channel = g + channel.to(tl.int64) * g_c

    if WIDE:
        split = split.to(tl.int64)
    first = split * run
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, run, BLOCK_K):
        pixel = first + start + tl.arange(0, BLOCK_K)  # [K]
        image = (pixel // area).to(tl.int64)
        is_pixel = image < images
        row = (pixel % area // width).to(tl.int32)
        column = (pixel % area % width).to(tl.int32)
        r = row[:, None] + dy
        s = column[:, None] + dx
        inside = (r >= 0) & (r < height) & (s >= 0) & (s < width)
        g_pixel = image * g_n + row.to(tl.int64) * g_h + column.to(tl.int64) * g_w
        x_pixel = image * x_n + row.to(tl.int64) * x_h + column.to(tl.int64) * x_w
        a = tl.load(g_channel[:, None] + g_pixel[None, :], mask=is_channel[:, None] & is_pixel[None, :], other=0.0)
        b = tl.load(x_lane + x_pixel[:, None], mask=inside & is_pixel[:, None] & is_lane[None, :], other=0.0)
        acc = multiply(a, b, acc, PRECISION, WIDEN)

    at = (split.to(tl.int64) * OUT + channel[:, None]) * LANES + (tap * IN + c)[None, :]
    tl.store(partial + at, acc, mask=is_channel[:, None] & is_lane[None, :])


@triton.jit(do_not_specialize=["splits"])
def _reduce_partials(
    partial, grad, splits,
    IN: tl.constexpr, OUT: tl.constexpr, TAPS: tl.constexpr, ALL_TAPS: tl.constexpr,
    MASK_B: tl.constexpr, COLORS: tl.constexpr, INTERLEAVED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_element = element < OUT * IN * ALL_TAPS
    tap = element % ALL_TAPS
    c = (element // ALL_TAPS) % IN
    channel = element // ALL_TAPS // IN
    kept = _keeps(_colour(c, IN, COLORS, INTERLEAVED), _colour(channel, OUT, COLORS, INTERLEAVED), MASK_B)
    kept = is_element & ((tap < ALL_TAPS // 2) | ((tap == ALL_TAPS // 2) & kept))
    at = partial + (channel * TAPS + tap) * IN + c
    acc = sum_of_runs(at, kept, splits, OUT * TAPS * IN, BLOCK)
    tl.store(grad + element, acc.to(grad.dtype.element_ty), mask=is_element)


def _run_convolve(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, mask: str, colors: int, color_layout: str,
    dilation: int, adjoint: bool,
) -> torch.Tensor:  # fmt: skip
    """`weight` is (channels written, channels read, kh, kw); rows of it are read along the channels read."""
    weight = gemm.channels_last_of(weight)
    channels_out, channels_in, kernel_h, kernel_w = weight.shape
    y = gemm.empty_image(x, channels_out, x.shape[2:])
    if y.numel() == 0:
        return y
    flat = channels_in < gemm.FEW_CHANNELS
    x = x if flat else gemm.channels_last_of(x)
    height, width = x.shape[2:]
    area, pixels, precision = height * width, x.shape[0] * height * width, gemm.precision_of(x.dtype)
    constants = {
        "IN": channels_in, "OUT": channels_out, "KERNEL_H": kernel_h, "KERNEL_W": kernel_w, "DILATION": dilation,
        "MASK_B": mask == "B", "COLORS": colors, "INTERLEAVED": color_layout == "interleaved", "ADJOINT": adjoint,
        "HAS_BIAS": bias is not None, "FLAT": flat, "WIDE": pixels > 2**30, "PRECISION": precision,
        "WIDEN": gemm.needs_widening(x.dtype),
    }  # fmt: skip
    capability = gemm.capability_of(x)

    def launch(tile: Tile) -> None:
        grid = (triton.cdiv(pixels, tile.m) * triton.cdiv(channels_out, tile.n),)
        _convolve[grid](
            x, weight, bias, y, x.shape[0], area, height, width, *x.stride(), weight.stride(0), weight.stride(1),
            weight.stride(3 if kernel_w > 1 else 2), y.stride(0), y.stride(1), y.stride(3), **constants, **tile.meta(),
        )  # fmt: skip

    with gemm.on_device_of(x):
        tile = convolve_tile(channels_in, channels_out, area, x.element_size(), precision, capability)
        if autotune.enabled():
            key = ("masked_conv2d._convolve", str(x.dtype), area, *sorted(constants.items()), y.stride(1) == 1)
            tile = autotune.choose(key, tile, convolve_candidates(tile), launch, Tile._make)
        launch(tile)
    return y


def forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, mask: str, colors: int, color_layout: str,
    dilation: int,
) -> torch.Tensor:  # fmt: skip
    """y (N, Cout, H, W) of x (N, Cin, H, W), weight (Cout, Cin, kh, kw) and bias (Cout); channels_last stays so."""
    bias = None if bias is None else bias.contiguous()
    return _run_convolve(x, weight, bias, mask, colors, color_layout, dilation, False)


def grad_input(
    grad_output: torch.Tensor, weight: torch.Tensor, mask: str, colors: int, color_layout: str, dilation: int
) -> torch.Tensor:
    """Gradient (N, Cin, H, W) of the input from grad_output (N, Cout, H, W) and weight (Cout, Cin, kh, kw)."""
    return _run_convolve(grad_output, weight.transpose(0, 1), None, mask, colors, color_layout, dilation, True)


def grad_weight(
    grad_output: torch.Tensor, x: torch.Tensor, kernel_size: list[int], mask: str, colors: int, color_layout: str,
    dilation: int,
) -> torch.Tensor:  # fmt: skip
    """Gradient (Cout, Cin, kh, kw) of the weight, contiguous; masked taps are exactly zero."""
    (kernel_h, kernel_w), channels_out, channels_in = kernel_size, grad_output.shape[1], x.shape[1]
    grad = torch.empty((channels_out, channels_in, kernel_h, kernel_w), dtype=x.dtype, device=x.device)
    height, width = x.shape[2:]
    area, pixels, precision = height * width, x.shape[0] * height * width, gemm.precision_of(x.dtype)
    taps = kernel_h * kernel_w // 2 + (1 if colors > 1 or mask == "B" else 0)
    if pixels == 0 or taps == 0:
        return grad.zero_()
    flat = channels_in < gemm.FEW_CHANNELS
    x = x if flat else gemm.channels_last_of(x)
    if channels_out >= gemm.FEW_CHANNELS:
        grad_output = gemm.channels_last_of(grad_output)
    lanes = taps * channels_in if flat else channels_in
    constants = {
        "IN": channels_in, "OUT": channels_out, "TAPS": taps, "KERNEL_H": kernel_h, "KERNEL_W": kernel_w,
        "DILATION": dilation, "FLAT": flat, "WIDE": pixels > 2**30, "PRECISION": precision,
        "WIDEN": gemm.needs_widening(x.dtype),
    }  # fmt: skip
    tile = grad_weight_tile(channels_out, lanes, x.element_size(), precision, gemm.capability_of(x))
    tiles = triton.cdiv(channels_out, tile.m) * triton.cdiv(lanes, tile.n) * (1 if flat else taps)
    run, splits = split_pixels(pixels, tiles, tile.k)
    partial = torch.empty(splits * channels_out * taps * channels_in, dtype=torch.float32, device=x.device)
    with gemm.on_device_of(x):
        _grad_weight[(tiles, splits)](
            grad_output, x, partial, x.shape[0], run, area, height, width, *grad_output.stride(), *x.stride(),
            **constants, **tile.meta(),
        )  # fmt: skip
        _reduce_partials[(triton.cdiv(grad.numel(), 256),)](
            partial, grad, splits, IN=channels_in, OUT=channels_out, TAPS=taps, ALL_TAPS=kernel_h * kernel_w,
            MASK_B=mask == "B", COLORS=colors, INTERLEAVED=color_layout == "interleaved", BLOCK=256, num_warps=4,
        )  # fmt: skip
    return grad
