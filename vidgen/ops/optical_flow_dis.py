r"""Optical flow by dense inverse search (DIS): patches find displacements, pixels take the means of their patches'.

Images I₀ and I₁ of grey levels 0 … 255 are halved, by means of four pixels, min(⌊log₂(longer / 4P) + ½⌋, ⌊log₂(shorter
/ P)⌋) times, for patches of P × P pixels. From the coarsest level to level `finest_scale`, or of a pyramid that ends
before it through its last two:

1. Search. Patches lie every `patch_stride` pixels. A displacement w has the residual r(x) = I₁(x + w) - I₀(x) and the
   distance Σ r² - (Σ r)² / P², that of patches less their mean levels. With g = ∇I₀ (Sobel's operator), H = Σ g gᵀ -
   (Σ g)(Σ g)ᵀ / P² and b = Σ r g - (Σ r)(Σ g) / P², steps w ← w - ¼ H⁻¹ b are taken while they are longer than 0.01
   pixels, up to the first after which the distance has not fallen, in two passes, of which each has half of
   `descent_iterations` at most (of 25, 13 and 12); a patch that has moved farther than its size goes back. It begins at
   the flow of the level before, or where its neighbour to the left or above has got to if that is better; then, in a
   second pass from the end, where its neighbour to the right or below has. Neighbours above and below are looked at
   within stripes of 8 rows of patches; the last row of a stripe sees the one below as the first pass left it.
2. Flow of pixels: the mean of the w of the patches that cover a pixel, weighted by 1 / max(1, |r|).
3. Refinement, if refinement_iterations > 0: of δ Ψ(grey level constancy) + γ Ψ(gradient constancy) + α Ψ(smoothness),
   Ψ(s²) = √(s² + 10⁻⁶), the constancies linearised at the mean of I₀ and the displaced I₁ and divided by the lengths of
   their gradients (at least 0.1), smoothness that of central differences. An iteration computes all weights and makes 5
   sweeps of red-black over-relaxation (ω = 1.6). The second half of the iterations has a linearisation of its own.
   Where the finest level has fewer than 100 × 100 pixels, n, α is times max(½, √n / 100).

Where nothing was refined, the finest flow is smoothed by ¼ (1 2 1) along both axes. It is then magnified, bilinear.

Shapes: images (N, 1 or 3, H, W), flow (N, 2, H, W), channel 0 = u, to the right, 1 = v, downwards. Colours become luma,
0.299 R + 0.587 G + 0.114 B. Pixels are uint8, or floating point in [0, 1]; up to half of that beyond is borne. Images
with a side shorter than a patch are continued by their last pixels.

Dtypes: the arithmetic is float32, and so is the flow; both are float64 for float64 images. Autocast changes nothing.
Where a patch begins and when it stops are decisions, and rounding may turn them: what follows is another of the flows
within a hundredth of a pixel, or, where patches fit equally well in two places, the other place. On images with
structure everywhere the relative rms distance from float64 is at most 5e-4 (float16, bfloat16 alike: pixels are widened
exactly), and below 1e-9 between backends in float64.

The op has no gradient.

Sources: Kroeger, Timofte, Dai, Van Gool, "Fast optical flow using dense inverse search" (2016), sections 2 and 3; the
refinement after Brox, Bruhn, Papenberg, Weickert (2004), its normalisation after Zimmer, Bruhn, Weickert (2011).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vidgen.ops.backends import TABLE, Backend, always, cuda_row, reference_row
from vidgen.ops.optical_flow_dis_stages import (
    coarse_start,
    coarsest_scale,
    continued,
    finest_level,
    halved,
    per_component,
    refine,
    search,
    smoothed,
    smoothness_share,
)
from vidgen.ops.optical_flow_images import check_count, check_images, check_values, fake_flow, grey, prepared
from vidgen.ops.registration import register_selection

_OP = "optical_flow_dis"

PATCH_SIZES = (4, 8, 16)

#: name -> its parameters; the others have the defaults of `optical_flow_dis`
PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "ultrafast": {"finest_scale": 2, "patch_stride": 4, "descent_iterations": 12, "refinement_iterations": 0},
        "fast": {"finest_scale": 2, "patch_stride": 4, "descent_iterations": 16, "refinement_iterations": 5},
        "medium": {"finest_scale": 1, "patch_stride": 3, "descent_iterations": 25, "refinement_iterations": 5},
    }
)


def reference(
    prev: Tensor, next: Tensor, init: Tensor | None, finest_scale: int, patch_size: int, patch_stride: int,
    descent_iterations: int, refinement_iterations: int, alpha: float, delta: float, gamma: float,
) -> Tensor:  # fmt: skip
    """optical_flow_dis in eager PyTorch, any device."""
    if prev.device.type == "cpu" and not torch.compiler.is_compiling():
        check_values(prev, next, init)
    n, _, height, width = prev.shape
    wanting = max(patch_size - width, 0), max(patch_size - height, 0)
    planes = [continued(grey(images)[:, 0], 0, wanting[0], 0, wanting[1]) for images in (prev, next)]
    pyramid = [(planes[0], planes[1])]
    dtype = planes[0].dtype
    if n == 0:
        return torch.zeros(0, 2, height, width, dtype=dtype, device=prev.device)
    coarsest = coarsest_scale(height, width, patch_size)
    finest = finest_level(finest_scale, coarsest)
    for _ in range(coarsest):
        pyramid.append((halved(pyramid[-1][0]), halved(pyramid[-1][1])))
    size = pyramid[coarsest][0].shape[1:]
    alpha *= smoothness_share(*pyramid[finest][0].shape[1:])
    flow = torch.zeros(n, 2, *size, dtype=dtype, device=prev.device)
    if init is not None:
        flow = coarse_start(init.to(dtype), size, coarsest)
    for level in range(coarsest, finest - 1, -1):
        zoom = 1 if level == coarsest else 2
        flow = search(*pyramid[level], flow, zoom, patch_size, patch_stride, descent_iterations)
        second = refinement_iterations // 2
        for iterations in (refinement_iterations - second, second):
            if iterations > 0:
                flow = refine(*pyramid[level], flow, iterations, alpha, delta, gamma)
    if refinement_iterations == 0:
        flow = per_component(flow, smoothed)
    large = F.interpolate(flow, scale_factor=2**finest, mode="bilinear", align_corners=False) * 2**finest
    return large[:, :, :height, :width].contiguous()


# Backends. The CPU kernel is registered in C++ (csrc/bind/); its row here serves explain and info.


def _cpu_supports(prev: Tensor, *_args: Any) -> str | None:
    return torch.ops.vidgen.optical_flow_dis_cpu_supports(prev.dtype) or None


def _cuda_supports(prev: Tensor, *_args: Any) -> str | None:
    if prev.dtype not in (torch.uint8, torch.float32, torch.float64):
        return f"reads uint8, float32 and float64, not {prev.dtype}"
    if prev.shape[2] > 65535 * 8 or prev.shape[3] > 2**30:
        return f"takes images of at most 524280 rows and 2^30 columns, got {tuple(prev.shape[2:])}"
    return None


def _run_cuda(*args: Any) -> Tensor:
    return torch.ops.vidgen.optical_flow_dis_cuda(*args)


TABLE[_OP] = (
    Backend("cpu", ("cpu",), always, _cpu_supports, run=None),
    cuda_row(_cuda_supports, _run_cuda),
    reference_row(reference),
)


# Registration: shapes, selection.


torch.library.register_fake("vidgen::optical_flow_dis", fake_flow)

_op = torch.ops.vidgen.optical_flow_dis.default

register_selection(_OP, reference, lambda *args: args)


# The public function.


def _check_weight(name: str, value: Any, least: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not least <= value <= 1e6:
        raise ValueError(f"{name} must be from {least:g} to 1e6, got {value}")


def optical_flow_dis(
    prev: Tensor,
    next: Tensor,
    *,
    init: Tensor | None = None,
    finest_scale: int = 1,
    patch_size: int = 8,
    patch_stride: int = 3,
    descent_iterations: int = 25,
    refinement_iterations: int = 5,
    alpha: float = 20.0,
    delta: float = 5.0,
    gamma: float = 10.0,
    impl: str | None = None,
) -> Tensor:
    """Optical flow by dense inverse search, from prev to next (the head of this module). The defaults are "medium".

    Args:
        prev, next: (N, 1 or 3, H, W) or (N, H, W); uint8, or floating point in [0, 1]; one dtype; any strides.
        init: (N, 2, H, W), the flow to start from, in pixels; None starts from zero.
        finest_scale: the last level that is searched, up to 30: its pixels are 2^finest_scale of the images'. Small
            images have fewer levels, of which the last two are searched.
        patch_size: side of a patch in pixels of its level: 4, 8 or 16.
        patch_stride: pixels between neighbouring patches, from 1 to patch_size.
        descent_iterations: of a patch in both passes over a level together, at most.
        refinement_iterations: of the variational refinement on each level; 0 for none.
        alpha, delta, gamma: weights of smoothness (at least 1e-3; small images have less of it), of grey levels and of
            their gradients.
        impl: "cpu", "cuda" or "reference" forces a backend; None takes VIDGEN_IMPL, else the best that can.

    Returns:
        (N, 2, H, W), contiguous, pixels: float64 for float64 images, else float32.

    Raises:
        ValueError, TypeError: an argument is not as above; the message names it, what was expected and what came.
        RuntimeError: a pixel or a number of `init` is not finite, or far from what is asked for (checked on the CPU
            alone: on a GPU the flow is NaN around a NaN); `impl` cannot serve the call; or an image carries a
            forward-mode tangent.
    """
    check_images(prev, next, init)
    check_count("finest_scale", finest_scale, 30, 0)
    if isinstance(patch_size, bool) or patch_size not in PATCH_SIZES:
        raise ValueError(f"patch_size must be 4, 8 or 16, got {patch_size!r}")
    check_count("patch_stride", patch_stride, patch_size)
    check_count("descent_iterations", descent_iterations, 100_000)
    check_count("refinement_iterations", refinement_iterations, 100_000, 0)
    _check_weight("alpha", alpha, 1e-3)
    _check_weight("delta", delta, 0)
    _check_weight("gamma", gamma, 0)
    for name, tensor in (("prev", prev), ("next", next), ("init", init)):
        if tensor is not None and tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} must not require a gradient; pass {name}.detach()")
    prev, next, init = prepared(prev, next, init, impl)
    numbers = float(alpha), float(delta), float(gamma)
    rest = (finest_scale, patch_size, patch_stride, descent_iterations, refinement_iterations, *numbers, impl)
    return _op(prev, next, init, *rest)
