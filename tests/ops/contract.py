"""What the generated tests need to know of an op: how to call it, and samples of its arguments.

An op that adds itself to OPS gets every test of test_contract.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vidgen.ops import (
    conv3d_pool3d,
    corr_feature_pyramid,
    corr_lookup,
    corr_pyramid,
    discretized_logistic_mixture,
    masked_conv2d,
    optical_flow_dis,
    optical_flow_tvl1,
    warp,
)
from vidgen.ops.conv3d_geometry import resolve_padding
from vidgen.ops.conv3d_pool3d import reference as conv3d_pool3d_reference
from vidgen.ops.corr_lookup import reference as corr_lookup_reference
from vidgen.ops.discretized_logistic_mixture import parameters_per_mixture
from vidgen.ops.discretized_logistic_mixture import reference as discretized_logistic_mixture_reference
from vidgen.ops.masked_conv2d import reference as masked_conv2d_reference
from vidgen.ops.optical_flow_dis import reference as optical_flow_dis_reference
from vidgen.ops.optical_flow_tvl1 import reference as optical_flow_tvl1_reference
from vidgen.ops.warp import reference as warp_reference


@dataclass(frozen=True)
class Sample:
    """One call: tensors by name, other arguments, and which backends beyond the usual cannot take it."""

    tensors: dict[str, Tensor | None]
    options: dict[str, Any] = field(default_factory=dict)

    def to(self, dtype: torch.dtype, device: str) -> Sample:
        moved = {k: None if v is None else v.to(device, dtype) for k, v in self.tensors.items()}
        return Sample(moved, self.options)

    def clone(self) -> Sample:
        return Sample({k: None if v is None else v.clone() for k, v in self.tensors.items()}, self.options)


@dataclass(frozen=True)
class Op:
    """An op under test.

    image: the tensor whose layout is kept and whose first axis is the batch; more: others with the same first axis.
    typical: the sample for what does not depend on shapes. thin: one with few channels.
    checked: the samples that torch.library.opcheck sees.
    constant: tensors in which the op has no gradient.
    measures: the result is no image like the one that came in, but one number or a field of numbers for each sample,
        in a layout of its own and in float32 at least whatever autocast says; else it is an image of the arguments'
        dtype.
    limits: relative rms error by dtype, where the docstring promises another than most do.
    autocasts: autocast lowers the arguments; else it has no say.
    """

    name: str
    public: Callable[..., Tensor]
    reference: Callable[[Sample], Tensor]
    samples: Callable[[], Iterator[tuple[str, Sample]]]
    torch_op: str
    positional: Callable[[Sample, str | None], tuple[Any, ...]]
    unsupported: Callable[[Sample, str, torch.dtype], bool]
    typical: str
    thin: str
    checked: tuple[str, ...]
    image: str = "x"
    more: tuple[str, ...] = ()
    constant: tuple[str, ...] = ()
    measures: bool = False
    limits: Mapping[str, float] = field(default_factory=dict)
    autocasts: bool = True

    def batched(self, sample: Sample) -> list[str]:
        return [name for name in (self.image, *self.more) if sample.tensors.get(name) is not None]

    def result_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return torch.promote_types(dtype, torch.float32) if self.measures else dtype

    def __call__(self, sample: Sample, impl: str | None) -> Tensor:
        return self.public(**sample.tensors, **sample.options, impl=impl)


def _masked_conv2d_samples() -> Iterator[tuple[str, Sample]]:
    """Shapes that have broken convolutions: thin, odd, empty, narrower than the kernel, many or few channels."""

    def sample(n, cin, cout, h, w, kh, kw, bias=True, **options):
        generator = torch.Generator().manual_seed(n + 3 * cin + 5 * cout + 7 * h + 11 * w + 13 * kh + 17 * kw)
        tensors = {
            "x": torch.randn(n, cin, h, w, generator=generator, dtype=torch.float64),
            "weight": torch.randn(cout, cin, kh, kw, generator=generator, dtype=torch.float64) / (cin * kh * kw) ** 0.5,
            "bias": torch.randn(cout, generator=generator, dtype=torch.float64) if bias else None,
        }
        return Sample(tensors, {"mask": "B", **options})

    yield "3x3", sample(2, 16, 16, 8, 9, 3, 3)
    yield "3x3-wide-channels", sample(3, 72, 100, 7, 13, 3, 3)
    yield "3x3-A-no-bias", sample(2, 16, 32, 11, 6, 3, 3, bias=False, mask="A")
    yield "5x5", sample(2, 32, 24, 9, 10, 5, 5)
    yield "7x7", sample(1, 32, 40, 10, 17, 7, 7)
    yield "7x7-A-grey", sample(3, 1, 20, 9, 8, 7, 7, mask="A")
    yield "7x7-A-colors", sample(2, 3, 12, 8, 7, 7, 7, mask="A", colors=3)
    yield "3x3-colors", sample(2, 24, 24, 6, 9, 3, 3, colors=3)
    yield "3x3-colors-blocked", sample(2, 24, 36, 6, 9, 3, 3, colors=3, color_layout="blocked", mask="A")
    yield "5x5-colors-2", sample(1, 34, 6, 5, 5, 5, 5, colors=2, color_layout="blocked")
    yield "1x1", sample(2, 17, 33, 5, 7, 1, 1)
    yield "1x1-A-colors", sample(2, 6, 9, 4, 5, 1, 1, mask="A", colors=3)
    yield "1x1-A-empty", sample(2, 4, 5, 3, 3, 1, 1, mask="A")
    yield "1x5", sample(2, 8, 8, 3, 12, 1, 5)
    yield "5x1", sample(2, 8, 8, 7, 4, 5, 1)
    yield "3x7", sample(1, 12, 20, 6, 10, 3, 7, mask="A")
    yield "dilated", sample(2, 10, 18, 9, 11, 3, 3, dilation=2)
    yield "dilated-5x3-colors", sample(1, 9, 12, 8, 8, 5, 3, dilation=3, colors=3)
    yield "narrower-than-kernel", sample(2, 5, 7, 2, 2, 7, 7)
    yield "one-pixel", sample(3, 20, 16, 1, 1, 3, 3)
    yield "one-row", sample(16, 16, 16, 1, 20, 3, 3)
    yield "one-column", sample(2, 16, 16, 19, 1, 5, 5)
    yield "empty-batch", sample(0, 4, 6, 5, 5, 3, 3)
    yield "single-channel", sample(2, 1, 1, 6, 6, 3, 3, mask="A")


def _masked_conv2d_positional(sample: Sample, impl: str | None) -> tuple[Any, ...]:
    options = {"colors": 1, "color_layout": "interleaved", "dilation": 1, "algorithm": "auto", **sample.options}
    names = ("mask", "colors", "color_layout", "dilation", "algorithm")
    return (*sample.tensors.values(), *(options[name] for name in names), impl, None)


def _masked_conv2d_unsupported(sample: Sample, impl: str, dtype: torch.dtype) -> bool:
    """What a backend's row says it does not do."""
    weight = sample.tensors["weight"]
    assert weight is not None
    few_channels = weight.shape[1] <= 4 and max(weight.shape[2:]) <= 7
    return (impl == "cuda" and not few_channels) or (impl in ("cuda", "triton") and dtype == torch.float64)


