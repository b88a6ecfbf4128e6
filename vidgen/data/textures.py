"""Textures with the spectrum of photographs, and a camera that pans over them.

The amplitudes of a photograph's frequencies fall as 1/f, whatever is on it (Field, "Relations between the statistics of
natural images and the response properties of cortical cells", 1987). A texture is white noise whose frequencies are
divided by f; so it has structure at every scale, as what optical flow is made for has.

Everything about texture i is a function of (seed, i): Philox4x32-10 with key ``seed`` and counters (i, block, 2, 2) for
its noise, (i, 0, 1, 2) for its camera.
"""

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidgen.sampling.philox import philox4x32

#: mean and standard deviation of a texture's grey levels of 0 … 255
MEAN, DEVIATION = 90.0, 35.0
#: the camera pans by at most so many pixels in a frame, along each axis
SPEED = 1.0

# textures made at once, so that the noise of a large set does not fill the memory
_CHUNK = 256


def textures(n: int, height: int, width: int, seed: int) -> Tensor:
    """Textures 0 … n−1 of an endless list, uint8 (n, height, width); each is the same whatever n is."""
    parts = [
        _textures(numpy.arange(first, min(first + _CHUNK, n)), height, width, seed) for first in range(0, n, _CHUNK)
    ]
    return torch.from_numpy(numpy.concatenate(parts)) if parts else torch.empty(0, height, width, dtype=torch.uint8)


def _textures(numbers: NDArray[numpy.int64], height: int, width: int, seed: int) -> NDArray[numpy.uint8]:
    blocks = -(-height * width // 4)
    words = philox4x32((numbers[:, None], numpy.arange(blocks), 2, 2), seed).reshape(len(numbers), -1)
    # each value of the texture is a sum over all of the noise, so uniform noise makes it as normal as normal noise
    noise = words[:, : height * width].reshape(-1, height, width) / 2.0**32
    frequency = numpy.hypot(numpy.fft.fftfreq(height)[:, None], numpy.fft.rfftfreq(width))
    # the mean is set below
    frequency[0, 0] = numpy.inf
    texture = numpy.fft.irfft2(numpy.fft.rfft2(noise) / frequency, s=(height, width))
    spread = texture.std(axis=(1, 2), keepdims=True)
    texture = MEAN + DEVIATION * texture / numpy.maximum(spread, 1e-12)
    return numpy.clip(numpy.rint(texture), 0, 255).astype(numpy.uint8)


def pans(n: int, frames: int, seed: int) -> Tensor:
    """Where cameras 0 … n−1 look: x and y of the view's upper left corner, whole pixels, int64 (n, frames, 2).

    A camera pans in a straight line; its speed along each axis is uniform in −SPEED … SPEED pixels per frame. Corners
    lie in 0 … ``margin(frames)``, by which a texture must be larger than the view.
    """
    words = philox4x32((numpy.arange(n), 0, 1, 2), seed)[:, :2]
    speed = SPEED * (2 * (words.astype(numpy.float64) + 0.5) / 2**32 - 1)  # [n, 2]
    middle = margin(frames) / 2
    corner = middle + speed[:, None] * (numpy.arange(frames)[:, None] - (frames - 1) / 2)  # [n, T, 2]
    return torch.from_numpy(numpy.rint(corner).astype(numpy.int64))


def margin(frames: int) -> int:
    """How far a camera may pan in so many frames, in pixels."""
    return round(SPEED * (frames - 1))


def views(texture: Tensor, corner: Tensor, height: int, width: int) -> Tensor:
    """What cameras see: textures (n, H', W') at corners (n, T, 2) -> (n, T, height, width)."""
    rows = corner[..., 1, None] + torch.arange(height)  # [n, T, H]
    columns = corner[..., 0, None] + torch.arange(width)
    which = torch.arange(len(texture))[:, None, None, None]
    return texture[which, rows[..., :, None], columns[..., None, :]]
