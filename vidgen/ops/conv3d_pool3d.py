r"""3-d convolution, bias, activation and max-pooling as one op: what 3-d CNNs consist of.

    z[n, o, d, h, w] = bias[o] + Σ weight[o, c, p, q, r] · x[n, c, d + p - p₀, h + q - q₀, w + r - r₀]
                               c, p, q, r
    y[n, o, d, h, w] = max of activation(z) over the window (kd·d + i, kh·h + j, kw·w + k), i < kd, j < kh, k < kw

with (p₀, q₀, r₀) zeros before each axis, stride 1, and disjoint pooling windows (stride = window). Without `pool` y is
activation(z). Windows that reach beyond z are dropped, or with `ceil_mode` cut short. The unpooled z is not stored, but
on the CPU where windows straddle the tiles of a Winograd form (2×4×4 or 2×2×2 outputs, or some planes of 4×4; of 2×2
for 5×5 kernels). Neither z nor the positions of the maxima are kept for the backward, which computes them again.

As in PyTorch the gradient of a window goes to the first of equal maxima (the last of NaNs), that of ReLU at zero is
zero, and NaNs come through both. Winograd forms hold to that as far as their rounding does: sums that are equal in
exact arithmetic may differ there, and a NaN or an infinity spreads over the tiles that read it.

Source: Tran et al., "Learning Spatiotemporal Features with 3D Convolutional Networks" (2015) for the layers it serves;
Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016) for the Winograd forms of the CPU kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
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
from vidgen.ops.conv3d_geometry import Padding, Pool, conv_size, padded, pool_size, resolve_padding, resolve_pool
from vidgen.ops.registration import (
    cast_convolution,
    check_tensors,
    empty_image,
    memory_format_of,
    register_autocast,
    register_selection,
)

Activation = Literal["relu", "identity"]
Algorithm = Literal["auto", "direct"]

_OP = "conv3d_pool3d"
_MAX_KERNEL = 7


# Reference: eager PyTorch.


def _wide(t: Tensor) -> Tensor:
    return t.float() if t.dtype.itemsize < 4 else t


def _preactivation(x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int]) -> Tensor:
    return F.conv3d(padded(_wide(x), padding), _wide(weight), None if bias is None else _wide(bias))


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Sequence[int],
    activation: str,
    pool: Sequence[int],
    ceil_mode: bool,
) -> Tensor:
    """conv3d_pool3d in eager PyTorch; any device, any floating dtype (16-bit ones accumulate in float32)."""
    y = _preactivation(x, weight, bias, padding)
    if activation == "relu":
        y = y.relu()
    if any(k > 1 for k in pool):
        y = F.max_pool3d(y, list(pool), ceil_mode=ceil_mode)
    return y.to(x.dtype).contiguous(memory_format=memory_format_of(x))


def _maxima(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Sequence[int],
    activation: str,
    pool: Sequence[int],
    ceil_mode: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """z, where its windows' maxima lie in its flattened (D, H, W), and which windows have a gradient.

    The positions are (N, C, D', H', W') int64, the choice is bool of that shape.
    """
    z = _preactivation(x, weight, bias, padding)
    pooled, index = F.max_pool3d(z, list(pool), ceil_mode=ceil_mode, return_indices=True)
    # not `pooled > 0`: a NaN lets the gradient through, as in PyTorch's ReLU
    return z, index, ~(pooled <= 0) if activation == "relu" else torch.ones_like(pooled, dtype=torch.bool)


def reference_grad_preactivation(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Sequence[int],
    activation: str,
    pool: Sequence[int],
    ceil_mode: bool,
) -> Tensor:
    """The gradient of z, given that of y."""
    z, index, live = _maxima(x, weight, bias, padding, activation, pool, ceil_mode)
    grad = grad_output.new_zeros(z.shape).flatten(2)
    grad.scatter_(2, index.flatten(2), torch.where(live, grad_output, 0).flatten(2))
    return grad.view(z.shape).contiguous(memory_format=memory_format_of(x))


def _picked(grad: Tensor, maxima: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The adjoint of `reference_grad_preactivation` in grad_output, in differentiable steps."""
    _, index, live = maxima
    return torch.where(live, grad.flatten(2).gather(2, index.flatten(2)).view(index.shape), 0)


def reference_grad_input(grad: Tensor, weight: Tensor, padding: Sequence[int]) -> Tensor:
    """The gradient of x, given that of z: a transposed convolution."""
    full = F.conv_transpose3d(_wide(grad), _wide(weight))
    depth, height, width = full.shape[2:]
    inner = full[
        :, :, padding[0] : depth - padding[1], padding[2] : height - padding[3], padding[4] : width - padding[5]
    ]
    return inner.to(grad.dtype).contiguous(memory_format=memory_format_of(grad))


def reference_grad_weight(
    grad: Tensor, x: Tensor, kernel_size: Sequence[int], padding: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The gradients of weight and bias, given that of z; 16-bit types accumulate in float32."""
    wide, around = _wide(grad), padded(_wide(x), padding)
    # only its size and layout are read: with x's layout, PyTorch's kernels need no copy of their own
    size, layout = (grad.shape[1], x.shape[1], *kernel_size), memory_format_of(x)
    weight = torch.empty(size, dtype=wide.dtype, device=x.device, memory_format=layout)
    ones, zeros, only_weight = [1, 1, 1], [0, 0, 0], [False, True, False]
    of_weight = torch.ops.aten.convolution_backward(
        wide, around, weight, None, ones, zeros, ones, False, zeros, 1, only_weight
    )[1]
    return of_weight.to(x.dtype).contiguous(), wide.sum((0, 2, 3, 4)).to(x.dtype)


# Backends. The CPU kernel is registered in C++ (csrc/bind/conv3d_pool3d.cpp); its rows here serve explain and info.


def _cpu_supports(x: Tensor, *_args: Any) -> str | None:
    return torch.ops.vidgen.conv3d_pool3d_cpu_supports(x.dtype) or None


def _cuda_supports(x: Tensor, weight: Tensor, *_args: Any) -> str | None:
    in_channels, per_output = weight.shape[1], weight.shape[1:].numel()
    if in_channels > 4 or per_output > 196:
        return (
            f"is for 1 to 4 input channels and at most 196 weights per output channel, got {in_channels} channels and "
            f"{per_output} weights"
        )
    return gpu_supports_dtype(x)


def _run_cuda(*args: Any) -> Tensor:
    return torch.ops.vidgen.conv3d_pool3d_cuda(*args)


def _rows(launcher: str, run_reference: Any, *more: Backend) -> tuple[Backend, ...]:
    return (
        Backend("cpu", ("cpu",), always, _cpu_supports, None),
        *more,
        triton_row(_OP, launcher),
        reference_row(run_reference),
    )


TABLE[_OP] = _rows("forward", reference, cuda_row(_cuda_supports, _run_cuda))
TABLE[f"{_OP}_grad_preactivation"] = _rows("grad_preactivation", reference_grad_preactivation)
TABLE[f"{_OP}_grad_input"] = _rows("grad_input", reference_grad_input)
TABLE[f"{_OP}_grad_weight"] = _rows("grad_weight_and_bias", reference_grad_weight)


# Registration: shapes, autograd, selection, autocast.


@torch.library.register_fake("vidgen::conv3d_pool3d")
def _(x, weight, bias, padding, activation, pool, ceil_mode, algorithm, impl, packed):  # type: ignore[no-untyped-def]
    size = pool_size(conv_size(x.shape[2:], weight.shape[2:], padding), pool, ceil_mode)
    return empty_image(x, weight.shape[0], size)


@torch.library.register_fake("vidgen::conv3d_pool3d_grad_preactivation")
def _(grad_output, x, weight, bias, padding, activation, pool, ceil_mode, algorithm, impl):  # type: ignore[no-untyped-def]
    return empty_image(x, weight.shape[0], conv_size(x.shape[2:], weight.shape[2:], padding))


@torch.library.register_fake("vidgen::conv3d_pool3d_grad_input")
def _(grad, weight, padding, algorithm, impl):  # type: ignore[no-untyped-def]
    size = [grad.shape[2 + i] + weight.shape[2 + i] - 1 - padding[2 * i] - padding[2 * i + 1] for i in range(3)]
    return empty_image(grad, weight.shape[1], size)


@torch.library.register_fake("vidgen::conv3d_pool3d_grad_weight")
def _(grad, x, kernel_size, padding, algorithm, impl):  # type: ignore[no-untyped-def]
    return x.new_empty((grad.shape[1], x.shape[1], *kernel_size)), x.new_empty((grad.shape[1],))


@torch.library.register_fake("vidgen::conv3d_pool3d_pack")
def _(weight, input_size, padding, pool, algorithm):  # type: ignore[no-untyped-def]
    size = [int(s) for s in weight.shape]
    bytes_needed = torch.ops.vidgen.conv3d_pool3d_packed_bytes(size, weight.dtype, input_size, padding, pool, algorithm)
    return weight.new_empty((bytes_needed,), dtype=torch.uint8)


def _setup_forward(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, weight, bias, ctx.padding, ctx.activation, ctx.pool, ctx.ceil_mode, ctx.algorithm, ctx.impl, _packed = inputs
    ctx.has_bias = bias is not None
    ctx.pools = any(k > 1 for k in ctx.pool)
    # where nothing is pooled the output says what ReLU let through, and the next layer keeps it anyway
    relu_only = ctx.activation == "relu" and not ctx.pools
    ctx.save_for_backward(x, weight, bias if ctx.pools else None, output if relu_only else None)


def _backward_forward(ctx, grad_output):  # type: ignore[no-untyped-def]
    x, weight, bias, output = ctx.saved_tensors
    impl, grad_x, grad_weight, grad_bias = adjoint_impl(ctx.impl), None, None, None
    if ctx.pools:
        rule = (ctx.padding, ctx.activation, ctx.pool, ctx.ceil_mode, ctx.algorithm, impl)
        grad = _op_grad_preactivation(grad_output, x, weight, bias, *rule)
    else:
        grad = grad_output if output is None else torch.ops.aten.threshold_backward(grad_output, output, 0)
    if ctx.needs_input_grad[0]:
        grad_x = _op_grad_input(grad, weight, ctx.padding, ctx.algorithm, impl)
    needs_bias = ctx.has_bias and ctx.needs_input_grad[2]
    if ctx.needs_input_grad[1]:
        grad_weight, grad_bias = _op_grad_weight(grad, x, weight.shape[2:], ctx.padding, ctx.algorithm, impl)
    elif needs_bias:
        grad_bias = grad.sum((0, 2, 3, 4))
    return grad_x, grad_weight, grad_bias if needs_bias else None, *[None] * 7


def _setup_grad_preactivation(ctx, inputs, output):  # type: ignore[no-untyped-def]
    _grad_output, x, weight, bias, *rule, _algorithm, _impl = inputs
    ctx.save_for_backward(x, weight, bias)
    ctx.rule = tuple(rule)


def _backward_grad_preactivation(ctx, grad):  # type: ignore[no-untyped-def]
    # linear in grad_output, and where the maxima lie is constant almost everywhere
    with torch.no_grad(), torch.autocast(grad.device.type, enabled=False):
        maxima = _maxima(*ctx.saved_tensors, *ctx.rule)
    return _picked(grad, maxima), *[None] * 9


def _setup_grad_input(ctx, inputs, output):  # type: ignore[no-untyped-def]
    grad, weight, ctx.padding, ctx.algorithm, ctx.impl = inputs
    ctx.save_for_backward(grad, weight)


def _backward_grad_input(ctx, grad_grad):  # type: ignore[no-untyped-def]
    grad, weight = ctx.saved_tensors
    of_grad = of_weight = None
    if ctx.needs_input_grad[0]:
        rule = (ctx.padding, "identity", [1, 1, 1], False, ctx.algorithm, ctx.impl)
        of_grad = _op(grad_grad, weight, None, *rule, None)
    if ctx.needs_input_grad[1]:
        of_weight, _ = _op_grad_weight(grad, grad_grad, weight.shape[2:], ctx.padding, ctx.algorithm, ctx.impl)
    return of_grad, of_weight, *[None] * 3


def _setup_grad_weight(ctx, inputs, output):  # type: ignore[no-untyped-def]
    grad, x, _kernel_size, ctx.padding, ctx.algorithm, ctx.impl = inputs
    ctx.save_for_backward(grad, x)


def _backward_grad_weight(ctx, grad_grad, grad_grad_bias):  # type: ignore[no-untyped-def]
    grad, x = ctx.saved_tensors
    of_grad = of_x = None
    if ctx.needs_input_grad[0]:
        rule = (ctx.padding, "identity", [1, 1, 1], False, ctx.algorithm, ctx.impl)
        of_grad = _op(x, grad_grad, grad_grad_bias, *rule, None)
    if ctx.needs_input_grad[1]:
        of_x = _op_grad_input(grad, grad_grad, ctx.padding, ctx.algorithm, ctx.impl)
    return of_grad, of_x, *[None] * 4


_op = torch.ops.vidgen.conv3d_pool3d.default
_op_grad_preactivation = torch.ops.vidgen.conv3d_pool3d_grad_preactivation.default
_op_grad_input = torch.ops.vidgen.conv3d_pool3d_grad_input.default
_op_grad_weight = torch.ops.vidgen.conv3d_pool3d_grad_weight.default
_op_pack = torch.ops.vidgen.conv3d_pool3d_pack.default

# without algorithm and packed, the CPU kernel's own
register_selection(_OP, reference, lambda *args: args[:7])
register_selection(f"{_OP}_grad_preactivation", reference_grad_preactivation, lambda *args: args[:8])
register_selection(f"{_OP}_grad_input", reference_grad_input, lambda *args: args[:3])
register_selection(f"{_OP}_grad_weight", reference_grad_weight, lambda *args: args[:4])
register_autocast(_OP, cast_convolution)
torch.library.register_autograd("vidgen::conv3d_pool3d", _backward_forward, setup_context=_setup_forward)
torch.library.register_autograd(
    "vidgen::conv3d_pool3d_grad_preactivation", _backward_grad_preactivation, setup_context=_setup_grad_preactivation
)
torch.library.register_autograd(
    "vidgen::conv3d_pool3d_grad_input", _backward_grad_input, setup_context=_setup_grad_input
)
torch.library.register_autograd(
    "vidgen::conv3d_pool3d_grad_weight", _backward_grad_weight, setup_context=_setup_grad_weight
)


# The public functions.


def _check_weight(weight: Tensor, algorithm: str) -> None:
    if weight.dim() != 5:
        raise ValueError(f"weight must be 5-d (out, in, depth, height, width), got shape {tuple(weight.shape)}")
    if not all(1 <= k <= _MAX_KERNEL for k in weight.shape[2:]):
        raise ValueError(f"weight must have 1 to {_MAX_KERNEL} taps per axis, got {tuple(weight.shape[2:])}")
    if 0 in weight.shape[:2]:
        raise ValueError(f"weight must have at least one channel in and out, got shape {tuple(weight.shape)}")
    if algorithm not in ("auto", "direct"):
        raise ValueError(f"algorithm must be 'auto' or 'direct', got {algorithm!r}")


def conv3d_pool3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    padding: Padding = "same",
    activation: Activation = "relu",
    pool: Pool = None,
    ceil_mode: bool = False,
    algorithm: Algorithm = "auto",
    impl: str | None = None,
    packed: Tensor | None = None,
) -> Tensor:
    """Convolution, bias, activation and max-pooling in one pass (formula and promises: the head of this module).

    Images are clips of depth 1: a kernel (1, 3, 3) with a window (1, 2, 2) is the 2-d layer.

    Args:
        x: clips (N, Cin, D, H, W); any strides, channels_last_3d is kept in the result; N = 0 is allowed.
        weight: (Cout, Cin, kd, kh, kw), 1 to 7 taps per axis, of x's dtype.
        bias: (Cout,) or None.
        padding: zeros around the clip: "same", "valid" (none), a number or one per axis, each less than the kernel.
        activation: "relu" or "identity".
        pool: window of the max-pooling, 1 to 4 per axis and also its stride; None pools nothing.
        ceil_mode: pool what remains at the far ends, too, as torch.nn.MaxPool3d does.
        algorithm: "auto" lets float32 and bfloat16 on the CPU use Winograd forms where they are faster, "direct" not.
        impl: "cpu", "triton", "cuda" or "reference" forces a backend; None takes VIDGEN_IMPL, else the best that can.
        packed: what `conv3d_pool3d_pack(weight, ...)` returned for the same weight; saves the CPU kernel its packing,
            and decides on its form. The caller answers for its being up to date. Other backends ignore it.

    Returns:
        (N, Cout, D', H', W') of x's dtype.

    Raises:
        ValueError, TypeError: an argument is not as above; the message names it, what was expected and what came.
        RuntimeError: the forced backend cannot serve the call; the message says why.

    Differentiable in x, weight and bias, to any order where the maxima are unique (in eager mode; torch.compile has no
    double backward); from the second order on the maxima are found by the reference.
    Reverse mode only: forward-mode tangents are refused, and torch.func's transforms of gradients are PyTorch's to
    refuse. Autocast: runs in torch.get_autocast_dtype.
    Deterministic; on the CPU no bit of the output or of a gradient depends on the number of threads, and none of a clip
    or of its gradient on the batch around it.
    Error against float64, before anything cancels (rms of the sums of which z consists): float32 direct at most 2x that
    of eager PyTorch, Winograd at most 5e-6 relative and 16x eager; bfloat16 at most 3x that of eager bfloat16; float32
    accumulation throughout. Winograd forms want |x| below 1e35 and |weight| above 1e-34, or zero: their transforms
    multiply by up to 200 and divide by up to 576.
    """
    _check_weight(weight, algorithm)
    if x.dim() != 5 or x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"x must be (N, {weight.shape[1]}, D, H, W) for a weight of shape {tuple(weight.shape)}, "
            f"got {tuple(x.shape)}"
        )
    check_tensors(x, weight, bias)
    if activation not in ("relu", "identity"):
        raise ValueError(f"activation must be 'relu' or 'identity', got {activation!r}")
    around, window = resolve_padding(padding, weight.shape[2:]), resolve_pool(pool)
    size = conv_size(x.shape[2:], weight.shape[2:], around)
    if any(s < 1 for s in size):
        raise ValueError(
            f"x must be at least as large as the kernel, got {tuple(x.shape[2:])} for a kernel of "
            f"{tuple(weight.shape[2:])} with padding {padding!r}"
        )
    if not ceil_mode and any(s < k for s, k in zip(size, window, strict=True)):
        raise ValueError(f"pool must fit into the convolution's output {tuple(size)}, got {pool!r} without ceil_mode")
    return _op(x, weight, bias, around, activation, window, ceil_mode, algorithm, impl, packed)


def conv3d_pool3d_pack(
    weight: Tensor,
    *,
    input_size: Sequence[int] | None = None,
    padding: Padding = "same",
    pool: Pool = None,
    algorithm: Algorithm = "auto",
) -> Tensor:
    """The weight in the byte layout that this machine's CPU kernel reads, for `conv3d_pool3d(..., packed=...)`.

    Args:
        weight: (Cout, Cin, kd, kh, kw) on the CPU, float32, bfloat16 or float64.
        input_size: (D, H, W) of the clips to come, from which the form is chosen. Clips of other sizes are served too,
            by the same form. None expects large clips where the weight is small and small ones where it is large, as
            in most networks.
        padding, pool, algorithm: as in `conv3d_pool3d`.

    Returns:
        uint8 (bytes,): one form of the weight in the type that is multiplied, output channels filled up to whole
        vectors: at most 5.4 times the size of a float32 weight with as many. It depends on the instruction set and is
        not meant to be saved. Not differentiable: gradients flow through `weight`.

    Raises:
        ValueError: as `conv3d_pool3d`. RuntimeError: the CPU kernel does not compute weight's dtype.
    """
    _check_weight(weight, algorithm)
    if input_size is not None and (len(input_size) != 3 or not all(s > 0 for s in input_size)):
        raise ValueError(f"input_size must be (depth, height, width), all positive, or None, got {input_size!r}")
    around, window = resolve_padding(padding, weight.shape[2:]), resolve_pool(pool)
    if input_size is not None and min(conv_size(input_size, weight.shape[2:], around)) < 1:
        raise ValueError(
            f"input_size must be at least as large as the kernel {tuple(weight.shape[2:])} with padding {padding!r}, "
            f"got {tuple(input_size)}"
        )
    return _op_pack(weight.detach(), list(input_size or ()), around, window, algorithm)


def plan_of(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    padding: Padding = "same",
    activation: str = "relu",
    pool: Pool = None,
    ceil_mode: bool = False,
    algorithm: str = "auto",
) -> str:
    """What the CPU kernel would do for a call, in words (for `vidgen.explain`)."""
    around, window = resolve_padding(padding, weight.shape[2:]), resolve_pool(pool)
    words, _ = torch.ops.vidgen.conv3d_pool3d_cpu_plan(x, weight, around, window, ceil_mode, algorithm)
    return words