def _conv3d_pool3d_samples() -> Iterator[tuple[str, Sample]]:
    """Kernels of all sizes, windows that fit the tiles of no form, and clips that are thinner than either."""

    def sample(n, cin, cout, size, kernel, bias=True, **options):
        generator = torch.Generator().manual_seed(n + 3 * cin + 5 * cout + 7 * sum(size) + 11 * sum(kernel))
        taps = cin * kernel[0] * kernel[1] * kernel[2]
        tensors = {
            "x": torch.randn(n, cin, *size, generator=generator, dtype=torch.float64),
            "weight": torch.randn(cout, cin, *kernel, generator=generator, dtype=torch.float64) / taps**0.5,
            "bias": torch.randn(cout, generator=generator, dtype=torch.float64) if bias else None,
        }
        return Sample(tensors, options)

    yield "3x3x3", sample(2, 16, 24, (4, 9, 10), (3, 3, 3), pool=(2, 2, 2))
    yield "few-channels", sample(2, 3, 20, (4, 9, 11), (3, 3, 3), pool=(1, 2, 2))
    yield "no-pool", sample(2, 17, 33, (3, 7, 9), (3, 3, 3), activation="identity")
    yield "wide-channels", sample(1, 72, 136, (3, 7, 6), (3, 3, 3), pool=(2, 2, 2), ceil_mode=True)
    yield "flat", sample(3, 20, 24, (1, 13, 10), (1, 3, 3), pool=(1, 2, 2))
    yield "window-across-tiles", sample(2, 16, 18, (5, 8, 9), (3, 3, 3), pool=(3, 3, 1), bias=False)
    yield "lecture-window", sample(1, 16, 12, (6, 9, 8), (3, 3, 3), pool=(4, 4, 4), ceil_mode=True)
    yield "even-kernel", sample(2, 8, 9, (6, 7, 5), (2, 4, 3), pool=(1, 2, 2), ceil_mode=True)
    yield "1x1x1", sample(2, 16, 40, (3, 4, 5), (1, 1, 1))
    yield "7x7x7", sample(1, 4, 6, (7, 5, 8), (7, 7, 7), pool=(2, 1, 4), ceil_mode=True, activation="identity")
    yield "valid", sample(2, 16, 20, (5, 8, 9), (3, 3, 3), padding="valid", pool=(2, 2, 2), ceil_mode=True)
    yield "one-voxel", sample(3, 20, 16, (1, 1, 1), (3, 3, 3))
    yield "one-column", sample(2, 16, 16, (2, 19, 1), (3, 3, 3))
    yield "empty-batch", sample(0, 4, 6, (4, 5, 5), (3, 3, 3), pool=(2, 2, 2))
    yield "single-channel", sample(2, 1, 1, (3, 6, 6), (3, 3, 3), pool=(1, 3, 2))


