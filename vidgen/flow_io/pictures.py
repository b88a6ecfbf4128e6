"""Optical flow as a picture: Middlebury's colour wheel, and arrows over a frame.

Hue is the direction, saturation the length: white stands still. The wheel has 55 hues, more of them where the eye tells
more apart (Baker et al., "A Database and Evaluation Methodology for Optical Flow" (2011), figure 7).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vidgen.flow_io.formats import _checked

#: hues from one to the next of red, yellow, green, cyan, blue, magenta and red again
_STEPS = (15, 6, 4, 11, 13, 6)


def color_wheel() -> Tensor:
    """(55, 3) float32 in [0, 255]: RGB of the wheel's hues."""
    corners = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1], [1, 0, 0]]) * 255.0
    parts = []
    for start, end, steps in zip(corners[:-1], corners[1:], _STEPS, strict=True):
        # a channel that rises does so in whole levels, one that falls is 255 less those
        level = torch.floor(255 * torch.arange(steps) / steps)[:, None]
        parts.append(start + torch.sign(end - start) * level)
    return torch.cat(parts)


def flow_to_rgb(flow: Tensor, max_length: float | None = None) -> Tensor:
    """The picture of a flow.

    Args:
        flow: (2, H, W) in pixels. A pixel whose flow is not finite, or beyond 1e9, the mark of the unknown, is black.
        max_length: the length that gets the full colour, longer ones are darker; None takes the longest there is.

    Returns:
        (H, W, 3) uint8.
    """
    flow = _checked(flow).double()
    if max_length is not None and not (math.isfinite(max_length) and max_length > 0):
        raise ValueError(f"max_length must be a positive number of pixels, got {max_length!r}")
    known = (flow.abs() < 1e9).all(dim=0)
    dx, dy = torch.where(known, flow, 0)
    length = torch.hypot(dx, dy)
    length = length / (max_length or max(length.max().item(), 1e-12))
    wheel = color_wheel().double() / 255
    place = (torch.atan2(-dy, -dx) / math.pi + 1) / 2 * (len(wheel) - 1)
    low = place.floor().long().clamp(0, len(wheel) - 1)
    fraction, high = place - low, (low + 1) % len(wheel)
    picture = torch.empty(*length.shape, 3, dtype=torch.uint8)
    # one colour after the other: planes of pixels are several times as fast as pixels of three
    for channel, shades in enumerate(wheel.unbind(dim=1)):
        hue = (1 - fraction) * shades.take(low) + fraction * shades.take(high)
        color = torch.where(length <= 1, 1 - length * (1 - hue), hue * 0.75)
        picture[..., channel] = torch.where(known, (255 * color).floor(), 0)
    return picture


def draw_arrows(image: Tensor, flow: Tensor, *, step: int = 16, color: tuple[int, int, int] = (255, 255, 0)) -> Tensor:
    """A copy of `image` with an arrow from every `step`-th pixel to where its flow points.

    Args:
        image: (H, W, 3) uint8.
        flow: (2, H, W) in pixels; where it is not finite, or shorter than half a pixel, there is no arrow.
        step: distance of two arrows in pixels.
        color: RGB, 0 to 255.

    Returns:
        (H, W, 3) uint8. What of an arrow lies outside the image is cut off.
    """
    flow = _checked(flow)
    if image.dtype != torch.uint8 or image.shape != (*flow.shape[1:], 3):
        raise ValueError(f"image must be {(*flow.shape[1:], 3)} uint8, got {tuple(image.shape)} {image.dtype}")
    if isinstance(step, bool) or not isinstance(step, int) or step < 1:
        raise ValueError(f"step must be an int of at least 1, got {step!r}")
    height, width = flow.shape[1:]
    picture, paint = image.detach().cpu().clone(), torch.tensor(color, dtype=torch.uint8)
    for row in range(step // 2, height, step):
        for column in range(step // 2, width, step):
            dx, dy = flow[:, row, column].tolist()
            # longer ones end outside in any case
            length = math.hypot(dx, dy)
            if not (math.isfinite(length) and length >= 0.5):
                continue
            shown = min(1.0, 2.0 * (height + width) / length)
            dx, dy = dx * shown, dy * shown
            _line(picture, row, column, dx, dy, paint)
            head = min(0.3 * length, 0.4 * step)
            for turn in (2.6, -2.6):
                angle = math.atan2(dy, dx) + turn
                _line(picture, row + dy, column + dx, head * math.cos(angle), head * math.sin(angle), paint)
    return picture


def _line(picture: Tensor, row: float, column: float, dx: float, dy: float, paint: Tensor) -> None:
    """Paints the pixels of a straight line, one for each step of its longer side."""
    along = torch.linspace(0, 1, math.ceil(max(abs(dx), abs(dy))) + 1, dtype=torch.float64)
    rows, columns = (row + along * dy).round().long(), (column + along * dx).round().long()
    seen = (rows >= 0) & (rows < picture.shape[0]) & (columns >= 0) & (columns < picture.shape[1])
    picture[rows[seen], columns[seen]] = paint
