r"""RAFT's correlation lookup: how well a feature of one image fits those of another around where it is expected.

    out[b, (l·n + i)·n + j, y, x] = V_l[b, y, x](coords[b, 0, y, x] / 2ˡ + i - r,  coords[b, 1, y, x] / 2ˡ + j - r)

with n = 2r + 1; i moves to the right and j down, and i is the slower one: RAFT's order of channels. Coordinates are
pixels of the second feature map, channel 0 to the right and channel 1 down. Between pixels V_l is bilinear, outside it
is zero; the first pixel's centre is 0 (grid_sample's align_corners=True). V_l comes in one of two forms:

- all pairs: pyramid[l] (B, H, W, H_l, W_l) is V_l, made once by `corr_pyramid`: V_0 = <fmap1, fmap2> / √C for every
  pair of pixels, and each level is the one before it, pooled by 2×2. H·W·H·W numbers and a third more.
- on demand: pyramid[l] (B, C, H_l, W_l) are features of the second image, made once by `corr_feature_pyramid`, and
  fmap1 (B, C, H, W) those of the first. V_l = <fmap1, pyramid[l]> / √C is computed where it is read, and never stored.

Pooling commutes with the product, so both give the same. A window's (n + 1)² whole pixels are read, or computed, once
and interpolated; x / 2ˡ, its floor and the rest are exact, so no position is rounded; grid_sample rounds it twice.

Where one coordinate is NaN or infinite the output is NaN in every channel, and no gradient gets anything from there. A
finite coordinate of any size is only a position outside. Nothing outside a tensor is ever read.

Dtypes: positions, products and sums are float32 (float64 for a float64 pyramid), and so is the result, as in RAFT,
whatever the pyramid is and whatever autocast says; gradients have their tensors' dtypes.

Differentiable in pyramid, fmap1 and coords, to any order in eager PyTorch: the three gradients are ops, their
derivatives are computed through `reference`. In coords the derivative is that of the piecewise bilinear surface, from
the right where a position is a whole number. The gradient of an all-pairs pyramid is as large as the pyramid.

Source: Teed, Deng, "RAFT" (2020), section 3.2 and the code published with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vidgen.ops.backends import TABLE, Backend, always, gpu_supports_dtype, reference_row, requested, triton_row
from vidgen.ops.registration import check_no_tangent, computed_in, memory_format_of, register_selection

_OP = "corr_lookup"

# beyond, a window is larger than any feature map
MAX_RADIUS = 127

# numbers of the all-pairs volume that `reference` makes at a time in the on-demand form
_CHUNK = 2**24


# Reference: eager PyTorch.


def _along(position: Tensor, size: int, radius: int) -> tuple[Tensor, Tensor]:
    """The first pixel of windows along an axis, and how far beyond it they begin. position (B, Q)."""
    # beyond the image all is one, and integers must not overflow
    bounded = position.clamp(-radius - 2, size + radius + 1)
    whole = bounded.detach().floor()
    return whole.long() - radius, bounded - whole


def _looked_up(volume: Tensor, x: Tensor, y: Tensor, radius: int) -> Tensor:
    """Windows of volume (B, Q, H, W) around x and y (B, Q): (B, Q, n * n), the horizontal index first."""
    batch, queries, height, width = volume.shape
    column, fx = _along(x, width, radius)
    row, fy = _along(y, height, radius)
    steps = torch.arange(2 * radius + 2, device=x.device)
    rows, columns = (row[..., None] + steps)[..., :, None], (column[..., None] + steps)[..., None, :]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)  # [B, Q, n + 1, n + 1]
    index = torch.where(inside, rows * width + columns, 0).flatten(2)
    window = torch.where(inside, volume.flatten(2).gather(2, index).view(inside.shape), 0)
    fx, fy = fx[..., None, None], fy[..., None, None]
    window = (1 - fx) * window[..., :-1] + fx * window[..., 1:]
    window = (1 - fy) * window[..., :-1, :] + fy * window[..., 1:, :]
    return window.transpose(2, 3).reshape(batch, queries, (2 * radius + 1) ** 2)


def reference(pyramid: Sequence[Tensor], coords: Tensor, radius: int, fmap1: Tensor | None) -> Tensor:
    """corr_lookup in eager PyTorch; any device, any floating dtype."""
    batch, _, height, width = coords.shape
    wide = computed_in(pyramid[0].dtype)
    known = coords.isfinite().all(dim=1)  # [B, H, W]
    x, y = torch.where(known[:, None], coords.to(wide), 0).flatten(2).unbind(1)  # [B, Q]
    levels = [level.to(wide) for level in pyramid]
    queries = height * width
    largest = max(level.shape[-2] * level.shape[-1] for level in levels)
    at_once = queries if fmap1 is None else max(1, _CHUNK // max(1, batch * largest))
    chunks = []
    for first in range(0, queries, max(1, at_once)):
        piece = slice(first, first + at_once)
        found = []
        for number, level in enumerate(levels):
            if fmap1 is None:
                volume = level.flatten(1, 2)[:, piece]  # [B, Q, H_l, W_l]
            else:
                features = fmap1.to(wide).flatten(2)[..., piece]
                volume = (features.mT @ level.flatten(2)).unflatten(2, level.shape[2:]) / level.shape[1] ** 0.5
            found.append(_looked_up(volume, x[:, piece] / 2**number, y[:, piece] / 2**number, radius))
        chunks.append(torch.cat(found, dim=2))
    channels = len(levels) * (2 * radius + 1) ** 2
    out = torch.cat(chunks, dim=1) if chunks else x.new_empty(batch, 0, channels)
    out = out.mT.reshape(batch, channels, height, width)
    return torch.where(known[:, None], out, torch.nan).contiguous(memory_format=memory_format_of(coords))


def _gradient(
    of: int, grad_output: Tensor, pyramid: Sequence[Tensor], coords: Tensor, radius: int, fmap1: Tensor | None
) -> Any:
    """The gradient of `reference` in one of pyramid (0), coords (1) and fmap1 (2), of its dtype and memory format."""
    wide = computed_in(pyramid[0].dtype)
    tensors: list[Any] = [
        [level.to(wide) for level in pyramid],
        coords.to(wide),
        None if fmap1 is None else fmap1.to(wide),
    ]

    def total(variable: Any) -> Tensor:
        levels, positions, features = (variable if i == of else t for i, t in enumerate(tensors))
        return (reference(levels, positions, radius, features) * grad_output).sum()

    gradient = torch.func.grad(total)(tensors[of])
    originals = (pyramid, coords, fmap1)[of]
    if of == 0:
        return [_like(g, level) for g, level in zip(gradient, pyramid, strict=True)]
    return _like(gradient, originals)


def _format_of(t: Tensor) -> torch.memory_format:
    """Correlations have no channels, and their gradients are contiguous."""
    return memory_format_of(t) if t.dim() == 4 else torch.contiguous_format


def _like(gradient: Tensor, original: Any) -> Tensor:
    return gradient.to(original.dtype).contiguous(memory_format=_format_of(original))


def reference_grad_pyramid(*args: Any) -> list[Tensor]:
    """The gradients of `reference` in the levels of its pyramid, from grad_output and the arguments of `reference`."""
    return _gradient(0, *args)


def reference_grad_coords(*args: Any) -> Tensor:
    """The gradient of `reference` in coords, (B, 2, H, W)."""
    return _gradient(1, *args)


def reference_grad_fmap1(*args: Any) -> Tensor:
    """The gradient of `reference` in fmap1, (B, C, H, W)."""
    return _gradient(2, *args)


# Backends. The CPU kernel is registered in C++ (csrc/bind/); its rows here serve explain and info.


def _cpu_supports(pyramid: Sequence[Tensor], *_args: Any) -> str | None:
    return torch.ops.vidgen.corr_lookup_cpu_supports(pyramid[0].dtype) or None


def _triton_supports(pyramid: Sequence[Tensor], *_args: Any) -> str | None:
    return gpu_supports_dtype(pyramid[0])


def _cpu_supports_gradient(_grad_output: Tensor, *args: Any) -> str | None:
    return _cpu_supports(*args)


_GRADIENTS: dict[str, Callable[..., Any]] = {
    "pyramid": reference_grad_pyramid, "coords": reference_grad_coords, "fmap1": reference_grad_fmap1,
}  # fmt: skip

TABLE[_OP] = (
    Backend("cpu", ("cpu",), always, _cpu_supports, run=None),
    replace(triton_row(_OP, "forward"), supports=_triton_supports),
    reference_row(reference),
)
for _wanted, _run in _GRADIENTS.items():
    TABLE[f"{_OP}_grad_{_wanted}"] = (
        Backend("cpu", ("cpu",), always, _cpu_supports_gradient, run=None),
        reference_row(_run),
    )


# Registration: shapes, autograd, selection. Autocast has no say, as RAFT keeps correlations in float32.


def _empty_like(t: Tensor) -> Tensor:
    return torch.empty(t.shape, dtype=t.dtype, device=t.device, memory_format=_format_of(t))


@torch.library.register_fake("vidgen::corr_lookup")
def _(pyramid, coords, radius, fmap1, impl):  # type: ignore[no-untyped-def]
    batch, _, height, width = coords.shape
    shape = (batch, len(pyramid) * (2 * radius + 1) ** 2, height, width)
    dtype = computed_in(pyramid[0].dtype)
    return torch.empty(shape, dtype=dtype, device=coords.device, memory_format=memory_format_of(coords))


@torch.library.register_fake("vidgen::corr_lookup_grad_pyramid")
def _(grad_output, pyramid, coords, radius, fmap1, impl):  # type: ignore[no-untyped-def]
    return [_empty_like(level) for level in pyramid]


@torch.library.register_fake("vidgen::corr_lookup_grad_coords")
def _(grad_output, pyramid, coords, radius, fmap1, impl):  # type: ignore[no-untyped-def]
    return _empty_like(coords)


@torch.library.register_fake("vidgen::corr_lookup_grad_fmap1")
def _(grad_output, pyramid, coords, radius, fmap1, impl):  # type: ignore[no-untyped-def]
    return _empty_like(fmap1)


def _gradient_impl(impl: str | None) -> str | None:
    """What to ask of the gradients: Triton has none, and a call that forces it gets the reference's."""
    return "reference" if requested(impl) == "triton" else impl


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    *weight, pyramid, coords, ctx.radius, fmap1, ctx.impl = inputs
    ctx.save_for_backward(*weight, coords, fmap1, *pyramid)


