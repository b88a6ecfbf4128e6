"""The layer over `vidgen.ops.masked_conv2d`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vidgen.nn.prepack import PackedWeights, reads_packed
from vidgen.ops import masked_conv2d, masked_conv2d_pack
from vidgen.ops.masked_conv2d import Algorithm, ColorLayout, Mask

_Size = int | tuple[int, int]


def _pair(name: str, value: _Size) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2:
        raise ValueError(f"{name} must be an int or a pair of ints, got {value!r}")
    return pair


class MaskedConv2d(PackedWeights, nn.Conv2d):
    """`torch.nn.Conv2d` that sees only pixels before its own in raster order (van den Oord et al. 2016, section 3.4).

    The constructor is that of `torch.nn.Conv2d` plus `mask`, `colors` and `color_layout`, and so are parameters and
    state dict: a checkpoint of an nn.Conv2d loads as it is. The weight itself is never masked or written to; masked
    entries are simply not read, and their gradient is zero.

    Args:
        in_channels, out_channels: both divisible by `colors`.
        kernel_size: odd; an int or (height, width).
        stride, groups, padding_mode: only 1, 1 and "zeros", which a causal convolution of one size leaves.
        padding: "same", or the equal number of pixels.
        dilation: distance of neighbouring taps, the same in both directions.
        bias, device, dtype: as in nn.Conv2d.
        mask: "A" for the first layer (a pixel does not see itself), "B" for all others.
        colors: number of colour groups of the channels; 1 treats a pixel as one.
        color_layout: "interleaved" (colour of channel c is c % colors) or "blocked" (contiguous groups).
        algorithm, impl: passed to the op.

    Shape: (N, in_channels, H, W) -> (N, out_channels, H, W); channels_last stays channels_last.
    """

    packed: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Size,
        stride: _Size = 1,
        padding: str | _Size = "same",
        dilation: _Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        mask: Mask,
        colors: int = 1,
        color_layout: ColorLayout = "interleaved",
        algorithm: Algorithm = "auto",
        impl: str | None = None,
    ) -> None:
        kernel, spread = _pair("kernel_size", kernel_size), _pair("dilation", dilation)
        same = (spread[0] * (kernel[0] // 2), spread[1] * (kernel[1] // 2))
        if _pair("stride", stride) != (1, 1):
            raise ValueError(f"stride must be 1, got {stride!r}")
        if groups != 1:
            raise ValueError(f"groups must be 1, got {groups!r}")
        if padding_mode != "zeros":
            raise ValueError(f"padding_mode must be 'zeros', got {padding_mode!r}")
        if kernel[0] % 2 == 0 or kernel[1] % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size!r}")
        if spread[0] != spread[1]:
            raise ValueError(f"dilation must be the same in both directions, got {dilation!r}")
        if padding != "same" and (isinstance(padding, str) or _pair("padding", padding) != same):
            raise ValueError(f"padding must be 'same' or {same} for this kernel, got {padding!r}")
        if mask not in ("A", "B"):
            raise ValueError(f"mask must be 'A' or 'B', got {mask!r}")
        if color_layout not in ("interleaved", "blocked"):
            raise ValueError(f"color_layout must be 'interleaved' or 'blocked', got {color_layout!r}")
        if colors < 1 or in_channels % colors or out_channels % colors:
            raise ValueError(
                f"colors must be at least 1 and divide in_channels ({in_channels}) and out_channels ({out_channels}), "
                f"got {colors}"
            )
        super().__init__(in_channels, out_channels, kernel, 1, same, spread, 1, bias, "zeros", device, dtype)
        self.mask: Mask = mask
        self.colors = colors
        self.color_layout: ColorLayout = color_layout
        self.algorithm: Algorithm = algorithm
        self.impl = impl

    def forward(self, input: Tensor) -> Tensor:
        return masked_conv2d(
            input,
            self.weight,
            self.bias,
            mask=self.mask,
            colors=self.colors,
            color_layout=self.color_layout,
            dilation=self.dilation[0],
            algorithm=self.algorithm,
            impl=self.impl,
            packed=self.packed,
        )

    def prepack_(self) -> None:
        self.packed = None
        if reads_packed("masked_conv2d", self.weight):
            self.packed = masked_conv2d_pack(
                self.weight,
                mask=self.mask,
                colors=self.colors,
                color_layout=self.color_layout,
                dilation=self.dilation[0],
                algorithm=self.algorithm,
            )

    def extra_repr(self) -> str:
        text = super().extra_repr() + f", mask={self.mask!r}"
        if self.colors != 1:
            text += f", colors={self.colors}, color_layout={self.color_layout!r}"
        if self.algorithm != "auto":
            text += f", algorithm={self.algorithm!r}"
        if self.impl is not None:
            text += f", impl={self.impl!r}"
        return text
