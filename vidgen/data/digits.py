"""Handwritten digits: 1,797 real images of 8×8 pixels, carried by scikit-learn.

They are the test half of the UCI set "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998): each
pixel counts the inked dots of a 4×4 field, hence 17 grey levels, 0 (paper) to 16 (ink).

The split is fixed for ever by a rule that needs no random numbers. Number the images of each class 0, 1, 2, … in the
order in which scikit-learn lists them. Number k belongs to

    test         if k mod 5 = 4,
    validation   if k mod 10 = 3,
    train        otherwise,

so every class is divided 7 : 1 : 2. The file does not say who wrote which digit, so one hand occurs in several
parts: figures are for unseen digits, not for unseen writers.
"""

from typing import Literal, get_args

import numpy
import torch
from torch import Tensor

from vidgen.extras import require

Split = Literal["train", "validation", "test"]

DIGITS_LEVELS = 17
"""Number of grey levels: pixels are 0 … 16."""


def digits(split: Split = "train") -> tuple[Tensor, Tensor]:
    """Images and labels of one part of the digits.

    Args:
        split: ``"train"`` (1,262 images), ``"validation"`` (180) or ``"test"`` (355).

    Returns:
        images: uint8 (N, 1, 8, 8), values 0 … 16, in scikit-learn's order.
        labels: int64 (N,), values 0 … 9.

    Raises:
        ValueError: ``split`` is none of the three.
        ModuleNotFoundError: scikit-learn is not installed (``pip install 'vidgen[data]'``).
    """
    if split not in get_args(Split):
        raise ValueError(f"split: expected one of {', '.join(get_args(Split))}, got {split!r}")
    bunch = require("sklearn.datasets", extra="data").load_digits()
    labels = bunch.target.astype(numpy.int64)
    rows = numpy.flatnonzero(_part_of(labels) == split)
    images = bunch.images[rows].astype(numpy.uint8)[:, None]  # [N, 1, 8, 8]
    return torch.from_numpy(images), torch.from_numpy(labels[rows])


def _part_of(labels: numpy.ndarray) -> numpy.ndarray:
    """The name of the part that each image belongs to. labels (N,) -> str (N,)"""
    rank = numpy.zeros_like(labels)
    for label in numpy.unique(labels):
        members = numpy.flatnonzero(labels == label)
        rank[members] = numpy.arange(len(members))
    return numpy.where(rank % 5 == 4, "test", numpy.where(rank % 10 == 3, "validation", "train"))
