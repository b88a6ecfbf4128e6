"""Convolutions of clips with pooling to try kernels on, and their answers in float64, independent of vidgen."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

SAME = (1, 1, 1, 1, 1, 1)
NONE = (0, 0, 0, 0, 0, 0)


@dataclass(frozen=True)
class Clip:
    """A call. `values` is what the tensors hold:

    normal: random numbers;
    ties: small integers, whose sums every dtype holds exactly, so that maxima are often equal, and often zero;
    nan: ties, and NaN in some voxels;
    negative: ties under a bias of -64;
    infinite: ties, and -inf in some voxels where the kernel has one tap of 1.
    """

    cin: int
    cout: int
    kernel: tuple[int, int, int] = (3, 3, 3)
    padding: tuple[int, ...] = SAME
    pool: tuple[int, int, int] = (1, 1, 1)
    ceil_mode: bool = False
    size: tuple[int, int, int] = (2, 4, 5)
    activation: str = "relu"
    batch: int = 2
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    bias: bool = True
    values: str = "normal"

    def __str__(self) -> str:
        kernel, pool, size = ("x".join(map(str, t)) for t in (self.kernel, self.pool, self.size))
        around = "" if self.padding == SAME else "-pad" + "".join(map(str, self.padding))
        words = (
            f"{self.cin}to{self.cout}-{kernel}{around}-pool{pool}{'up' if self.ceil_mode else ''}-{size}",
            self.activation,
            self.values,
            str(self.dtype).removeprefix("torch."),
            "ndhwc" if self.channels_last else "ncdhw",
        )
        return "-".join(words)

    @property
    def rule(self) -> tuple[list[int], str, list[int], bool]:
        """What the launchers take after the tensors."""
        return list(self.padding), self.activation, list(self.pool), self.ceil_mode

    def with_dtype(self, dtype: torch.dtype) -> Clip:
        return replace(self, dtype=dtype)

    def with_values(self, values: str) -> Clip:
        return replace(self, values=values)

    @property
    def z_size(self) -> list[int]:
        return [self.size[i] + self.padding[2 * i] + self.padding[2 * i + 1] - self.kernel[i] + 1 for i in range(3)]

    @property
    def y_size(self) -> list[int]:
        return [(s + k - 1) // k if self.ceil_mode else s // k for s, k in zip(self.z_size, self.pool, strict=True)]

    def tensors(self, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
        """x, weight, bias, a gradient of y and one of z, of this problem's dtype and layout."""
        generator = torch.Generator().manual_seed(7)
        order = torch.channels_last_3d if self.channels_last else torch.contiguous_format

        def numbers(*shape: int) -> Tensor:
            if self.values == "normal":
                return torch.randn(shape, generator=generator)
            # mostly zeros, so that sums over many taps stay small
            return torch.randint(-9, 10, shape, generator=generator).div(8, rounding_mode="trunc").float()

        x = numbers(self.batch, self.cin, *self.size)
        weight = numbers(self.cout, self.cin, *self.kernel)
        bias = numbers(self.cout) if self.bias else None
        if self.values == "negative":
            bias = torch.full((self.cout,), -64.0)
        if self.values in ("nan", "infinite"):
            hit = torch.rand(self.batch, 1, *self.size, generator=generator) < 0.2
            x[hit.expand_as(x)] = torch.nan if self.values == "nan" else -torch.inf
        if self.values == "infinite":
            assert self.kernel == (1, 1, 1)
            weight = torch.ones_like(weight)
        grad_y = torch.randn(self.batch, self.cout, *self.y_size, generator=generator)
        grad_z = numbers(self.batch, self.cout, *self.z_size)
        clips = [t.to(device, self.dtype).contiguous(memory_format=order) for t in (x, grad_y, grad_z)]
        flat = [None if t is None else t.to(device, self.dtype) for t in (weight, bias)]
        return clips[0], flat[0], flat[1], clips[1], clips[2]

    def _z(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        before = self.padding
        padded = torch.nn.functional.pad(x, (*before[4:], *before[2:4], *before[:2]))
        return torch.nn.functional.conv3d(padded, weight, bias)

    def answer(self, x: Tensor, weight: Tensor, bias: Tensor | None, grad_y: Tensor) -> tuple[Tensor, Tensor]:
        """y and the gradient of z in float64 on the CPU, window by window in the order of the scan."""
        x, weight, grad_y = (t.cpu().double() for t in (x, weight, grad_y))
        z = self._z(x, weight, None if bias is None else bias.cpu().double())
        y, grad_z = torch.empty_like(grad_y), torch.zeros_like(z)
        for at in itertools.product(*map(range, self.y_size)):
            spans = [range(a * k, min(a * k + k, s)) for a, k, s in zip(at, self.pool, self.z_size, strict=True)]
            best = torch.full(y.shape[:2], -torch.inf, dtype=torch.float64)
            where = torch.zeros(y.shape[:2], dtype=torch.long)
            places = list(itertools.product(*spans))
            for j, (d, h, w) in enumerate(places):
                value = z[:, :, d, h, w]
                better = (value > best) | value.isnan()
                best, where = torch.where(better, value, best), torch.where(better, j, where)
            given = grad_y[:, :, *at]
            if self.activation == "relu":
                given = torch.where(best <= 0, 0.0, given)
                best = torch.where(best <= 0, 0.0, best)
            y[:, :, *at] = best
            for j, (d, h, w) in enumerate(places):
                grad_z[:, :, d, h, w] = torch.where(where == j, given, 0.0)
        return y, grad_z

    def adjoints(self, x: Tensor, weight: Tensor, grad_z: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of x and weight from that of z, in float64 on the CPU."""
        x, weight = (t.detach().cpu().double().requires_grad_() for t in (x, weight))
        grad_x, grad_weight = torch.autograd.grad(self._z(x, weight, None), (x, weight), grad_z.cpu().double())
        return grad_x, grad_weight
