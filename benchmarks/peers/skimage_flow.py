"""Optical flow of scikit-image, which computes with NumPy and SciPy on one thread."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import first_missing

NAME = "scikit-image"
DISTRIBUTION = "scikit-image"


def missing(dtype: str = "float32") -> str | None:
    return first_missing("skimage")


def tvl1() -> Callable[[Tensor, Tensor], Tensor]:
    """optical_flow_tvl1 with its default parameters, on pairs of uint8 (N, 1, H, W) -> (N, 2, H, W), one by one."""
    from skimage.registration import optical_flow_tvl1

    def run(prev: Tensor, next: Tensor) -> Tensor:
        grey = [(images[:, 0].float() / 255).numpy() for images in (prev, next)]
        flows = [torch.from_numpy(optical_flow_tvl1(a, b)) for a, b in zip(*grey, strict=True)]
        return torch.stack(flows).flip(1)  # rows come first there

    return run
