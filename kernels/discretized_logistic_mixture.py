"""discretized_logistic_mixture on GPUs in Triton: log-likelihood, gradient of the parameters.

Tiling. A program owns BLOCK pixels of one image in raster order, a pixel for each of its threads: 128 in 4 warps. It
walks the mixtures, and for each the colours; a step loads mean, log-scale and the coefficients of a colour, each 128
numbers that lie side by side in a contiguous image. In channels_last a pixel's numbers lie side by side, 400 bytes for
K = 10 and three colours in float32, and the 51 KB of a program stay in L1 from step to step. All else is in registers:
per pixel the largest joint log-likelihood of the mixtures so far and the sum of the likelihoods divided by it, rescaled
when a larger one comes, and the same of the logits. So any number of mixtures takes one pass over memory.

The gradient needs the weights of the mixtures, which are known after such a pass. A second one computes the masses
again, its loads served by caches, and writes derivatives times weights: for (16, 100, 32, 32) 6.6 MB are read and 6.6
MB written, the floor, for 2 * 491,520 bins of five or six exponentials and some 80 other operations.

The arithmetic of a bin is that of the CPU's kernel (csrc/cpu/discretized_logistic_mixture.cpp has its formulas), in
float32 whatever the parameters are. A program's pixels are added as a tree, an image's programs in their order: no
atomics, so the same input gives the same bits, and an image's bits do not depend on the batch around it.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from . import gemm
from .gemm import sum_of_runs

BLOCK = 128
WARPS = 4


@triton.jit
def _expm1_quotient(x):
    """expm1(x) / x for |x| <= 0.35."""
    y = 1.381454058e-03 * x + 8.368745446e-03
    y = y * x + 4.166838899e-02
    y = y * x + 1.666652113e-01
    y = y * x + 4.999999404e-01
    return y * x + 1.0


@triton.jit
def _tanh(x):
    y = -2.0 * tl.abs(x)
    minus = tl.where(y > -0.34, y * _expm1_quotient(y), tl.exp(y) - 1.0)  # expm1(y)
    size = -minus / (minus + 2.0)
    return tl.where(x < 0, -size, size)


@triton.jit
def _colour(
    at, plane, x, y, z, exists,
    COLOUR: tl.constexpr, HALF: tl.constexpr, EDGE: tl.constexpr, LOG_BIN: tl.constexpr,
    OPENAI: tl.constexpr,
):  # fmt: skip
    """One colour of one mixture: its mass exp(shift) * ratio, the derivatives of log mass by mean and log-scale, and
    tanh of both coefficients, zero where there is none. `at` points to the mixture's logits, blocks lie `plane` apart;
    x, y and z are the colours' values."""
    FIRST: tl.constexpr = 1 + 3 * COLOUR  # its means; its log-scales come next
    mean = tl.load(at + FIRST * plane, mask=exists, other=0.0).to(tl.float32)
    raw_log_scale = tl.load(at + (FIRST + 1) * plane, mask=exists, other=0.0).to(tl.float32)
    by_x = tl.zeros_like(mean)
    by_y = tl.zeros_like(mean)
    value = x
    if COLOUR == 1:
        by_x = _tanh(tl.load(at + 3 * plane, mask=exists, other=0.0).to(tl.float32))
        mean += by_x * x
        value = y
    if COLOUR == 2:
        by_x = _tanh(tl.load(at + 6 * plane, mask=exists, other=0.0).to(tl.float32))
        by_y = _tanh(tl.load(at + 9 * plane, mask=exists, other=0.0).to(tl.float32))
        mean += by_x * x + by_y * y
        value = z

    log_scale = tl.where(raw_log_scale < -7.0, -7.0, raw_log_scale)
    inverse = tl.exp(-log_scale)
    m = inverse * (value - mean)
    b = inverse * HALF
    lower = value < -EDGE
    upper = value > EDGE
    edge = lower | upper
    negative = lower | ((m < 0) & ~upper)
    m = tl.where(negative, -m, m)
    # far inside t makes no difference but to the range of 1 / w
    t = tl.where(m - b < -69.0, -69.0, m - b)
    width = tl.where(edge, 1e4, 2.0 * b)
    narrow = width < 0.34
    e = tl.exp(-width)
    w = tl.exp(-tl.abs(t))
    numerator = tl.where(narrow, _expm1_quotient(-width), 1.0 - e)
    outside = t > 0
    n = tl.where(outside, 1.0, w)
    m_e = tl.where(outside, w, 1.0) * e
    one_w = w + 1.0
    q = n + m_e
    inverse_divisor = 1.0 / (one_w * q)
    n_by_divisor = n * inverse_divisor

    shift = tl.where(narrow, LOG_BIN - log_scale, 0.0) - tl.where(outside, t, 0.0)
    ratio = numerator * n_by_divisor
    a = n_by_divisor * q
    b_by_e = m_e * one_w * inverse_divisor
    by_m = a - b_by_e
    by_log_scale = t * a - (t + width) * b_by_e - tl.where(narrow, 1.0, width) * e / numerator
    if OPENAI:
        mass = w * inverse_divisor * tl.where(narrow, width * numerator, numerator)
        rare = ~edge & (mass <= 1e-5)
        tail = tl.exp(-tl.abs(m))
        inverse_tail = 1.0 / (tail + 1.0)
        slope = (1.0 - tail) * inverse_tail  # 2 sigma(m) - 1
        shift = tl.where(rare, LOG_BIN - log_scale - m, shift)
        ratio = tl.where(rare, inverse_tail * inverse_tail, ratio)
        by_m = tl.where(rare, slope, by_m)
        by_log_scale = tl.where(rare, m * slope - 1.0, by_log_scale)
    by_mean = inverse * tl.where(negative, -by_m, by_m)
    return shift, ratio, by_mean, tl.where(raw_log_scale < -7.0, 0.0, by_log_scale), by_x, by_y


