"""Counter-based random numbers: Philox4x32-10.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3. A block cipher of
ten rounds turns a 128-bit counter and a 64-bit key into 128 random bits. There is no state: the number that belongs to
a sub-pixel is a function of its address, so it does not depend on the order, the batch, the algorithm or the device
that asks for it.

    round:  (c0, c1, c2, c3) -> (hi(M1·c2) ^ c1 ^ k0,  lo(M1·c2),  hi(M0·c0) ^ c3 ^ k1,  lo(M0·c0))
    between rounds:  k0 += W0,  k1 += W1          (all modulo 2^32)
"""

import numpy
from numpy.typing import ArrayLike, NDArray

ROUNDS = 10
_M0, _M1 = numpy.uint64(0xD2511F53), numpy.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW, _SHIFT = numpy.uint64(0xFFFFFFFF), numpy.uint64(32)


def philox4x32(counter: tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike], seed: int) -> NDArray[numpy.uint32]:
    """Four random 32-bit words for every counter.

    Args:
        counter: four integer arrays that broadcast together, each value in 0 … 2^32 − 1.
        seed: the key, 0 … 2^64 − 1; its low word is Random123's key[0].

    Returns:
        uint32 (..., 4), where ... is the counters' common shape.
    """
    check_seed(seed)
    c0, c1, c2, c3 = (numpy.asarray(word).astype(numpy.uint64) for word in numpy.broadcast_arrays(*counter))
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(ROUNDS):
        # a 32×32-bit product fits 64 bits without a carry, so numpy's modulo-2^64 arithmetic is exact
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (
            (p1 >> _SHIFT) ^ c1 ^ numpy.uint64(k0),
            p1 & _LOW,
            (p0 >> _SHIFT) ^ c3 ^ numpy.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return numpy.stack([c0, c1, c2, c3], axis=-1).astype(numpy.uint32)


def uniforms(words: NDArray[numpy.uint32]) -> NDArray[numpy.float64]:
    """Two uniform numbers of the open interval (0, 1) from each four words.

    A pair of words (a, b) gives k = 52 bits, a's 32 above b's upper 20, and the number (k + ½)·2⁻⁵²: exact in float64,
    never 0 and never 1, so its logarithm and logit are finite.

    Args:
        words: uint32 (..., 4) from ``philox4x32``.

    Returns:
        float64 (..., 2).
    """
    high, low = words[..., 0::2].astype(numpy.uint64), words[..., 1::2].astype(numpy.uint64)
    bits = (high << numpy.uint64(20)) | (low >> numpy.uint64(12))
    return (bits.astype(numpy.float64) + 0.5) * 2.0**-52


def image_noise(seed: int, images: range, image_shape: tuple[int, int, int]) -> NDArray[numpy.float64]:
    """The noise of a run of images: Philox of key ``seed`` and counter (image, row, column, channel).

    Args:
        seed: 0 … 2^64 − 1.
        images: the images' numbers; image i has the same noise in whatever batch it is drawn.
        image_shape: (C, H, W).

    Returns:
        float64 (len(images), C, H, W, 2), each in (0, 1).
    """
    channels, height, width = image_shape
    image = numpy.asarray(images, dtype=numpy.int64)[:, None, None, None]
    channel = numpy.arange(channels)[:, None, None]
    row = numpy.arange(height)[:, None]
    column = numpy.arange(width)
    return uniforms(philox4x32((image, row, column, channel), seed))


def check_seed(seed: int) -> None:
    """Refuses what cannot be a Philox key."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed: expected an int, got {type(seed).__name__}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed: expected 0 … 2**64 - 1, got {seed}")
