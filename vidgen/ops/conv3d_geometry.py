"""Sizes, padding and pooling windows of 3-d convolutions.

The public functions take padding in several spellings; inside, it is six numbers, before and after, for depth, height
and width, and a pooling window is three.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

Padding = Literal["same", "valid"] | int | tuple[int, int, int]
Pool = tuple[int, int, int] | None

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


def _triple(name: str, value: Any) -> tuple[int, int, int]:
    triple = (value,) * 3 if isinstance(value, int) else tuple(value)
    if len(triple) != 3 or not all(isinstance(v, int) for v in triple):
        raise ValueError(f"{name} must be an int or three ints (depth, height, width), got {value!r}")
    return triple


def resolve_padding(padding: Padding, kernel_size: Sequence[int]) -> list[int]:
    """Zeros before and after each axis: six numbers, from what the public function takes.

    "same" puts the odd zero of an even kernel behind, as torch.nn.functional.conv3d does.
    """
    if padding == "same":
        return [zeros for k in kernel_size for zeros in ((k - 1) // 2, k // 2)]
    if isinstance(padding, str) and padding != "valid":
        raise ValueError(f"padding must be 'same', 'valid', an int or three ints, got {padding!r}")
    around = (0, 0, 0) if padding == "valid" else _triple("padding", padding)
    for axis, zeros, k in zip(_AXES, around, kernel_size, strict=True):
        if not 0 <= zeros < k:
            raise ValueError(f"padding must be from 0 to kernel size - 1, got {zeros} for a {axis} of {k} taps")
    return [zeros for p in around for zeros in (p, p)]


def resolve_pool(pool: Pool) -> list[int]:
    window = (1, 1, 1) if pool is None else _triple("pool", pool)
    if not all(1 <= k <= _MAX_POOL for k in window):
        raise ValueError(f"pool must be windows of 1 to {_MAX_POOL} per axis, or None, got {pool!r}")
    return list(window)
