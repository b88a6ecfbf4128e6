"""What PixelCNN has to beat on the digits: two plain models of the same images, fitted and judged on the same split.

Both are given a fair chance: their one free setting is chosen on the validation images.
"""

import math
import warnings
from typing import Any

import numpy
from numpy.typing import NDArray

from vidgen.extras import require

_REACH = 3


def histogram_bits(train: NDArray[Any], validation: NDArray[Any], test: NDArray[Any], levels: int) -> float:
    """Bits/dim of independent pixels, each with its own histogram.

    A pixel's histogram is drawn towards that of all pixels, p = (count + a·global) / (n + a); a is chosen on
    validation. The global histogram itself has one added to each count.

    Args:
        train, validation, test: integer images (N, 1, H, W) in 0 … levels−1.
        levels: number of grey levels.

    Returns:
        Mean −log₂ p of a test pixel.
    """
    counts = (train[..., None] == numpy.arange(levels)).sum(axis=0)  # [1, H, W, levels]
    overall = (counts.sum(axis=(0, 1, 2)) + 1.0) / (counts.sum() + levels)

    def bits(images: NDArray[Any], strength: float) -> float:
        p = (counts + strength * overall) / (len(train) + strength)
        chosen = numpy.take_along_axis(numpy.log2(p)[None], images[..., None].astype(numpy.int64), axis=-1)
        return -float(chosen.mean())

    best = min((2.0**k for k in range(-4, 8)), key=lambda strength: bits(validation, strength))
    return bits(test, best)


def causal_features(images: NDArray[Any], levels: int) -> NDArray[numpy.float32]:
    """What the logistic regression sees of a pixel: the 24 pixels of a 7×7 window that come before it, and its place.

    Of each neighbour: its value in [0, 1], the value's square, whether it is blank and whether it is full ink (most
    pixels are one or the other, and neither is linear in the value); outside the picture all are 0. The place is
    one-hot, so that every pixel has biases of its own.

    Args:
        images: integers (N, 1, H, W).
        levels: number of grey levels.

    Returns:
        float32 (N·H·W, 96 + H·W).
    """
    n, _, height, width = images.shape
    value = images[:, 0].astype(numpy.float32) / (levels - 1)
    maps = numpy.stack([value, value**2, value == 0, value == 1], axis=-1).astype(numpy.float32)  # [N, H, W, 4]
    padded = numpy.pad(maps, ((0, 0), (_REACH, 0), (_REACH, _REACH), (0, 0)))
    offsets = [(i, j) for i in range(_REACH + 1) for j in range(2 * _REACH + 1) if i < _REACH or j < _REACH]
    neighbours = [padded[:, i : i + height, j : j + width] for i, j in offsets]
    place = numpy.broadcast_to(
        numpy.eye(height * width, dtype=numpy.float32).reshape(1, height, width, -1), (n, height, width, height * width)
    )
    return numpy.concatenate([*neighbours, place], axis=-1).reshape(n * height * width, -1)


def logistic_regression_bits(
    train: NDArray[Any], validation: NDArray[Any], test: NDArray[Any], levels: int, *, iterations: int = 60
) -> float:
    """Bits/dim of multinomial logistic regression on ``causal_features``, one model for all pixels.

    The strength of its L2 penalty is chosen on validation.

    Args:
        train, validation, test: integer images (N, 1, H, W) in 0 … levels−1.
        levels: number of grey levels; each must occur in ``train``.
        iterations: at most, of L-BFGS, for each of two penalties; at 60 another 240 gain 0.003 bits/dim.

    Returns:
        Mean −log₂ p of a test pixel.
    """
    regression = require("sklearn.linear_model", extra="data").LogisticRegression
    inputs, targets = causal_features(train, levels), train.reshape(-1)

    def bits(model: Any, images: NDArray[Any]) -> float:
        nats = model.predict_log_proba(causal_features(images, levels))
        chosen = numpy.take_along_axis(nats, images.reshape(-1, 1).astype(numpy.int64), axis=1)
        return -float(chosen.mean()) / math.log(2.0)

    # the weaker penalty last; its fit starts where the one before ended
    model = regression(solver="lbfgs", max_iter=iterations, tol=1e-4, warm_start=True)
    results = []
    for inverse_penalty in (0.1, 1.0):
        with warnings.catch_warnings():
            # it stops where more iterations gain little, and says each time that it did
            warnings.simplefilter("ignore", require("sklearn.exceptions", extra="data").ConvergenceWarning)
            model.set_params(C=inverse_penalty).fit(inputs, targets)
        results.append((bits(model, validation), bits(model, test)))
    return min(results)[1]
