r"""Masked (causal) 2-d convolution, the layer of PixelCNN.

    y[n, o, i, j] = bias[o] + Σ keep[o, c, p, q] · weight[o, c, p, q] · x[n, c, i + (p - p₀)·d, j + (q - q₀)·d]
                              c, p, q

with zero padding that keeps the size ('same'), the centre tap (p₀, q₀) = (kh // 2, kw // 2) and dilation d. In raster
order a kept tap reads the past only: every tap of the rows above the centre (p < p₀), every tap left of the centre in
its row (p = p₀, q < q₀), and at the centre the pairs with colour(c) < colour(o) for mask "A", ≤ for mask "B". Channel c
of C has colour c % colors ("interleaved", the original code's order) or c · colors // C ("blocked", contiguous
groups); with one colour mask A drops the centre and mask B keeps it.

The mask is a property of the loop, not of the weight: masked taps are never read, and their gradient is exactly zero.
No later pixel (nor later colour of the same pixel) changes an earlier output by a bit, NaN included, on any backend.

Source: van den Oord, Kalchbrenner, Kavukcuoglu, "Pixel Recurrent Neural Networks" (2016), section 3.4 and figure 2;
for the Winograd forms of the CPU kernel Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from vidgen.ops.backends import (
    TABLE,
    Backend,
    adjoint_impl,
    always,
    cuda_row,
    gpu_supports_dtype,
    reference_row,
    triton_row,
)
from vidgen.ops.registration import (
    cast_convolution,
    check_tensors,
    empty_image,
    memory_format_of,
    register_autocast,
    register_selection,
)

Mask = Literal["A", "B"]
ColorLayout = Literal["interleaved", "blocked"]
Algorithm = Literal["auto", "direct"]

_OP = "masked_conv2d"


# Reference: eager PyTorch, kept taps only. A tap is a shifted window of the padded image times one (out, in) matrix;
# the centre tap of a coloured convolution is one such product per output colour over the input channels it may see.


def colors_of(channels: int, colors: int, color_layout: str) -> Tensor:
    """The colour of each of `channels` channels, int64 (channels,)."""
    index = torch.arange(channels)
    return index % colors if color_layout == "interleaved" else index * colors // channels


def keep_mask(weight_size: tuple[int, ...], mask: str, colors: int, color_layout: str) -> Tensor:
    """Which entries of an (out, in, kh, kw) weight take part: bool, of that shape."""
    out_channels, in_channels, kh, kw = weight_size
    keep = torch.zeros(out_channels, in_channels, kh, kw, dtype=torch.bool)
    keep[:, :, : kh // 2, :] = True
    keep[:, :, kh // 2, : kw // 2] = True
    reader = colors_of(out_channels, colors, color_layout)[:, None]
    source = colors_of(in_channels, colors, color_layout)[None, :]
    keep[:, :, kh // 2, kw // 2] = source <= reader if mask == "B" else source < reader
    return keep


def _products(
    weight_size: tuple[int, ...], mask: str, colors: int, color_layout: str, device: torch.device
) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """(p, q, out channels, in channels) of the matrix products that make up the kept taps."""
    out_channels, in_channels, kh, kw = weight_size
    every_out = torch.arange(out_channels, device=device)
    every_in = torch.arange(in_channels, device=device)
    for p in range(kh // 2 + 1):
        for q in range(kw if p < kh // 2 else kw // 2):
            yield p, q, every_out, every_in
    reader = colors_of(out_channels, colors, color_layout).to(device)
    source = colors_of(in_channels, colors, color_layout).to(device)
    for color in range(colors):
        seen = source <= color if mask == "B" else source < color
        if seen.any():
            yield kh // 2, kw // 2, every_out[reader == color], every_in[seen]


def _accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.itemsize < 4 else dtype


def reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, mask: str, colors: int, color_layout: str, dilation: int
) -> Tensor:
    """masked_conv2d in eager PyTorch; any device, any floating dtype (16-bit ones accumulate in float32)."""
    _, _, kh, kw = weight.shape
    height, width = x.shape[2:]
    wide = _accumulator_dtype(x.dtype)
    padded = torch.nn.functional.pad(x.to(wide), (kw // 2 * dilation,) * 2 + (kh // 2 * dilation, 0))
    y = x.new_zeros((x.shape[0], weight.shape[0], height, width), dtype=wide)
    if bias is not None:
        y += bias.to(wide)[:, None, None]
    for p, q, outs, ins in _products(tuple(weight.shape), mask, colors, color_layout, x.device):
        window = padded[:, ins, p * dilation : p * dilation + height, q * dilation : q * dilation + width]
        y[:, outs] += torch.einsum("nchw,oc->nohw", window, weight[outs][:, ins, p, q].to(wide))
    return y.to(x.dtype).contiguous(memory_format=memory_format_of(x))


def reference_grad_input(
    grad_output: Tensor, weight: Tensor, mask: str, colors: int, color_layout: str, dilation: int
) -> Tensor:
    """The adjoint of `reference` in x."""
    _, in_channels, kh, kw = weight.shape
    n, _, height, width = grad_output.shape
    wide = _accumulator_dtype(grad_output.dtype)
    grad = grad_output.to(wide)
    above, aside = kh // 2 * dilation, kw // 2 * dilation
    padded = grad.new_zeros((n, in_channels, above + height, width + 2 * aside))
    for p, q, outs, ins in _products(tuple(weight.shape), mask, colors, color_layout, grad.device):
        window = padded[:, :, p * dilation : p * dilation + height, q * dilation : q * dilation + width]
        window[:, ins] += torch.einsum("nohw,oc->nchw", grad[:, outs], weight[outs][:, ins, p, q].to(wide))
    inner = padded[:, :, above:, aside : aside + width]
    return inner.to(grad_output.dtype).contiguous(memory_format=memory_format_of(grad_output))


def reference_grad_weight(
    grad_output: Tensor, x: Tensor, kernel_size: list[int], mask: str, colors: int, color_layout: str, dilation: int
) -> Tensor:
    """The adjoint of `reference` in the weight; masked taps are exactly zero."""
    kh, kw = kernel_size
    height, width = x.shape[2:]
    wide = _accumulator_dtype(x.dtype)
    padded = torch.nn.functional.pad(x.to(wide), (kw // 2 * dilation,) * 2 + (kh // 2 * dilation, 0))
    grad = grad_output.to(wide)
    size = (grad_output.shape[1], x.shape[1], kh, kw)
    grad_weight = grad.new_zeros(size)
    for p, q, outs, ins in _products(size, mask, colors, color_layout, x.device):
        window = padded[:, ins, p * dilation : p * dilation + height, q * dilation : q * dilation + width]
        grad_weight[outs[:, None], ins, p, q] = torch.einsum("nohw,nchw->oc", grad[:, outs], window)
    return grad_weight.to(x.dtype)


# Backends. The CPU kernel is registered in C++ (csrc/bind/masked_conv2d.cpp); its row here serves explain and info.


def _cpu_supports(x: Tensor, *_args: Any) -> str | None:
    return torch.ops.vidgen.masked_conv2d_cpu_supports(x.dtype) or None


def _cuda_supports(x: Tensor, weight: Tensor, *_args: Any) -> str | None:
    _, in_channels, kh, kw = weight.shape
    if in_channels > 4 or max(kh, kw) > 7:
        return f"is for 1 to 4 input channels and kernels up to 7, got {in_channels} channels and {kh} x {kw}"
    return gpu_supports_dtype(x)


def _run_cuda(*args: Any) -> Tensor:
    return torch.ops.vidgen.masked_conv2d_cuda(*args)


_CPU_ROW = Backend("cpu", ("cpu",), always, _cpu_supports, run=None)

TABLE[_OP] = (_CPU_ROW, cuda_row(_cuda_supports, _run_cuda), triton_row(_OP, "forward"), reference_row(reference))
TABLE[f"{_OP}_grad_input"] = (_CPU_ROW, triton_row(_OP, "grad_input"), reference_row(reference_grad_input))
TABLE[f"{_OP}_grad_weight"] = (_CPU_ROW, triton_row(_OP, "grad_weight"), reference_row(reference_grad_weight))


# Registration: shapes, autograd, selection, autocast.


@torch.library.register_fake("vidgen::masked_conv2d")
def _(x, weight, bias, mask, colors, color_layout, dilation, algorithm, impl, packed):  # type: ignore[no-untyped-def]
    return empty_image(x, weight.shape[0])


@torch.library.register_fake("vidgen::masked_conv2d_grad_input")
def _(grad_output, weight, mask, colors, color_layout, dilation, algorithm, impl):  # type: ignore[no-untyped-def]
    return empty_image(grad_output, weight.shape[1])


@torch.library.register_fake("vidgen::masked_conv2d_grad_weight")
def _(grad_output, x, kernel_size, mask, colors, color_layout, dilation, algorithm, impl):  # type: ignore[no-untyped-def]
    return x.new_empty((grad_output.shape[1], x.shape[1], kernel_size[0], kernel_size[1]))


@torch.library.register_fake("vidgen::masked_conv2d_pack")
def _(weight, mask, colors, color_layout, dilation, algorithm):  # type: ignore[no-untyped-def]
    size, rule = [int(s) for s in weight.shape], (mask, colors, color_layout, dilation, algorithm)
    bytes_needed = torch.ops.vidgen.masked_conv2d_packed_bytes(size, weight.dtype, *rule)
    return weight.new_empty((bytes_needed,), dtype=torch.uint8)


def _setup_forward(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, weight, bias, mask, colors, color_layout, dilation, algorithm, impl, _packed = inputs
    ctx.save_for_backward(x, weight)
    ctx.has_bias = bias is not None
    ctx.rule = (mask, colors, color_layout, dilation)
    ctx.algorithm, ctx.impl = algorithm, impl


def _backward_forward(ctx, grad_output):  # type: ignore[no-untyped-def]
    x, weight = ctx.saved_tensors
    grad_x = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = _op_grad_input(grad_output, weight, *ctx.rule, ctx.algorithm, adjoint_impl(ctx.impl))
    if ctx.needs_input_grad[1]:
        impl = adjoint_impl(ctx.impl)
        grad_weight = _op_grad_weight(grad_output, x, weight.shape[2:], *ctx.rule, ctx.algorithm, impl)
    if ctx.has_bias and ctx.needs_input_grad[2]:
        grad_bias = grad_output.sum((0, 2, 3))
    return grad_x, grad_weight, grad_bias, *[None] * 7


def _setup_grad_input(ctx, inputs, output):  # type: ignore[no-untyped-def]
    grad_output, weight, *rule, ctx.algorithm, ctx.impl = inputs
    ctx.save_for_backward(grad_output, weight)
    ctx.rule = tuple(rule)


def _backward_grad_input(ctx, grad):  # type: ignore[no-untyped-def]
    grad_output, weight = ctx.saved_tensors
    grad_grad_output = grad_weight = None
    if ctx.needs_input_grad[0]:
        grad_grad_output = _op(grad, weight, None, *ctx.rule, ctx.algorithm, ctx.impl, None)
    if ctx.needs_input_grad[1]:
        grad_weight = _op_grad_weight(grad_output, grad, weight.shape[2:], *ctx.rule, ctx.algorithm, ctx.impl)
    return grad_grad_output, grad_weight, *[None] * 6


def _setup_grad_weight(ctx, inputs, output):  # type: ignore[no-untyped-def]
    grad_output, x, _kernel_size, *rule, ctx.algorithm, ctx.impl = inputs
    ctx.save_for_backward(grad_output, x)
    ctx.rule = tuple(rule)


def _backward_grad_weight(ctx, grad):  # type: ignore[no-untyped-def]
    grad_output, x = ctx.saved_tensors
    grad_grad_output = grad_x = None
    if ctx.needs_input_grad[0]:
        grad_grad_output = _op(x, grad, None, *ctx.rule, ctx.algorithm, ctx.impl, None)
    if ctx.needs_input_grad[1]:
        grad_x = _op_grad_input(grad_output, grad, *ctx.rule, ctx.algorithm, ctx.impl)
    return grad_grad_output, grad_x, *[None] * 7


_op = torch.ops.vidgen.masked_conv2d.default
_op_grad_input = torch.ops.vidgen.masked_conv2d_grad_input.default
_op_grad_weight = torch.ops.vidgen.masked_conv2d_grad_weight.default
_op_pack = torch.ops.vidgen.masked_conv2d_pack.default

register_selection(_OP, reference, lambda *args: args[:7])  # without algorithm and packed, the CPU kernel's own
register_selection(f"{_OP}_grad_input", reference_grad_input, lambda *args: args[:6])
register_selection(f"{_OP}_grad_weight", reference_grad_weight, lambda *args: args[:7])
register_autocast(_OP, cast_convolution)
torch.library.register_autograd("vidgen::masked_conv2d", _backward_forward, setup_context=_setup_forward)
torch.library.register_autograd(
    "vidgen::masked_conv2d_grad_input", _backward_grad_input, setup_context=_setup_grad_input
)
torch.library.register_autograd(
    "vidgen::masked_conv2d_grad_weight", _backward_grad_weight, setup_context=_setup_grad_weight
)


# The public functions.


def _check_rule(weight: Tensor, mask: str, colors: int, color_layout: str, dilation: int, algorithm: str) -> None:
    if weight.dim() != 4:
        raise ValueError(f"weight must be 4-d (out, in, kernel height, kernel width), got shape {tuple(weight.shape)}")
    out_channels, in_channels, kh, kw = weight.shape
    if kh % 2 == 0 or kw % 2 == 0:
        raise ValueError(f"weight must have odd kernel sizes, got {kh} x {kw}")
    if mask not in ("A", "B"):
        raise ValueError(f"mask must be 'A' or 'B', got {mask!r}")
    if color_layout not in ("interleaved", "blocked"):
        raise ValueError(f"color_layout must be 'interleaved' or 'blocked', got {color_layout!r}")
    if algorithm not in ("auto", "direct"):
        raise ValueError(f"algorithm must be 'auto' or 'direct', got {algorithm!r}")
    if dilation < 1:
        raise ValueError(f"dilation must be at least 1, got {dilation}")
    if colors < 1 or in_channels % colors or out_channels % colors:
        raise ValueError(
            f"colors must be at least 1 and divide both channel counts of weight ({out_channels} out, "
            f"{in_channels} in), got {colors}"
        )


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    mask: Mask,
    colors: int = 1,
    color_layout: ColorLayout = "interleaved",
    dilation: int = 1,
    algorithm: Algorithm = "auto",
    impl: str | None = None,
    packed: Tensor | None = None,
) -> Tensor:
    """Causal 2-d convolution with 'same' zero padding (formula and promises: the head of this module).

    Args:
        x: images (N, Cin, H, W); any strides, channels_last is kept in the result; N = 0 is allowed.
        weight: (Cout, Cin, kh, kw), kh and kw odd, of x's dtype. Masked entries are never read.
        bias: (Cout,) or None.
        mask: "A" (first layer: a pixel does not see itself) or "B".
        colors: number of colour groups of the channels, which must divide Cin and Cout.
        color_layout: how channels are dealt to colours, see the head of this module.
        dilation: distance of neighbouring taps in pixels.
        algorithm: "auto" lets float32 and bfloat16 on the CPU use Winograd forms where they are faster, "direct" not.
        impl: "cpu", "triton", "cuda" or "reference" forces a backend; None takes VIDGEN_IMPL, else the best that can.
        packed: what `masked_conv2d_pack(weight, ...)` returned for the same weight and rule; saves the CPU kernel its
            packing. The caller answers for its being up to date. Other backends ignore it.

    Returns:
        (N, Cout, H, W) of x's dtype.

    Raises:
        ValueError, TypeError: an argument is not as above; the message names it, what was expected and what came.
        RuntimeError: the forced backend cannot serve the call; the message says why.

    Differentiable in x, weight and bias to any order (in eager mode; torch.compile has no double backward).
    Autocast: runs in torch.get_autocast_dtype. Deterministic; on the CPU the bits of an image depend neither on the
    batch around it nor on the number of threads.
    Error against float64: float32 direct at most 2x that of eager PyTorch, Winograd at most 5e-6 relative rms; bfloat16
    at most 3x that of eager bfloat16 (rms); float32 accumulation throughout.
    """
    _check_rule(weight, mask, colors, color_layout, dilation, algorithm)
    if x.dim() != 4 or x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"x must be (N, {weight.shape[1]}, H, W) for a weight of shape {tuple(weight.shape)}, got {tuple(x.shape)}"
        )
    check_tensors(x, weight, bias)
    return _op(x, weight, bias, mask, colors, color_layout, dilation, algorithm, impl, packed)


def masked_conv2d_pack(
    weight: Tensor,
    *,
    mask: Mask,
    colors: int = 1,
    color_layout: ColorLayout = "interleaved",
    dilation: int = 1,
    algorithm: Algorithm = "auto",
) -> Tensor:
    """The weight in the byte layout that this machine's CPU kernel reads, for `masked_conv2d(..., packed=...)`.

    Args: as in `masked_conv2d`; weight (Cout, Cin, kh, kw) on the CPU, float32, bfloat16 or float64.

    Returns:
        uint8 (bytes,). It holds every form that the kernel may choose, depends on the instruction set and is not meant
        to be saved. Not differentiable: gradients flow through `weight`.

    Raises:
        ValueError: as `masked_conv2d`. RuntimeError: the CPU kernel does not compute weight's dtype.
    """
    _check_rule(weight, mask, colors, color_layout, dilation, algorithm)
    return _op_pack(weight.detach(), mask, colors, color_layout, dilation, algorithm)


def plan_of(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask: str = "B",
    colors: int = 1,
    color_layout: str = "interleaved",
    dilation: int = 1,
    algorithm: str = "auto",
) -> str:
    """What the CPU kernel would do for a call, in words (for `vidgen.explain`)."""
    words, _ = torch.ops.vidgen.masked_conv2d_cpu_plan(x, weight, mask, colors, color_layout, dilation, algorithm)
    return words
