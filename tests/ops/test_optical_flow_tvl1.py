"""The mathematics of optical_flow_tvl1: motions that are known, symmetries, the energy, the unrolled gradient."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.motions import shifted, texture, warped
from vidgen.ops import optical_flow_tvl1
from vidgen.ops.optical_flow_tvl1 import PRESETS, level_sizes, reference


def energy(flow: Tensor, prev: Tensor, next: Tensor, lambda_: float) -> float:
    """∫ |∇u| + |∇v| + λ|ρ| with bilinear interpolation, in float64."""
    height, width = prev.shape[2:]
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    points = torch.stack([(x + flow[0, 0]) * 2 / (width - 1) - 1, (y + flow[0, 1]) * 2 / (height - 1) - 1], dim=-1)
    displaced = torch.nn.functional.grid_sample(next.double(), points[None], align_corners=True, padding_mode="border")
    along_x = torch.nn.functional.pad(flow[..., 1:] - flow[..., :-1], (0, 1))
    along_y = torch.nn.functional.pad(flow[..., 1:, :] - flow[..., :-1, :], (0, 0, 0, 1))
    smoothness = (along_x.square() + along_y.square()).sqrt().sum()
    return float(smoothness + lambda_ * 255 * (displaced - prev.double()).abs().sum())


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("channels", [1, 3])
def test_nothing_moves_where_nothing_moves(preset: str, channels: int) -> None:
    images = torch.randint(0, 256, (2, channels, 45, 70), dtype=torch.uint8)
    flow = optical_flow_tvl1(images, images, **PRESETS[preset])
    assert flow.abs().max() < 0.01


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("dx", "dy"), [(1, 0), (0, -2), (-3, 4), (6, 5)])
def test_a_translation_is_found_in_the_interior(preset: str, dx: int, dy: int) -> None:
    image = texture(96, 120).float()
    flow = optical_flow_tvl1(image, shifted(image, dx, dy), **PRESETS[preset])[..., 16:-16, 16:-16]
    error = (flow - torch.tensor([dx, dy])[:, None, None]).norm(dim=1)
    assert error.mean() < 0.05
    assert error.max() < 0.25


@pytest.mark.parametrize(
    ("preset", "bound"), [("accurate", 0.03), ("fast", 0.06), ("opencv", 0.06), ("two_stream", 0.06)]
)
def test_a_smooth_field_is_found_to_a_fraction_of_a_pixel(preset: str, bound: float) -> None:
    y, x = torch.meshgrid(torch.arange(100).double(), torch.arange(130).double(), indexing="ij")
    dx, dy = 2 * torch.sin(y / 30) + 0.01 * (x - 65), 1.5 * torch.cos(x / 40)
    prev, next = warped(dx, dy, 100, 130)
    flow = optical_flow_tvl1(prev, next, **PRESETS[preset]).double()[0]
    error = (flow - torch.stack([dx, dy])).norm(dim=0)[12:-12, 12:-12]
    assert error.mean() < bound


def test_more_iterations_lower_the_energy() -> None:
    """The oracle is the energy itself: the flow found has less than zero flow, and than flows that move it a little."""
    image = texture(64, 80)
    next = shifted(image, 1, -1)
    options = {"lambda_": 0.15, "warps": 10, "inner_iterations": 100, "median": 0}
    flow = optical_flow_tvl1(image, next, **options)
    found = energy(flow, image, next, 0.15)
    assert found < 0.5 * energy(torch.zeros_like(flow), image, next, 0.15)
    assert found < energy(
        optical_flow_tvl1(image, next, **{**options, "warps": 1, "inner_iterations": 2}), image, next, 0.15
    )
    generator = torch.Generator().manual_seed(1)
    for size in (0.02, 0.1):
        for _ in range(3):
            noise = torch.randn(flow.shape, generator=generator, dtype=torch.float64) * size
            assert found < energy(flow + noise, image, next, 0.15)


@settings(max_examples=15)
@given(height=st.integers(1, 60), width=st.integers(1, 60), seed=st.integers(0, 99), median=st.sampled_from([0, 3, 5]))
def test_swapping_the_axes_swaps_the_components(height: int, width: int, seed: int, median: int) -> None:
    prev = texture(height, width, seed)
    next = 0.7 * shifted(prev, 1, 1) + 0.3 * prev
    options = {"median": median, "warps": 2, "inner_iterations": 11, "scale_factor": 0.6}
    flow = optical_flow_tvl1(prev, next, **options)
    other = optical_flow_tvl1(prev.mT.contiguous(), next.mT.contiguous(), **options)
    torch.testing.assert_close(other, flow.flip(1).mT, rtol=0, atol=1e-6)


@settings(max_examples=25)
@given(
    height=st.integers(1, 110),
    width=st.integers(1, 70),
    channels=st.sampled_from([1, 3]),
    median=st.sampled_from([0, 3, 5]),
    scale_factor=st.floats(0.3, 0.95),
    epsilon=st.sampled_from([0.0, 0.01]),
    inner_iterations=st.integers(1, 25),
    threads=st.integers(1, 4),
)
def test_the_kernel_is_the_reference_in_double(
    height, width, channels, median, scale_factor, epsilon, inner_iterations, threads
):
    """Every size, band and branch, with nothing to hide behind: in float64 rounding is far below any mistake."""
    prev = texture(height, width).expand(1, channels, height, width)
    next = shifted(prev, 1, 0)
    args = (None, 0.25, 0.2, 0.3, 5, scale_factor, 2, 2, inner_iterations, median, epsilon)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        got = torch.ops.vidgen.optical_flow_tvl1(prev, next, *args, "cpu")
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(got, reference(prev, next, *args), rtol=0, atol=1e-8)


def test_wide_images_of_many_bands_have_the_same_bits_on_every_thread_count(threads) -> None:
    """Bands that meet at seams, in blocks of ten iterations and of fewer, with a stopping rule to be summed up."""
    prev = texture(160, 900).float()
    next = shifted(prev, 2, 1)
    results = []
    for count in (1, 2, 3, 5):
        threads(count)
        results.append(optical_flow_tvl1(prev, next, warps=2, inner_iterations=23, epsilon=1e-6))
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_uint8_is_float_of_the_same_grey_levels() -> None:
    """But for rounding: their lumas differ by an ulp, which the thresholds of an unlucky picture carry on."""
    init = torch.tensor([1.0, 0.0])[:, None, None].expand(1, 2, 60, 72)
    off = []
    for seed in range(9):
        colors = torch.cat([texture(60, 72, 3 * seed + color) for color in range(3)], dim=1)
        prev = (colors * 255).round().to(torch.uint8)
        next = shifted(prev, 1, 0)
        as_float = optical_flow_tvl1(prev.float() / 255, next.float() / 255, init=init)
        off.append(float((optical_flow_tvl1(prev, next, init=init) - as_float).norm() / as_float.norm()))
    assert sorted(off)[4] < 2e-5
    assert max(off) < 5e-4


def test_colors_become_luma() -> None:
    prev = torch.rand(1, 3, 30, 34, dtype=torch.float64)
    next = shifted(prev, 1, 0)
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)[:, None, None]
    grey = [(weights * images).sum(dim=1) for images in (prev, next)]
    torch.testing.assert_close(optical_flow_tvl1(prev, next), optical_flow_tvl1(*grey), rtol=0, atol=1e-8)


def test_the_true_flow_as_a_start_is_kept_and_helps() -> None:
    """Thirty pixels are more than one level can find from zero."""
    image = texture(80, 160)
    next = shifted(image, 30, 0)
    truth = torch.tensor([30.0, 0.0], dtype=torch.float64)[:, None, None].expand(1, 2, 80, 160)
    inside = (..., slice(8, -8), slice(8, -40))
    found = optical_flow_tvl1(image, next, init=truth, levels=1)
    assert (found - truth)[inside].abs().max() < 0.05
    assert (optical_flow_tvl1(image, next, levels=1) - truth)[inside].abs().mean() > 10


def test_a_pair_at_rest_stops_and_leaves_the_other_alone() -> None:
    """With ε, every pair of a batch has its own number of iterations."""
    moving = texture(60, 64).float()
    prev, next = torch.cat([moving, moving]), torch.cat([moving, shifted(moving, 2, 0)])
    options = {"epsilon": 0.02, "inner_iterations": 60, "median": 0, "warps": 2}
    for impl in ("cpu", "reference"):
        both = optical_flow_tvl1(prev, next, impl=impl, **options)
        alone = optical_flow_tvl1(prev[1:], next[1:], impl=impl, **options)
        assert torch.equal(both[1:], alone)
        assert both[0].abs().max() == 0
        unstopped = optical_flow_tvl1(prev[1:], next[1:], impl=impl, **{**options, "epsilon": 0.0})
        assert not torch.equal(alone, unstopped)


def test_level_sizes() -> None:
    assert level_sizes(480, 640, 32, 0.5) == [(480, 640), (240, 320), (120, 160), (60, 80), (30, 40)]
    assert level_sizes(480, 640, 5, 0.8)[-1] == (197, 262)
    assert level_sizes(1, 1, 32, 0.5) == [(1, 1)]
    assert level_sizes(15, 4000, 32, 0.5) == [(15, 4000)]


# The unrolled form.


def test_the_unrolled_form_is_the_op() -> None:
    prev = texture(33, 40)
    next = shifted(prev, 1, -1)
    options = {"warps": 2, "inner_iterations": 7}
    unrolled = optical_flow_tvl1(prev, next, differentiable=True, **options)
    torch.testing.assert_close(optical_flow_tvl1(prev, next, **options), unrolled, rtol=0, atol=1e-9)


@pytest.mark.parametrize("median", [0, 3])
def test_gradients_of_the_unrolled_form(median: int) -> None:
    """To both images, to the start and to τ, λ, θ, against finite differences."""
    prev = texture(9, 11)
    prev = 0.2 + 0.6 * prev
    next = (0.6 * shifted(prev, 1, 0) + 0.4 * prev).contiguous()
    init = torch.full((1, 2, 9, 11), 0.3, dtype=torch.float64)
    numbers = [torch.tensor(value, dtype=torch.float64) for value in (0.2, 0.03, 0.4)]

    def flow(prev, next, init, tau, lambda_, theta):
        return optical_flow_tvl1(
            prev, next, init=init, tau=tau, lambda_=lambda_, theta=theta, warps=2, inner_iterations=3, median=median,
            differentiable=True,
        )  # fmt: skip

    leaves = [tensor.requires_grad_() for tensor in (prev, next, init, *numbers)]
    assert torch.autograd.gradcheck(flow, leaves, eps=1e-7, atol=1e-4, rtol=1e-3, fast_mode=True)
    for gradient in torch.autograd.grad(flow(*leaves).square().sum(), leaves):
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0


def test_gradients_are_finite_where_nothing_moves() -> None:
    """|∇u| has no derivative at zero, and identical images are where every training begins."""
    image = torch.full((1, 1, 20, 20), 0.5, requires_grad=True)
    tau = torch.tensor(0.25, requires_grad=True)
    flow = optical_flow_tvl1(image, image, tau=tau, warps=1, inner_iterations=2, differentiable=True)
    for gradient in torch.autograd.grad(flow.sum(), (image, tau)):
        assert gradient.isfinite().all()


# Bad input.


IMAGE = torch.zeros(2, 3, 8, 9)


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (TypeError, "prev must be a tensor, got list", {"prev": [1.0]}),
        (TypeError, "prev must be uint8 or floating point", {"prev": IMAGE.int()}),
        (ValueError, r"prev must have shape .*got \(2, 2, 8, 9\)", {"prev": IMAGE[:, :2]}),
        (ValueError, r"prev must have shape .*got \(2, 3, 0, 9\)", {"prev": IMAGE[:, :, :0]}),
        (ValueError, r"next must have the shape of prev \(2, 3, 8, 9\), got \(2, 3, 8, 8\)", {"next": IMAGE[..., :8]}),
        (TypeError, "next must have the dtype of prev", {"next": IMAGE.double()}),
        (TypeError, "init must be a floating-point tensor or None", {"init": torch.zeros(2, 2, 8, 9).int()}),
        (ValueError, r"init must have shape \(2, 2, 8, 9\), got \(2, 3, 8, 9\)", {"init": IMAGE}),
        (ValueError, "tau must be above 0 and at most 10, got 0", {"tau": 0}),
        (ValueError, "lambda_ must be above 0 and at most 1000, got nan", {"lambda_": math.nan}),
        (TypeError, "theta must be a number unless differentiable=True", {"theta": torch.tensor(0.3)}),
        (TypeError, "theta must be a number, got str", {"theta": "0.3"}),
        (ValueError, "theta must be one floating-point number", {"theta": torch.ones(2), "differentiable": True}),
        (ValueError, "scale_factor must be above 0 and at most 0.95, got 1.0", {"scale_factor": 1.0}),
        (ValueError, "levels must be from 1 to 64, got 0", {"levels": 0}),
        (TypeError, "warps must be an int, got float", {"warps": 2.0}),
        (ValueError, "inner_iterations must be from 1 to 100000, got -1", {"inner_iterations": -1}),
        (TypeError, "outer_iterations must be an int, got bool", {"outer_iterations": True}),
        (ValueError, "median must be 0, 3 or 5, got 4", {"median": 4}),
        (ValueError, "epsilon must be a finite number of at least 0, got -0.1", {"epsilon": -0.1}),
        (ValueError, "epsilon must be 0 where differentiable=True", {"epsilon": 0.1, "differentiable": True}),
        (ValueError, "impl must be None or 'reference'", {"impl": "cpu", "differentiable": True}),
        (ValueError, "prev must not require a gradient", {"prev": IMAGE.clone().requires_grad_()}),
    ],
)
def test_bad_arguments_are_named(error, message, change) -> None:
    with pytest.raises(error, match=message):
        optical_flow_tvl1(**{"prev": IMAGE, "next": IMAGE, **change})


def test_the_op_itself_checks_too() -> None:
    """torch.ops is public, and a kernel must not be handed nonsense from there either."""
    good = [IMAGE, IMAGE, None, 0.25, 0.2, 0.3, 5, 0.5, 5, 1, 20, 5, 0.0, "cpu"]
    for index, bad, message in (
        (1, IMAGE[..., :8], "next must have the shape of prev"),
        (1, IMAGE.double(), "next must have the dtype of prev"),
        (2, IMAGE, "init must have shape"),
        (3, -1.0, "tau must be above 0"),
        (6, 65, "levels must be from 1 to 64"),
        (7, 1.0, "scale_factor must be above 0"),
        (11, 7, "median must be 0, 3 or 5"),
        (12, math.inf, "epsilon must be finite"),
    ):
        with pytest.raises(RuntimeError, match=message):
            torch.ops.vidgen.optical_flow_tvl1(*good[:index], bad, *good[index + 1 :])
