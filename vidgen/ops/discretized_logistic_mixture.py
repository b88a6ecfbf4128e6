r"""Log-likelihood of grey levels under a discretised mixture of logistics, the loss of PixelCNN++.

A pixel x = (x₁ … x_C) of grey levels scaled to [-1, 1] has the probability

    p(x) = Σ π_k · Π P(x_c | m_kc, s_kc),       P(x | m, s) = σ((x + h - m) / eˢ) - σ((x - h - m) / eˢ)
           k       c

with π the softmax of the logits, h = 1 / (levels - 1) half the distance of two levels, P's first term replaced by 1 at
the upper edge (x > edge) and its second by 0 at the lower one (x < -edge), edge = 1 - min(h, 0.001). Log-scales s are
at least -7. A colour's mean depends on the true values of those before it, with the coefficients' tanh:

    m_k2 = μ_k2 + tanh(c₁)·x₁,     m_k3 = μ_k3 + tanh(c₂)·x₁ + tanh(c₃)·x₂

Parameters (N, P, H, W) in the order of the original code: K logits; then for each colour K means, K log-scales and, for
colours 1 … C(C-1)/2, K coefficients. So P is 3K for one colour, 6K for two (one coefficient, stored with the first
colour) and 10K for three. The result is Σ log p over an image's pixels, in nats.

mode "exact": log P = log σ(p) + log σ(-m) + log(1 - e^(m - p)) where p and m are the arguments of the two σ: no
cancellation, and no constant but the floor of the log-scales. mode "openai": where P < 1e-5 away from the edges it is
replaced by the density at x times 2h, as in the published loss; for comparisons with it.

Dtypes: the arithmetic is float32 (float64 for float64 parameters) whatever the parameters are, also under autocast; so
is the result, and the gradient has the parameters' dtype. Value and gradients are finite for finite parameters of any
size whose differences are finite when divided by e⁻⁷.

Differentiable in params, to any order in eager PyTorch (second and later ones through `reference`). Not in x: a grey
level is no variable of a probability mass, and a tensor x that requires a gradient is refused.

Source: Salimans, Karpathy, Chen, Kingma, "PixelCNN++" (2017), section 2.1 and the code published with it.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vidgen.ops.backends import TABLE, Backend, adjoint_impl, always, reference_row, triton_row
from vidgen.ops.registration import check_no_tangent, computed_in, memory_format_of, register_selection

Mode = Literal["exact", "openai"]

LOG_SCALE_FLOOR = -7.0

_OP = "discretized_logistic_mixture"


# Reference: eager PyTorch. Every branch of a `where` is finite, and so is its derivative.


def parameters_per_mixture(channels: int) -> int:
    """P / K: a logit, a mean and a log-scale for each colour, a coefficient for each pair of colours."""
    return 1 + 2 * channels + channels * (channels - 1) // 2


def split_parameters(params: Tensor, channels: int) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """Logits, means, log-scales and coefficients (before tanh), each (N, K, ...), from params (N, P, ...).

    Coefficient i(i-1)/2 + j is that of colour j in the mean of colour i, both counted from 0.
    """
    blocks = iter(params.chunk(parameters_per_mixture(channels), dim=1))
    logits, means, log_scales, coefficients = next(blocks), [], [], []
    for channel in range(channels):
        means.append(next(blocks))
        log_scales.append(next(blocks))
        if channel < channels * (channels - 1) // 2:
            coefficients.append(next(blocks))
    return logits, means, log_scales, coefficients


def _log_mass(x: Tensor, mean: Tensor, log_scale: Tensor, levels: int, mode: str) -> Tensor:
    """log P of one colour. x (N, 1, H, W), the others (N, K, H, W)."""
    half, edge = 1 / (levels - 1), 1 - min(1 / (levels - 1), 0.001)
    log_scale = log_scale.clamp(min=LOG_SCALE_FLOOR)
    inverse, centered = torch.exp(-log_scale), x - mean
    below_upper = F.logsigmoid(inverse * (centered + half))
    above_lower = F.logsigmoid(-inverse * (centered - half))
    # log(1 - e^-width); for a narrow bin log(width) is known without computing width, which may underflow
    width = (2 * half * inverse).clamp(min=1e-30)
    narrow = math.log(2 * half) - log_scale + torch.log(-torch.expm1(-width) / width)
    wide = torch.log(-torch.expm1(-width.clamp(min=1)))
    log_mass = below_upper + above_lower + torch.where(width < 1, narrow, wide)
    if mode == "openai":
        middle = inverse * centered
        density = F.logsigmoid(middle) + F.logsigmoid(-middle) - log_scale + math.log(2 * half)
        log_mass = torch.where(log_mass > math.log(1e-5), log_mass, density)
    return torch.where(x < -edge, below_upper, torch.where(x > edge, above_lower, log_mass))


def reference(params: Tensor, x: Tensor, levels: int, mode: str) -> Tensor:
    """discretized_logistic_mixture in eager PyTorch; any device, any floating dtype."""
    wide = computed_in(params.dtype)
    channels = x.shape[1]
    logits, means, log_scales, coefficients = split_parameters(params.to(wide), channels)
    colors = x.to(wide).split(1, dim=1)  # each [N, 1, H, W]
    log_joint = torch.log_softmax(logits, dim=1)  # [N, K, H, W]
    for i in range(channels):
        mean = means[i]
        for j in range(i):
            mean = mean + torch.tanh(coefficients[i * (i - 1) // 2 + j]) * colors[j]
        log_joint = log_joint + _log_mass(colors[i], mean, log_scales[i], levels, mode)
    return torch.logsumexp(log_joint, dim=1).sum(dim=(1, 2))


def reference_grad_params(grad_output: Tensor, params: Tensor, x: Tensor, levels: int, mode: str) -> Tensor:
    """The gradient of `reference` in params, by autograd. grad_output (N,) -> (N, P, H, W) of params' dtype."""

    def total(values: Tensor) -> Tensor:
        return (reference(values, x, levels, mode) * grad_output).sum()

    gradient = torch.func.grad(total)(params.to(computed_in(params.dtype)))
    return gradient.to(params.dtype).contiguous(memory_format=memory_format_of(params))


