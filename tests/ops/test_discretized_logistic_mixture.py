"""The mathematics of discretized_logistic_mixture: a probability, its gradient, the loss published with PixelCNN++."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.pixelcnnpp_published import published_loss
from vidgen.ops import discretized_logistic_mixture
from vidgen.ops.discretized_logistic_mixture import parameters_per_mixture, reference


def grey_levels(levels, *size, seed=0):
    """Uniform grey levels with both edges well represented, float64."""
    drawn = torch.randint(-levels // 4, levels + levels // 4 + 1, size, generator=torch.Generator().manual_seed(seed))
    return drawn.clamp(0, levels - 1).double() * 2 / (levels - 1) - 1


def normal(*size, seed=0, scale=1.0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def gradient(params, x, **options):
    params = params.detach().clone().requires_grad_()
    out = discretized_logistic_mixture(params, x, **options)
    out.sum().backward()
    return out.detach(), params.grad


@pytest.mark.parametrize(("channels", "levels"), [(1, 2), (1, 256), (1, 5000), (2, 9), (3, 5)])
@pytest.mark.parametrize("log_scale", [-9.0, -3.0, 1.0])
def test_probabilities_sum_to_one(channels, levels, log_scale, device, impl):
    """Over every pixel value; 5000 levels lie closer together than the published edges' 0.001."""
    one = torch.arange(levels, dtype=torch.float64) * 2 / (levels - 1) - 1
    x = torch.tensor(list(itertools.product(one.tolist(), repeat=channels)), dtype=torch.float64)[:, :, None, None]
    params = normal(1, 3 * parameters_per_mixture(channels), 1, 1)
    start = 3
    for channel in range(channels):
        params[:, start + 3 : start + 6] = log_scale + params[:, start + 3 : start + 6] / 4
        start += 9 if channel < channels * (channels - 1) // 2 else 6
    params = params.expand(len(x), -1, 1, 1)
    args = (params.to(device), x.to(device))
    if impl == "triton":
        args = tuple(t.float() for t in args)
    if impl == "cuda":
        return
    total = discretized_logistic_mixture(*args, levels=levels, impl=impl).double().exp().sum()
    assert float(total) == pytest.approx(1, abs=1e-9 if args[0].dtype == torch.float64 else 1e-3)


@pytest.mark.parametrize("impl", ["cpu", "reference"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_openai_mode_is_the_published_loss(impl, dtype, bound):
    params, x = normal(4, 100, 6, 7, scale=2), grey_levels(256, 4, 3, 6, 7)
    params[:2, 20:30] -= 6  # narrow logistics, most of them far from the pixel: the branch of the density
    expected = published_loss(params.requires_grad_(), x)
    expected.sum().backward()
    got, grad = gradient(params.to(dtype), x.to(dtype), mode="openai", impl=impl)
    torch.testing.assert_close(got.double(), expected.detach(), rtol=bound, atol=0)
    error = (grad.double() - params.grad).norm() / params.grad.norm()
    assert float(error) < max(10 * bound, 1e-7)


@pytest.mark.parametrize("mode", ["exact", "openai"])
@pytest.mark.parametrize(("channels", "levels"), [(1, 17), (2, 256), (3, 256)])
def test_native_gradient_is_that_of_the_reference(channels, levels, mode):
    params = normal(2, 4 * parameters_per_mixture(channels), 5, 13, scale=3)
    x = grey_levels(levels, 2, channels, 5, 13)
    exact, exact_grad = gradient(params, x, levels=levels, mode=mode, impl="reference")
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 5e-6)):
        got, grad = gradient(params.to(dtype), x.to(dtype), levels=levels, mode=mode, impl="cpu")
        # of float32 parameters and pixels, not of what was rounded to them
        exact, exact_grad = gradient(
            params.to(dtype).double(), x.to(dtype).double(), levels=levels, mode=mode, impl="reference"
        )
        torch.testing.assert_close(got.double(), exact, rtol=bound, atol=0)
        assert float((grad.double() - exact_grad).norm() / exact_grad.norm()) < bound


@pytest.mark.parametrize("mode", ["exact", "openai"])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_first_and_second_order(channels, mode):
    params = normal(2, 2 * parameters_per_mixture(channels), 2, 3).requires_grad_()
    x = grey_levels(256, 2, channels, 2, 3)

    def call(params):
        return discretized_logistic_mixture(params, x, mode=mode, impl="cpu")

    assert torch.autograd.gradcheck(call, params)
    assert torch.autograd.gradgradcheck(call, params)


def test_sixteen_bit_parameters_are_read_and_computed_in_float32():
    params, x = normal(2, 40, 6, 7), grey_levels(256, 2, 3, 6, 7).float()
    for dtype in (torch.bfloat16, torch.float16):
        low = params.to(dtype)
        impl = "cpu" if dtype == torch.bfloat16 else "reference"
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got, grad = gradient(low, x, impl=impl)
        exact, exact_grad = gradient(low.float(), x, impl=impl)
        assert torch.equal(got, exact)
        assert grad.dtype == dtype
        assert torch.equal(grad, exact_grad.to(dtype))


