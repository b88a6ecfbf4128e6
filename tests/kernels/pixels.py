"""Mixtures of discretised logistics to try kernels on, and their answers in float64, written down apart from vidgen."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

#: blocks of K parameters, by the number of colours: logits, means, log-scales; "c", 2, 0 is colour 0's part in 2's mean
BLOCKS = {
    1: [("l",), ("m", 0), ("s", 0)],
    2: [("l",), ("m", 0), ("s", 0), ("c", 1, 0), ("m", 1), ("s", 1)],
    3: [("l",), ("m", 0), ("s", 0), ("c", 1, 0), ("m", 1), ("s", 1), ("c", 2, 0), ("m", 2), ("s", 2), ("c", 2, 1)],
}


@dataclass(frozen=True)
class Pixels:
    channels: int
    mixtures: int
    levels: int = 256
    mode: str = "exact"
    size: tuple[int, int] = (5, 6)
    batch: int = 2
    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    def __str__(self) -> str:
        kind, order = str(self.dtype).removeprefix("torch."), "nhwc" if self.channels_last else "nchw"
        size = "x".join(map(str, self.size))
        return f"{self.channels}c-{self.mixtures}k-{self.levels}-{self.mode}-{size}-{kind}-{order}"

    @property
    def rule(self) -> tuple[int, str]:
        """What the launchers take after the tensors."""
        return self.levels, self.mode

    def with_dtype(self, dtype: torch.dtype) -> Pixels:
        return replace(self, dtype=dtype)

    def tensors(self, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
        """params of this problem's dtype and layout, x with pixels at both edges, the gradient of the result."""
        generator = torch.Generator().manual_seed(7)
        channels = self.mixtures * len(BLOCKS[self.channels])
        params = 2 * torch.randn(self.batch, channels, *self.size, generator=generator)
        order = torch.channels_last if self.channels_last else torch.contiguous_format
        params = params.to(self.dtype).contiguous(memory_format=order)
        above, size = self.levels + self.levels // 8 + 1, (self.batch, self.channels, *self.size)
        level = torch.randint(-(self.levels // 8), above, size, generator=generator).clamp(0, self.levels - 1)
        grad = torch.rand(self.batch, generator=generator) + 0.5
        return params.to(device), (level * 2 / (self.levels - 1) - 1).to(device), grad.to(device)

    def answer(self, params: Tensor, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Log-likelihood and its gradient in params, float64 on the CPU."""
        params = params.detach().cpu().double().requires_grad_()
        x, half = x.cpu().double(), 1 / (self.levels - 1)
        block = dict(zip(BLOCKS[self.channels], params.chunk(len(BLOCKS[self.channels]), 1), strict=True))
        joint = torch.log_softmax(block["l",], 1)
        for i in range(self.channels):
            mean = block["m", i] + sum(torch.tanh(block["c", i, j]) * x[:, j : j + 1] for j in range(i))
            log_scale = block["s", i].clamp(min=-7)
            center, value = (x[:, i : i + 1] - mean) / log_scale.exp(), x[:, i : i + 1]
            b = half / log_scale.exp()
            below, above = F.logsigmoid(center + b), F.logsigmoid(b - center)
            inside = below + above + torch.log(-torch.expm1(-2 * b))
            if self.mode == "openai":
                density = F.logsigmoid(center) + F.logsigmoid(-center) + math.log(2 * half) - log_scale
                inside = torch.where(inside > math.log(1e-5), inside, density)
            edge = 1 - min(half, 0.001)
            joint = joint + torch.where(value < -edge, below, torch.where(value > edge, above, inside))
        y = torch.logsumexp(joint, 1).sum((1, 2))
        return y.detach(), torch.autograd.grad(y, params, grad.cpu().double())[0]
