"""The mathematics of optical_flow_dis: motions that are known, symmetries, the reference to the last digits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.motions import shifted, texture, warped
from vidgen.ops import optical_flow_dis
from vidgen.ops.optical_flow_dis import PRESETS, reference
from vidgen.ops.optical_flow_dis_stages import coarsest_scale, finest_level, smoothness_share


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("channels", [1, 3])
def test_nothing_moves_where_nothing_moves(preset: str, channels: int) -> None:
    images = torch.randint(0, 256, (2, channels, 75, 110), dtype=torch.uint8)
    assert optical_flow_dis(images, images, **PRESETS[preset]).abs().max() < 0.01


def test_flat_images_have_no_flow() -> None:
    """Where nothing can be seen there is no motion, and no division by the zero of a patch's gradients."""
    dark, bright = torch.full((1, 1, 60, 70), 0.2), torch.full((1, 1, 60, 70), 0.7)
    for preset in PRESETS.values():
        assert optical_flow_dis(dark, bright, **preset).abs().max() < 0.01


@pytest.mark.parametrize(("preset", "bound"), [("ultrafast", 0.3), ("fast", 0.2), ("medium", 0.02)])
@pytest.mark.parametrize(("dx", "dy"), [(1, 0), (0, -2), (-3, 4), (9, 5), (-20, 12)])
def test_a_translation_is_found_in_the_interior(preset: str, bound: float, dx: int, dy: int) -> None:
    image = texture(160, 200).float()
    flow = optical_flow_dis(image, shifted(image, dx, dy), **PRESETS[preset])[..., 40:-40, 40:-40]
    error = (flow - torch.tensor([dx, dy])[:, None, None]).norm(dim=1)
    assert error.mean() < bound


@pytest.mark.parametrize(("preset", "bound"), [("ultrafast", 0.5), ("fast", 0.25), ("medium", 0.08)])
def test_a_smooth_field_is_found_to_a_fraction_of_a_pixel(preset: str, bound: float) -> None:
    y, x = torch.meshgrid(torch.arange(150).double(), torch.arange(190).double(), indexing="ij")
    dx, dy = 2 * torch.sin(y / 40) + 0.01 * (x - 95), 1.5 * torch.cos(x / 50)
    prev, next = warped(dx, dy, 150, 190)
    flow = optical_flow_dis(prev, next, **PRESETS[preset]).double()[0]
    error = (flow - torch.stack([dx, dy])).norm(dim=0)[16:-16, 16:-16]
    assert error.mean() < bound


@pytest.mark.parametrize(("preset", "bound"), [("ultrafast", 0.3), ("fast", 0.25), ("medium", 0.12)])
@pytest.mark.parametrize(("height", "width"), [(112, 112), (80, 64)])
def test_a_motion_below_a_pixel_is_found_in_small_images(preset: str, bound: float, height: int, width: int) -> None:
    """Of a quarter of a pixel, as on the finest level of the fast presets, patches that stay on whole ones lose all."""
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    dx, dy = 0.9 + 0.3 * torch.sin(y / 30), 0.4 * torch.cos(x / 30) - 0.6
    prev, next = warped(dx, dy, height, width)
    flow = optical_flow_dis(prev, next, **PRESETS[preset]).double()[0]
    assert (flow - torch.stack([dx, dy])).norm(dim=0)[12:-12, 12:-12].mean() < bound


def test_brightness_may_change_during_the_search() -> None:
    """Patches are compared less their means."""
    image = texture(120, 140) * 0.7
    flow = optical_flow_dis(image, shifted(image, 4, -3) + 0.2, refinement_iterations=0)[..., 24:-24, 24:-24]
    error = (flow - torch.tensor([4.0, -3.0], dtype=torch.float64)[:, None, None]).norm(dim=1)
    assert error.mean() < 0.1


def test_refinement_brings_a_rough_flow_nearer() -> None:
    y, x = torch.meshgrid(torch.arange(120).double(), torch.arange(150).double(), indexing="ij")
    dx, dy = 3 * torch.sin(y / 30), 2 * torch.cos(x / 40)
    prev, next = warped(dx, dy, 120, 150)
    truth = torch.stack([dx, dy])

    def error(iterations: int) -> float:
        flow = optical_flow_dis(prev, next, refinement_iterations=iterations, patch_stride=8).double()[0]
        return float((flow - truth).norm(dim=0)[16:-16, 16:-16].mean())

    assert error(5) < 0.7 * error(0)


def test_smoothness_smooths() -> None:
    prev, next = torch.rand(2, 1, 1, 80, 90, generator=torch.Generator().manual_seed(0))

    def roughness(alpha: float) -> float:
        flow = optical_flow_dis(prev, next, alpha=alpha)
        return float(flow.diff(dim=2).abs().mean() + flow.diff(dim=3).abs().mean())

    assert roughness(1.0) > 1.2 * roughness(20.0) > 1.2**2 * roughness(400.0)


