"""What the methods of optical flow share: what they ask of their images, and grey levels from them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vidgen.ops.backends import requested
from vidgen.ops.registration import check_no_tangent


def grey(images: Tensor) -> Tensor:
    """(N, 1, H, W) of 0 … 255 in the dtype of the arithmetic."""
    wide = torch.float64 if images.dtype == torch.float64 else torch.float32
    scale = 255 if images.is_floating_point() else 1
    images = images.to(wide)
    if images.shape[1] == 3:
        red, green, blue = images.split(1, dim=1)
        images = 0.299 * red + 0.587 * green + 0.114 * blue
    return images * scale


def check_images(prev: Tensor, next: Tensor, init: Tensor | None) -> None:
    for name, images in (("prev", prev), ("next", next)):
        if not isinstance(images, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(images).__name__}")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise TypeError(f"{name} must be uint8 or floating point in [0, 1], got {images.dtype}")
        colors = images.dim() == 3 or (images.dim() == 4 and images.shape[1] in (1, 3))
        if not colors or 0 in images.shape[-2:]:
            raise ValueError(
                f"{name} must have shape (N, 1 or 3, H, W) or (N, H, W), H and W at least 1, got {tuple(images.shape)}"
            )
        check_no_tangent(name, images)
    if next.shape != prev.shape:
        raise ValueError(f"next must have the shape of prev {tuple(prev.shape)}, got {tuple(next.shape)}")
    if next.dtype != prev.dtype:
        raise TypeError(f"next must have the dtype of prev ({prev.dtype}), got {next.dtype}")
    if next.device != prev.device:
        raise ValueError(f"next must be on the device of prev ({prev.device}), got {next.device}")
    if init is None:
        return
    if not isinstance(init, Tensor) or not init.is_floating_point():
        got = init.dtype if isinstance(init, Tensor) else type(init).__name__
        raise TypeError(f"init must be a floating-point tensor or None, got {got}")
    shape = (prev.shape[0], 2, *prev.shape[-2:])
    if init.shape != shape:
        raise ValueError(f"init must have shape {shape}, got {tuple(init.shape)}")
    if init.device != prev.device:
        raise ValueError(f"init must be on the device of prev ({prev.device}), got {init.device}")


def check_values(prev: Tensor, next: Tensor, init: Tensor | None) -> None:
    """What the CPU kernel sees while it reads."""
    for name, images in (("prev", prev), ("next", next)):
        levels = grey(images.detach())
        if not ((levels >= -127.5) & (levels <= 382.5)).all():  # no NaN is
            raise RuntimeError(
                f"{name} must be finite and, where it is floating point, in [0, 1] (up to half of that beyond is borne)"
            )
    if init is not None and not (init.detach().abs() <= 1e6).all():
        raise RuntimeError("init must be finite and within 1e6 pixels")


def check_count(name: str, value: Any, most: int, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if not least <= value <= most:
        raise ValueError(f"{name} must be from {least} to {most}, got {value}")


def prepared(prev: Tensor, next: Tensor, init: Tensor | None, impl: str | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Checked arguments as the ops take them: images (N, C, H, W), uint8, float32 or float64; init of their precision.

    Raises:
        RuntimeError: values that the reference on the CPU refuses. It is reached through C++, and its own sentence does
            not find its way back.
    """
    if prev.dim() == 3:
        prev, next = prev.unsqueeze(1), next.unsqueeze(1)
    if prev.dtype not in (torch.uint8, torch.float32, torch.float64):
        prev, next = prev.float(), next.float()
    if init is not None:
        init = init.to(torch.float64 if prev.dtype == torch.float64 else torch.float32)
    if requested(impl) == "reference" and prev.device.type == "cpu" and not torch.compiler.is_compiling():
        check_values(prev, next, init)
    return prev, next, init


def fake_flow(prev: Tensor, next: Tensor, init: Tensor | None, *_args: Any) -> Tensor:
    """A flow of the right shape and dtype, for tracing."""
    dtype = torch.float64 if prev.dtype == torch.float64 else torch.float32
    return torch.empty((prev.shape[0], 2, *prev.shape[2:]), dtype=dtype, device=prev.device)
