"""What is hidden is found, what moves consistently is kept; and both directions in one call are those of two."""

import math

import pytest
import torch
from torch import Tensor

from tests.ops.motions import shifted, texture
from vidgen.ops import flow_consistency, optical_flow, optical_flow_bidirectional
from vidgen.ops.optical_flow import METHODS


def constant(dx: float, dy: float, height: int = 20, width: int = 30) -> Tensor:
    return torch.tensor([float(dx), float(dy)])[:, None, None].expand(1, 2, height, width).clone()


def test_a_motion_and_its_inverse_agree_but_where_they_leave_the_image() -> None:
    mask = flow_consistency(constant(3, -2), constant(-3, 2))
    expected = torch.zeros(1, 20, 30, dtype=torch.bool)
    expected[:, 2:, :-3] = True
    assert torch.equal(mask, expected)


def test_the_tolerance_is_that_of_the_formula() -> None:
    """|f + b|² against alpha (|f|² + |b|²) + beta, on both sides of the limit, for several alpha and beta."""
    for alpha, beta in ((0.01, 0.5), (0.0, 0.25), (0.1, 0.0)):
        # f = (1, 0), b = (e - 1, 0): the limit is where e² = alpha (1 + (e - 1)²) + beta
        limit = (-alpha + math.sqrt(alpha**2 + (1 - alpha) * (2 * alpha + beta))) / (1 - alpha)
        for excess, agrees in ((limit - 1e-3, True), (limit + 1e-3, False)):
            mask = flow_consistency(constant(1, 0), constant(excess - 1, 0), alpha=alpha, beta=beta)
            assert mask[:, :, :-1].eq(agrees).all()


def test_flows_that_are_not_finite_are_not_consistent() -> None:
    for bad in (math.nan, math.inf):
        forward, backward = constant(0, 0), constant(0, 0)
        forward[0, 1, 3, 4] = backward[0, 0, 10, 11] = bad
        mask = flow_consistency(forward, backward)
        assert not mask[0, 3, 4]
        assert not mask[0, 10, 11]
        assert mask[0, 12:, 14:].all()


def occlusion() -> tuple[Tensor, Tensor, Tensor]:
    """A square of 40 pixels that moves by (10, 4) over a background at rest; and where it hides what was to be seen."""
    background, square = texture(120, 160, 1), texture(120, 160, 7)
    at, then = torch.zeros(2, 1, 1, 120, 160, dtype=torch.bool)
    at[..., 40:80, 50:90] = True
    then[..., 44:84, 60:100] = True
    prev = torch.where(at, square, background)
    next = torch.where(then, shifted(square, 10, 4), background)
    return prev, next, (then & ~at)[0]


def test_what_a_moving_square_hides_is_found_and_the_rest_is_consistent() -> None:
    prev, next, hidden = occlusion()
    _, _, consistent = optical_flow_bidirectional(prev, next)
    assert (~consistent)[hidden].double().mean() > 0.8
    # patches and smoothness blur the flow's edge
    near = torch.nn.functional.max_pool2d(hidden.double()[None], 25, stride=1, padding=12)[0] > 0
    assert consistent[~near].double().mean() > 0.97


def test_a_consistent_motion_is_consistent_everywhere() -> None:
    image = texture(90, 110)
    forward, backward, consistent = optical_flow_bidirectional(image, shifted(image, 2, -1))
    assert forward.shape == backward.shape == (1, 2, 90, 110)
    assert consistent[:, 8:-8, 8:-8].all()
    assert optical_flow_bidirectional(image, image).consistent.all()


@pytest.mark.parametrize("method", METHODS)
def test_both_directions_at_once_have_the_bits_of_two_calls(method) -> None:
    prev, next = torch.rand(2, 3, 3, 40, 44, generator=torch.Generator().manual_seed(0))
    preset = "fast"
    forward, backward, consistent = optical_flow_bidirectional(prev, next, method=method, preset=preset)
    assert torch.equal(forward, optical_flow(prev, next, method=method, preset=preset))
    assert torch.equal(backward, optical_flow(next, prev, method=method, preset=preset))
    assert torch.equal(consistent, flow_consistency(forward, backward))


def test_grey_images_no_images_and_compiled_calls() -> None:
    prev, next = torch.rand(2, 2, 24, 28, generator=torch.Generator().manual_seed(0))
    both = optical_flow_bidirectional(prev, next, preset="fast")
    assert all(
        torch.equal(a, b)
        for a, b in zip(both, optical_flow_bidirectional(prev[:, None], next[:, None], preset="fast"), strict=True)
    )
    assert optical_flow_bidirectional(prev[:0], next[:0]).consistent.shape == (0, 24, 28)
    compiled = torch.compile(optical_flow_bidirectional, fullgraph=True, backend="eager")
    assert all(torch.equal(a, b) for a, b in zip(both, compiled(prev, next, preset="fast"), strict=True))


FLOW = torch.zeros(2, 2, 6, 7)


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (TypeError, "forward must be a floating-point tensor, got list", {"forward": [0.0]}),
        (TypeError, "backward must be a floating-point tensor, got torch.int64", {"backward": FLOW.long()}),
        (ValueError, r"forward must have shape \(N, 2, H, W\), got \(2, 6, 7\)", {"forward": FLOW[0]}),
        (ValueError, r"backward must have the shape of forward \(2, 2, 6, 7\)", {"backward": FLOW[:1]}),
        (ValueError, "alpha must be finite and at least 0, got -1", {"alpha": -1}),
        (ValueError, "beta must be finite and at least 0, got nan", {"beta": math.nan}),
        (TypeError, "beta must be a number, got str", {"beta": "1"}),
    ],
)
def test_bad_arguments_are_named(error, message, change) -> None:
    with pytest.raises(error, match=message):
        flow_consistency(**{"forward": FLOW, "backward": FLOW, **change})


def test_images_that_differ_are_refused_before_they_are_joined() -> None:
    image = torch.zeros(1, 3, 8, 8)
    with pytest.raises(TypeError, match="next must have the dtype of prev"):
        optical_flow_bidirectional(image, image.double())
    with pytest.raises(ValueError, match="next must have the shape of prev"):
        optical_flow_bidirectional(image, image[..., :7])


def test_a_start_of_one_direction_is_refused_by_name() -> None:
    image = torch.zeros(1, 3, 8, 8)
    with pytest.raises(TypeError, match="init must not be given: it is a flow of one direction"):
        optical_flow_bidirectional(image, image, init=torch.zeros(1, 2, 8, 8))
