"""Images and flows for the kernels of warp, and their answers in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vidgen.ops.warp import reference, reference_grad_flow, reference_grad_x


@dataclass(frozen=True)
class Displacement:
    channels: int
    size: tuple[int, int] = (7, 10)
    padding: str = "zeros"
    batch: int = 2
    reach: float = 3.0
    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    def __str__(self) -> str:
        layout = "-channels_last" if self.channels_last else ""
        return f"{self.channels}x{self.size[0]}x{self.size[1]}-{self.padding}{layout}-{str(self.dtype)[6:]}"

    def with_dtype(self, dtype: torch.dtype) -> Displacement:
        return replace(self, dtype=dtype)

    def tensors(self, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
        """x, flow, the gradient of the output. One displacement is a NaN, one infinite, and some are whole."""
        generator = torch.Generator().manual_seed(self.channels + 3 * self.size[0] + 5 * self.size[1])
        shape = (self.batch, self.channels, *self.size)
        x, grad = (torch.randn(shape, generator=generator).to(self.dtype) for _ in range(2))
        flow = torch.randn(self.batch, 2, *self.size, generator=generator) * self.reach
        flow[..., ::3] = flow[..., ::3].floor()
        if self.size[1] > 4:
            flow[0, 0, 0, 1], flow[0, 1, -1, 2] = torch.nan, torch.inf
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        x, grad = (t.to(device).contiguous(memory_format=layout) for t in (x, grad))
        return x, flow.to(device), grad

    def answer(self, x: Tensor, flow: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The warped image, the gradient in x and the gradient in flow."""
        x, flow, grad = (t.double().cpu() for t in (x, flow, grad))
        y = reference(x, flow, self.padding)
        return y, reference_grad_x(grad, flow, self.padding), reference_grad_flow(grad, x, flow, self.padding)
