"""Stacks of displacement fields: what the temporal stream of a two-stream network sees.

Between neighbouring frames of a clip lie displacement fields, the optical flow d_t from frame t to t+1, and, for
bidirectional stacks, b_t from frame t+1 back to t. Less its mean vector, so that a camera's pan leaves little, each is
two channels of a stack. The stack at frame τ of length L has 2L channels, horizontal and vertical in turn, of the
fields k = 1 … L

    optical flow    d_{τ+k−1}(x)                                the same pixel in every field
    trajectory      d_{τ+k−1}(p_k),   p_1 = x,   p_{k+1} = p_k + d_{τ+k−1}(p_k)      along what moves

and, where it is bidirectional, L/2 such fields forward, then L/2 backward, b_{τ−1}, b_{τ−2}, …, from the same frame τ.
Between pixels fields are bilinear, beyond the picture that of its rim goes on.

Source: Simonyan and Zisserman, "Two-Stream Convolutional Networks for Action Recognition in Videos" (NIPS 2014),
section 3.1.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from vidgen.ops import optical_flow, warp
from vidgen.ops.optical_flow import Method

Stacking = Literal["optical_flow", "trajectory"]


def displacement_fields(
    clips: Tensor,
    *,
    bidirectional: bool = False,
    method: Method = "tvl1",
    preset: str | None = None,
    chunk: int = 4096,
    **params: Any,
) -> Tensor:
    """The displacement fields between neighbouring frames, of all clips at once.

    Args:
        clips: (N, 1 or 3, T, H, W), uint8, or floating point in [0, 1]; T at least 2.
        bidirectional: also those back from each frame to the one before.
        method, preset, params: as in ``vidgen.ops.optical_flow``.
        chunk: at most so many pairs of frames in one call, so that memory stays bounded.

    Returns:
        (N, 1, T−1, 2, H, W), or (N, 2, T−1, 2, H, W) where bidirectional: pixels, channel 0 to the right, 1 down.
        [:, 0, t] is from frame t to t+1, [:, 1, t] from t+1 to t. float64 for float64 clips, else float32.

    Raises:
        ValueError, TypeError: an argument is not as above.
    """
    if clips.dim() != 5 or clips.shape[1] not in (1, 3) or clips.shape[2] < 2:
        raise ValueError(f"clips: expected shape (N, 1 or 3, T, H, W), T at least 2, got {tuple(clips.shape)}")
    if chunk < 1:
        raise ValueError(f"chunk: expected at least 1, got {chunk}")
    frames = clips.transpose(1, 2)  # [N, T, C, H, W]
    earlier, later = frames[:, :-1], frames[:, 1:]
    ways = [(earlier, later), (later, earlier)][: 2 if bidirectional else 1]
    pairs = [torch.stack(some, dim=1).flatten(0, 2) for some in zip(*ways, strict=True)]
    parts = zip(*(images.split(chunk) for images in pairs), strict=True)
    flow = torch.cat([optical_flow(*part, method=method, preset=preset, **params) for part in parts])
    return flow.unflatten(0, (len(clips), len(ways), clips.shape[2] - 1))


def stack_frames(frames: int, length: int, *, bidirectional: bool = False) -> range:
    """The frames of a clip of T frames at which a stack of L fields exists.

    Raises:
        ValueError: there is none, or L is not even for a bidirectional stack.
    """
    if length < 1 or (bidirectional and length % 2):
        kind = "a positive even number for bidirectional stacks" if bidirectional else "at least 1"
        raise ValueError(f"length: expected {kind}, got {length}")
    if frames <= length:
        raise ValueError(f"frames: expected more than the stack's length {length}, got {frames}")
    before = length // 2 if bidirectional else 0
    return range(before, frames - (length - before))


def flow_stack(fields: Tensor, frames: Tensor, length: int, *, stacking: Stacking = "optical_flow") -> Tensor:
    """Stacks of clips' displacement fields (formula: the head of this module).

    Args:
        fields: what ``displacement_fields`` returns, any floating dtype; bidirectional stacks of those of both ways.
        frames: int64 (N,) or (N, S), the frames τ of each clip, of ``stack_frames``.
        length: L.
        stacking: "optical_flow" or "trajectory".

    Returns:
        (N, 2L, H, W) or (N, S, 2L, H, W); float64 for float64 fields, else float32. Differentiable in fields.

    Raises:
        ValueError: an argument is not as above.
    """
    if fields.dim() != 6 or fields.shape[1] not in (1, 2) or fields.shape[3] != 2:
        raise ValueError(f"fields: expected shape (N, 1 or 2, T-1, 2, H, W), got {tuple(fields.shape)}")
    if stacking not in get_args(Stacking):
        raise ValueError(f"stacking: expected one of {', '.join(get_args(Stacking))}, got {stacking!r}")
    ways = fields.shape[1]
    possible = stack_frames(fields.shape[2] + 1, length, bidirectional=ways == 2)
    if frames.dim() not in (1, 2) or len(frames) != len(fields) or frames.is_floating_point():
        raise ValueError(f"frames: expected whole numbers of shape (N,) or (N, S), got {tuple(frames.shape)}")
    if frames.numel() and not possible.start <= int(frames.min()) <= int(frames.max()) < possible.stop:
        span = f"{int(frames.min())} to {int(frames.max())}"
        raise ValueError(f"frames: expected {possible.start} to {possible.stop - 1}, got {span}")
    which = torch.arange(len(fields), device=fields.device)[:, None, None]
    at = (frames if frames.dim() == 2 else frames[:, None])[..., None]  # [N, S, 1]
    steps = torch.arange(length // ways, device=fields.device)
    # b_{τ−1} is the field between frames τ−1 and τ, then one earlier each
    chosen = [fields[which, way, at + steps if way == 0 else at - 1 - steps] for way in range(ways)]
    wide = [one if one.dtype == torch.float64 else one.float() for one in chosen]
    if stacking == "trajectory":
        wide = [_along_trajectories(one) for one in wide]
    else:
        wide = [one - one.mean(dim=(-2, -1), keepdim=True) for one in wide]
    # [N, S, L, 2, H, W], u and v in turn
    stacks = torch.cat(wide, dim=2).flatten(2, 3)
    return stacks if frames.dim() == 2 else stacks[:, 0]


def _along_trajectories(fields: Tensor) -> Tensor:
    """Fields (N, S, K, 2, H, W) less their means, each read where the ones before it have led to."""
    found = []
    led = torch.zeros_like(fields[:, :, 0]).flatten(0, 1)  # [N·S, 2, H, W]
    for field in fields.flatten(0, 1).unbind(1):
        step = warp(field, led, padding="border")
        found.append(step - field.mean(dim=(-2, -1), keepdim=True))
        led = led + step
    return torch.stack(found, dim=1).unflatten(0, fields.shape[:2])


def flip_flow_stack(stack: Tensor) -> Tensor:
    """The stack of the clip in a mirror: left and right change places, and horizontal displacements their sign.

    Args:
        stack: (..., 2L, H, W), u and v in turn.

    Raises:
        ValueError: the number of channels is odd.
    """
    if stack.dim() < 3 or stack.shape[-3] % 2:
        raise ValueError(f"stack: expected shape (..., 2L, H, W), got {tuple(stack.shape)}")
    sign = stack.new_tensor([-1.0, 1.0]).repeat(stack.shape[-3] // 2)
    return stack.flip(-1) * sign[:, None, None]
