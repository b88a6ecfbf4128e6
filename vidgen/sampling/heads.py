"""Heads: what a model's output says about the next value, as a likelihood and as a draw.

A head knows nothing of pixels' places. ``log_prob`` scores whole images in training; ``sample`` turns the parameters of
one step, already picked out by an executor, into values.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

NOISE_PER_VALUE = 2
"""Uniform numbers that belong to a sub-pixel: one Philox block's worth. A head need not use them all."""


class Head(Protocol):
    """What an executor asks of ``model.head``. P parameters per step, G steps per pixel, C/G values per step."""

    def steps_per_pixel(self, channels: int) -> int:
        """G: C if each channel needs a forward pass with the earlier channels in place, 1 if the head draws a pixel."""
        ...

    def sample(self, parameters: Tensor, noise: Tensor, *, temperature: float, quantize: bool) -> Tensor:
        """Draws. parameters (N, P), noise float64 (N, C/G, 2) in (0, 1) -> values (N, C/G), scaled to [-1, 1].

        With ``quantize`` every value is a grey level, rounded to one before the next of the pixel depends on it.
        """
        ...

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Scores. parameters (N, P, G, H, W), integer images x (N, C, H, W) -> nats (N,)."""
        ...


def scale_levels(x: Tensor, levels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Integer grey levels 0 … levels−1 to [−1, 1], any shape; the one place where networks' inputs are scaled."""
    return x.to(dtype) * (2.0 / (levels - 1)) - 1.0


def round_to_levels(x: Tensor, levels: int) -> Tensor:
    """[−1, 1] to the nearest integer grey level, clipped to 0 … levels−1; uint8 (int64 above 256 levels)."""
    rounded = ((x.double() + 1.0) * ((levels - 1) / 2.0)).round().clamp(0, levels - 1)
    return rounded.to(torch.uint8 if levels <= 256 else torch.int64)


class Categorical:
    """An n-way softmax over the grey levels of every sub-pixel (van den Oord et al. 2016a, section 3).

    Args:
        levels: number of grey levels, at least 2.
    """

    def __init__(self, levels: int):
        self.levels = levels

    def steps_per_pixel(self, channels: int) -> int:
        """One step for every channel."""
        return channels

    def sample(self, parameters: Tensor, noise: Tensor, *, temperature: float = 1.0, quantize: bool = True) -> Tensor:
        """Draws by inverting the cumulative distribution in float64, from the first of the two uniform numbers.

        Each row is worked out by itself and in a fixed order, so a draw does not depend on the rows around it.

        Args:
            parameters: logits (N, levels).
            noise: float64 (N, 1, 2) in (0, 1).
            temperature: > 0; logits are divided by it.
            quantize: makes no difference, what is drawn is a grey level.

        Returns:
            (N, 1), grey levels scaled to [-1, 1], in the logits' dtype (float32 at least).
        """
        weight = torch.softmax(parameters.double() / temperature, dim=-1)
        cumulative = weight.cumsum(dim=-1)
        # scaled by the total, so that rounding of the sum can never leave u above the last level
        threshold = noise[:, :, 0].to(cumulative) * cumulative[:, -1:]
        level = (cumulative <= threshold).sum(dim=-1, keepdim=True).clamp(max=self.levels - 1)
        return scale_levels(level, self.levels, torch.promote_types(parameters.dtype, torch.float32))

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """log p(x) in nats. logits (N, levels, C, H, W), integers x (N, C, H, W) in 0 … levels−1 -> (N,)."""
        logits = parameters.to(torch.promote_types(parameters.dtype, torch.float32))
        return -F.cross_entropy(logits, x.long(), reduction="none").sum(dim=(1, 2, 3))
