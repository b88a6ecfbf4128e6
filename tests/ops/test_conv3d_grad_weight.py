"""The CPU's gradients of conv3d_pool3d's weight and bias: right at any share of zeros, the same bits always."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidgen.ops.conv3d_pool3d import reference_grad_weight

grad_weight = torch.ops.vidgen.conv3d_pool3d_grad_weight


def problem(n, cin, cout, size, kernel, padding, share, seed=0):
    """(grad, x, kernel, padding): `share` of the gradients are not zero, at other places in every channel."""
    generator = torch.Generator().manual_seed(seed)
    out = [length + padding[2 * i] + padding[2 * i + 1] - kernel[i] + 1 for i, length in enumerate(size)]
    grad = torch.randn(n, cout, *out, generator=generator, dtype=torch.float64)
    grad *= torch.rand(grad.shape, generator=generator) < share
    return grad, torch.randn(n, cin, *size, generator=generator, dtype=torch.float64), list(kernel), list(padding)


def relative_rms(got, wanted):
    return float((got.double() - wanted).square().mean().sqrt() / wanted.square().mean().sqrt().clamp_min(1e-300))


@st.composite
def problems(draw):
    kernel = [draw(st.integers(1, 4)) for _ in range(3)]
    padding = [draw(st.integers(0, k - 1)) for k in kernel for _ in range(2)]
    size = [draw(st.integers(max(1, k - padding[2 * i] - padding[2 * i + 1]), 9)) for i, k in enumerate(kernel)]
    channels = st.sampled_from([1, 2, 3, 5, 8, 16, 17, 33])
    share = draw(st.sampled_from([0.0, 0.05, 0.125, 0.5, 1.0]))
    return problem(draw(st.integers(1, 3)), draw(channels), draw(channels), size, kernel, padding, share)


@settings(max_examples=60)
@given(problems())
def test_gradients_are_those_of_the_reference(arguments):
    grad, x, kernel, padding = arguments
    wanted = reference_grad_weight(grad, x, kernel, padding)
    for channels_last in (False, True):
        layout = torch.channels_last_3d if channels_last else torch.contiguous_format
        inputs = [t.contiguous(memory_format=layout) for t in (grad, x)]
        for got, want in zip(grad_weight(*inputs, kernel, padding, "auto", "cpu"), wanted, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
        single = grad_weight(*(t.float() for t in inputs), kernel, padding, "auto", "cpu")
        rounded = [t.float().double() for t in (grad, x)]
        # a sum whose terms cancel is as exact as its terms: their root of squares is what rounding is measured by
        sizes = reference_grad_weight(*(t.square() for t in rounded), kernel, padding)
        for got, want, size in zip(single, reference_grad_weight(*rounded, kernel, padding), sizes, strict=True):
            assert got.dtype == torch.float32
            assert (got.double() - want).square().mean() <= 1e-12 * size.mean()


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_bfloat16_is_summed_in_float(share):
    grad, x, kernel, padding = problem(2, 16, 24, (6, 10, 11), (3, 3, 3), (1,) * 6, share)
    grad, x = grad.bfloat16(), x.bfloat16()
    wanted = reference_grad_weight(grad.double(), x.double(), kernel, padding)
    for got, want in zip(grad_weight(grad, x, kernel, padding, "auto", "cpu"), wanted, strict=True):
        assert got.dtype == torch.bfloat16
        # the rounding of the result alone: half a unit in the eighth bit, uniformly distributed
        assert relative_rms(got, want) < 2.0**-9


@pytest.mark.parametrize("share", [0.1, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [(3, 16), (16, 40)])
def test_bits_do_not_depend_on_threads(channels, dtype, share):
    grad, x, kernel, padding = problem(2, *channels, (5, 12, 13), (3, 3, 3), (1,) * 6, share)
    grad, x = grad.to(dtype), x.to(dtype).contiguous(memory_format=torch.channels_last_3d)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3, 5, 2):
            torch.set_num_threads(threads)
            found.append(grad_weight(grad, x, kernel, padding, "auto", "cpu"))
    finally:
        torch.set_num_threads(before)
    for weight, bias in found[1:]:
        assert torch.equal(weight, found[0][0])
        assert torch.equal(bias, found[0][1])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_zero_times_what_is_not_finite_is_nan(value):
    grad, x, kernel, padding = problem(1, 4, 6, (4, 6, 7), (3, 3, 3), (1,) * 6, 0.1)
    x[0, 2, 1, 3, 4] = value
    got, _ = grad_weight(grad.float(), x.float(), kernel, padding, "auto", "cpu")
    wanted, _ = reference_grad_weight(grad, x, kernel, padding)
    assert torch.equal(got.isnan(), wanted.isnan())
    assert got[:, 2].isnan().any()
    assert got[:, [0, 1, 3]].isfinite().all()


def test_expanded_and_strided_gradients():
    """What a sum's backward hands over has strides of zero."""
    _, x, kernel, padding = problem(2, 5, 7, (3, 8, 9), (3, 3, 3), (1,) * 6, 1.0)
    expanded = torch.full((1, 1, 1, 1, 1), 0.5, dtype=torch.float64).expand(2, 7, 3, 8, 9)
    strided = torch.randn(2, 7, 9, 3, 16, dtype=torch.float64)[..., ::2].permute(0, 1, 3, 4, 2)
    for grad in (expanded, strided):
        got = grad_weight(grad, x, kernel, padding, "auto", "cpu")
        wanted = reference_grad_weight(grad.contiguous(), x, kernel, padding)
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_an_empty_batch_has_gradients_of_zero():
    weight, bias = grad_weight(torch.ones(0, 3, 4, 4, 4), torch.ones(0, 2, 4, 4, 4), [3, 3, 3], [1] * 6, "auto", "cpu")
    assert weight.shape == (3, 2, 3, 3, 3)
    assert not weight.any()
    assert not bias.any()
