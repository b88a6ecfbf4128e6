"""Contact sheets: many small images as one."""

import io
import math
from pathlib import Path
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


def read_images(path: Path, levels: int) -> NDArray[numpy.int64]:
    """Images from a file: a .png as one image, or a .npy of grey levels.

    Args:
        path: .png, grey or RGB, black and white meaning the lowest and highest level; .npy, integers (N, C, H, W) or
            (C, H, W) in 0 … levels−1.
        levels: number of grey levels.

    Returns:
        int64 (N, C, H, W) in 0 … levels−1, N ≥ 1.

    Raises:
        ValueError: the file is of another kind, broken, or has other contents.
    """
    if path.suffix == ".npy":
        try:
            images = numpy.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path}: expected an array of grey levels ({error})") from None
        images = images[None] if images.ndim == 3 else images
        if images.ndim != 4 or not len(images) or not numpy.issubdtype(images.dtype, numpy.integer):
            raise ValueError(f"{path}: expected integers (N, C, H, W), got {images.dtype} {images.shape}")
        if images.min() < 0 or images.max() >= levels:
            raise ValueError(f"{path}: expected levels 0 … {levels - 1}, got {images.min()} … {images.max()}")
        return images.astype(numpy.int64)
    if path.suffix != ".png":
        raise ValueError(f"{path}: expected a file that ends in .png or .npy")
    library = require("PIL.Image", extra="report")
    try:
        with library.open(path) as opened:
            picture = numpy.asarray(opened.convert("L" if opened.mode in ("1", "L", "LA", "I;16") else "RGB"))
    except (library.UnidentifiedImageError, OSError, SyntaxError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path}: expected a PNG picture ({error})") from None
    image = picture[None] if picture.ndim == 2 else picture.transpose(2, 0, 1)
    return numpy.round(image[None] * ((levels - 1) / 255)).astype(numpy.int64)