def _backward(ctx, grad_output):  # type: ignore[no-untyped-def]
    coords, fmap1, *pyramid = ctx.saved_tensors
    call = (grad_output, pyramid, coords, ctx.radius, fmap1, _gradient_impl(ctx.impl))
    for_pyramid, for_coords, _, for_fmap1, _ = ctx.needs_input_grad
    return (
        _op_grad_pyramid(*call) if any(for_pyramid) else [None] * len(pyramid),
        _op_grad_coords(*call) if for_coords else None,
        None,
        _op_grad_fmap1(*call) if for_fmap1 else None,
        None,
    )


def _backward_of_gradient(ctx, grads, of):  # type: ignore[no-untyped-def]
    """Second order, through the reference; `of` says which tensors the gradient was taken in."""
    with torch.enable_grad():
        # views, so that what is computed here stays connected to its inputs and can be differentiated again
        weight, coords, fmap1, *pyramid = (
            t if t is None else t.view_as(t) if t.requires_grad else t.detach().requires_grad_()
            for t in ctx.saved_tensors
        )
        out = reference(pyramid, coords, ctx.radius, fmap1)
        variables = {"pyramid": pyramid, "coords": [coords], "fmap1": [fmap1]}[of]
        first = torch.autograd.grad(out, variables, weight, create_graph=True, materialize_grads=True)
        leaves = [t for t in (weight, coords, fmap1, *pyramid) if t is not None]
        found = list(torch.autograd.grad(first, leaves, grads, create_graph=True, materialize_grads=True))
    by_weight, by_coords = found[:2]
    by_fmap1 = None if fmap1 is None else found[2]
    return by_weight, found[len(found) - len(pyramid) :], by_coords, None, by_fmap1, None


