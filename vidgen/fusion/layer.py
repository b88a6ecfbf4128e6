"""What a fused chain computes; the graphs of fused modules call these functions."""

from __future__ import annotations

import torch
from torch import Tensor

from vidgen.ops import conv3d_pool3d, masked_conv2d
from vidgen.ops.conv3d_geometry import Padding, Pool
from vidgen.ops.conv3d_pool3d import Activation, Algorithm
from vidgen.ops.masked_conv2d import ColorLayout, Mask

#: running mean, running variance, weight and bias of a batch normalisation
Norm = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def fold(weight: Tensor, bias: Tensor | None, norm: Norm, eps: float) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that equals a convolution and a batch normalisation in eval mode.

        γ · (w * x + b - μ) / √(σ² + ε) + β  =  (s·w) * x + (s·(b - μ) + β),    s = γ / √(σ² + ε)

    Args:
        weight: (Cout, Cin, ...). bias: (Cout,) or None. norm: (Cout,) each.

    Returns:
        The two in the dtype of `weight`; 16-bit types are computed in float32. Differentiable.
    """
    mean, variance, gamma, beta = (None if t is None else t.float() if t.dtype.itemsize < 4 else t for t in norm)
    assert mean is not None
    assert variance is not None
    scale = (variance + eps).rsqrt()
    if gamma is not None:
        scale = scale * gamma
    shift = -mean * scale if bias is None else (bias - mean) * scale
    if beta is not None:
        shift = shift + beta
    folded = weight * scale.view(-1, *[1] * (weight.dim() - 1))
    return folded.to(weight.dtype), shift.to(weight.dtype)


def fused_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Norm | None,
    kept: tuple[Tensor | None, Tensor | None, Tensor | None],
    *,
    eps: float,
    padding: Padding,
    activation: Activation,
    pool: Pool,
    ceil_mode: bool,
    algorithm: Algorithm,
    impl: str | None,
) -> Tensor:
    """A convolution of images or clips, batch normalisation in eval mode, activation and max-pooling as one op.

    Args:
        x: (N, Cin, D, H, W) for a weight (Cout, Cin, kd, kh, kw), (N, Cin, H, W) for a weight (Cout, Cin, kh, kw); as
            in torch.nn.Conv3d the batch axis may be missing.
        kept: folded weight, folded bias and packed weight if there are any; that of images has depth 1, too.
        padding, pool: three numbers each; images have depth 1.
    """
    images = weight.dim() == 4
    if images:
        # views: a clip of depth 1 has the image's strides, channels_last as channels_last_3d
        x, weight = x.unsqueeze(-3), weight.unsqueeze(2)
    kept_weight, kept_bias, packed = kept
    if norm is not None:
        sources = [t for t in (weight, bias, *norm) if t is not None]
        # what is kept has no gradients
        if kept_weight is None or (torch.is_grad_enabled() and any(t.requires_grad for t in sources)):
            weight, bias = fold(weight, bias, norm, eps)
        else:
            weight, bias = kept_weight, kept_bias
    batched = x.dim() == 5
    if not batched and norm is not None:
        raise ValueError("batch normalisation needs a batch axis, got an input without one")
    y = conv3d_pool3d(
        x if batched else x.unsqueeze(0),
        weight,
        bias,
        padding=padding,
        activation=activation,
        pool=pool,
        ceil_mode=ceil_mode,
        algorithm=algorithm,
        impl=impl,
        packed=packed,
    )
    y = y if batched else y.squeeze(0)
    return y.squeeze(-3) if images else y


def masked_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kept: tuple[Tensor | None, Tensor | None, Tensor | None],
    *,
    mask: Mask,
    colors: int,
    color_layout: ColorLayout,
    dilation: int,
    algorithm: Algorithm,
    impl: str | None,
) -> Tensor:
    """A convolution whose weight was masked on every call, as the op that does not read masked taps."""
    batched = x.dim() == 4
    y = masked_conv2d(
        x if batched else x.unsqueeze(0),
        weight,
        bias,
        mask=mask,
        colors=colors,
        color_layout=color_layout,
        dilation=dilation,
        algorithm=algorithm,
        impl=impl,
        packed=kept[2],
    )
    return y if batched else y.squeeze(0)
