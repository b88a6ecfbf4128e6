"""Convolutions whose support lies above, or above and to the left: the layers of networks with two causal streams.

A causal network need not mask its kernels. It can shift them instead (Salimans et al., "PixelCNN++", ICLR 2017, section
2.3 and the code published with it), so that every tap is used and strides are possible:

    mode           zeros around the image                        an output at (i, j), stride 1, reads
    "down"         kh − 1 rows on top, kw // 2 columns each side rows i − kh + 1 … i, columns j − kw // 2 … j + kw // 2
    "down_right"   kh − 1 rows on top, kw − 1 columns on the left rows i − kh + 1 … i, columns j − kw + 1 … j

An output sees its own pixel; shifting the result by `down_shift` or `right_shift` makes it see the past alone.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Mode = Literal["down", "down_right"]

_Size = int | tuple[int, int]


def down_shift(x: Tensor) -> Tensor:
    """Every row where the next one was; the first row is exactly 0. (N, C, H, W) -> the same shape."""
    return F.pad(x, (0, 0, 1, 0))[:, :, :-1]


def right_shift(x: Tensor) -> Tensor:
    """Every column where the next one was; the first column is exactly 0. (N, C, H, W) -> the same shape."""
    return F.pad(x, (1, 0))[:, :, :, :-1]


def _pair(name: str, value: Any) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(size, int) and size >= 1 for size in pair):
        raise ValueError(f"{name} must be a positive int or a pair of them, got {value!r}")
    return pair


def _checked(mode: Any, kernel_size: Any, stride: Any, **channels: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Kernel size and stride as pairs."""
    for name, value in channels.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be 'down' or 'down_right', got {mode!r}")
    kernel = _pair("kernel_size", kernel_size)
    if mode == "down" and kernel[1] % 2 == 0:
        raise ValueError(f"kernel_size must have an odd width in mode 'down', got {kernel_size!r}")
    return kernel, _pair("stride", stride)


class ShiftedConv2d(nn.Conv2d):
    """`torch.nn.Conv2d` that reads its own pixel and what is above, or above and to the left, of it.

    Parameters and state dict are those of `torch.nn.Conv2d`. Padding follows from the mode (the head of this module).

    Args:
        in_channels, out_channels: at least 1.
        kernel_size: an int or (height, width); of odd width in mode "down".
        stride: an int or (down, right).
        mode: "down" or "down_right".
        bias, device, dtype: as in nn.Conv2d.

    Shape: (N, in_channels, H, W) -> (N, out_channels, ⌈H / stride⌉, ⌈W / stride⌉). Output (i, j) stands at pixel
        (i · stride, j · stride).

    Raises:
        ValueError: an argument is not as described.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Size,
        stride: _Size = 1,
        *,
        mode: Mode,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        kernel, step = _checked(mode, kernel_size, stride, in_channels=in_channels, out_channels=out_channels)
        super().__init__(in_channels, out_channels, kernel, step, bias=bias, device=device, dtype=dtype)
        self.mode: Mode = mode

    def forward(self, input: Tensor) -> Tensor:
        kh, kw = self.kernel_size
        sides = (kw // 2, kw // 2) if self.mode == "down" else (kw - 1, 0)
        return F.conv2d(F.pad(input, (*sides, kh - 1, 0)), self.weight, self.bias, self.stride)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mode={self.mode!r}"


class ShiftedConvTranspose2d(nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` that writes at its own pixel and below, or below and to the right, of it.

    The transposed convolution is computed without padding and cropped to the size of its input times the stride. In
    mode "down" the first kw // 2 columns go too, so that a pixel's patch lies around its own column. What was written
    beyond the image by pixels of the last rows and columns is dropped.

    Parameters and state dict are those of `torch.nn.ConvTranspose2d`: the weight is (in, out, kh, kw).

    Args:
        in_channels, out_channels: at least 1.
        kernel_size: an int or (height, width); of odd width in mode "down".
        stride: an int or (down, right).
        mode: "down" or "down_right".
        bias, device, dtype: as in nn.ConvTranspose2d.

    Shape: (N, in_channels, H, W) -> (N, out_channels, H · stride, W · stride).

    Raises:
        ValueError: an argument is not as described.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Size,
        stride: _Size = 1,
        *,
        mode: Mode,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        kernel, step = _checked(mode, kernel_size, stride, in_channels=in_channels, out_channels=out_channels)
        left = kernel[1] // 2 if mode == "down" else 0
        # a kernel shorter than the stride leaves pixels that only the bias reaches; torch must be asked for them
        beyond = (max(step[0] - kernel[0], 0), max(step[1] + left - kernel[1], 0))
        super().__init__(
            in_channels, out_channels, kernel, step, output_padding=beyond, bias=bias, device=device, dtype=dtype
        )
        self.mode: Mode = mode

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is not None:
            raise ValueError(f"output_size must be None (the input's times the stride), got {output_size!r}")
        y = F.conv_transpose2d(input, self.weight, self.bias, self.stride, output_padding=self.output_padding)
        left = self.kernel_size[1] // 2 if self.mode == "down" else 0
        height, width = (size * step for size, step in zip(input.shape[2:], self.stride, strict=True))
        return y[:, :, :height, left : left + width]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mode={self.mode!r}"
