"""Heads: what a model's output says about the next value, as a likelihood and as a draw.

A head knows nothing of pixels' places. ``log_prob`` scores whole images in training; ``sample`` turns the parameters of
one step, already picked out by an executor, into values.
"""

from typing import Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from vidgen.ops.discretized_logistic_mixture import (
    LOG_SCALE_FLOOR,
    Mode,
    discretized_logistic_mixture,
    parameters_per_mixture,
    split_parameters,
)

NOISE_PER_VALUE = 2
"""Uniform numbers that belong to a sub-pixel: one Philox block's worth. A head need not use them all."""


class Head(Protocol):
    """What an executor asks of ``model.head``. P parameters per step, G steps per pixel, C/G values per step."""

    def steps_per_pixel(self, channels: int) -> int:
        """G: C if each channel needs a forward pass with the earlier channels in place, 1 if the head draws a pixel."""
        ...

    def sample(self, parameters: Tensor, noise: Tensor, *, temperature: float, quantize: bool = True) -> Tensor:
        """Draws. parameters (N, P), noise float64 (N, C/G, 2) in (0, 1) -> values (N, C/G), scaled to [-1, 1].

        With ``quantize`` each value is a grey level before a later channel of the same step sees it.
        """
        ...

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Scores. parameters (N, P, G, H, W), or (N, P, H, W) for G = 1, integers x (N, C, H, W) -> nats (N,)."""
        ...


def scale_levels(x: Tensor, levels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Integer grey levels 0 … levels−1 to [−1, 1], any shape; the one place where networks' inputs are scaled."""
    return x.to(dtype) * (2.0 / (levels - 1)) - 1.0


def round_to_levels(x: Tensor, levels: int) -> Tensor:
    """[−1, 1] to the nearest integer grey level, clipped to 0 … levels−1; uint8 (int64 above 256 levels)."""
    return _nearest_level(x, levels).to(torch.uint8 if levels <= 256 else torch.int64)


def _nearest_level(x: Tensor, levels: int) -> Tensor:
    """`round_to_levels` as float64, in which every level is exact."""
    return ((x.double() + 1.0) * ((levels - 1) / 2.0)).round().clamp(0, levels - 1)


def _draw_index(logits: Tensor, uniform: Tensor) -> Tensor:
    """Inverts the cumulative softmax. logits float64 (N, K), uniform (N, 1) -> int64 (N, 1) in 0 … K−1."""
    cumulative = torch.softmax(logits, dim=-1).cumsum(dim=-1)
    # scaled by the total, so that rounding of the sum can never leave u above the last index
    threshold = uniform.to(cumulative) * cumulative[:, -1:]
    return (cumulative <= threshold).sum(dim=-1, keepdim=True).clamp(max=logits.shape[1] - 1)


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
            quantize: ignored; what is drawn are grey levels.

        Returns:
            (N, 1), grey levels scaled to [-1, 1], in the logits' dtype (float32 at least).
        """
        level = _draw_index(parameters.double() / temperature, noise[:, :, 0])
        return scale_levels(level, self.levels, torch.promote_types(parameters.dtype, torch.float32))

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """log p(x) in nats. logits (N, levels, C, H, W), integers x (N, C, H, W) in 0 … levels−1 -> (N,)."""
        logits = parameters.to(torch.promote_types(parameters.dtype, torch.float32))
        return -F.cross_entropy(logits, x.long(), reduction="none").sum(dim=(1, 2, 3))


class LogisticMixture:
    """A mixture of discretised logistics for all channels of a pixel at once (Salimans et al. 2017, section 2.1).

    Args:
        mixtures: number K of logistics, at least 1.
        channels: 1 to 3.
        levels: number of grey levels, at least 2.
        mode: of the likelihood: "exact", or "openai", the approximation that was published. What is drawn is the same.
    """

    def __init__(self, mixtures: int, channels: int, levels: int, mode: Mode = "exact"):
        for name, value, least, most in (
            ("mixtures", mixtures, 1, None),
            ("channels", channels, 1, 3),
            ("levels", levels, 2, None),
        ):
            if value < least or (most is not None and value > most):
                expected = f"at least {least}" if most is None else f"{least} to {most}"
                raise ValueError(f"{name}: expected {expected}, got {value}")
        if mode not in get_args(Mode):
            raise ValueError(f"mode: expected one of {', '.join(get_args(Mode))}, got {mode!r}")
        self.mixtures, self.channels, self.levels = mixtures, channels, levels
        self.mode: Mode = mode

    @property
    def parameters_per_pixel(self) -> int:
        """P: 3K, 6K or 10K for 1, 2 or 3 channels, in the order of ``vidgen.ops.discretized_logistic_mixture``."""
        return self.mixtures * parameters_per_mixture(self.channels)

    def steps_per_pixel(self, channels: int) -> int:
        """One step for all channels."""
        return 1

    def sample(self, parameters: Tensor, noise: Tensor, *, temperature: float = 1.0, quantize: bool = True) -> Tensor:
        """Draws a mixture, then its logistics channel by channel, by inverting distribution functions in float64.

        The mixture comes from the first uniform number of the first channel, a channel's logistic from its second one,
        kept within [1e-5, 1 − 1e-5] as in the published sampler. A drawn value is clipped to [−1, 1] before it feeds
        the means of later channels.

        Args:
            parameters: (N, P), see ``parameters_per_pixel``.
            noise: float64 (N, C, 2) in (0, 1).
            temperature: > 0; logits are divided by it, scales multiplied.
            quantize: True rounds a value to the nearest grey level before it feeds later channels.

        Returns:
            (N, C) in [−1, 1], in the parameters' dtype (float32 at least).
        """
        # few launches: on a GPU a draw costs what they cost
        blocks = parameters.double().unflatten(1, (-1, self.mixtures))  # [N, logits and parameters, K]
        index = _draw_index(blocks[:, 0] / temperature, noise[:, 0, :1])
        chosen = blocks.gather(2, index.unsqueeze(1).expand(-1, blocks.shape[1], -1)).squeeze(2)
        _, means, log_scales, coefficients = split_parameters(chosen, self.channels)  # each [N, 1]
        u = noise[:, :, 1].to(chosen).clamp(1e-5, 1 - 1e-5)  # [N, C]
        scale = torch.exp(torch.cat(log_scales, dim=1).clamp(min=LOG_SCALE_FLOOR)) * temperature
        away = scale * (torch.log(u) - torch.log(1 - u))
        slopes = torch.tanh(torch.cat(coefficients, dim=1)) if coefficients else chosen
        drawn: list[Tensor] = []
        for i in range(self.channels):
            mean = means[i]
            for j in range(i):
                k = i * (i - 1) // 2 + j
                mean = mean + slopes[:, k : k + 1] * drawn[j]
            value = (mean + away[:, i : i + 1]).clamp(-1, 1)
            drawn.append(
                scale_levels(_nearest_level(value, self.levels), self.levels, value.dtype) if quantize else value
            )
        return torch.cat(drawn, dim=1).to(torch.promote_types(parameters.dtype, torch.float32))

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """log p(x) in nats. parameters (N, P, H, W), integers x (N, C, H, W) in 0 … levels−1 -> (N,)."""
        dtype = torch.float64 if parameters.dtype == torch.float64 else torch.float32
        x = scale_levels(x, self.levels, dtype)
        return discretized_logistic_mixture(parameters, x, levels=self.levels, mode=self.mode)