extremes = st.sampled_from([0.0, 1.0, -1.0, -6.999, -7.0, -7.001, -20.0, 20.0, 90.0, -90.0, 1e4, -1e4])
ordinary = st.floats(-8, 8, width=32)


@settings(max_examples=150)
@given(
    channels=st.integers(1, 3),
    levels=st.sampled_from([2, 3, 256, 65536]),
    mode=st.sampled_from(["exact", "openai"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    impl=st.sampled_from(["cpu", "reference"]),
    data=st.data(),
)
def test_finite_everywhere(channels, levels, mode, dtype, impl, data):
    """Scales at and far below their floor, pixels at both edges, saturated means, huge inputs."""
    size = 2 * parameters_per_mixture(channels)
    params = data.draw(st.lists(st.one_of(extremes, ordinary), min_size=size, max_size=size))
    x = data.draw(st.lists(st.sampled_from([0, 1, levels // 2, levels - 1]), min_size=channels, max_size=channels))
    pixels = torch.tensor(x, dtype=dtype).reshape(1, channels, 1, 1) * 2 / (levels - 1) - 1
    value, grad = gradient(
        torch.tensor(params, dtype=dtype).reshape(1, size, 1, 1), pixels, levels=levels, mode=mode, impl=impl
    )
    assert torch.isfinite(value).all()
    assert torch.isfinite(grad).all()
    if mode == "exact":
        assert float(value) <= 1e-5


def test_log_scales_below_their_floor_act_as_the_floor():
    params, x = normal(1, 3, 2, 2), grey_levels(256, 1, 1, 2, 2)
    params[:, 2] = -7.5
    value, grad = gradient(params, x, impl="cpu")
    assert (grad[:, 2] == 0).all()
    params[:, 2] = -7
    at_floor, grad = gradient(params, x, impl="cpu")
    assert torch.equal(value, at_floor)
    assert (grad[:, 2] != 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_a_certain_pixel_has_no_gradient(dtype, impl):
    """Both edges, and the middle of three levels' bins far wider than the logistic; the distances are no factors."""
    params = torch.tensor([[0.0, -1e30, -7.0], [0.0, 1e30, -7.0], [0.0, 0.0, -7.0]], dtype=dtype)[:, :, None, None]
    x = torch.tensor([-1.0, 1.0, 0.0], dtype=dtype)[:, None, None, None]
    value, grad = gradient(params, x, levels=3, impl=impl)
    assert float(value.abs().max()) <= 2 * torch.finfo(dtype).eps
    assert float(grad.abs().max()) < 1e-20


def test_an_impossible_mixture_changes_nothing():
    params, x = normal(2, 20, 3, 4), grey_levels(256, 2, 3, 3, 4)
    alone = torch.stack([block[:, 0] for block in params.chunk(10, dim=1)], dim=1)
    params[:, 1] = -torch.inf
    value, grad = gradient(params, x, impl="cpu")
    torch.testing.assert_close(value, reference(alone, x, 256, "exact"))
    assert (grad[:, 1::2] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_the_gradient_keeps_the_memory_format(dtype, impl):
    params, x = normal(2, 40, 9, 17).to(dtype), grey_levels(256, 2, 3, 9, 17)
    _, expected = gradient(params, x, impl=impl)
    _, grad = gradient(params.contiguous(memory_format=torch.channels_last), x, impl=impl)
    assert grad.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(grad, expected) or impl == "reference"


def test_the_gradient_has_the_same_bits_in_any_batch_and_thread_count(threads):
    params, x = normal(5, 100, 9, 17).float(), grey_levels(256, 5, 3, 9, 17)
    threads(1)
    _, together = gradient(params, x, impl="cpu")
    for count in (2, 3):
        threads(count)
        assert torch.equal(gradient(params, x, impl="cpu")[1], together)
    for i in range(5):
        assert torch.equal(gradient(params[i : i + 1], x[i : i + 1], impl="cpu")[1][0], together[i])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"params": torch.zeros(2, 21, 3, 3)}, ValueError, "params must have 10·K channels for 3 of x, got 21"),
        ({"params": torch.zeros(2, 20, 3, 4)}, ValueError, "params must have the batch, height and width of x"),
        ({"params": torch.zeros(2, 20, 3, 3, dtype=torch.int64)}, TypeError, "params must be a floating-point tensor"),
        ({"x": torch.zeros(2, 4, 3, 3)}, ValueError, "x must have 1 to 3 channels"),
        ({"x": torch.zeros(2, 3, 3, 3, dtype=torch.uint8)}, TypeError, "x must be a floating-point tensor"),
        ({"x": torch.zeros(2, 3, 3, 3, requires_grad=True)}, ValueError, "x must not require a gradient"),
        ({"levels": 1}, ValueError, "levels must be at least 2, got 1"),
        ({"levels": 256.0}, TypeError, "levels must be an int, got float"),
        ({"mode": "fast"}, ValueError, "mode must be 'exact' or 'openai', got 'fast'"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = {"params": torch.zeros(2, 20, 3, 3), "x": torch.zeros(2, 3, 3, 3), **change}
    with pytest.raises(error, match=message):
        discretized_logistic_mixture(**arguments)
