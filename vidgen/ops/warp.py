"""Backward warping: an image read where a flow field points.

    out[n, c, i, j] = x[n, c](j + flow[n, 0, i, j], i + flow[n, 1, i, j])

x (N, C, H, W), any number of channels; flow (N, 2, H, W) in pixels, channel 0 to the right and channel 1 down, so a
flow from image A to image B brings B onto A. Between pixels x is bilinear. Outside the image it is zero ("zeros"), or
the position is first clamped to the image ("border"); these are grid_sample's rules with align_corners=True.

A displacement d is split into floor(d) and d - floor(d) before the pixel's own coordinate is added. Both are exact, so
the position is never rounded, whatever the size of the image; grid_sample rounds it twice.

Where one component of the flow is NaN or infinite the output is NaN in every channel, and the gradients of flow and x
get nothing from that pixel: a loss that masks such pixels (torch.where) trains. A finite flow of any size is only a
position outside. Nothing outside the tensor is ever read.

Dtypes: positions and sums are float32 (float64 for float64 x), whatever x is; flow of another floating dtype is
converted. The output has x's dtype, also under autocast, which has no say: positions in bfloat16 would be whole pixels.

Differentiable in x and flow to any order in eager PyTorch. The two gradients are ops; of the one in x all derivatives
are again these ops, of the one in flow second and later ones are computed through `reference`. In flow the derivative
is that of the piecewise bilinear surface: from the right where the position is a whole number; zero where "border"
holds the position or it is on the image's rim.

Every native backend gives the same bits on every run. On a GPU the gradient in x is added up in integers: for an image
of at most 2^l pixels, of 2^(l - 59) of its largest gradient or finer; a gradient that is not finite makes its four
pixels NaN there.

Source: bilinear sampling, Jaderberg et al., "Spatial Transformer Networks" (2015), section 3.3.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from vidgen.ops.backends import TABLE, Backend, adjoint_impl, always, gpu_supports_dtype, reference_row, triton_row
from vidgen.ops.registration import check_no_tangent, computed_in, memory_format_of, register_selection

Padding = Literal["zeros", "border"]

_OP = "warp"


# Reference: eager PyTorch.


def _along(displacement: Tensor, at: Tensor, padding: str) -> tuple[Tensor, Tensor]:
    """The first of two neighbours along an axis, and how far beyond it. displacement (N, H, W); `at` broadcasts."""
    size = at.numel()
    # beyond the image all is one, and integers must not overflow
    bounded = displacement.clamp(-size - 2, size + 2)
    whole = bounded.detach().floor()
    fraction, first = bounded - whole, whole.long() + at
    if padding == "border":
        held = (first < 0) | ((first == 0) & (fraction == 0)) | (first >= size - 1)
        fraction = torch.where(held, torch.zeros_like(fraction), fraction)
        first = first.clamp(0, size - 1)
    return first, fraction


def reference(x: Tensor, flow: Tensor, padding: str) -> Tensor:
    """warp in eager PyTorch; any device, any floating dtype."""
    n, channels, height, width = x.shape
    wide = computed_in(x.dtype)
    known = flow.isfinite().all(dim=1)  # [N, H, W]
    dx, dy = torch.where(known[:, None], flow.to(wide), 0).unbind(1)
    column, fx = _along(dx, torch.arange(width, device=x.device), padding)
    row, fy = _along(dy, torch.arange(height, device=x.device)[:, None], padding)
    pixels = x.to(wide).flatten(2)  # [N, C, H * W]

    def neighbour(row: Tensor, column: Tensor) -> Tensor:
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        index = torch.where(inside, row * width + column, 0).flatten(1)[:, None].expand(-1, channels, -1)
        return torch.where(inside[:, None], pixels.gather(2, index).view(n, channels, height, width), 0)

    fx, fy = fx[:, None], fy[:, None]
    top = (1 - fx) * neighbour(row, column) + fx * neighbour(row, column + 1)
    bottom = (1 - fx) * neighbour(row + 1, column) + fx * neighbour(row + 1, column + 1)
    out = torch.where(known[:, None], (1 - fy) * top + fy * bottom, torch.nan)
    return out.to(x.dtype).contiguous(memory_format=memory_format_of(x))


def reference_grad_x(grad_output: Tensor, flow: Tensor, padding: str) -> Tensor:
    """The gradient of `reference` in x, of which it is a linear function. (N, C, H, W) of grad_output's dtype."""
    wide = grad_output.to(computed_in(grad_output.dtype))

    def total(image: Tensor) -> Tensor:
        return (reference(image, flow, padding) * wide).sum()

    gradient = torch.func.grad(total)(torch.zeros_like(wide))
    return gradient.to(grad_output.dtype).contiguous(memory_format=memory_format_of(grad_output))