def _register_gradient(wanted: str, run: Callable[..., Any]) -> None:
    def backward(ctx, grads):  # type: ignore[no-untyped-def]
        return _backward_of_gradient(ctx, grads, wanted)

    register_selection(f"{_OP}_grad_{wanted}", run, lambda *args: args)
    torch.library.register_autograd(f"vidgen::{_OP}_grad_{wanted}", backward, setup_context=_setup)


_op = torch.ops.vidgen.corr_lookup.default
_op_grad_pyramid = torch.ops.vidgen.corr_lookup_grad_pyramid.default
_op_grad_coords = torch.ops.vidgen.corr_lookup_grad_coords.default
_op_grad_fmap1 = torch.ops.vidgen.corr_lookup_grad_fmap1.default

register_selection(_OP, reference, lambda *args: args)
torch.library.register_autograd(f"vidgen::{_OP}", _backward, setup_context=_setup)
for _wanted, _run in _GRADIENTS.items():
    _register_gradient(_wanted, _run)


# The public functions.


def _check_tensor(name: str, tensor: Any, axes: str, device: torch.device, whose: str = "coords") -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {tensor.dtype}")
    if tensor.dim() != axes.count(",") + 1:
        raise ValueError(f"{name} must be {axes.count(',') + 1}-d {axes}, got shape {tuple(tensor.shape)}")
    if tensor.device != device:
        raise ValueError(f"{name} must be on the device of {whose} ({device}), got {tensor.device}")
    check_no_tangent(name, tensor)


