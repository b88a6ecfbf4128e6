"""corr_lookup: RAFT's mathematics, both of its forms, gradients to second order, coordinates that are no numbers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.contract import LAYOUTS
from vidgen.ops import corr_feature_pyramid, corr_lookup, corr_pyramid

both_impls = pytest.mark.parametrize("impl", ["cpu", "reference"])
both_forms = pytest.mark.parametrize("on_demand", [False, True], ids=["all-pairs", "on-demand"])
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])


def inputs(
    batch: int, channels: int, size: tuple[int, int], other: tuple[int, int], reach: float = 2.0, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """fmap1, fmap2 and coords in double; no position is near a whole pixel of three levels, where slopes jump."""
    generator = torch.Generator().manual_seed(seed)
    fmap1 = torch.randn(batch, channels, *size, generator=generator, dtype=torch.float64)
    fmap2 = torch.randn(batch, channels, *other, generator=generator, dtype=torch.float64)
    fourths = torch.stack(
        [
            (torch.rand(batch, *size, generator=generator, dtype=torch.float64) * (length + 2 * reach) - reach) / 4
            for length in reversed(other)
        ],
        dim=1,
    )
    return fmap1, fmap2, (fourths.floor() + 0.05 + 0.15 * (fourths - fourths.floor())) * 4


def arguments(fmap1: Tensor, fmap2: Tensor, levels: int, on_demand: bool) -> tuple[list[Tensor], Tensor | None]:
    if on_demand:
        return corr_feature_pyramid(fmap2, levels=levels), fmap1
    return corr_pyramid(fmap1, fmap2, levels=levels), None


def looked_up(
    fmap1: Tensor, fmap2: Tensor, coords: Tensor, levels: int, radius: int, on_demand: bool, impl: str
) -> Tensor:
    pyramid, features = arguments(fmap1, fmap2, levels, on_demand)
    return corr_lookup(pyramid, coords, radius, fmap1=features, impl=impl)


def naive(fmap1: Tensor, fmap2: Tensor, coords: Tensor, levels: int, radius: int) -> Tensor:
    """The definition, number by number."""
    batch, channels, height, width = fmap1.shape
    n = 2 * radius + 1
    out = torch.zeros(batch, levels * n * n, height, width, dtype=torch.float64)
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                volume = (fmap1[b, :, y, x, None, None] * fmap2[b]).sum(0) / math.sqrt(channels)
                for level in range(levels):
                    rows, columns = volume.shape

                    def pixel(r: int, c: int, volume: Tensor = volume) -> float:
                        inside = 0 <= r < volume.shape[0] and 0 <= c < volume.shape[1]
                        return volume[r, c].item() if inside else 0.0

                    for i in range(n):
                        for j in range(n):
                            across = coords[b, 0, y, x].item() / 2**level + i - radius
                            down = coords[b, 1, y, x].item() / 2**level + j - radius
                            c, r = math.floor(across), math.floor(down)
                            out[b, (level * n + i) * n + j, y, x] = sum(
                                (1 - abs(across - c - e)) * (1 - abs(down - r - d)) * pixel(r + d, c + e)
                                for d in (0, 1)
                                for e in (0, 1)
                            )
                    rows, columns = rows // 2, columns // 2
                    volume = volume[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2).mean(dim=(1, 3))
    return out


def as_in_raft(pyramid: list[Tensor], coords: Tensor, radius: int) -> Tensor:
    """By PyTorch's own sampler: a window's offsets to the right along its first axis."""
    batch, _, height, width = coords.shape
    offsets = torch.arange(-radius, radius + 1, dtype=coords.dtype)
    found = []
    for number, level in enumerate(pyramid):
        rows, columns = level.shape[-2:]
        x, y = (coords / 2**number).permute(1, 0, 2, 3).reshape(2, -1, 1, 1)
        x, y = torch.broadcast_tensors(x + offsets[:, None], y + offsets)
        grid = torch.stack([2 * x / (columns - 1) - 1, 2 * y / (rows - 1) - 1], dim=-1)
        sampled = F.grid_sample(level.reshape(-1, 1, rows, columns), grid, align_corners=True)
        found.append(sampled.view(batch, height, width, -1))
    return torch.cat(found, dim=-1).permute(0, 3, 1, 2)


@both_impls
@both_forms
@pytest.mark.parametrize(
    ("channels", "size", "other", "levels", "radius"),
    [(3, (3, 4), (9, 11), 3, 2), (5, (2, 3), (8, 7), 2, 1), (1, (1, 2), (5, 2), 2, 0), (2, (2, 1), (1, 1), 1, 3)],
)
def test_is_the_definition(impl, on_demand, channels, size, other, levels, radius):
    fmap1, fmap2, coords = inputs(2, channels, size, other)
    got = looked_up(fmap1, fmap2, coords, levels, radius, on_demand, impl)
    torch.testing.assert_close(got, naive(fmap1, fmap2, coords, levels, radius), rtol=0, atol=1e-12)


@both_impls
@both_forms
def test_is_what_raft_samples(impl, on_demand):
    """Values and gradients, at RAFT's own radius and number of levels."""
    fmap1, fmap2, coords = (t.requires_grad_() for t in inputs(1, 6, (3, 19), (16, 37), reach=5.0))
    got = looked_up(fmap1, fmap2, coords, 4, 4, on_demand, impl)
    expected = as_in_raft(corr_pyramid(fmap1, fmap2, levels=4), coords, 4)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    weight = torch.randn(got.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.autograd.grad(y, (fmap1, fmap2, coords), weight) for y in (got, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@both_impls
@every_dtype
def test_horizontal_offsets_are_the_slow_ones_and_whole_positions_copy_bits(impl, dtype):
    volume = torch.randn(1, 1, 30, 12, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    coords = torch.stack([torch.arange(30) + 4, torch.arange(30) % 12])[None, :, None].float()
    out = corr_lookup([volume], coords, 2, impl=impl)
    padded = F.pad(volume, (2, 2, 2, 2)).to(out.dtype)
    for x in range(30):
        for i in range(5):
            for j in range(5):
                assert out[0, 5 * i + j, 0, x] == padded[0, 0, x, x % 12 + j, x + 4 + i]


@both_impls
@both_forms
@pytest.mark.parametrize(
    ("channels", "size", "other", "radius"), [(2, (1, 3), (4, 5), 1), (9, (1, 2), (2, 3), 2), (3, (2, 1), (4, 5), 0)]
)
def test_gradients(impl, on_demand, channels, size, other, radius):
    """First and second order, in pyramid, coordinates and features together."""
    fmap1, fmap2, coords = inputs(1, channels, size, other, reach=1.0)
    pyramid, features = arguments(fmap1, fmap2, 2, on_demand)
    variables = [t.detach().requires_grad_() for t in (coords, *pyramid, *([] if features is None else [features]))]

    def call(coords: Tensor, *tensors: Tensor) -> Tensor:
        levels, features = (tensors[:2], tensors[2]) if on_demand else (tensors, None)
        return corr_lookup(levels, coords, radius, fmap1=features, impl=impl)

    # every entry for the kernel; along one random direction for the reference and for second order, which is eager's
    assert torch.autograd.gradcheck(call, variables, fast_mode=impl == "reference")
    assert torch.autograd.gradgradcheck(call, variables, fast_mode=True)


@pytest.mark.parametrize(
    ("on_demand", "wanted"),
    [(False, "coords"), (False, "last level"), (True, "coords"), (True, "last level"), (True, "fmap1")],
)
def test_one_gradient_alone(on_demand, wanted):
    fmap1, fmap2, coords = inputs(1, 3, (2, 3), (5, 6))
    pyramid, features = arguments(fmap1, fmap2, 2, on_demand)
    variable = {"coords": coords, "last level": pyramid[1], "fmap1": features}[wanted]
    variable.requires_grad_()
    together = corr_lookup(pyramid, coords, 1, fmap1=features, impl="cpu")
    (got,) = torch.autograd.grad(together.square().sum(), variable)
    reference = corr_lookup(pyramid, coords, 1, fmap1=features, impl="reference")
    torch.testing.assert_close(got, torch.autograd.grad(reference.square().sum(), variable)[0], rtol=1e-11, atol=1e-11)


@both_forms
@every_dtype
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_native_gradients_are_those_of_the_reference(on_demand, dtype, layout):
    """In every dtype and layout, for more channels than a task takes and rows that fill no vector."""
    limit = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 1e-2}[dtype]
    for channels, size, other, radius in ((70, (3, 21), (9, 33), 3), (5, (2, 3), (17, 13), 4)):
        fmap1, fmap2, coords = inputs(2, channels, size, other, reach=4.0)
        pyramid, features = arguments(fmap1, fmap2, 3, on_demand)
        tensors = [*pyramid] if features is None else [*pyramid, features]
        tensors = [t.to(dtype) for t in tensors]
        tensors = [t.contiguous(memory_format=layout) if t.dim() == 4 else t for t in tensors]
        tensors.append(coords.to(torch.promote_types(dtype, torch.float32)).contiguous(memory_format=layout))
        weight = torch.randn(2, 3 * (2 * radius + 1) ** 2, *size, generator=torch.Generator().manual_seed(1))

        def gradients(tensors, weight, impl, radius=radius):
            leaves = [t.detach().requires_grad_() for t in tensors]
            fmap1 = leaves[3] if on_demand else None
            out = corr_lookup(leaves[:3], leaves[-1], radius, fmap1=fmap1, impl=impl)
            return torch.autograd.grad(out, leaves, weight.to(out.dtype))

        ours, exact = gradients(tensors, weight, "cpu"), gradients([t.double() for t in tensors], weight, "reference")
        for got, expected, tensor in zip(ours, exact, tensors, strict=True):
            error = (got.double() - expected).pow(2).mean().sqrt() / expected.pow(2).mean().sqrt()
            assert error <= limit
            assert got.stride() == tensor.stride()


@both_impls
@both_forms
@every_dtype
def test_coordinates_that_are_not_finite(impl, on_demand, dtype):
    """NaN there and only there; a masked loss has finite gradients to first and second order."""
    fmap1, fmap2, coords = inputs(1, 5, (3, 9), (7, 12))
    coords = coords.to(torch.promote_types(dtype, torch.float32))
    coords[0, 0, 0, 3], coords[0, 1, 1, 4], coords[0, 0, 2, 8] = torch.nan, torch.inf, -torch.inf
    known = coords.isfinite().all(dim=1, keepdim=True)
    pyramid, features = arguments(fmap1.to(dtype), fmap2.to(dtype), 2, on_demand)
    leaves = [t.detach().requires_grad_() for t in (coords, *pyramid, *([] if features is None else [features]))]
    out = corr_lookup(leaves[1:3], leaves[0], 2, fmap1=leaves[3] if on_demand else None, impl=impl)
    assert torch.equal(out.isnan(), ~known.expand_as(out))
    grads = torch.autograd.grad(torch.where(known, out, 0).square().sum(), leaves, create_graph=True)
    assert all(g.isfinite().all() for g in grads)
    assert (grads[0] == 0)[~known.expand_as(coords)].all()
    second = torch.autograd.grad(sum(g.float().square().sum() for g in grads), leaves)
    assert all(g.isfinite().all() for g in second)


@both_impls
@both_forms
@pytest.mark.parametrize("size", [1e6, 1e20, 3e38])
def test_huge_coordinates(impl, on_demand, size):
    """Beyond every integer: outside, where all is zero, and so are the gradients."""
    fmap1, fmap2, _ = (t.float() for t in inputs(1, 4, (2, 9), (6, 7)))
    pyramid, features = arguments(fmap1, fmap2, 2, on_demand)
    pyramid[0].requires_grad_()
    for sign in (1, -1):
        for axis in (0, 1):
            coords = torch.full((1, 2, 2, 9), 3.0)
            coords[:, axis] = sign * size
            out = corr_lookup(pyramid, coords.requires_grad_(), 3, fmap1=features, impl=impl)
            assert (out == 0).all()
            assert all((g == 0).all() for g in torch.autograd.grad(out.sum(), (coords, pyramid[0])))


@both_impls
@pytest.mark.parametrize("place", [(0, 0), (6, 30), (3, 17), (6, 0)])
def test_a_pixel_that_no_window_has_is_not_read(impl, place):
    """A NaN at one pixel of the volume reaches exactly the values with it among their four neighbours."""
    volume = torch.zeros(1, 1, 33, 7, 31)
    volume[..., place[0], place[1]] = torch.nan
    coords = torch.stack([torch.arange(33) - 0.5, torch.full((33,), 3.5)])[None, :, None]
    out = corr_lookup([volume], coords, 2, impl=impl).view(5, 5, 33)
    for x in range(33):
        columns, rows = torch.arange(5) + x - 3, torch.arange(5) + 1
        meets_column = (columns == place[1]) | (columns + 1 == place[1])
        meets_row = (rows == place[0]) | (rows + 1 == place[0])
        assert torch.equal(out[..., x].isnan(), meets_column[:, None] & meets_row)


@both_forms
@every_dtype
def test_bits_do_not_depend_on_neighbours_threads_or_batch(on_demand, dtype, threads):
    """Queries near each other are computed together; where one looks is nothing to the others. Gradients' sums have one
    order."""
    fmap1, fmap2, coords = inputs(3, 70, (4, 21), (11, 23))
    pyramid, features = arguments(fmap1.to(dtype), fmap2.to(dtype), 2, on_demand)
    grid = torch.stack(torch.meshgrid(torch.arange(21.0), torch.arange(4.0), indexing="xy"))
    smooth = (grid + coords.frac()).to(torch.promote_types(dtype, torch.float32))
    scattered = smooth.clone()
    scattered[..., ::2] = 22 - 3 * scattered[..., ::2]
    first, second = (corr_lookup(pyramid, c, 2, fmap1=features) for c in (smooth, scattered))
    assert torch.equal(first[..., 1::2], second[..., 1::2])

    leaves = [t.detach().requires_grad_() for t in (smooth, *pyramid, *([] if features is None else [features]))]

    def gradients(batch: slice) -> tuple[Tensor, ...]:
        out = corr_lookup(
            [t[batch] for t in leaves[1:3]], leaves[0][batch], 2, fmap1=leaves[3][batch] if on_demand else None
        )
        return torch.autograd.grad(out.square().sum(), leaves)

    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(gradients(slice(None)))
    for one, *others in zip(*results, strict=True):
        assert all(torch.equal(one, other) for other in others)
    for together, alone in zip(results[0], gradients(slice(1, 2)), strict=True):
        assert torch.equal(together[1], alone[1])


@both_impls
@both_forms
@pytest.mark.parametrize("last", [False, True])
def test_the_layout_is_that_of_coords(impl, on_demand, last):
    fmap1, fmap2, coords = inputs(2, 4, (5, 7), (8, 9))
    pyramid, features = arguments(fmap1, fmap2, 2, on_demand)
    expected = corr_lookup(pyramid, coords, 1, fmap1=features, impl=impl)
    wanted = torch.channels_last if last else torch.contiguous_format
    got = corr_lookup(pyramid, coords.contiguous(memory_format=wanted), 1, fmap1=features, impl=impl)
    assert got.is_contiguous(memory_format=wanted)
    assert torch.equal(got, expected)


@both_forms
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_levels_with_strides_beyond_32_bits(on_demand, dtype):
    """The memory between two images is never touched, so it costs nothing."""
    fmap1, fmap2, coords = inputs(2, 8, (3, 5), (12, 17))
    pyramid, features = arguments(fmap1.to(dtype), fmap2.to(dtype), 1, on_demand)
    level = pyramid[0]
    far = torch.empty(2**31 + 7 + level[0].numel(), dtype=dtype)
    far = far.as_strided(level.shape, (2**31 + 7, *level.stride()[1:])).copy_(level)
    got, expected = (corr_lookup([t], coords, 2, fmap1=features, impl="cpu") for t in (far, level))
    assert torch.equal(got, expected)


@settings(max_examples=60)
@given(
    batch=st.integers(0, 2),
    channels=st.integers(1, 20),
    size=st.tuples(st.integers(1, 4), st.integers(1, 20)),
    other=st.tuples(st.integers(1, 12), st.integers(1, 40)),
    radius=st.integers(0, 5),
    reach=st.sampled_from([0.0, 3.0, 50.0]),
    on_demand=st.booleans(),
    strided=st.booleans(),
    seed=st.integers(0, 99),
)
def test_native_equals_reference(batch, channels, size, other, radius, reach, on_demand, strided, seed):
    fmap1, fmap2, coords = inputs(batch, channels, size, other, reach, seed)
    pyramid, features = arguments(fmap1, fmap2, min(3, min(other).bit_length()), on_demand)
    leaves = [coords, *pyramid, *([] if features is None else [features])]
    if strided:
        leaves = [LAYOUTS["sliced"](t) for t in leaves]
    leaves = [t.detach().requires_grad_() for t in leaves]
    results = []
    for impl in ("cpu", "reference"):
        out = corr_lookup(
            leaves[1 : 1 + len(pyramid)], leaves[0], radius, fmap1=leaves[-1] if on_demand else None, impl=impl
        )
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def test_pyramids_of_odd_sides():
    """A level has half of the sides before it, rounded down: of 5 rows the last is in no mean."""
    fmap1, fmap2, _ = inputs(2, 3, (2, 3), (5, 7))
    features, correlations = corr_feature_pyramid(fmap2, levels=3), corr_pyramid(fmap1, fmap2, levels=3)
    assert [tuple(t.shape) for t in features] == [(2, 3, 5, 7), (2, 3, 2, 3), (2, 3, 1, 1)]
    torch.testing.assert_close(features[1][:, :, 1, 2], fmap2[:, :, 2:4, 4:6].mean(dim=(2, 3)))
    for feature, correlation in zip(features, correlations, strict=True):
        assert feature.is_contiguous(memory_format=torch.channels_last)
        expected = torch.einsum("bcyx,bchw->byxhw", fmap1, feature) / 3**0.5
        torch.testing.assert_close(correlation, expected)


@pytest.mark.parametrize(
    ("fmap1", "fmap2", "error", "message"),
    [
        (torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3), ValueError, r"fmap2 must be 4-d \(B, C, H, W\)"),
        (torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4).long(), TypeError, "fmap2 must be a floating-point tensor"),
        (torch.zeros(1, 2, 3, 4).double(), torch.zeros(1, 2, 3, 4), TypeError, "fmap1 must have the dtype of fmap2"),
        (torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4, device="meta"), ValueError, "fmap1 must be on the device of"),
        (torch.zeros(1, 3, 3, 4), torch.zeros(1, 2, 3, 4), ValueError, r"fmap1 must have shape \(B, C, H, W\) for"),
    ],
)
def test_pyramids_complain(fmap1, fmap2, error, message):
    with pytest.raises(error, match=message):
        corr_pyramid(fmap1, fmap2, levels=1)