@triton.jit
def _add(largest, total, exponent, factor):
    """total * exp(largest) + factor * exp(exponent), in the same form."""
    new = tl.maximum(largest, exponent)
    return new, total * tl.exp(largest - new) + factor * tl.exp(exponent - new)


@triton.jit
def _pixels(
    params, x, tiles, area, width, params_n, params_c, params_h, params_w, x_n, x_c, x_h, x_w,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The program's image and pixels: image, place in raster order, exists, first parameter, colours."""
    image = (tl.program_id(0) // tiles).to(tl.int64)
    place = (tl.program_id(0) % tiles) * BLOCK + tl.arange(0, BLOCK)
    exists = place < area
    row = (place // width).to(tl.int64)
    column = (place % width).to(tl.int64)
    x_at = x + (image * x_n + row * x_h + column * x_w)
    red = tl.load(x_at, mask=exists, other=0.0)
    green = tl.load(x_at + x_c, mask=exists, other=0.0) if CHANNELS > 1 else red
    blue = tl.load(x_at + 2 * x_c, mask=exists, other=0.0) if CHANNELS > 2 else red
    return (
        image,
        row,
        column,
        exists,
        params + (image * params_n + row * params_h + column * params_w),
        red,
        green,
        blue,
    )


@triton.jit
def _likelihoods(
    at, plane, params_c, x, y, z, exists,
    MIXTURES: tl.constexpr, CHANNELS: tl.constexpr, HALF: tl.constexpr, EDGE: tl.constexpr, LOG_BIN: tl.constexpr,
    OPENAI: tl.constexpr,
):  # fmt: skip
    """Sums over the mixtures of exp(logit) and of exp(logit) * mass, each as its largest exponent and the rest."""
    largest_logit = tl.zeros_like(x) - 3.4e38
    sum_priors = tl.zeros_like(x)
    largest_shift = largest_logit
    sum_joint = sum_priors
    for _ in range(MIXTURES):
        logit = tl.load(at, mask=exists, other=0.0).to(tl.float32)
        shift = logit
        ratio = tl.zeros_like(x) + 1.0
        for colour in tl.static_range(CHANNELS):
            own_shift, own_ratio, _m, _s, _x, _y = _colour(
                at, plane, x, y, z, exists, colour, HALF, EDGE, LOG_BIN, OPENAI
            )
            shift += own_shift
            ratio *= own_ratio
        largest_logit, sum_priors = _add(largest_logit, sum_priors, logit, 1.0)
        largest_shift, sum_joint = _add(largest_shift, sum_joint, shift, ratio)
        at += params_c
    return largest_logit, sum_priors, largest_shift, sum_joint


@triton.jit
def _forward(
    params, x, sums,
    images, tiles, area, width, params_n, params_c, params_h, params_w, x_n, x_c, x_h, x_w,
    MIXTURES: tl.constexpr, CHANNELS: tl.constexpr, HALF: tl.constexpr, EDGE: tl.constexpr, LOG_BIN: tl.constexpr,
    OPENAI: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    image, _row, _column, exists, at, red, green, blue = _pixels(
        params, x, tiles, area, width, params_n, params_c, params_h, params_w, x_n, x_c, x_h, x_w, CHANNELS, BLOCK
    )
    plane = tl.cast(params_c, tl.int64) * MIXTURES
    largest_logit, sum_priors, largest_shift, sum_joint = _likelihoods(
        at, plane, params_c, red, green, blue, exists, MIXTURES, CHANNELS, HALF, EDGE, LOG_BIN, OPENAI
    )
    log_likelihood = largest_shift - largest_logit + tl.log(sum_joint / sum_priors)
    total = tl.sum(tl.where(exists, log_likelihood, 0.0), 0)
    tl.store(sums + ((tl.program_id(0) % tiles).to(tl.int64) * images + image), total)


@triton.jit
def _total(sums, result, images, tiles, BLOCK: tl.constexpr):
    image = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = image < images
    tl.store(result + image, sum_of_runs(sums + image, exists, tiles, images, BLOCK), mask=exists)


@triton.jit
def _grad_params(
    grad_output, params, x, grad,
    tiles, area, width, grad_output_n, params_n, params_c, params_h, params_w, x_n, x_c, x_h, x_w,
    grad_n, grad_c, grad_h, grad_w,
    MIXTURES: tl.constexpr, CHANNELS: tl.constexpr, HALF: tl.constexpr, EDGE: tl.constexpr, LOG_BIN: tl.constexpr,
    OPENAI: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    image, row, column, exists, at, red, green, blue = _pixels(
        params, x, tiles, area, width, params_n, params_c, params_h, params_w, x_n, x_c, x_h, x_w, CHANNELS, BLOCK
    )
    plane = tl.cast(params_c, tl.int64) * MIXTURES
    largest_logit, sum_priors, largest_shift, sum_joint = _likelihoods(
        at, plane, params_c, red, green, blue, exists, MIXTURES, CHANNELS, HALF, EDGE, LOG_BIN, OPENAI
    )
    weight = tl.load(grad_output + image * grad_output_n)
    prior_scale = weight / sum_priors
    posterior_scale = weight / sum_joint
    out = grad + (image * grad_n + row * grad_h + column * grad_w)
    out_plane = tl.cast(grad_c, tl.int64) * MIXTURES
    kind = grad.dtype.element_ty
    for _ in range(MIXTURES):
        logit = tl.load(at, mask=exists, other=0.0).to(tl.float32)
        shift0, ratio, mean0, scale0, _x, _y = _colour(
            at, plane, red, green, blue, exists, 0, HALF, EDGE, LOG_BIN, OPENAI
        )
        # added up as in the first pass: of two large shifts the difference matters
        shift = logit + shift0
        if CHANNELS > 1:
            shift1, ratio1, mean1, scale1, by_red1, _y = _colour(
                at, plane, red, green, blue, exists, 1, HALF, EDGE, LOG_BIN, OPENAI
            )
            shift += shift1
            ratio *= ratio1
        if CHANNELS > 2:
            shift2, ratio2, mean2, scale2, by_red2, by_green2 = _colour(
                at, plane, red, green, blue, exists, 2, HALF, EDGE, LOG_BIN, OPENAI
            )
            shift += shift2
            ratio *= ratio2
        posterior = ratio * tl.exp(shift - largest_shift) * posterior_scale
        prior = tl.exp(logit - largest_logit) * prior_scale
        tl.store(out, (posterior - prior).to(kind), mask=exists)
        tl.store(out + out_plane, (posterior * mean0).to(kind), mask=exists)
        tl.store(out + 2 * out_plane, (posterior * scale0).to(kind), mask=exists)
        if CHANNELS > 1:
            by_mean1 = posterior * mean1
            tl.store(out + 3 * out_plane, (by_mean1 * red * (1.0 - by_red1 * by_red1)).to(kind), mask=exists)
            tl.store(out + 4 * out_plane, by_mean1.to(kind), mask=exists)
            tl.store(out + 5 * out_plane, (posterior * scale1).to(kind), mask=exists)
        if CHANNELS > 2:
            by_mean2 = posterior * mean2
            tl.store(out + 6 * out_plane, (by_mean2 * red * (1.0 - by_red2 * by_red2)).to(kind), mask=exists)
            tl.store(out + 7 * out_plane, by_mean2.to(kind), mask=exists)
            tl.store(out + 8 * out_plane, (posterior * scale2).to(kind), mask=exists)
            tl.store(out + 9 * out_plane, (by_mean2 * green * (1.0 - by_green2 * by_green2)).to(kind), mask=exists)
        at += params_c
        out += grad_c


def _constants(params: torch.Tensor, x: torch.Tensor, levels: int, mode: str) -> dict[str, int | float | bool]:
    channels = x.shape[1]
    return {
        "MIXTURES": params.shape[1] // (1 + 2 * channels + channels * (channels - 1) // 2), "CHANNELS": channels,
        "HALF": 1 / (levels - 1), "EDGE": 1 - min(1 / (levels - 1), 0.001), "LOG_BIN": math.log(2 / (levels - 1)),
        "OPENAI": mode == "openai", "BLOCK": BLOCK,
    }  # fmt: skip


def forward(params: torch.Tensor, x: torch.Tensor, levels: int, mode: str) -> torch.Tensor:
    """Log-likelihoods (N,) in float32 of images x (N, C, H, W), float32, under params (N, P, H, W)."""
    images, _, height, width = x.shape
    area = height * width
    result = torch.empty(images, dtype=torch.float32, device=params.device)
    if images == 0 or area == 0:
        return result.zero_()
    tiles = triton.cdiv(area, BLOCK)
    sums = torch.empty(tiles * images, dtype=torch.float32, device=params.device)
    with gemm.on_device_of(params):
        _forward[(tiles * images,)](
            params, x, sums, images, tiles, area, width, *params.stride(), *x.stride(),
            **_constants(params, x, levels, mode), num_warps=WARPS,
        )  # fmt: skip
        _total[(triton.cdiv(images, BLOCK),)](sums, result, images, tiles, BLOCK=BLOCK, num_warps=WARPS)
    return result


def grad_params(
    grad_output: torch.Tensor, params: torch.Tensor, x: torch.Tensor, levels: int, mode: str
) -> torch.Tensor:
    """Gradient (N, P, H, W) of params, in their dtype and memory format, from grad_output (N,) in float32."""
    images, channels, height, width = params.shape
    grad = gemm.empty_image(params, channels, (height, width))
    if grad.numel() == 0:
        return grad
    tiles = triton.cdiv(height * width, BLOCK)
    with gemm.on_device_of(params):
        _grad_params[(tiles * images,)](
            grad_output, params, x, grad, tiles, height * width, width, grad_output.stride(0), *params.stride(),
            *x.stride(), *grad.stride(), **_constants(params, x, levels, mode), num_warps=WARPS,
        )  # fmt: skip
    return grad