@settings(max_examples=8)
@given(height=st.integers(40, 120), width=st.integers(40, 120), seed=st.integers(0, 99))
def test_swapping_the_axes_swaps_the_components(height: int, width: int, seed: int) -> None:
    """Only the order in which patches see their neighbours is another."""
    prev = texture(height, width, seed)
    next = shifted(prev, 1, 1)
    for preset in PRESETS.values():
        flow = optical_flow_dis(prev, next, **preset)
        other = optical_flow_dis(prev.mT.contiguous(), next.mT.contiguous(), **preset)
        assert (other - flow.flip(1).mT).norm(dim=1).mean() < 0.5


@settings(max_examples=12)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    channels=st.sampled_from([1, 3]),
    finest_scale=st.integers(0, 3),
    patch=st.sampled_from([(4, 2), (4, 4), (8, 3), (8, 8), (16, 5), (16, 11)]),
    descent_iterations=st.integers(1, 6),
    refinement_iterations=st.integers(0, 3),
    threads=st.integers(1, 4),
)
def test_the_kernel_is_the_reference_in_double(
    height, width, channels, finest_scale, patch, descent_iterations, refinement_iterations, threads
):
    """Every size, stripe and branch: in float64 rounding is far below any mistake, and turns no decision."""
    prev = texture(height, width).expand(1, channels, height, width)
    next = shifted(prev, 1, 0)
    args = (None, finest_scale, *patch, descent_iterations, refinement_iterations, 20.0, 5.0, 10.0)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        got = torch.ops.vidgen.optical_flow_dis(prev, next, *args, "cpu")
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(got, reference(prev, next, *args), rtol=0, atol=1e-8)


def ramps(wave: float) -> tuple[Tensor, Tensor]:
    """(prev, next) of a picture that rises evenly but for a slight wave, and moves by (2, 1); float32."""
    y, x = torch.meshgrid(torch.arange(96).double(), torch.arange(128).double(), indexing="ij")

    def picture(x: Tensor, y: Tensor) -> Tensor:
        return (x + 0.7 * y) / 220 + 0.02 + wave * torch.sin(x / 9 + 0.3) * torch.cos(y / 7)

    return picture(x, y).float()[None, None], picture(x - 2, y - 1).float()[None, None]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("refinement_iterations", [0, 5])
def test_patches_without_structure_do_not_walk_along_rounding(preset: str, refinement_iterations: int) -> None:
    """On an even ramp H vanishes, but not the products of which it is the difference."""
    prev, next = ramps(0)
    parameters = {**PRESETS[preset], "refinement_iterations": refinement_iterations}
    exact = optical_flow_dis(prev.double(), next.double(), **parameters)
    assert (optical_flow_dis(prev, next, **parameters) - exact).abs().max() < 1e-3
    if refinement_iterations == 0:
        assert exact.abs().max() < 1e-3


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("wave", [0.002, 0.005, 0.02])
def test_where_structure_is_slight_float_is_near_double(preset: str, wave: float) -> None:
    prev, next = ramps(wave)
    exact = optical_flow_dis(prev.double(), next.double(), **PRESETS[preset])
    got = optical_flow_dis(prev, next, **PRESETS[preset])
    assert (got - exact).norm() < 5e-4 * exact.norm()


def test_large_images_have_the_same_bits_on_every_thread_count(threads) -> None:
    """Several stripes of patches, and bands of the solver that meet at seams."""
    prev = texture(300, 420).float().expand(3, 1, 300, 420)
    next = shifted(prev, 2, 1)
    for preset in PRESETS.values():
        results = []
        for count in (1, 2, 3, 5):
            threads(count)
            results.append(optical_flow_dis(prev, next, **preset))
        assert all(torch.equal(results[0], other) for other in results[1:])
        assert torch.equal(results[0][:1], optical_flow_dis(prev[:1], next[:1], **preset))


def test_uint8_is_float_of_the_same_grey_levels() -> None:
    prev = (texture(90, 100) * 255).round().to(torch.uint8)
    next = shifted(prev, 1, 0)
    as_float = optical_flow_dis(prev.float() / 255, next.float() / 255)
    torch.testing.assert_close(optical_flow_dis(prev, next), as_float, rtol=1e-3, atol=1e-3)


def test_colors_become_luma() -> None:
    prev = texture(60, 64).expand(1, 3, 60, 64) * torch.tensor([1.0, 0.5, 0.2], dtype=torch.float64)[:, None, None]
    next = shifted(prev, 1, 0)
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)[:, None, None]
    grey = [(weights * images).sum(dim=1) for images in (prev, next)]
    torch.testing.assert_close(optical_flow_dis(prev, next), optical_flow_dis(*grey), rtol=0, atol=1e-8)