def test_features_are_floating_point():
    with pytest.raises(TypeError, match="fmap2 must be a floating-point tensor, got"):
        corr_feature_pyramid(torch.zeros(1, 2, 3, 4).long(), levels=1)


@pytest.mark.parametrize("levels", [0, 4])
def test_no_level_vanishes(levels):
    features = torch.zeros(1, 2, 5, 16)
    message = r"levels must be from 1 to 3 for fmap2 \(1, 2, 5, 16\): another would be empty"
    with pytest.raises(ValueError, match=message):
        corr_pyramid(features, features, levels=levels)
    with pytest.raises(ValueError, match=message):
        corr_feature_pyramid(features, levels=levels)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"coords": torch.zeros(2, 3, 4)}, ValueError, r"coords must be 4-d \(B, 2, H, W\), got shape \(2, 3, 4\)"),
        ({"coords": torch.zeros(1, 3, 3, 4)}, ValueError, r"coords must have shape \(B, 2, H, W\), got \(1, 3, 3, 4\)"),
        ({"coords": torch.zeros(1, 2, 3, 4).long()}, TypeError, "coords must be a floating-point tensor"),
        ({"pyramid": []}, ValueError, "pyramid must be a sequence of at least one tensor"),
        ({"pyramid": torch.zeros(1, 3, 4, 5, 6)}, ValueError, "pyramid must be a sequence of at least one tensor"),
        ({"pyramid": [torch.zeros(12, 1, 5, 6)]}, ValueError, r"pyramid\[0\] must be 5-d \(B, H, W, H_l, W_l\)"),
        ({"pyramid": [torch.zeros(1, 4, 3, 5, 6)]}, ValueError, r"pyramid\[0\] must have shape .*\(1, 3, 4\) in front"),
        ({"pyramid": [torch.zeros(1, 3, 4, 5, 0)]}, ValueError, r"H_l, W_l > 0, got \(1, 3, 4, 5, 0\)"),
        (
            {"pyramid": [torch.zeros(1, 3, 4, 5, 6), torch.zeros(1, 3, 4, 2, 3).double()]},
            TypeError,
            r"pyramid\[1\] must have the dtype of pyramid\[0\] \(torch.float32\), got torch.float64",
        ),
        ({"fmap1": torch.zeros(1, 8, 3, 4)}, ValueError, r"pyramid\[0\] must be 4-d \(B, C, H_l, W_l\)"),
        (
            {"pyramid": [torch.zeros(1, 8, 5, 6)], "fmap1": torch.zeros(1, 8, 4, 3)},
            ValueError,
            r"fmap1 must have shape \(B, C, H, W\) for coords",
        ),
        (
            {"pyramid": [torch.zeros(1, 8, 5, 6)], "fmap1": torch.zeros(1, 8, 3, 4).double()},
            TypeError,
            "fmap1 must have the dtype of pyramid",
        ),
        ({"pyramid": [1.0]}, TypeError, r"pyramid\[0\] must be a tensor, got float"),
        ({"radius": -1}, ValueError, "radius must be from 0 to 127, got -1"),
        ({"radius": 128}, ValueError, "radius must be from 0 to 127, got 128"),
        ({"radius": 1.0}, TypeError, "radius must be an int, got float"),
    ],
)
def test_complains(change, error, message):
    call = {"pyramid": [torch.zeros(1, 3, 4, 5, 6)], "coords": torch.zeros(1, 2, 3, 4), "radius": 1}
    with pytest.raises(error, match=message):
        corr_lookup(**{**call, **change})
