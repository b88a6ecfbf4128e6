"""Optical flow of OpenCV on the CPU, from the contributed modules."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NAME = "OpenCV"
DISTRIBUTION = "opencv-contrib-python-headless"


def missing(dtype: str = "float32") -> str | None:
    try:
        importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return f"{DISTRIBUTION} is not installed: pip install 'vidgen[peers]'"
    return None


def _pair_by_pair(threads: int, create: Callable[[Any], Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """Pairs of uint8 (N, 1, H, W) -> (N, 2, H, W), one after the other; create(cv2) makes the method."""
    cv2: Any = importlib.import_module("cv2")

    def run(prev: Tensor, next: Tensor) -> Tensor:
        # the number of threads is the process's own, and others may have changed it
        cv2.setNumThreads(threads)
        method = create(cv2)
        flows = [method.calc(a.numpy(), b.numpy(), None) for a, b in zip(prev[:, 0], next[:, 0], strict=True)]
        return torch.stack([torch.from_numpy(flow).permute(2, 0, 1) for flow in flows])

    return run


def tvl1(*, threads: int) -> Callable[[Tensor, Tensor], Tensor]:
    """DualTVL1 with its default parameters."""
    return _pair_by_pair(threads, lambda cv2: cv2.optflow.DualTVL1OpticalFlow_create())


def dis(preset: str, *, threads: int) -> Callable[[Tensor, Tensor], Tensor]:
    """DISOpticalFlow with one of its presets: "ultrafast", "fast" or "medium"."""
    names = {"ultrafast": "ULTRAFAST", "fast": "FAST", "medium": "MEDIUM"}
    return _pair_by_pair(
        threads, lambda cv2: cv2.DISOpticalFlow_create(getattr(cv2, f"DISOPTICAL_FLOW_PRESET_{names[preset]}"))
    )