def reference_grad_flow(grad_output: Tensor, x: Tensor, flow: Tensor, padding: str) -> Tensor:
    """The gradient of `reference` in flow, (N, 2, H, W)."""
    wide = computed_in(x.dtype)

    def total(displacement: Tensor) -> Tensor:
        return (reference(x.to(wide), displacement, padding) * grad_output.to(wide)).sum()

    return torch.func.grad(total)(flow).contiguous(memory_format=memory_format_of(flow))


# Backends. The CPU kernel is registered in C++ (csrc/bind/); its rows here serve explain and info.


def _cpu_supports(image: Tensor, *_args: Any) -> str | None:
    return torch.ops.vidgen.warp_cpu_supports(image.dtype) or None


def _triton_supports(image: Tensor, *_args: Any) -> str | None:
    if image.shape[2] * image.shape[3] >= 2**31:
        return f"counts the pixels of an image in 32 bits, got {image.shape[2]}×{image.shape[3]}"
    return gpu_supports_dtype(image)


for _launcher, _run in (("forward", reference), ("grad_x", reference_grad_x), ("grad_flow", reference_grad_flow)):
    TABLE[_OP if _launcher == "forward" else f"{_OP}_{_launcher}"] = (
        Backend("cpu", ("cpu",), always, _cpu_supports, run=None),
        replace(triton_row(_OP, _launcher), supports=_triton_supports),
        reference_row(_run),
    )


# Registration: shapes, autograd, selection.


def _empty_like(t: Tensor) -> Tensor:
    return torch.empty(t.shape, dtype=t.dtype, device=t.device, memory_format=memory_format_of(t))


@torch.library.register_fake("vidgen::warp")
def _(x, flow, padding, impl):  # type: ignore[no-untyped-def]
    return _empty_like(x)


@torch.library.register_fake("vidgen::warp_grad_x")
def _(grad_output, flow, padding, impl):  # type: ignore[no-untyped-def]
    return _empty_like(grad_output)


@torch.library.register_fake("vidgen::warp_grad_flow")
def _(grad_output, x, flow, padding, impl):  # type: ignore[no-untyped-def]
    return _empty_like(flow)


def _setup_forward(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, flow, ctx.padding, ctx.impl = inputs
    ctx.memory_format = memory_format_of(x)
    # the gradient in x does not need x
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, flow)


def _backward_forward(ctx, grad_output):  # type: ignore[no-untyped-def]
    x, flow = ctx.saved_tensors
    rule = ctx.padding, adjoint_impl(ctx.impl)
    grad_output = grad_output.contiguous(memory_format=ctx.memory_format)
    grad_x = _op_grad_x(grad_output, flow, *rule) if ctx.needs_input_grad[0] else None
    grad_flow = _op_grad_flow(grad_output, x, flow, *rule) if ctx.needs_input_grad[1] else None
    return grad_x, grad_flow, None, None


def _setup_grad_x(ctx, inputs, output):  # type: ignore[no-untyped-def]
    grad_output, flow, ctx.padding, ctx.impl = inputs
    ctx.save_for_backward(grad_output, flow)