def test_the_true_flow_as_a_start_is_kept_and_helps() -> None:
    """Forty-five pixels are more than the two levels of a low image can find from zero."""
    image = texture(31, 240)
    next = shifted(image, 45, 0)
    truth = torch.tensor([45.0, 0.0], dtype=torch.float64)[:, None, None].expand(1, 2, 31, 240)
    inside = (..., slice(8, -8), slice(12, -60))
    found = optical_flow_dis(image, next, init=truth)
    assert (found - truth)[inside].norm(dim=1).mean() < 0.1
    assert (optical_flow_dis(image, next) - truth)[inside].norm(dim=1).mean() > 1


@settings(max_examples=40)
@given(height=st.integers(1, 40), width=st.integers(1, 40), preset=st.sampled_from(sorted(PRESETS)))
def test_images_of_any_size_have_a_finite_flow(height: int, width: int, preset: str) -> None:
    prev, next = torch.rand(2, 2, 3, height, width, generator=torch.Generator().manual_seed(height + 99 * width))
    flow = optical_flow_dis(prev, next, **PRESETS[preset])
    assert flow.shape == (2, 2, height, width)
    assert flow.isfinite().all()


def test_coarsest_scale() -> None:
    assert coarsest_scale(480, 640, 8) == 4
    assert coarsest_scale(1080, 1920, 8) == 6
    assert coarsest_scale(16, 4000, 8) == 1
    assert coarsest_scale(1, 1, 8) == 0


def test_small_images_are_searched_on_their_last_two_levels() -> None:
    assert [finest_level(2, coarsest) for coarsest in (4, 2, 1, 0)] == [2, 2, 0, 0]
    assert finest_level(0, 0) == 0


def test_the_smoothness_of_small_images_is_less_but_not_below_half() -> None:
    assert [smoothness_share(*size) for size in ((1080, 1920), (100, 100), (50, 98), (20, 20))] == [1, 1, 0.7, 0.5]


# Bad input.


IMAGE: Tensor = torch.zeros(2, 3, 8, 9)


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (TypeError, "prev must be a tensor, got list", {"prev": [1.0]}),
        (ValueError, r"next must have the shape of prev \(2, 3, 8, 9\), got \(2, 3, 8, 8\)", {"next": IMAGE[..., :8]}),
        (ValueError, r"init must have shape \(2, 2, 8, 9\), got \(2, 3, 8, 9\)", {"init": IMAGE}),
        (ValueError, "finest_scale must be from 0 to 30, got -1", {"finest_scale": -1}),
        (ValueError, "patch_size must be 4, 8 or 16, got 12", {"patch_size": 12}),
        (ValueError, "patch_stride must be from 1 to 8, got 9", {"patch_stride": 9}),
        (TypeError, "descent_iterations must be an int, got float", {"descent_iterations": 2.0}),
        (ValueError, "refinement_iterations must be from 0 to 100000, got -1", {"refinement_iterations": -1}),
        (ValueError, "alpha must be from 0.001 to 1e6, got 0", {"alpha": 0}),
        (ValueError, "delta must be from 0 to 1e6, got nan", {"delta": math.nan}),
        (TypeError, "gamma must be a number, got str", {"gamma": "10"}),
        (ValueError, "prev must not require a gradient", {"prev": IMAGE.clone().requires_grad_()}),
    ],
)
def test_bad_arguments_are_named(error, message, change) -> None:
    with pytest.raises(error, match=message):
        optical_flow_dis(**{"prev": IMAGE, "next": IMAGE, **change})


def test_the_op_itself_checks_too() -> None:
    """torch.ops is public, and a kernel must not be handed nonsense from there either."""
    good = [IMAGE, IMAGE, None, 1, 8, 3, 25, 5, 20.0, 5.0, 10.0, "cpu"]
    for index, bad, message in (
        (1, IMAGE[..., :8], "next must have the shape of prev"),
        (2, IMAGE, "init must have shape"),
        (3, 31, "finest_scale must be from 0 to 30"),
        (4, 7, "patch_size must be 4, 8 or 16"),
        (5, 0, "patch_stride must be from 1 to 8"),
        (6, 0, "descent_iterations must be from 1"),
        (7, -1, "refinement_iterations must be from 0"),
        (8, math.nan, "alpha must be from 0.001"),
        (10, -1.0, "gamma must be from 0"),
    ):
        with pytest.raises(RuntimeError, match=message):
            torch.ops.vidgen.optical_flow_dis(*good[:index], bad, *good[index + 1 :])
