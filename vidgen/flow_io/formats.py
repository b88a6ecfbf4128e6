"""The files in which optical flow is exchanged, and the array that OpenCV's users hold.

Everywhere here a flow is a float32 tensor (2, H, W) in pixels, channel 0 to the right and channel 1 down.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vidgen.files import write_atomically
from vidgen.flow_io.png import MAX_SIDE, read_png, write_png

#: "PIEH", the float by which a Middlebury file is known
_MAGIC = struct.pack("<f", 202021.25)


def _checked(flow: Tensor) -> Tensor:
    """(2, H, W) float32 on the CPU, or a complaint."""
    if not isinstance(flow, Tensor) or not flow.is_floating_point():
        raise TypeError(f"flow must be a floating-point tensor, got {getattr(flow, 'dtype', type(flow).__name__)}")
    if flow.dim() != 3 or flow.shape[0] != 2 or flow.numel() == 0:
        raise ValueError(f"flow must have shape (2, H, W) and some pixels, got {tuple(flow.shape)}")
    return flow.detach().to("cpu", torch.float32)


def flow_to_numpy(flow: Tensor) -> np.ndarray:
    """(2, H, W) -> (H, W, 2) float32, contiguous: what OpenCV takes and gives. A copy."""
    return np.array(_checked(flow).permute(1, 2, 0).numpy(), order="C")


def flow_from_numpy(array: np.ndarray) -> Tensor:
    """(H, W, 2) of any floating dtype -> (2, H, W) float32, contiguous. A copy."""
    if array.ndim != 3 or array.shape[2] != 2 or not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"array must be (H, W, 2) of floats, got {array.shape} {array.dtype}")
    return torch.from_numpy(np.array(array.transpose(2, 0, 1), dtype=np.float32, order="C"))


def write_flo(path: str | Path, flow: Tensor) -> None:
    """Writes a Middlebury .flo file: magic, width, height, then (dx, dy) in raster order, all little-endian.

    The format's own mark of an unknown pixel is a component beyond 1e9; what is here is written as it is.
    """
    pixels = flow_to_numpy(flow).astype("<f4")
    write_atomically(path, _MAGIC + struct.pack("<ii", pixels.shape[1], pixels.shape[0]) + pixels.tobytes())


def read_flo(path: str | Path) -> Tensor:
    """A Middlebury .flo file as (2, H, W).

    Raises:
        ValueError: not such a file, or not of the size that it claims, which is compared before anything is read.
    """
    path = Path(path)
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] != _MAGIC:
            raise ValueError(f"{path} is not a Middlebury .flo file: it must start with {_MAGIC!r}, got {head[:4]!r}")
        if len(head) < 12:
            raise ValueError(f"{path} is truncated: a header has 12 bytes, got {len(head)}")
        width, height = struct.unpack("<ii", head[4:])
        if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
            raise ValueError(f"{path} must be 1 to {MAX_SIDE} pixels high and wide, got {width} x {height}")
        expected, got = 12 + 8 * width * height, path.stat().st_size
        if got != expected:
            raise ValueError(f"{path} must have {expected} bytes for {width} x {height} pixels, got {got}")
        content = file.read()
    if len(content) != expected - 12:
        raise ValueError(f"{path} is truncated: it must have {expected} bytes, got {12 + len(content)}")
    return flow_from_numpy(np.frombuffer(content, "<f4").reshape(height, width, 2))


def write_kitti(path: str | Path, flow: Tensor, valid: Tensor | None = None) -> None:
    """Writes KITTI's 16-bit PNG: 64 d + 2**15 for both components, and whether the pixel is valid.

    Args:
        flow: (2, H, W); kept to 1/128 of a pixel.
        valid: (H, W) bool; None takes every pixel whose flow is finite. Where it is false zeros are written.

    Raises:
        ValueError: a valid component does not fit, that is, is not from -512 to 511.98 pixels.
    """
    flow = _checked(flow)
    finite = flow.isfinite().all(dim=0)
    if valid is None:
        valid = finite
    if valid.shape != flow.shape[1:] or valid.dtype != torch.bool:
        raise ValueError(f"valid must be bool of shape {tuple(flow.shape[1:])}, got {valid.dtype} {tuple(valid.shape)}")
    valid = valid.cpu()
    scaled = torch.where(valid, flow.double() * 64 + 2**15, 0).round()
    if not (finite | ~valid).all() or scaled.min() < 0 or scaled.max() > 65535:
        raise ValueError("flow must be finite and from -512 to 511.98 pixels where it is valid, for KITTI's 16 bits")
    image = np.empty((*valid.shape, 3), np.uint16)
    image[..., :2] = scaled.permute(1, 2, 0).numpy()
    image[..., 2] = valid.numpy()
    write_png(path, image)


def read_kitti(path: str | Path) -> tuple[Tensor, Tensor]:
    """KITTI's 16-bit PNG as flow (2, H, W), zero where invalid, and valid (H, W) bool.

    Raises:
        ValueError: not a whole PNG file of 16-bit RGB.
    """
    image = read_png(path)
    if image.ndim != 3:
        raise ValueError(f"{path} must have 3 channels of 16 bits, got 8-bit grey levels")
    valid = image[..., 2] != 0
    flow = (image[..., :2].astype(np.float32) - 2**15) / 64
    return flow_from_numpy(np.where(valid[..., None], flow, np.float32(0))), torch.from_numpy(valid)


def _check_bound(bound: float) -> None:
    if not (math.isfinite(bound) and bound > 0):
        raise ValueError(f"bound must be a positive number of pixels, got {bound!r}")


def encode_bounded(flow: Tensor, bound: float = 20.0) -> tuple[Tensor, Tensor]:
    """Both components as grey images, as two-stream networks read them: [-bound, bound] -> 0 … 255, beyond clipped.

    Args:
        flow: (2, H, W), no NaN.
        bound: in pixels.

    Returns:
        u and v, each (H, W) uint8: round((d + bound) · 255 / (2 bound)). No displacement is 127.5, which rounds to 128.
    """
    _check_bound(bound)
    flow = _checked(flow)
    if flow.isnan().any():
        raise ValueError("flow must have no NaN, for a grey level has no way to say it")
    levels = (flow.double().clamp(-bound, bound) + bound) * (255 / (2 * bound))
    u, v = (levels + 0.5).floor().clamp(0, 255).to(torch.uint8)
    return u, v


def decode_bounded(u: Tensor, v: Tensor, bound: float = 20.0) -> Tensor:
    """The flow (2, H, W) of two grey images (H, W) uint8, right to bound / 255 where nothing was clipped."""
    _check_bound(bound)
    for name, image in (("u", u), ("v", v)):
        if image.dtype != torch.uint8 or image.dim() != 2 or image.shape != u.shape:
            raise ValueError(f"{name} must be (H, W) uint8 of one shape, got {tuple(image.shape)} {image.dtype}")
    return (torch.stack([u, v]).double() * (2 * bound / 255) - bound).float()


def write_bounded(path_u: str | Path, path_v: str | Path, flow: Tensor, bound: float = 20.0) -> None:
    """`encode_bounded`, written as two 8-bit grey PNG files."""
    for path, image in zip((path_u, path_v), encode_bounded(flow, bound), strict=True):
        write_png(path, image.numpy())


def read_bounded(path_u: str | Path, path_v: str | Path, bound: float = 20.0) -> Tensor:
    """`decode_bounded` of two 8-bit grey PNG files."""
    images = []
    for path in (path_u, path_v):
        image = read_png(path)
        if image.ndim != 2:
            raise ValueError(f"{path} must be 8-bit grey, got 16-bit RGB")
        images.append(torch.from_numpy(image))
    if images[0].shape != images[1].shape:
        raise ValueError(
            f"{path_v} must have the size of {path_u}, {tuple(images[0].shape)}, got {tuple(images[1].shape)}"
        )
    return decode_bounded(images[0], images[1], bound)