# Backends. The CPU kernel is registered in C++ (csrc/bind/); its rows here serve explain and info.


def _cpu_supports(params: Tensor, *_args: Any) -> str | None:
    return torch.ops.vidgen.discretized_logistic_mixture_cpu_supports(params.dtype) or None


def _cpu_supports_grad(grad_output: Tensor, params: Tensor, *_args: Any) -> str | None:
    return _cpu_supports(params)


TABLE[_OP] = (
    Backend("cpu", ("cpu",), always, _cpu_supports, run=None),
    triton_row(_OP, "forward"),
    reference_row(reference),
)
TABLE[f"{_OP}_grad_params"] = (
    Backend("cpu", ("cpu",), always, _cpu_supports_grad, run=None),
    triton_row(_OP, "grad_params"),
    reference_row(reference_grad_params),
)


# Registration: shapes, autograd, selection. Autocast has no say: parameters are read in the dtype that they have.


@torch.library.register_fake("vidgen::discretized_logistic_mixture")
def _(params, x, levels, mode, impl):  # type: ignore[no-untyped-def]
    return params.new_empty((params.shape[0],), dtype=computed_in(params.dtype))


@torch.library.register_fake("vidgen::discretized_logistic_mixture_grad_params")
def _(grad_output, params, x, levels, mode, impl):  # type: ignore[no-untyped-def]
    return torch.empty(params.shape, dtype=params.dtype, device=params.device, memory_format=memory_format_of(params))


def _setup_forward(ctx, inputs, output):  # type: ignore[no-untyped-def]
    params, x, ctx.levels, ctx.mode, ctx.impl = inputs
    ctx.save_for_backward(params, x)


def _backward_forward(ctx, grad_output):  # type: ignore[no-untyped-def]
    params, x = ctx.saved_tensors
    grad = None
    if ctx.needs_input_grad[0]:
        grad = _op_grad_params(grad_output, params, x, ctx.levels, ctx.mode, adjoint_impl(ctx.impl))
    return grad, None, None, None, None


