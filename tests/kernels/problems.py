"""Masked convolutions to try kernels on, and their answers in float64, written down independently of vidgen."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    cin: int
    cout: int
    kernel: tuple[int, int] = (3, 3)
    mask: str = "B"
    colors: int = 1
    layout: str = "interleaved"
    dilation: int = 1
    size: tuple[int, int] = (5, 6)
    batch: int = 2
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    bias: bool = True

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        order = "nhwc" if self.channels_last else "nchw"
        kernel, size = "x".join(map(str, self.kernel)), "x".join(map(str, self.size))
        colors = f"-{self.colors}{self.layout}" if self.colors > 1 else ""
        return f"{self.cin}to{self.cout}-{kernel}{self.mask}{colors}-d{self.dilation}-{size}-{kind}-{order}"

    @property
    def rule(self) -> tuple[str, int, str, int]:
        """What the launchers take after the tensors."""
        return (self.mask, self.colors, self.layout, self.dilation)

    def with_dtype(self, dtype: torch.dtype) -> Problem:
        return replace(self, dtype=dtype)

    def colour(self, channels: int) -> Tensor:
        index = torch.arange(channels)
        return index % self.colors if self.layout == "interleaved" else index * self.colors // channels

    def keep(self) -> Tensor:
        """Which weights take part: bool (Cout, Cin, kh, kw)."""
        kh, kw = self.kernel
        keep = torch.zeros(self.cout, self.cin, kh * kw, dtype=torch.bool)
        keep[:, :, : kh * kw // 2] = True
        source, reader = self.colour(self.cin)[None], self.colour(self.cout)[:, None]
        keep[:, :, kh * kw // 2] = source <= reader if self.mask == "B" else source < reader
        return keep.view(self.cout, self.cin, kh, kw)

    def tensors(self, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """x, weight, bias and an output's gradient, normal, of this problem's dtype and layout."""
        generator = torch.Generator().manual_seed(7)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(self.dtype)

        order = torch.channels_last if self.channels_last else torch.contiguous_format
        x = normal(self.batch, self.cin, *self.size).contiguous(memory_format=order)
        weight = normal(self.cout, self.cin, *self.kernel)
        bias = normal(self.cout) if self.bias else None
        grad = normal(self.batch, self.cout, *self.size).contiguous(memory_format=order)
        return x.to(device), weight.to(device), None if bias is None else bias.to(device), grad.to(device)

    def answer(self, x: Tensor, weight: Tensor, bias: Tensor | None, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Output and both gradients in float64 on the CPU, by the dense convolution with a zeroed weight."""
        x, weight = (t.detach().cpu().double().requires_grad_() for t in (x, weight))
        wide_bias = None if bias is None else bias.cpu().double()
        kept = torch.where(self.keep(), weight, 0.0)
        padding = tuple(k // 2 * self.dilation for k in self.kernel)
        y = torch.nn.functional.conv2d(x, kept, wide_bias, padding=padding, dilation=self.dilation)
        return (y.detach(), *torch.autograd.grad(y, (x, weight), grad.cpu().double()))


@contextlib.contextmanager
def float32_precision(name: str) -> Iterator[None]:
    """ "ieee" or "tf32" for float32 convolutions."""
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = name
    yield
    torch.backends.cudnn.conv.fp32_precision = before


def relative_error(got: Tensor, want: Tensor) -> float:
    """Root mean square of the difference over that of `want`; NaN stays NaN and so passes no bound."""
    got = got.cpu().double()
    assert got.shape == want.shape
    return float((got - want).norm() / want.norm().clamp_min(1e-30)) if want.numel() else 0.0
