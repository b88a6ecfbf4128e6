"""Stacks hold the fields that the paper's formulas name: against plain loops, and along motions known exactly."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidgen.data import moving_digits
from vidgen.models import displacement_fields, flip_flow_stack, flow_stack, stack_frames
from vidgen.ops import optical_flow


def bilinear(field, x, y):
    """The field (2, H, W) at a point, that of the rim beyond it, by the definition."""
    height, width = field.shape[1:]
    x, y = min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
    x0, y0 = min(int(x), width - 2), min(int(y), height - 2)
    fx, fy = x - x0, y - y0
    top = (1 - fx) * field[:, y0, x0] + fx * field[:, y0, x0 + 1]
    bottom = (1 - fx) * field[:, y0 + 1, x0] + fx * field[:, y0 + 1, x0 + 1]
    return (1 - fy) * top + fy * bottom


def stack_by_loops(fields, frame, length, stacking):
    """One clip's stack, pixel by pixel. fields (1 or 2, T−1, 2, H, W) -> (2L, H, W)"""
    ways, _, _, height, width = fields.shape
    planes = torch.zeros(2 * length, height, width, dtype=fields.dtype)
    chosen = [(0, frame + k) for k in range(length // ways)]
    backward = [(1, frame - 1 - k) for k in range(length // 2)] if ways == 2 else []
    for first, some in ((0, chosen), (len(chosen), backward)):
        for y in range(height):
            for x in range(width):
                px, py = float(x), float(y)
                for k, (way, number) in enumerate(some):
                    field = fields[way, number]
                    found = bilinear(field, px, py) if stacking == "trajectory" else field[:, y, x]
                    planes[2 * (first + k) : 2 * (first + k) + 2, y, x] = found - field.mean(dim=(1, 2))
                    px, py = px + float(found[0]), py + float(found[1])
    return planes


@settings(max_examples=12)
@given(
    ways=st.integers(1, 2),
    half=st.integers(1, 2),
    more=st.integers(1, 3),
    size=st.tuples(st.integers(2, 6), st.integers(2, 6)),
    stacking=st.sampled_from(["optical_flow", "trajectory"]),
    seed=st.integers(0, 1000),
)
def test_stacks_are_the_papers_formulas(ways, half, more, size, stacking, seed):
    length, generator = 2 * half, torch.Generator().manual_seed(seed)
    fields = 2 * torch.randn(2, ways, length + more - 1, 2, *size, generator=generator, dtype=torch.float64)
    possible = stack_frames(length + more, length, bidirectional=ways == 2)
    at = torch.tensor([list(possible), list(reversed(possible))])
    found = flow_stack(fields, at, length, stacking=stacking)
    for clip in range(2):
        for place, frame in enumerate(at[clip].tolist()):
            expected = stack_by_loops(fields[clip], frame, length, stacking)
            torch.testing.assert_close(found[clip, place], expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(flow_stack(fields, at[:, 0], length, stacking=stacking), found[:, 0])


def test_possible_frames_are_those_that_have_all_fields():
    assert list(stack_frames(16, 10)) == [0, 1, 2, 3, 4, 5]
    assert list(stack_frames(16, 10, bidirectional=True)) == [5, 6, 7, 8, 9, 10]
    assert list(stack_frames(2, 1)) == [0]
    fields = torch.zeros(1, 2, 15, 2, 4, 4)
    for wrong in (4, 11):
        with pytest.raises(ValueError, match=f"frames: expected 5 to 10, got {wrong} to {wrong}"):
            flow_stack(fields, torch.tensor([wrong]), 10)


def test_along_a_trajectory_a_moving_thing_keeps_its_displacement():
    """A digit's exact flow, read where its pixels have gone: every field of the stack says how the digit moves then."""
    clips = moving_digits("test", n=6, frames=12, height=40, width=40, digit_size=20, background="texture", seed=4)
    fields = clips.flow[:, None]  # [N, 1, T−1, 2, H, W]
    length, frame = 6, 2
    at = torch.full((6,), frame)
    along = flow_stack(fields, at, length, stacking="trajectory")
    still = flow_stack(fields, at, length)
    ink, steps = clips.ink[:, frame], clips.position.diff(dim=1).float()
    misses = 0
    for clip in range(6):
        for k in range(length):
            expected = steps[clip, frame + k] - fields[clip, 0, frame + k].mean(dim=(1, 2))
            on_digit = along[clip, 2 * k : 2 * k + 2, ink[clip]]
            torch.testing.assert_close(on_digit, expected[:, None].expand_as(on_digit), rtol=0, atol=1e-6)
            misses += int((still[clip, 2 * k : 2 * k + 2, ink[clip]] != on_digit).any())
    # at the same pixels there is soon no ink, or that comes back by chance
    assert misses >= 6 * (length - 1)


def test_a_pan_leaves_nothing_of_itself():
    """The same displacement everywhere is a camera's, and its mean is all of it."""
    pan = torch.tensor([1.5, -0.75])[:, None, None].expand(3, 1, 9, 2, 8, 8)
    for stacking in ("optical_flow", "trajectory"):
        assert not flow_stack(pan, torch.tensor([0, 1, 2]), 5, stacking=stacking).any()


def test_fields_are_the_flow_between_neighbours_both_ways():
    clips = moving_digits("test", n=2, frames=5, height=32, width=24, digit_size=16, background="panning texture")
    options = {"method": "dis", "patch_size": 4, "finest_scale": 0}
    both = displacement_fields(clips.video, bidirectional=True, **options)
    assert both.shape == (2, 2, 4, 2, 32, 24)
    assert torch.equal(displacement_fields(clips.video, chunk=3, **options), both[:, :1])
    for clip in range(2):
        for t in range(4):
            one, other = clips.video[clip : clip + 1, :, t], clips.video[clip : clip + 1, :, t + 1]
            assert torch.equal(both[clip, 0, t], optical_flow(one, other, **options)[0])
            assert torch.equal(both[clip, 1, t], optical_flow(other, one, **options)[0])


def test_flow_of_small_frames_is_near_the_truth():
    """What a temporal stream learns from is the motion, background included, and not noise."""
    clips = moving_digits("test", n=12, digit_size=20, background="panning texture")
    true = clips.flow
    found = displacement_fields(clips.video, method="dis", patch_size=4, finest_scale=0, patch_stride=2)[:, 0]
    error, zero = (found - true).norm(dim=2).mean(), true.norm(dim=2).mean()
    assert error < 0.4 * zero


@pytest.mark.parametrize("stacking", ["optical_flow", "trajectory"])
def test_a_mirrored_clip_has_the_mirrored_stack(stacking):
    fields = 2 * torch.randn(2, 2, 7, 2, 5, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mirrored = fields.flip(-1) * torch.tensor([-1.0, 1.0], dtype=torch.float64)[:, None, None]
    at = torch.tensor([[2, 3], [4, 5]])
    stack = flow_stack(fields, at, 4, stacking=stacking)
    expected = flow_stack(mirrored, at, 4, stacking=stacking)
    torch.testing.assert_close(flip_flow_stack(stack), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(flip_flow_stack(flip_flow_stack(stack)), stack)


def test_half_precision_is_widened_before_anything_is_computed():
    fields = torch.randn(1, 1, 4, 2, 6, 6, generator=torch.Generator().manual_seed(0)).half()
    at = torch.tensor([0])
    for stacking in ("optical_flow", "trajectory"):
        found = flow_stack(fields, at, 4, stacking=stacking)
        assert found.dtype == torch.float32
        assert torch.equal(found, flow_stack(fields.float(), at, 4, stacking=stacking))


@pytest.mark.parametrize("stacking", ["optical_flow", "trajectory"])
@pytest.mark.parametrize("ways", [1, 2])
def test_stacks_of_no_clips_and_at_no_frames_are_empty(stacking, ways):
    none, some = torch.zeros(0, ways, 7, 2, 5, 9), torch.zeros(2, ways, 7, 2, 5, 9)
    for fields, at, shape in ((none, (0,), (0,)), (none, (0, 3), (0, 3)), (some, (2, 0), (2, 0))):
        frames = torch.zeros(at, dtype=torch.int64)
        assert flow_stack(fields, frames, 4, stacking=stacking).shape == (*shape, 8, 5, 9)
    assert displacement_fields(torch.zeros(0, 1, 3, 16, 16), bidirectional=ways == 2).shape == (0, ways, 2, 2, 16, 16)


def test_gradients_reach_the_fields():
    """Also through where a trajectory goes."""
    fields = torch.randn(1, 1, 2, 2, 3, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for stacking in ("optical_flow", "trajectory"):
        torch.autograd.gradcheck(
            lambda x, stacking=stacking: flow_stack(x, torch.tensor([0]), 2, stacking=stacking),
            (fields.requires_grad_(),),
        )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: displacement_fields(torch.zeros(1, 2, 5, 8, 8)), r"clips: expected shape \(N, 1 or 3, T, H, W\)"),
        (lambda: displacement_fields(torch.zeros(1, 1, 1, 8, 8)), "T at least 2"),
        (lambda: displacement_fields(torch.zeros(1, 1, 2, 8, 8), chunk=0), "chunk: expected at least 1, got 0"),
        (lambda: stack_frames(10, 10), "frames: expected more than the stack's length 10, got 10"),
        (lambda: stack_frames(10, 5, bidirectional=True), "length: expected a positive even number"),
        (lambda: stack_frames(10, 0), "length: expected at least 1, got 0"),
        (lambda: flow_stack(torch.zeros(1, 3, 4, 2, 8, 8), torch.tensor([0]), 2), "fields: expected shape"),
        (lambda: flow_stack(torch.zeros(1, 1, 4, 2, 8, 8), torch.tensor([0.0]), 2), "frames: expected whole numbers"),
        (
            lambda: flow_stack(torch.zeros(1, 1, 4, 2, 8, 8), torch.tensor([0]), 2, stacking="pile"),
            "stacking: expected one of optical_flow, trajectory, got 'pile'",
        ),
        (lambda: flip_flow_stack(torch.zeros(3, 8, 8)), "stack: expected shape"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