def _setup_grad_params(ctx, inputs, output):  # type: ignore[no-untyped-def]
    grad_output, params, x, ctx.levels, ctx.mode, ctx.impl = inputs
    ctx.save_for_backward(grad_output, params, x)


def _backward_grad_params(ctx, grad):  # type: ignore[no-untyped-def]
    grad_output, params, x = ctx.saved_tensors
    with torch.enable_grad():
        # views, so that what is computed here stays connected to its inputs and can be differentiated again
        weight, values = (
            t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in (grad_output, params)
        )
        out = reference(values, x, ctx.levels, ctx.mode)
        (first,) = torch.autograd.grad(out, values, weight, create_graph=True)
        grads = torch.autograd.grad(first, (weight, values), grad, create_graph=torch.is_grad_enabled())
    return *grads, None, None, None, None


_op = torch.ops.vidgen.discretized_logistic_mixture.default
_op_grad_params = torch.ops.vidgen.discretized_logistic_mixture_grad_params.default

register_selection(_OP, reference, lambda *args: args)
register_selection(f"{_OP}_grad_params", reference_grad_params, lambda *args: args)
torch.library.register_autograd(f"vidgen::{_OP}", _backward_forward, setup_context=_setup_forward)
torch.library.register_autograd(f"vidgen::{_OP}_grad_params", _backward_grad_params, setup_context=_setup_grad_params)


# The public function.


def _check(params: Tensor, x: Tensor, levels: int, mode: str) -> None:
    for name, tensor in (("params", params), ("x", x)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {tensor.dtype}")
        if tensor.dim() != 4:
            raise ValueError(f"{name} must be 4-d (N, channels, H, W), got shape {tuple(tensor.shape)}")
        check_no_tangent(name, tensor)
    if not 1 <= x.shape[1] <= 3:
        raise ValueError(f"x must have 1 to 3 channels, got shape {tuple(x.shape)}")
    if params.shape[0] != x.shape[0] or params.shape[2:] != x.shape[2:]:
        raise ValueError(
            f"params must have the batch, height and width of x {tuple(x.shape)}, got shape {tuple(params.shape)}"
        )
    each = parameters_per_mixture(x.shape[1])
    if params.shape[1] == 0 or params.shape[1] % each:
        raise ValueError(f"params must have {each}·K channels for {x.shape[1]} of x, got {params.shape[1]}")
    if params.device != x.device:
        raise ValueError(f"x must be on the device of params ({params.device}), got {x.device}")
    if x.requires_grad:
        raise ValueError("x must not require a gradient: the op is differentiable in params only; pass x.detach()")
    if isinstance(levels, bool) or not isinstance(levels, int):
        raise TypeError(f"levels must be an int, got {type(levels).__name__}")
    if levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}")
    if mode not in ("exact", "openai"):
        raise ValueError(f"mode must be 'exact' or 'openai', got {mode!r}")


def discretized_logistic_mixture(
    params: Tensor, x: Tensor, *, levels: int = 256, mode: Mode = "exact", impl: str | None = None
) -> Tensor:
    """Log-likelihood of images under a mixture of discretised logistics (formula: the head of this module).

    Args:
        params: (N, P, H, W), P = 3K, 6K or 10K for 1, 2 or 3 channels; any floating dtype, any strides.
        x: (N, C, H, W), floating point, grey levels scaled to [-1, 1]; converted to float32 (float64 for such params).
        levels: number of grey levels, at least 2; 2**bits for images of a bit depth.
        mode: "exact" or "openai", the published approximation.
        impl: "cpu", "triton" or "reference" forces a backend; None takes VIDGEN_IMPL, else the best that can.

    Returns:
        (N,) in nats: float64 for float64 params, else float32.

    Raises:
        ValueError, TypeError: an argument is not as above; the message names it, what was expected and what came.
        RuntimeError: `impl` cannot serve the call, or an argument carries a forward-mode tangent.
    """
    _check(params, x, levels, mode)
    return _op(params, x.to(computed_in(params.dtype)), levels, mode, impl)
