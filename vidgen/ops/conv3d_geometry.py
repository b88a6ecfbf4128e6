"""Sizes, padding and pooling windows of 3-d convolutions.

The public functions take padding in several spellings; inside, it is six numbers, before and after, for depth, height
and width, and a pooling window is three.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

Padding = Literal["same", "valid"] | int | tuple[int, int, int]
Pool = int | tuple[int, int, int] | None

_MAX_POOL = 4
_AXES = ("depth", "height", "width")


def conv_size(size: Sequence[int], kernel_size: Sequence[int], padding: Sequence[int]) -> list[int]:
    """(D, H, W) of z."""
    return [size[i] + padding[2 * i] + padding[2 * i + 1] - kernel_size[i] + 1 for i in range(3)]


def pool_size(size: Sequence[int], pool: Sequence[int], ceil_mode: bool) -> list[int]:
    """(D, H, W) of y for a z of that size."""
    return [-(-s // k) if ceil_mode else s // k for s, k in zip(size, pool, strict=True)]


def padded(x: Tensor, padding: Sequence[int]) -> Tensor:
    # F.pad starts with the last axis
    return F.pad(x, (*padding[4:], *padding[2:4], *padding[:2])) if any(padding) else x


def triple(name: str, value: Any) -> tuple[int, int, int]:
    """Three ints from an int or three; ValueError names the argument."""
    try:
        sizes = tuple(operator.index(v) for v in (value if isinstance(value, Sequence) else (value,) * 3))
    except TypeError:
        sizes = ()
    if len(sizes) != 3 or isinstance(value, str):
        raise ValueError(f"{name} must be an int or three ints (depth, height, width), got {value!r}")
    return sizes


def resolve_padding(padding: Padding, kernel_size: Sequence[int]) -> list[int]:
    """Zeros before and after each axis: six numbers, from what the public function takes.

    "same" puts the odd zero of an even kernel behind, as torch.nn.functional.conv3d does.
    """
    if padding == "same":
        return [zeros for k in kernel_size for zeros in ((k - 1) // 2, k // 2)]
    if isinstance(padding, str) and padding != "valid":
        raise ValueError(f"padding must be 'same', 'valid', an int or three ints, got {padding!r}")
    around = (0, 0, 0) if padding == "valid" else triple("padding", padding)
    for axis, zeros, k in zip(_AXES, around, kernel_size, strict=True):
        if not 0 <= zeros < k:
            raise ValueError(f"padding must be from 0 to kernel size - 1, got {zeros} for a {axis} of {k} taps")
    return [zeros for p in around for zeros in (p, p)]


def resolve_pool(pool: Pool) -> list[int]:
    """The window's three numbers."""
    window = (1, 1, 1) if pool is None else triple("pool", pool)
    if not all(1 <= k <= _MAX_POOL for k in window):
        raise ValueError(f"pool must be windows of 1 to {_MAX_POOL} per axis, or None, got {pool!r}")
    return list(window)