def _check(pyramid: Sequence[Tensor], coords: Tensor, radius: int, fmap1: Tensor | None) -> None:
    device = coords.device
    _check_tensor("coords", coords, "(B, 2, H, W)", device)
    batch, two, height, width = coords.shape
    if two != 2:
        raise ValueError(f"coords must have shape (B, 2, H, W), got {tuple(coords.shape)}")
    if isinstance(pyramid, Tensor) or len(pyramid) == 0:
        raise ValueError("pyramid must be a sequence of at least one tensor, as corr_pyramid makes it")
    axes = "(B, H, W, H_l, W_l)" if fmap1 is None else "(B, C, H_l, W_l)"
    for number, level in enumerate(pyramid):
        _check_tensor(f"pyramid[{number}]", level, axes, device)
    if isinstance(radius, bool) or not isinstance(radius, int):
        raise TypeError(f"radius must be an int, got {type(radius).__name__}")
    if not 0 <= radius <= MAX_RADIUS:
        raise ValueError(f"radius must be from 0 to {MAX_RADIUS}, got {radius}")
    if fmap1 is not None:
        _check_tensor("fmap1", fmap1, "(B, C, H, W)", device)
        if (fmap1.shape[0], *fmap1.shape[2:]) != (batch, height, width) or fmap1.shape[1] == 0:
            raise ValueError(
                f"fmap1 must have shape (B, C, H, W) for coords {tuple(coords.shape)}, got {tuple(fmap1.shape)}"
            )
        if fmap1.dtype != pyramid[0].dtype:
            raise TypeError(f"fmap1 must have the dtype of pyramid ({pyramid[0].dtype}), got {fmap1.dtype}")
    leading = (batch, height, width) if fmap1 is None else fmap1.shape[:2]
    for number, level in enumerate(pyramid):
        name = f"pyramid[{number}]"
        if level.dtype != pyramid[0].dtype:
            raise TypeError(f"{name} must have the dtype of pyramid[0] ({pyramid[0].dtype}), got {level.dtype}")
        if level.shape[:-2] != leading or 0 in level.shape[-2:]:
            raise ValueError(
                f"{name} must have shape {axes} with {tuple(leading)} in front and H_l, W_l > 0, "
                f"got {tuple(level.shape)}"
            )


