"""Correlation lookups to try kernels on, and their answers in float64, sampled apart from vidgen."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Correlations:
    channels: int
    on_demand: bool
    size: tuple[int, int] = (3, 5)
    other: tuple[int, int] = (6, 7)
    levels: int = 2
    radius: int = 1
    batch: int = 2
    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    def __str__(self) -> str:
        kind, form = str(self.dtype).removeprefix("torch."), "on-demand" if self.on_demand else "all-pairs"
        sizes = "-".join("x".join(map(str, size)) for size in (self.size, self.other))
        order = "nhwc" if self.channels_last else "nchw"
        return f"{form}-{self.channels}c-{sizes}-r{self.radius}-{self.levels}-levels-{kind}-{order}"

    def with_dtype(self, dtype: torch.dtype) -> Correlations:
        return replace(self, dtype=dtype)

    def arguments(self, device: str = "cpu") -> tuple[list[Tensor], Tensor, int, Tensor | None]:
        """What the launcher takes: pyramid, coords (some outside), radius, fmap1."""
        generator = torch.Generator().manual_seed(5)
        order = torch.channels_last if self.channels_last else torch.contiguous_format
        fmap1 = torch.randn(self.batch, self.channels, *self.size, generator=generator)
        level = torch.randn(self.batch, self.channels, *self.other, generator=generator)
        if not self.on_demand:
            level = torch.einsum("bcyx,bchw->byxhw", fmap1, level) / self.channels**0.5
        pyramid = [level]
        for _ in range(self.levels - 1):
            pooled = F.avg_pool2d(pyramid[-1].flatten(0, -3)[:, None], 2)
            pyramid.append(pooled.view(*level.shape[:-2], *pooled.shape[-2:]))
        pyramid = [t.to(device, self.dtype) for t in pyramid]
        coords = torch.rand(self.batch, 2, *self.size, generator=generator) * (max(self.other) + 4) - 2
        coords = coords.contiguous(memory_format=order).to(device)
        if not self.on_demand:
            return pyramid, coords, self.radius, None
        pyramid = [t.contiguous(memory_format=order) for t in pyramid]
        return pyramid, coords, self.radius, fmap1.to(device, self.dtype).contiguous(memory_format=order)

    def answer(self, pyramid: list[Tensor], coords: Tensor, radius: int, fmap1: Tensor | None) -> Tensor:
        """Float64 on the CPU: grid_sample in the volumes of all pairs, wider by a rim of zeros so that no side is 1."""
        coords = coords.cpu().double()
        found = []
        for number, level in enumerate(pyramid):
            volume = level.cpu().double()
            if fmap1 is not None:
                volume = torch.einsum("bcyx,bchw->byxhw", fmap1.cpu().double(), volume) / fmap1.shape[1] ** 0.5
            volume = F.pad(volume, (1, 1, 1, 1))
            height, width = volume.shape[-2:]
            x, y = (coords / 2**number + 1).permute(1, 0, 2, 3).reshape(2, -1, 1, 1)
            step = torch.arange(-radius, radius + 1)
            x, y = torch.broadcast_tensors(x + step[:, None], y + step)
            grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=-1)
            sampled = F.grid_sample(volume.reshape(-1, 1, height, width), grid, align_corners=True)
            found.append(sampled.view(self.batch, *self.size, -1))
        return torch.cat(found, dim=-1).permute(0, 3, 1, 2)