def _conv3d_pool3d_positional(sample: Sample, impl: str | None) -> tuple[Any, ...]:
    options = {"padding": "same", "activation": "relu", "pool": (1, 1, 1), "ceil_mode": False, **sample.options}
    weight = sample.tensors["weight"]
    assert weight is not None
    padding = resolve_padding(options["padding"], weight.shape[2:])
    rule = (padding, options["activation"], list(options["pool"]), options["ceil_mode"])
    return (*sample.tensors.values(), *rule, "auto", impl, None)


def _conv3d_pool3d_unsupported(sample: Sample, impl: str, dtype: torch.dtype) -> bool:
    weight = sample.tensors["weight"]
    assert weight is not None
    few_weights = weight.shape[1] <= 4 and weight.shape[1:].numel() <= 196
    return (impl == "cuda" and not few_weights) or (impl in ("cuda", "triton") and dtype == torch.float64)


def _discretized_logistic_mixture_samples() -> Iterator[tuple[str, Sample]]:
    """Colours, depths and numbers of pixels that fill no vector and no task; pixels at both edges in each."""

    def sample(n, channels, mixtures, h, w, levels=256, **options):
        generator = torch.Generator().manual_seed(n + 3 * channels + 5 * mixtures + 7 * h + 11 * w)
        params = torch.randn(n, mixtures * parameters_per_mixture(channels), h, w, generator=generator) * 2
        x = torch.randint(-levels // 8, levels + levels // 8 + 1, (n, channels, h, w), generator=generator)
        x = x.clamp(0, levels - 1).double() * 2 / (levels - 1) - 1
        return Sample({"params": params.double(), "x": x}, {"levels": levels, **options})

    yield "rgb", sample(2, 3, 10, 8, 9)
    yield "rgb-openai", sample(2, 3, 4, 9, 7, mode="openai")
    yield "several-tasks", sample(3, 3, 3, 13, 16)
    yield "whole-tasks", sample(2, 3, 2, 8, 16)
    yield "grey", sample(2, 1, 5, 7, 11, levels=17)
    yield "two-channels", sample(2, 2, 3, 6, 5)
    yield "one-mixture", sample(2, 3, 1, 5, 5)
    yield "two-levels", sample(2, 1, 2, 6, 6, levels=2)
    yield "sixteen-bit", sample(2, 1, 2, 4, 5, levels=65536)
    yield "one-pixel", sample(3, 3, 2, 1, 1)
    yield "one-row", sample(2, 3, 2, 1, 70)
    yield "one-column", sample(2, 1, 2, 67, 1)
    yield "empty-batch", sample(0, 3, 2, 4, 4)


def _discretized_logistic_mixture_positional(sample: Sample, impl: str | None) -> tuple[Any, ...]:
    params, x = sample.tensors["params"], sample.tensors["x"]
    assert params is not None
    assert x is not None
    wide = torch.promote_types(params.dtype, torch.float32)
    return params, x.to(wide), sample.options["levels"], sample.options.get("mode", "exact"), impl


def _discretized_logistic_mixture_unsupported(sample: Sample, impl: str, dtype: torch.dtype) -> bool:
    return impl == "triton" and dtype == torch.float64


def _moving_images(n: int, channels: int, h: int, w: int, init: bool) -> dict[str, Tensor | None]:
    """prev, next and perhaps init; the flow is (-2, 1). Grey levels are multiples of 1/64, the same in every dtype."""
    generator = torch.Generator().manual_seed(n + 3 * channels + 7 * h + 11 * w)
    noise = torch.rand(n, channels, h + 12, w + 12, generator=generator, dtype=torch.float64)
    smooth = torch.nn.functional.avg_pool2d(noise, 5, 1)
    smooth = ((smooth - 0.5) * 3 + 0.5).clamp(0, 1).mul(64).round() / 64
    prev, next = smooth[..., 3 : 3 + h, 3 : 3 + w], smooth[..., 2 : 2 + h, 5 : 5 + w]
    # from a start that is far off, the result would depend on every rounding
    guess = smooth[:, :1, :h, :w] / 2 + torch.tensor([-2.0, 1.0], dtype=torch.float64)[:, None, None]
    tensors = {"prev": prev, "next": next, "init": guess if init else None}
    # clones: PyTorch's own checks stumble over the strides of a slice of nothing
    return {k: None if v is None else v.clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}


def _optical_flow_dis_samples() -> Iterator[tuple[str, Sample]]:
    """Sides that fill no vector and no patch, several stripes of patches, every size of a patch, levels, branches."""

    def sample(n, channels, h, w, init=False, **options):
        small = {"finest_scale": 0, "patch_stride": 6, "descent_iterations": 3, "refinement_iterations": 1}
        return Sample(_moving_images(n, channels, h, w, init), {**small, **options})

    yield "grey", sample(2, 1, 17, 26, refinement_iterations=2)
    yield "colors", sample(2, 3, 21, 17, refinement_iterations=0)
    yield "several-stripes", sample(1, 1, 36, 13, patch_size=4, patch_stride=4)
    yield "coarse", sample(2, 1, 22, 29, patch_size=4, patch_stride=4, finest_scale=1)
    yield "wide-patches", sample(2, 1, 17, 23, patch_size=16, patch_stride=16)
    yield "from-init", sample(2, 1, 19, 15, init=True)
    yield "one-pixel", sample(3, 3, 1, 1)
    yield "one-row", sample(2, 1, 1, 19)
    yield "one-column", sample(2, 1, 19, 1)
    yield "empty-batch", sample(0, 1, 20, 20)


def _optical_flow_dis_positional(sample: Sample, impl: str | None) -> tuple[Any, ...]:
    options = {"finest_scale": 1, "patch_size": 8, "patch_stride": 3, "descent_iterations": 25}
    options |= {"refinement_iterations": 5} | sample.options
    return (*sample.tensors.values(), *options.values(), 20.0, 5.0, 10.0, impl)


def _optical_flow_tvl1_samples() -> Iterator[tuple[str, Sample]]:
    """Sides that fill no vector, no pyramid and no band; every branch of the iteration, and flows of several pixels."""

    def sample(n, channels, h, w, init=False, **options):
        return Sample(_moving_images(n, channels, h, w, init), {"warps": 2, "inner_iterations": 8, **options})

    yield "grey", sample(2, 1, 24, 41)
    yield "colors", sample(2, 3, 37, 50, scale_factor=0.8)
    yield "several-bands", sample(1, 1, 97, 50, median=3, outer_iterations=2)
    yield "comes-to-rest", sample(3, 1, 33, 32, median=0, inner_iterations=45, epsilon=0.02)
    yield "from-init", sample(2, 1, 40, 33, init=True)
    yield "one-level", sample(2, 1, 18, 20, levels=1, median=0)
    yield "one-pixel", sample(3, 3, 1, 1)
    yield "one-row", sample(2, 1, 1, 45)
    yield "one-column", sample(2, 1, 45, 1)
    yield "empty-batch", sample(0, 1, 20, 20)


def _optical_flow_tvl1_positional(sample: Sample, impl: str | None) -> tuple[Any, ...]:
    options = {"tau": 0.25, "lambda_": 0.2, "theta": 0.3, "levels": 32, "scale_factor": 0.7, "warps": 5}
    options |= {"outer_iterations": 1, "inner_iterations": 20, "median": 5, "epsilon": 0.0} | sample.options
    return (*sample.tensors.values(), *options.values(), impl)


def _warp_samples() -> Iterator[tuple[str, Sample]]:
    """Widths that fill no vector and more than one run; images of one row or column; flows that leave the image."""

    def sample(n, channels, h, w, reach=3.0, **options):
        generator = torch.Generator().manual_seed(n + 3 * channels + 5 * h + 7 * w)
        x = torch.randn(n, channels, h, w, generator=generator, dtype=torch.float64)
        flow = torch.randn(n, 2, h, w, generator=generator, dtype=torch.float64) * reach
        return Sample({"x": x, "flow": flow}, options)

    yield "rgb", sample(2, 3, 9, 13)
    yield "rgb-border", sample(2, 3, 9, 13, padding="border")
    yield "features", sample(2, 19, 7, 10)
    yield "features-border", sample(1, 32, 6, 7, padding="border")
    yield "several-runs", sample(1, 1, 3, 517, reach=1.0)
    yield "still", sample(1, 2, 5, 16, reach=0.0)
    yield "far", sample(2, 2, 6, 17, reach=1e4, padding="border")
    yield "one-row", sample(2, 4, 1, 21, padding="border")
    yield "one-column", sample(2, 17, 23, 1)
    yield "one-pixel", sample(3, 1, 1, 1, reach=0.5)
    yield "two-by-two", sample(3, 5, 2, 2, reach=1.0)
    yield "empty-batch", sample(0, 3, 4, 4)


def _warp_positional(sample: Sample, impl: str | None) -> tuple[Any, ...]:
    x, flow = sample.tensors["x"], sample.tensors["flow"]
    assert x is not None
    assert flow is not None
    return x, flow.to(torch.promote_types(x.dtype, torch.float32)), sample.options.get("padding", "zeros"), impl


def _corr_lookup_samples() -> Iterator[tuple[str, Sample]]:
    """Both forms; windows in the middle, across rims and far outside, together and scattered; sides of one pixel."""

    def sample(n, channels, size, other, levels=2, radius=2, reach=2.0, on_demand=False):
        generator = torch.Generator().manual_seed(n + 3 * channels + 5 * size[0] + 7 * size[1] + 11 * radius)
        fmap1 = torch.randn(n, channels, *size, generator=generator, dtype=torch.float64)
        fmap2 = torch.randn(n, channels, *other, generator=generator, dtype=torch.float64)
        pyramid = corr_feature_pyramid(fmap2, levels=levels) if on_demand else corr_pyramid(fmap1, fmap2, levels=levels)
        grid = torch.meshgrid(torch.arange(size[1]), torch.arange(size[0]), indexing="xy")
        coords = torch.stack(grid) + torch.randn(n, 2, *size, generator=generator, dtype=torch.float64) * reach
        tensors = {"coords": coords, "fmap1": fmap1 if on_demand else None}
        return Sample({**tensors, **{f"level{i}": level for i, level in enumerate(pyramid)}}, {"radius": radius})

    yield "all-pairs", sample(2, 8, (5, 9), (12, 17), levels=3)
    yield "on-demand", sample(2, 19, (5, 9), (12, 17), levels=3, on_demand=True)
    yield "as-in-raft", sample(1, 4, (3, 18), (16, 43), levels=4, radius=4)
    yield "as-in-raft-on-demand", sample(1, 32, (3, 18), (16, 43), levels=4, radius=4, on_demand=True)
    yield "scattered", sample(2, 9, (4, 7), (13, 22), reach=20.0, on_demand=True)
    yield "far", sample(2, 3, (2, 5), (6, 7), reach=1e4)
    yield "one-position", sample(2, 5, (3, 17), (4, 6), levels=1, radius=0)
    yield "one-row", sample(2, 4, (1, 21), (1, 23), levels=1)
    yield "one-column", sample(2, 17, (23, 1), (23, 1), levels=1, on_demand=True)
    yield "one-pixel", sample(3, 1, (1, 1), (1, 1), levels=1, reach=0.5)
    yield "empty-batch", sample(0, 3, (4, 4), (5, 5))
    yield "empty-batch-on-demand", sample(0, 3, (4, 4), (5, 5), on_demand=True)


def _levels(tensors: Mapping[str, Tensor | None]) -> list[Tensor]:
    return [t for name, t in tensors.items() if name.startswith("level") and t is not None]


def _corr_lookup_public(
    *, coords: Tensor, fmap1: Tensor | None = None, radius: int, impl: str | None = None, **levels: Tensor
) -> Tensor:
    return corr_lookup(_levels(levels), coords, radius, fmap1=fmap1, impl=impl)


def _corr_lookup_positional(sample: Sample, impl: str | None) -> tuple[Any, ...]:
    pyramid, coords = _levels(sample.tensors), sample.tensors["coords"]
    assert coords is not None
    wide = torch.promote_types(pyramid[0].dtype, torch.float32)
    return pyramid, coords.to(wide), sample.options["radius"], sample.tensors["fmap1"], impl


def _optical_flow(public: Any, reference: Any, samples: Any, positional: Any, limit: float) -> Op:
    """A method of optical flow, whose float32 arithmetic may be off by a limit of its own."""
    return Op(
        name=public.__name__,
        public=public,
        reference=lambda s: reference(*positional(s, None)[:-1]),
        samples=samples,
        torch_op=public.__name__,
        positional=positional,
        unsupported=lambda _sample, _impl, _dtype: False,
        typical="grey",
        thin="one-row",
        checked=("grey", "from-init", "empty-batch"),
        image="prev",
        more=("next", "init"),
        constant=("prev", "next", "init"),
        measures=True,
        limits={"float32": limit, "bfloat16": limit},
    )


OPS = {
    "masked_conv2d": Op(
        name="masked_conv2d",
        public=masked_conv2d,
        reference=lambda s: masked_conv2d_reference(*_masked_conv2d_positional(s, None)[:-3]),
        samples=_masked_conv2d_samples,
        torch_op="masked_conv2d",
        positional=_masked_conv2d_positional,
        unsupported=_masked_conv2d_unsupported,
        typical="3x3",
        thin="7x7-A-grey",
        checked=("3x3", "3x3-colors", "empty-batch"),
    ),
    "conv3d_pool3d": Op(
        name="conv3d_pool3d",
        public=conv3d_pool3d,
        reference=lambda s: conv3d_pool3d_reference(*_conv3d_pool3d_positional(s, None)[:-3]),
        samples=_conv3d_pool3d_samples,
        torch_op="conv3d_pool3d",
        positional=_conv3d_pool3d_positional,
        unsupported=_conv3d_pool3d_unsupported,
        typical="3x3x3",
        thin="few-channels",
        checked=("3x3x3", "no-pool", "empty-batch"),
    ),
    "corr_lookup": Op(
        name="corr_lookup",
        public=_corr_lookup_public,
        reference=lambda s: corr_lookup_reference(*_corr_lookup_positional(s, None)[:-1]),
        samples=_corr_lookup_samples,
        torch_op="corr_lookup",
        positional=_corr_lookup_positional,
        unsupported=lambda _sample, impl, dtype: impl == "triton" and dtype == torch.float64,
        typical="all-pairs",
        thin="one-row",
        checked=("all-pairs", "on-demand", "empty-batch"),
        image="coords",
        more=("fmap1", "level0", "level1", "level2", "level3"),
        measures=True,
        autocasts=False,
    ),
    "discretized_logistic_mixture": Op(
        name="discretized_logistic_mixture",
        public=discretized_logistic_mixture,
        reference=lambda s: discretized_logistic_mixture_reference(
            *_discretized_logistic_mixture_positional(s, None)[:-1]
        ),
        samples=_discretized_logistic_mixture_samples,
        torch_op="discretized_logistic_mixture",
        positional=_discretized_logistic_mixture_positional,
        unsupported=_discretized_logistic_mixture_unsupported,
        typical="rgb",
        thin="grey",
        checked=("rgb", "rgb-openai", "empty-batch"),
        image="params",
        more=("x",),
        constant=("x",),
        measures=True,
    ),
    "optical_flow_dis": _optical_flow(
        optical_flow_dis, optical_flow_dis_reference, _optical_flow_dis_samples, _optical_flow_dis_positional, 5e-4
    ),
    "optical_flow_tvl1": _optical_flow(
        optical_flow_tvl1, optical_flow_tvl1_reference, _optical_flow_tvl1_samples, _optical_flow_tvl1_positional, 3e-5
    ),
    "warp": Op(
        name="warp",
        public=warp,
        reference=lambda s: warp_reference(*_warp_positional(s, None)[:-1]),
        samples=_warp_samples,
        torch_op="warp",
        positional=_warp_positional,
        unsupported=lambda _sample, impl, dtype: impl == "triton" and dtype == torch.float64,
        typical="rgb",
        thin="several-runs",
        checked=("rgb", "features-border", "empty-batch"),
        more=("flow",),
        autocasts=False,
    ),
}


def channels_last(t: Tensor) -> torch.memory_format:
    """What channels_last means for images or for clips."""
    return torch.channels_last if t.dim() == 4 else torch.channels_last_3d


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=channels_last(t)),
    # every axis strided, storage offset not zero
    "sliced": lambda t: t.new_empty([s * 2 + 1 for s in t.shape])[tuple(slice(1, None, 2) for _ in t.shape)].copy_(t),
    "transposed": lambda t: t.permute(*reversed(range(t.dim()))).contiguous().permute(*reversed(range(t.dim()))),
}


def cases() -> list[tuple[str, str]]:
    """(op, sample) names, for parametrisation."""
    return [(name, label) for name, op in OPS.items() for label, _ in op.samples()]


def get(op_name: str, label: str) -> tuple[Op, Sample]:
    op = OPS[op_name]
    return op, dict(op.samples())[label]
