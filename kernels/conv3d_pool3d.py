"""conv3d_pool3d on GPUs in Triton: forward, gradient of the preactivation, gradients of input and weight.

Tiling of `_convolve`. An implicit GEMM: columns are output channels, the inner dimension is taps x input channels, rows
are voxels of z in the order (clip, pooling window, place in the window), so that a tile holds whole windows. A window
takes WINDOW rows, its size rounded up to a power of two: 4 for (1, 2, 2) and 8 for (2, 2, 2), with nothing lost; 8 for
the 6 voxels of (3, 2, 1), 64 for (4, 4, 4), which is the least BLOCK_M. A program owns BLOCK_M voxels x BLOCK_N
channels, e.g. 128 x 128 with fp32 accumulators in the registers of 8 warps, which is 32 windows of (1, 2, 2), and
walks the inner dimension in slices of BLOCK_K channels of one tap: for 3x3x3 and 128 channels in bf16 that is 27 taps
x 2 slices of 64, each 16 KB of the clip, shifted by the tap, and 16 KB of the weight, three slices in flight. Then come
bias and, where a row is no voxel (by the rounding, or cut off by ceil_mode), -inf; the tile is read as windows x WINDOW
x BLOCK_N and reduced over its middle axis; the maxima are stored, 1/4 or 1/8 of what the unpooled z would be. The
programs that share voxels are neighbours in the grid and meet in L2.

The arithmetic of C3D's conv2 in bf16, 64 to 128 channels, 3x3x3, z of 16x56x56, window (2, 2, 2): 2 * 27 * 64 * 128 *
50,176 = 22.2 GFLOP against 6.4 MB of clip, 0.4 MB of weight and 1.6 MB of output, 2,600 FLOP per byte; storing and
reading z would add 25.7 MB.

With fewer than 16 input channels taps and channels are one index (`FLAT`), otherwise a slice of one tap would be mostly
padding. Clips of 16 channels and more are brought into channels_last_3d first: a row of voxels that a tap has shifted
is not aligned, a voxel's channels are.

`_route` computes z once more by such tiles, narrower ones, and writes the gradient of a window to one voxel of it: the
first of equal maxima, but the last of NaNs, which is where PyTorch's scan ends. Its windows cover all of z, also where
no window of the forward does, so one store per voxel writes the gradients and all the zeros.

The gradient of the input is `_convolve` without windows (`ADJOINT`): shifts change sign, the weight's channel axes
change roles.

Tiling of `_grad_weight`. A GEMM with the voxels of z as the inner dimension: a program owns BLOCK_M output channels x
BLOCK_N lanes (input channels of one tap; with FLAT taps x channels) and one of SPLITS runs of voxels, and stores an
fp32 partial sum. `_reduce_partials` adds the partials in the order of their runs. No atomics, so the same input gives
the same bits.

Which tile runs is a function of the shape without N, the dtype and the GPU generation, so a clip's bits do not depend
on the batch around it (tiles.py); VIDGEN_AUTOTUNE=1 gives that up (autotune.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from . import autotune, gemm
from .conv3d_pool3d_tile import preactivation, taps_at, voxels_of, windows_at
from .gemm import multiply, sum_of_runs
from .tiles import Tile, convolve_candidates, convolve_tile, grad_weight_tile, routing_tile, split_pixels


@triton.jit(do_not_specialize=["clips"])
def _convolve(
    x, weight, bias, y,
    clips, windows, windows_hw, windows_w, z_depth, z_height, z_width, depth, height, width,
    x_n, x_c, x_d, x_h, x_w,
    y_n, y_c, y_voxel,
    IN: tl.constexpr, OUT: tl.constexpr, KERNEL_D: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    PAD_D: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    POOL_D: tl.constexpr, POOL_H: tl.constexpr, POOL_W: tl.constexpr, WINDOW: tl.constexpr,
    RELU: tl.constexpr, ADJOINT: tl.constexpr, HAS_BIAS: tl.constexpr,
    FLAT: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    COLUMNS: tl.constexpr = (OUT + BLOCK_N - 1) // BLOCK_N
    OUTPUTS: tl.constexpr = BLOCK_M // WINDOW

    tile = tl.program_id(0)
    if WIDE:
        tile = tile.to(tl.int64)
    channel = (tile % COLUMNS).to(tl.int32) * BLOCK_N + tl.arange(0, BLOCK_N)  # [N]
    tile = tile // COLUMNS
    clip, d, h, w, exists = voxels_of(
        tile, clips, windows, windows_hw, windows_w, z_depth, z_height, z_width,
        POOL_D, POOL_H, POOL_W, WINDOW, BLOCK_M,
    )  # fmt: skip
    z = preactivation(
        x, weight, bias, clip, d, h, w, exists, channel, depth, height, width, x_n, x_c, x_d, x_h, x_w,
        IN, OUT, KERNEL_D, KERNEL_H, KERNEL_W, PAD_D, PAD_H, PAD_W, ADJOINT, HAS_BIAS, FLAT, PRECISION, WIDEN,
        BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip

    if WINDOW > 1:
        z = tl.reshape(tl.where(exists[:, None], z, float("-inf")), (OUTPUTS, WINDOW, BLOCK_N))
        # a GPU's maximum passes NaNs over
        is_nan = z != z
        has_nan = tl.max(is_nan.to(tl.int32), 1) > 0
        z = tl.where(has_nan, float("nan"), tl.max(tl.where(is_nan, float("-inf"), z), 1))
    if RELU:
        z = tl.where(z <= 0, 0.0, z)  # and not `z > 0`: NaNs stay

    window = tile * OUTPUTS + tl.arange(0, OUTPUTS)
    clip = (window // windows).to(tl.int64)
    y_window = y + (clip * y_n + (window % windows).to(tl.int64) * y_voxel)
    tl.store(
        y_window[:, None] + (channel.to(tl.int64) * y_c)[None, :],
        z.to(y.dtype.element_ty),
        mask=(clip < clips)[:, None] & (channel < OUT)[None, :],
    )


@triton.jit(do_not_specialize=["clips"])
def _route(
    g, x, weight, bias, grad,
    clips, windows, windows_hw, windows_w, y_depth, y_height, y_width, z_depth, z_height, z_width, depth, height, width,
    g_n, g_c, g_d, g_h, g_w,
    x_n, x_c, x_d, x_h, x_w,
    grad_n, grad_c, grad_voxel,
    IN: tl.constexpr, OUT: tl.constexpr, KERNEL_D: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    PAD_D: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    POOL_D: tl.constexpr, POOL_H: tl.constexpr, POOL_W: tl.constexpr, WINDOW: tl.constexpr,
    RELU: tl.constexpr, ADJOINT: tl.constexpr, HAS_BIAS: tl.constexpr,
    FLAT: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    COLUMNS: tl.constexpr = (OUT + BLOCK_N - 1) // BLOCK_N
    OUTPUTS: tl.constexpr = BLOCK_M // WINDOW

    tile = tl.program_id(0)
    if WIDE:
        tile = tile.to(tl.int64)
    channel = (tile % COLUMNS).to(tl.int32) * BLOCK_N + tl.arange(0, BLOCK_N)  # [N]
    tile = tile // COLUMNS
    is_channel = channel < OUT
    clip, d, h, w, exists = voxels_of(
        tile, clips, windows, windows_hw, windows_w, z_depth, z_height, z_width,
        POOL_D, POOL_H, POOL_W, WINDOW, BLOCK_M,
    )  # fmt: skip
    z = preactivation(
        x, weight, bias, clip, d, h, w, exists, channel, depth, height, width, x_n, x_c, x_d, x_h, x_w,
        IN, OUT, KERNEL_D, KERNEL_H, KERNEL_W, PAD_D, PAD_H, PAD_W, ADJOINT, HAS_BIAS, FLAT, PRECISION, WIDEN,
        BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    z = tl.reshape(tl.where(exists[:, None], z, float("-inf")), (OUTPUTS, WINDOW, BLOCK_N))

    # a window's first voxel exists, so even among voxels that are all -inf the first is a real one
    j = tl.arange(0, WINDOW)[None, :, None]
    is_nan = z != z
    best = tl.max(tl.where(is_nan, float("-inf"), z), 1)  # [P, N]
    first = tl.min(tl.where(z == best[:, None, :], j, WINDOW), 1)
    last_nan = tl.max(tl.where(is_nan, j, -1), 1)
    chosen = tl.where(last_nan >= 0, last_nan, first)
    live = is_channel[None, :]
    if RELU:
        live = live & ((last_nan >= 0) | (best > 0))

    at, at_d, at_h, at_w = windows_at(tile * OUTPUTS + tl.arange(0, OUTPUTS), windows, windows_hw, windows_w)
    # the last windows of an axis may be none of the forward's
    is_pooled = (at < clips) & (at_d < y_depth) & (at_h < y_height) & (at_w < y_width)
    g_window = g + (at * g_n + at_d.to(tl.int64) * g_d + at_h.to(tl.int64) * g_h + at_w.to(tl.int64) * g_w)
    g_at = g_window[:, None] + (channel.to(tl.int64) * g_c)[None, :]
    given = tl.load(g_at, mask=live & is_pooled[:, None], other=0.0)  # [P, N]
    routed = tl.where(j == chosen[:, None, :], given[:, None, :], 0.0)

    voxel = (d * z_height + h).to(tl.int64) * z_width + w
    grad_at = grad + (clip * grad_n + voxel * grad_voxel)
    tl.store(
        grad_at[:, None] + (channel.to(tl.int64) * grad_c)[None, :],
        tl.reshape(routed, (BLOCK_M, BLOCK_N)),
        mask=exists[:, None] & is_channel[None, :],
    )


@triton.jit(do_not_specialize=["clips", "run"])
def _grad_weight(
    g, x, partial,
    clips, run, voxels, voxels_hw, z_width, depth, height, width,
    g_n, g_c, g_d, g_h, g_w,
    x_n, x_c, x_d, x_h, x_w,
    IN: tl.constexpr, OUT: tl.constexpr, KERNEL_D: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    PAD_D: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    FLAT: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    TAPS: tl.constexpr = KERNEL_D * KERNEL_H * KERNEL_W
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
    else:
        tap = (tile % COLUMNS) // SLICES
        c = (tile % COLUMNS) % SLICES * BLOCK_N + tl.arange(0, BLOCK_N)
        is_lane = c < IN
    p, q, r = taps_at(tap, KERNEL_H, KERNEL_W)
    dd = p - PAD_D
    dh = q - PAD_H
    dw = r - PAD_W
    x_lane = tl.cast(dd, tl.int64) * x_d + tl.cast(dh, tl.int64) * x_h + tl.cast(dw, tl.int64) * x_w
    x_lane = x + (x_lane + c.to(tl.int64) * x_c)
    is_channel = channel < OUT
    g_channel = g + channel.to(tl.int64) * g_c

    if WIDE:
        split = split.to(tl.int64)
    first = split * run
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, run, BLOCK_K):
        clip, d, h, w = windows_at(first + start + tl.arange(0, BLOCK_K), voxels, voxels_hw, z_width)  # [K]
        exists = clip < clips
        if FLAT:
            at_d = d[:, None] + dd[None, :]
            at_h = h[:, None] + dh[None, :]
            at_w = w[:, None] + dw[None, :]
        else:
            at_d = (d + dd)[:, None]
            at_h = (h + dh)[:, None]
            at_w = (w + dw)[:, None]
        inside = (at_d >= 0) & (at_d < depth) & (at_h >= 0) & (at_h < height) & (at_w >= 0) & (at_w < width)
        g_voxel = clip * g_n + d.to(tl.int64) * g_d + h.to(tl.int64) * g_h + w.to(tl.int64) * g_w
        x_voxel = clip * x_n + d.to(tl.int64) * x_d + h.to(tl.int64) * x_h + w.to(tl.int64) * x_w
        a = tl.load(g_channel[:, None] + g_voxel[None, :], mask=is_channel[:, None] & exists[None, :], other=0.0)
        b_mask = inside & exists[:, None] & is_lane[None, :]
        b = tl.load(x_lane[None, :] + x_voxel[:, None], mask=b_mask, other=0.0)
        acc = multiply(a, b, acc, PRECISION, WIDEN)

    at = (split.to(tl.int64) * OUT + channel[:, None]) * LANES + (tap * IN + c)[None, :]
    tl.store(partial + at, acc, mask=is_channel[:, None] & is_lane[None, :])


@triton.jit(do_not_specialize=["splits"])
def _reduce_partials(
    partial, grad, splits, IN: tl.constexpr, OUT: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr
):
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_element = element < OUT * IN * TAPS
    at = partial + (element // (IN * TAPS) * TAPS + element % TAPS) * IN + element // TAPS % IN
    total = sum_of_runs(at, is_element, splits, OUT * TAPS * IN, BLOCK)
    tl.store(grad + element, total.to(grad.dtype.element_ty), mask=is_element)


def _strides_of_places(t: torch.Tensor) -> tuple[int, int, int]:
    """Strides of N, C and of places in their order, of a tensor that `empty_image` made."""
    return t.stride(0), t.stride(1), t.stride(4)


def _convolution(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: Sequence[int], pool: Sequence[int],
    windows: Sequence[int], z_size: Sequence[int], relu: bool, adjoint: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, int, tuple[int, ...], dict[str, object], Tile]:  # fmt: skip
    """What `_convolve` and `_route` have in common.

    `weight` is (channels written, channels read, kd, kh, kw); `windows` counts the pooling windows of an axis.

    Returns: x, weight and bias as the kernels read them; rows in all; sizes; constants; the shipped tile.
    """
    channels_out, channels_in = weight.shape[:2]
    flat = channels_in < gemm.FEW_CHANNELS
    x = x if flat else gemm.channels_last_of(x)
    window = triton.next_power_of_2(math.prod(pool))
    area, precision = math.prod(windows) * window, gemm.precision_of(x.dtype)
    sizes = (x.shape[0], math.prod(windows), windows[1] * windows[2], windows[2])
    constants = {
        "IN": channels_in, "OUT": channels_out,
        "KERNEL_D": weight.shape[2], "KERNEL_H": weight.shape[3], "KERNEL_W": weight.shape[4],
        "PAD_D": padding[0], "PAD_H": padding[2], "PAD_W": padding[4],
        "POOL_D": pool[0], "POOL_H": pool[1], "POOL_W": pool[2], "WINDOW": window,
        "RELU": relu, "ADJOINT": adjoint, "HAS_BIAS": bias is not None,
        "FLAT": flat, "WIDE": x.shape[0] * area > 2**30, "PRECISION": precision, "WIDEN": gemm.needs_widening(x.dtype),
    }  # fmt: skip
    tile = convolve_tile(channels_in, channels_out, area, x.element_size(), precision, gemm.capability_of(x))
    bias = None if bias is None else bias.contiguous()
    return x, gemm.channels_last_of(weight), bias, x.shape[0] * area, (*sizes, *z_size), constants, tile


def _run_convolve(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: Sequence[int], pool: Sequence[int],
    y_size: Sequence[int], z_size: Sequence[int], relu: bool, adjoint: bool,
) -> torch.Tensor:  # fmt: skip
    channels_out = weight.shape[0]
    y = gemm.empty_image(x, channels_out, y_size)
    if y.numel() == 0:
        return y
    x, weight, bias, rows, sizes, constants, tile = _convolution(
        x, weight, bias, padding, pool, y_size, z_size, relu, adjoint
    )

    def launch(tile: Tile) -> None:
        grid = (triton.cdiv(rows, tile.m) * triton.cdiv(channels_out, tile.n),)
        _convolve[grid](
            x, weight, bias, y, *sizes, *x.shape[2:], *x.stride(), *_strides_of_places(y), **constants, **tile.meta()
        )

    with gemm.on_device_of(x):
        if autotune.enabled():
            key = ("conv3d_pool3d._convolve", str(x.dtype), *y_size, *sorted(constants.items()), y.stride(1) == 1)
            tile = autotune.choose(key, tile, convolve_candidates(tile), launch, Tile._make)
        launch(tile)
    return y


def _z_size(x: torch.Tensor, kernel_size: Sequence[int], padding: Sequence[int]) -> list[int]:
    return [x.shape[2 + i] + padding[2 * i] + padding[2 * i + 1] - kernel_size[i] + 1 for i in range(3)]


def _windows(size: Sequence[int], pool: Sequence[int], ceil_mode: bool) -> list[int]:
    return [triton.cdiv(s, k) if ceil_mode else s // k for s, k in zip(size, pool, strict=True)]


def forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: Sequence[int], activation: str,
    pool: Sequence[int], ceil_mode: bool,
) -> torch.Tensor:  # fmt: skip
    """y (N, Cout, D', H', W') of x (N, Cin, D, H, W), weight (Cout, Cin, kd, kh, kw) and bias (Cout).

    `padding` is before and after, for depth, height and width. channels_last_3d stays so.
    """
    z_size = _z_size(x, weight.shape[2:], padding)
    y_size = _windows(z_size, pool, ceil_mode)
    return _run_convolve(x, weight, bias, padding, pool, y_size, z_size, activation == "relu", False)


def grad_preactivation(
    grad_output: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: Sequence[int],
    activation: str, pool: Sequence[int], ceil_mode: bool,
) -> torch.Tensor:  # fmt: skip
    """Gradient (N, Cout, D, H, W) of z from that of y and what `forward` takes; in the memory format of x."""
    channels_out, z_size = weight.shape[0], _z_size(x, weight.shape[2:], padding)
    grad = gemm.empty_image(x, channels_out, z_size)
    if grad.numel() == 0:
        return grad
    windows, relu = _windows(z_size, pool, True), activation == "relu"
    x, weight, bias, rows, sizes, constants, tile = _convolution(
        x, weight, bias, padding, pool, windows, z_size, relu, False
    )
    tile, y_size = routing_tile(tile, grad.stride(1) == 1), _windows(z_size, pool, ceil_mode)
    grid = (triton.cdiv(rows, tile.m) * triton.cdiv(channels_out, tile.n),)
    with gemm.on_device_of(x):
        _route[grid](
            grad_output, x, weight, bias, grad, *sizes[:4], *y_size, *sizes[4:], *x.shape[2:], *grad_output.stride(),
            *x.stride(), *_strides_of_places(grad), **constants, **tile.meta(),
        )  # fmt: skip
    return grad


def grad_input(grad: torch.Tensor, weight: torch.Tensor, padding: Sequence[int]) -> torch.Tensor:
    """Gradient (N, Cin, D, H, W) of x from that of z (N, Cout, ...) and weight (Cout, Cin, kd, kh, kw)."""
    size = [grad.shape[2 + i] + weight.shape[2 + i] - 1 - padding[2 * i] - padding[2 * i + 1] for i in range(3)]
    return _run_convolve(grad, weight.transpose(0, 1), None, padding, (1, 1, 1), size, size, False, True)


def grad_weight(
    grad: torch.Tensor, x: torch.Tensor, kernel_size: Sequence[int], padding: Sequence[int]
) -> torch.Tensor:
    """Gradient (Cout, Cin, kd, kh, kw) of the weight, contiguous, from that of z and x."""
    taps, channels_out, channels_in = math.prod(kernel_size), grad.shape[1], x.shape[1]
    result = torch.empty((channels_out, channels_in, *kernel_size), dtype=x.dtype, device=x.device)
    z_size, precision = grad.shape[2:], gemm.precision_of(x.dtype)
    voxels = x.shape[0] * math.prod(z_size)
    if voxels == 0 or result.numel() == 0:
        return result.zero_()
    flat = channels_in < gemm.FEW_CHANNELS
    x = x if flat else gemm.channels_last_of(x)
    if channels_out >= gemm.FEW_CHANNELS:
        grad = gemm.channels_last_of(grad)
    lanes = taps * channels_in if flat else channels_in
    constants = {
        "IN": channels_in, "OUT": channels_out,
        "KERNEL_D": kernel_size[0], "KERNEL_H": kernel_size[1], "KERNEL_W": kernel_size[2],
        "PAD_D": padding[0], "PAD_H": padding[2], "PAD_W": padding[4],
        "FLAT": flat, "WIDE": voxels > 2**30, "PRECISION": precision, "WIDEN": gemm.needs_widening(x.dtype),
    }  # fmt: skip
    tile = grad_weight_tile(channels_out, lanes, x.element_size(), precision, gemm.capability_of(x))
    tiles = triton.cdiv(channels_out, tile.m) * triton.cdiv(lanes, tile.n) * (1 if flat else taps)
    run, splits = split_pixels(voxels, tiles, tile.k)
    partial = torch.empty(splits * result.numel(), dtype=torch.float32, device=x.device)
    with gemm.on_device_of(x):
        _grad_weight[(tiles, splits)](
            grad, x, partial, x.shape[0], run, math.prod(z_size), z_size[1] * z_size[2], z_size[2], *x.shape[2:],
            *grad.stride(), *x.stride(), **constants, **tile.meta(),
        )  # fmt: skip
        _reduce_partials[(triton.cdiv(result.numel(), 256),)](
            partial, result, splits, IN=channels_in, OUT=channels_out, TAPS=taps, BLOCK=256, num_warps=4
        )
    return result


def grad_weight_and_bias(
    grad: torch.Tensor, x: torch.Tensor, kernel_size: Sequence[int], padding: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """As above, and the gradient (Cout,) of the bias, which is PyTorch's own sum."""
    return grad_weight(grad, x, kernel_size, padding), grad.sum((0, 2, 3, 4))