def _backward_grad_x(ctx, grad):  # type: ignore[no-untyped-def]
    # <grad_x(grad_output, flow), grad> = <grad_output, warp(grad, flow)>
    grad_output, flow = ctx.saved_tensors
    rule = ctx.padding, adjoint_impl(ctx.impl)
    by_output = None
    if ctx.needs_input_grad[0]:
        # what nothing was taken from gives nothing back, where warp says NaN
        known = flow.isfinite().all(dim=1, keepdim=True)
        by_output = torch.where(known, _op(grad, flow, *rule), 0)
    by_flow = _op_grad_flow(grad_output, grad, flow, *rule) if ctx.needs_input_grad[1] else None
    return by_output, by_flow, None, None


def _setup_grad_flow(ctx, inputs, output):  # type: ignore[no-untyped-def]
    grad_output, x, flow, ctx.padding, ctx.impl = inputs
    ctx.save_for_backward(grad_output, x, flow)


def _backward_grad_flow(ctx, grad):  # type: ignore[no-untyped-def]
    with torch.enable_grad():
        # views, so that what is computed here stays connected to its inputs and can be differentiated again
        weight, image, displacement = (
            t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in ctx.saved_tensors
        )
        out = reference(image, displacement, ctx.padding)
        (first,) = torch.autograd.grad(out, displacement, weight, create_graph=True)
        grads = torch.autograd.grad(
            first, (weight, image, displacement), grad, create_graph=torch.is_grad_enabled(), materialize_grads=True
        )
    return *grads, None, None


_op = torch.ops.vidgen.warp.default
_op_grad_x = torch.ops.vidgen.warp_grad_x.default
_op_grad_flow = torch.ops.vidgen.warp_grad_flow.default

register_selection(_OP, reference, lambda *args: args)
register_selection(f"{_OP}_grad_x", reference_grad_x, lambda *args: args)
register_selection(f"{_OP}_grad_flow", reference_grad_flow, lambda *args: args)
torch.library.register_autograd(f"vidgen::{_OP}", _backward_forward, setup_context=_setup_forward)
torch.library.register_autograd(f"vidgen::{_OP}_grad_x", _backward_grad_x, setup_context=_setup_grad_x)
torch.library.register_autograd(f"vidgen::{_OP}_grad_flow", _backward_grad_flow, setup_context=_setup_grad_flow)


# The public function.


def _check(x: Tensor, flow: Tensor, padding: str) -> None:
    for name, tensor in (("x", x), ("flow", flow)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {tensor.dtype}")
        check_no_tangent(name, tensor)
    if x.dim() != 4:
        raise ValueError(f"x must be 4-d (N, C, H, W), got shape {tuple(x.shape)}")
    if flow.dim() != 4 or flow.shape != (x.shape[0], 2, *x.shape[2:]):
        raise ValueError(f"flow must have shape (N, 2, H, W) for x {tuple(x.shape)}, got {tuple(flow.shape)}")
    if flow.device != x.device:
        raise ValueError(f"flow must be on the device of x ({x.device}), got {flow.device}")
    if padding not in ("zeros", "border"):
        raise ValueError(f"padding must be 'zeros' or 'border', got {padding!r}")


def warp(x: Tensor, flow: Tensor, *, padding: Padding = "zeros", impl: str | None = None) -> Tensor:
    """x, read at every pixel's position plus its flow (formula: the head of this module).

    Args:
        x: (N, C, H, W), floating point, any strides; H and W below 2**30.
        flow: (N, 2, H, W) in pixels, right and down; converted to float32 (float64 for float64 x).
        padding: what lies outside the image: "zeros", or "border", the nearest pixel of the image.
        impl: "cpu", "triton" or "reference" forces a backend; None takes VIDGEN_IMPL, else the best that can.

    Returns:
        (N, C, H, W) of x's dtype and memory format; NaN where the flow is not finite.

    Raises:
        ValueError, TypeError: an argument is not as above; the message names it, what was expected and what came.
        RuntimeError: `impl` cannot serve the call, or an argument carries a forward-mode tangent.
    """
    _check(x, flow, padding)
    return _op(x, flow.to(computed_in(x.dtype)), padding, impl)
