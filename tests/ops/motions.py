"""Pictures that move in a way that is known, for the tests of optical flow."""

import torch
from torch import Tensor


def texture(height: int, width: int, seed: int = 0) -> Tensor:
    """A smooth picture (1, 1, H, W) in [0, 1], with detail of four sizes."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(1, 1, height, width, dtype=torch.float64)
    for cell in (4, 8, 16, 32):
        noise = torch.rand(1, 1, height // cell + 3, width // cell + 3, generator=generator, dtype=torch.float64)
        size = (noise.shape[2] * cell, noise.shape[3] * cell)
        fine = torch.nn.functional.interpolate(noise, size=size, mode="bicubic", align_corners=True)
        total += fine[..., :height, :width] * cell**0.5
    return (total - total.min()) / (total.max() - total.min()).clamp(min=0.1)


def warped(dx: Tensor, dy: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """(prev, next) float32 with next(x + dx, y + dy) = prev(x, y), sampled from one analytic picture."""
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")

    def picture(x: Tensor, y: Tensor) -> Tensor:
        waves = [(0.31, 0.12, 0.4), (-0.17, 0.29, 1.9), (0.05, -0.11, 0.8), (0.52, 0.47, 2.7), (-0.09, 0.03, 0.1)]
        return sum(torch.sin(a * x + b * y + c) for a, b, c in waves) / 12 + 0.5

    return picture(x + dx, y + dy).float()[None, None], picture(x, y).float()[None, None]


def shifted(image: Tensor, dx: int, dy: int) -> Tensor:
    """next for a flow of (dx, dy) everywhere; wraps around at the edges."""
    return torch.roll(image, (dy, dx), dims=(2, 3))