def corr_lookup(
    pyramid: Sequence[Tensor],
    coords: Tensor,
    radius: int = 4,
    *,
    fmap1: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """Correlations in a window around coords, on every level of a pyramid (formula: the head of this module).

    Args:
        pyramid: of `corr_pyramid`, L tensors (B, H, W, H_l, W_l); or with fmap1, of `corr_feature_pyramid`, L tensors
            (B, C, H_l, W_l). Floating point, any strides; features are read fastest in channels_last.
        coords: (B, 2, H, W) in pixels of level 0, right and down; converted to float32 (float64 for such a pyramid).
        radius: of the window, 0 to 127: n = 2 * radius + 1 positions each way.
        fmap1: features (B, C, H, W) of the first image, for the on-demand form.
        impl: "cpu", "triton" or "reference" forces a backend; None takes VIDGEN_IMPL, else the best that can.

    Returns:
        (B, L * n * n, H, W), float64 for a float64 pyramid, else float32; channels_last where coords are, as one tensor
        of the whole batch. NaN where coords are not finite.

    Raises:
        ValueError, TypeError: an argument is not as above; the message names it, what was expected and what came.
        RuntimeError: `impl` cannot serve the call, or an argument carries a forward-mode tangent.
    """
    _check(pyramid, coords, radius, fmap1)
    return _op(list(pyramid), coords.to(computed_in(pyramid[0].dtype)), radius, fmap1, impl)


def _check_levels(fmap2: Tensor, levels: int) -> None:
    if isinstance(levels, bool) or not isinstance(levels, int):
        raise TypeError(f"levels must be an int, got {type(levels).__name__}")
    _check_tensor("fmap2", fmap2, "(B, C, H, W)", fmap2.device)
    if fmap2.shape[1] == 0:
        raise ValueError(f"fmap2 must have channels, got shape {tuple(fmap2.shape)}")
    most = min(fmap2.shape[2:]).bit_length()
    if not 1 <= levels <= most:
        raise ValueError(
            f"levels must be from 1 to {most} for fmap2 {tuple(fmap2.shape)}: another would be empty; got {levels}"
        )


def corr_pyramid(fmap1: Tensor, fmap2: Tensor, *, levels: int = 4) -> list[Tensor]:
    """Correlations <fmap1, fmap2> / √C of all pairs of pixels, and their 2×2 means over the second image.

    One matrix product and pooling: plain PyTorch, which has nothing faster, and its autograd.

    Args:
        fmap1, fmap2: features (B, C, H, W) and (B, C, H_0, W_0) of two images, of one floating dtype.
        levels: number of levels; a level has half of the sides before it, rounded down, and at least one pixel.

    Returns:
        levels tensors (B, H, W, H_l, W_l) of the features' dtype, H_l = ⌊H_0 / 2ˡ⌋.

    Raises:
        ValueError, TypeError: an argument is not as above; the message names it, what was expected and what came.
    """
    _check_levels(fmap2, levels)
    _check_tensor("fmap1", fmap1, "(B, C, H, W)", fmap2.device, "fmap2")
    if fmap1.dtype != fmap2.dtype:
        raise TypeError(f"fmap1 must have the dtype of fmap2 ({fmap2.dtype}), got {fmap1.dtype}")
    if fmap1.shape[:2] != fmap2.shape[:2]:
        raise ValueError(f"fmap1 must have shape (B, C, H, W) for fmap2 {tuple(fmap2.shape)}, got {tuple(fmap1.shape)}")
    batch, channels, height, width = fmap1.shape
    queries = (fmap1 / channels**0.5).flatten(2).mT  # [B, H * W, C]
    pyramid = [(queries @ fmap2.flatten(2)).view(batch, height, width, *fmap2.shape[2:])]
    for _ in range(levels - 1):
        volume = pyramid[-1]
        pooled = F.avg_pool2d(volume.flatten(0, 2)[:, None], 2)
        pyramid.append(pooled.view(batch, height, width, *pooled.shape[2:]))
    return pyramid


def corr_feature_pyramid(fmap2: Tensor, *, levels: int = 4) -> list[Tensor]:
    """Features and their 2×2 means, channels_last: what the on-demand form of `corr_lookup` reads.

    Args:
        fmap2: features (B, C, H_0, W_0) of the second image, floating point.
        levels: number of levels; a level has half of the sides before it, rounded down, and at least one pixel.

    Returns:
        levels tensors (B, C, H_l, W_l) of fmap2's dtype, H_l = ⌊H_0 / 2ˡ⌋.

    Raises:
        ValueError, TypeError: an argument is not as above; the message names it, what was expected and what came.
    """
    _check_levels(fmap2, levels)
    pyramid = [fmap2.contiguous(memory_format=torch.channels_last)]
    for _ in range(levels - 1):
        pyramid.append(F.avg_pool2d(pyramid[-1], 2))
    return pyramid
