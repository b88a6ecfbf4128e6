"""A tile of z, the preactivation of conv3d_pool3d: which voxels its rows are, and its products.

Explained at the head of conv3d_pool3d.py.
"""

import triton
import triton.language as tl

from .gemm import multiply


@triton.jit
def windows_at(window, windows, windows_hw, windows_w):
    """Clip, depth, row and column of each window, counted in windows."""
    clip = (window // windows).to(tl.int64)
    place = window % windows
    d = place // windows_hw
    h = place % windows_hw // windows_w
    return clip, d.to(tl.int32), h.to(tl.int32), (place % windows_w).to(tl.int32)


@triton.jit
def taps_at(tap, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr):
    return tap // (KERNEL_H * KERNEL_W), tap // KERNEL_W % KERNEL_H, tap % KERNEL_W


@triton.jit
def preactivation(
    x, weight, bias, clip, d, h, w, exists, channel,
    depth, height, width, x_n, x_c, x_d, x_h, x_w,
    IN: tl.constexpr, OUT: tl.constexpr, KERNEL_D: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    PAD_D: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr, ADJOINT: tl.constexpr, HAS_BIAS: tl.constexpr,
    FLAT: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """z [M, N] at the voxels (clip, d, h, w) [M] where they exist, and the channels [N]."""
    TAPS: tl.constexpr = KERNEL_D * KERNEL_H * KERNEL_W
    SIGN: tl.constexpr = -1 if ADJOINT else 1
    SLICES: tl.constexpr = (IN + BLOCK_K - 1) // BLOCK_K
    STEPS: tl.constexpr = (TAPS * IN + BLOCK_K - 1) // BLOCK_K if FLAT else TAPS * SLICES

    lane = tl.arange(0, BLOCK_K)  # [K]
    is_channel = channel < OUT
    # pointers: offsets are 64-bit
    x_voxel = x + (clip * x_n + d.to(tl.int64) * x_d + h.to(tl.int64) * x_h + w.to(tl.int64) * x_w)
    weight_channel = weight + channel.to(tl.int64) * (TAPS * IN)

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(STEPS):
        if FLAT:
            k = step * BLOCK_K + lane
            tap = k // IN
            c = k % IN
            is_lane = tap < TAPS
        else:
            tap = step // SLICES
            c = (step % SLICES) * BLOCK_K + lane
            is_lane = c < IN
        p, q, r = taps_at(tap, KERNEL_H, KERNEL_W)
        dd = SIGN * (p - PAD_D)
        dh = SIGN * (q - PAD_H)
        dw = SIGN * (r - PAD_W)
        if FLAT:
            at_d = d[:, None] + dd[None, :]
            at_h = h[:, None] + dh[None, :]
            at_w = w[:, None] + dw[None, :]
        else:
            at_d = (d + dd)[:, None]
            at_h = (h + dh)[:, None]
            at_w = (w + dw)[:, None]
        inside = (at_d >= 0) & (at_d < depth) & (at_h >= 0) & (at_h < height) & (at_w >= 0) & (at_w < width)
        x_lane = tl.cast(dd, tl.int64) * x_d + tl.cast(dh, tl.int64) * x_h + tl.cast(dw, tl.int64) * x_w
        x_lane = x_lane + c.to(tl.int64) * x_c
        x_mask = inside & exists[:, None] & is_lane[None, :]
        a = tl.load(x_voxel[:, None] + x_lane[None, :], mask=x_mask, other=0.0)  # [M, K]
        weight_mask = is_channel[None, :] & is_lane[:, None]
        b = tl.load(weight_channel[None, :] + (tap * IN + c)[:, None], mask=weight_mask, other=0.0)  # [K, N]
        acc = multiply(a, b, acc, PRECISION, WIDEN)
    if HAS_BIAS:
        acc += tl.load(bias + channel, mask=is_channel, other=0.0).to(tl.float32)[None, :]
    return acc


@triton.jit
def voxels_of(
    tile, clips, windows, windows_hw, windows_w, z_depth, z_height, z_width,
    POOL_D: tl.constexpr, POOL_H: tl.constexpr, POOL_W: tl.constexpr, WINDOW: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Clip, depth, row and column in z of the rows [M] of a tile, and whether there is such a voxel."""
    m = tl.arange(0, BLOCK_M)
    clip, d, h, w = windows_at(tile * (BLOCK_M // WINDOW) + m // WINDOW, windows, windows_hw, windows_w)
    j = m % WINDOW
    d = d * POOL_D + j // (POOL_H * POOL_W)
    h = h * POOL_H + j // POOL_W % POOL_H
    w = w * POOL_W + j % POOL_W
    exists = (clip < clips) & (j < POOL_D * POOL_H * POOL_W) & (d < z_depth) & (h < z_height) & (w < z_width)
    return clip, d, h, w, exists
