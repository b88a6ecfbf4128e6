"""warp: the mathematics of bilinear sampling, its gradients to second order, and flows that are no numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vidgen.ops import warp

both_paddings = pytest.mark.parametrize("padding", ["zeros", "border"])
both_impls = pytest.mark.parametrize("impl", ["cpu", "reference"])
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])


def grid_sampled(x: Tensor, flow: Tensor, padding: str) -> Tensor:
    """PyTorch's own sampler, at pixel coordinates."""
    height, width = x.shape[2:]
    column = torch.arange(width, dtype=flow.dtype) + flow[:, 0]
    row = torch.arange(height, dtype=flow.dtype)[:, None] + flow[:, 1]
    grid = torch.stack([2 * column / (width - 1) - 1, 2 * row / (height - 1) - 1], dim=-1)
    return F.grid_sample(x, grid, padding_mode=padding, align_corners=True)


def inputs(n: int, channels: int, h: int, w: int, reach: float = 2.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Double; positions keep away from whole pixels, where the surface has a kink."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, channels, h, w, generator=generator, dtype=torch.float64)
    whole = (torch.randn(n, 2, h, w, generator=generator, dtype=torch.float64) * reach).floor()
    return x, whole + 0.1 + 0.8 * torch.rand(n, 2, h, w, generator=generator, dtype=torch.float64)


@both_paddings
@both_impls
@pytest.mark.parametrize("channels", [1, 3, 16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_is_grid_sample_in_pixels(padding, impl, channels, memory_format):
    x, flow = inputs(2, channels, 11, 19)
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    flow.requires_grad_()
    got, expected = warp(x, flow, padding=padding, impl=impl), grid_sampled(x, flow, padding)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    weight = torch.randn(got.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.autograd.grad(y, (x, flow), weight) for y in (got, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@both_paddings
@both_impls
@pytest.mark.parametrize("size", [(2, 2, 3, 3), (1, 5, 2, 3), (1, 1, 1, 3), (1, 2, 4, 1)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients(padding, impl, size, memory_format):
    """First and second order, in both arguments together."""
    x, flow = inputs(*size, reach=1.0)
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    flow.requires_grad_()

    def call(x: Tensor, flow: Tensor) -> Tensor:
        return warp(x, flow, padding=padding, impl=impl)

    assert torch.autograd.gradcheck(call, (x, flow))
    assert torch.autograd.gradgradcheck(call, (x, flow))


@both_paddings
@pytest.mark.parametrize("wanted", ["x", "flow"])
def test_one_gradient_alone(padding, wanted):
    tensors = dict(zip(("x", "flow"), inputs(1, 3, 4, 5), strict=True))
    tensors[wanted].requires_grad_()
    assert torch.autograd.gradcheck(lambda t: warp(**{**tensors, wanted: t}, padding=padding), tensors[wanted])


@both_paddings
@every_dtype
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_native_gradients_are_those_of_the_reference(padding, dtype, memory_format):
    """In every dtype and layout, for more channels than a task takes and rows of several runs."""
    limit = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 1e-2}[dtype]
    for size in ((2, 3, 6, 300), (1, 37, 9, 8)):
        x, flow = inputs(*size)
        x = x.to(dtype).contiguous(memory_format=memory_format).requires_grad_()
        flow = flow.to(torch.promote_types(dtype, torch.float32)).requires_grad_()
        weight = torch.randn(size, generator=torch.Generator().manual_seed(1)).to(dtype)
        ours = torch.autograd.grad(warp(x, flow, padding=padding, impl="cpu"), (x, flow), weight)
        wide = [t.detach().double().requires_grad_() for t in (x, flow)]
        exact = torch.autograd.grad(warp(*wide, padding=padding, impl="reference"), wide, weight.double())
        for got, expected in zip(ours, exact, strict=True):
            error = (got.double() - expected).pow(2).mean().sqrt() / expected.pow(2).mean().sqrt()
            assert error <= limit
        assert ours[0].is_contiguous(memory_format=memory_format)


@every_dtype
@both_impls
def test_whole_displacements_copy_bits(dtype, impl):
    """A flow of whole pixels moves them and rounds nothing."""
    x = torch.randn(1, 3, 40, 300, generator=torch.Generator().manual_seed(0)).to(dtype)
    flow = torch.zeros(1, 2, 40, 300)
    flow[:, 0], flow[:, 1] = 17, -5
    expected = torch.zeros_like(x)
    expected[:, :, 5:, :-17] = x[:, :, :-5, 17:]
    assert torch.equal(warp(x, flow, impl=impl), expected)


@both_impls
def test_position_is_not_rounded(impl):
    """At column 100,000 a float has steps of 1/128; a displacement of 0.001 is still one."""
    x = torch.arange(100_001, dtype=torch.float32).remainder(2).view(1, 1, 1, -1)
    flow = torch.tensor([0.001, 0]).view(1, 2, 1, 1).expand(1, 2, 1, 100_001)
    out = warp(x, flow, padding="border", impl=impl)
    torch.testing.assert_close(out[..., 99_998], torch.full((1, 1, 1), 0.001), rtol=1e-6, atol=0)


@both_paddings
@every_dtype
@both_impls
@pytest.mark.parametrize("channels", [2, 16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_flow_that_is_not_finite(padding, dtype, impl, channels, memory_format):
    """NaN there and only there; a masked loss has finite gradients to first and second order."""
    x, flow = inputs(1, channels, 5, 21)
    flow[0, 0, 1, 3], flow[0, 1, 2, 4], flow[0, 0, 3, 20] = torch.nan, torch.inf, -torch.inf
    known = flow.isfinite().all(dim=1, keepdim=True)
    x = x.to(dtype).contiguous(memory_format=memory_format).requires_grad_()
    flow = flow.float().requires_grad_()
    out = warp(x, flow, padding=padding, impl=impl)
    assert torch.equal(out.isnan(), ~known.expand_as(out))
    loss = torch.where(known, out, 0).float().square().sum()
    grads = torch.autograd.grad(loss, (x, flow), create_graph=True)
    assert all(g.isfinite().all() for g in grads)
    assert (grads[1] == 0)[~known.expand_as(flow)].all()
    second = torch.autograd.grad(sum(g.float().square().sum() for g in grads), (x, flow))
    assert all(g.isfinite().all() for g in second)


@both_impls
@pytest.mark.parametrize("size", [1e6, 1e20, 3e38])
def test_huge_displacements(impl, size):
    """Beyond every integer: outside the image, or its corner."""
    x = torch.rand(1, 2, 4, 9) + 1
    for sign in (1, -1):
        flow = torch.full((1, 2, 4, 9), sign * size)
        assert (warp(x, flow, impl=impl) == 0).all()
        corner = x[:, :, -1:, -1:] if sign == 1 else x[:, :, :1, :1]
        assert torch.equal(warp(x, flow, padding="border", impl=impl), corner.expand_as(x))


@both_impls
@both_paddings
@pytest.mark.parametrize("channels", [1, 16])
def test_a_pixel_that_is_no_neighbour_is_not_read(impl, padding, channels):
    """A NaN at one pixel reaches exactly the outputs whose four neighbours include it."""
    x = torch.zeros(1, channels, 6, 24)
    x[..., 2, 22] = torch.nan
    for memory_format in (torch.contiguous_format, torch.channels_last):
        flow = torch.full((1, 2, 6, 24), 0.5)
        out = warp(x.contiguous(memory_format=memory_format), flow, padding=padding, impl=impl)
        expected = torch.zeros(6, 24, dtype=torch.bool)
        expected[1:3, 21:23] = True
        assert torch.equal(out.isnan(), expected.expand_as(out))


@given(
    n=st.integers(0, 2),
    channels=st.integers(1, 20),
    h=st.integers(1, 6),
    w=st.integers(1, 40),
    reach=st.sampled_from([0.0, 0.3, 2.0, 50.0]),
    padding=st.sampled_from(["zeros", "border"]),
    last=st.booleans(),
    seed=st.integers(0, 99),
)
def test_native_equals_reference(n, channels, h, w, reach, padding, last, seed):
    generator = torch.Generator().manual_seed(seed)
    memory_format = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(n, channels, h, w, generator=generator, dtype=torch.float64)
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    flow = torch.randn(n, 2, h, w, generator=generator, dtype=torch.float64) * reach
    flow.requires_grad_()
    results = []
    for impl in ("cpu", "reference"):
        out = warp(x, flow, padding=padding, impl=impl)
        results.append((out, *torch.autograd.grad(out.square().sum(), (x, flow))))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def test_gradients_have_the_same_bits_on_every_thread_count_and_in_every_batch(threads):
    """Every pixel of the gradient in x is a sum whose order nothing may change."""
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x, flow = (t.float() for t in inputs(3, 21, 17, 23))
        x = x.contiguous(memory_format=memory_format).requires_grad_()
        flow.requires_grad_()
        results = []
        for count in (1, 2, 3):
            threads(count)
            results.append(torch.autograd.grad(warp(x, flow).square().sum(), (x, flow)))
        alone = torch.autograd.grad(warp(x[1:2], flow[1:2]).square().sum(), (x, flow))
        for first, *others in zip(*results, strict=True):
            assert all(torch.equal(first, other) for other in others)
        for together, single in zip(results[0], alone, strict=True):
            assert torch.equal(together[1], single[1])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(3, 4, 5)}, ValueError, r"x must be 4-d \(N, C, H, W\), got shape \(3, 4, 5\)"),
        ({"x": torch.zeros(1, 3, 4, 5).int()}, TypeError, "x must be a floating-point tensor, got torch.int32"),
        ({"flow": torch.zeros(1, 2, 5, 4)}, ValueError, r"flow must have shape \(N, 2, H, W\) for x"),
        ({"flow": torch.zeros(1, 4, 5, 2)}, ValueError, r"got \(1, 4, 5, 2\)"),
        ({"flow": torch.zeros(1, 2, 4, 5).long()}, TypeError, "flow must be a floating-point tensor, got torch.int64"),
        ({"padding": "reflect"}, ValueError, "padding must be 'zeros' or 'border', got 'reflect'"),
    ],
)
def test_complains(change, error, message):
    with pytest.raises(error, match=message):
        warp(**{"x": torch.zeros(1, 3, 4, 5), "flow": torch.zeros(1, 2, 4, 5), **change})
