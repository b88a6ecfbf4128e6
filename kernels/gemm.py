"""What the kernels of several ops share: a product, a sum in a fixed order, and what a launcher asks of its tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

# Triton's interpreter multiplies the raw bits of bfloat16 in tl.dot, so there operands are widened first.
INTERPRETED = bool(triton.knobs.runtime.interpret)
FEW_CHANNELS = 16  # below it, the channels of one tap do not fill a slice of the inner dimension


@triton.jit
def multiply(a, b, acc, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def sum_of_runs(at, kept, runs, stride, BLOCK: tl.constexpr):
    """Partial sums of `runs` runs, `stride` elements apart, added in their order; `at` points to the BLOCK first."""
    acc = tl.zeros((BLOCK,), tl.float32)
    for _ in range(runs):
        acc += tl.load(at, mask=kept, other=0.0)
        at += stride
    return acc


def needs_widening(dtype: torch.dtype) -> bool:
    return INTERPRETED and dtype == torch.bfloat16


def precision_of(dtype: torch.dtype) -> str:
    """How tl.dot multiplies: as torch lets cuDNN's convolutions do."""
    if dtype != torch.float32:
        return "ieee"
    allowed = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    return "tf32" if allowed == "tf32" else "ieee"


def on_device_of(tensor: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def capability_of(tensor: torch.Tensor) -> tuple[int, int]:
    """Compute capability of the tensor's GPU."""
    return torch.cuda.get_device_capability(tensor.device) if tensor.is_cuda else (9, 0)


def channels_last_of(x: torch.Tensor) -> torch.Tensor:
    """The images (N, C, H, W) or clips (N, C, D, H, W) with a pixel's channels side by side."""
    return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)


def empty_image(like: torch.Tensor, channels: int, size: Sequence[int]) -> torch.Tensor:
    """An uninitialised (N, channels, *size) of the batch, dtype, device and memory format of `like`."""
    channels_last = torch.channels_last if like.dim() == 4 else torch.channels_last_3d
    keeps = not like.is_contiguous() and like.is_contiguous(memory_format=channels_last)
    memory_format = channels_last if keeps else torch.contiguous_format
    shape = (like.shape[0], channels, *size)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)
