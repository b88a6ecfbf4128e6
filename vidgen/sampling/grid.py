"""Contact sheets: many small images as one."""

import io
import math
from typing import Any

import numpy
from numpy.typing import NDArray

from vidgen.extras import require

_GAP = 1


def image_grid(
    images: NDArray[Any], levels: int, *, columns: int | None = None, scale: int | None = None
) -> NDArray[numpy.uint8]:
    """Images side by side, row by row, one pixel apart.

    Args:
        images: integers (N, C, H, W) in 0 … levels−1, N ≥ 1, C = 1 (grey) or 3 (RGB).
        levels: number of grey levels; level 0 becomes 0 and the highest 255.
        columns: images in a row; about a square if None.
        scale: screen pixels per image pixel; None enlarges images to about 48 pixels' height.

    Returns:
        uint8 (height, width) for grey images, (height, width, 3) for RGB.

    Raises:
        ValueError: a shape or number is not as described.
    """
    if images.ndim != 4 or images.shape[0] < 1 or images.shape[1] not in (1, 3):
        raise ValueError(f"images: expected shape (N, 1 or 3, H, W) with N at least 1, got {images.shape}")
    for name, value in (("columns", columns), ("scale", scale)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    n, channels, height, width = images.shape
    columns = min(columns or math.ceil(math.sqrt(n)), n)
    rows = math.ceil(n / columns)
    scale = scale or max(1, round(48 / height))
    grid = numpy.full((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, channels), 128, numpy.uint8)
    grey = numpy.round(images.astype(numpy.float64) * (255 / (levels - 1))).astype(numpy.uint8)
    for number, image in enumerate(grey):
        top, left = number // columns * (height + _GAP), number % columns * (width + _GAP)
        grid[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    grid = grid.repeat(scale, axis=0).repeat(scale, axis=1)
    return grid[..., 0] if channels == 1 else grid


def encode_png(picture: NDArray[numpy.uint8]) -> bytes:
    """A PNG file's bytes. uint8 (height, width) or (height, width, 3)"""
    image = require("PIL.Image", extra="report").fromarray(picture)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
