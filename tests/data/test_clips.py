"""Frames of the named policies, against numbers worked out by hand: published accuracies hang on them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidgen.data import clip_indices, clip_indices_by_time, random_clip_indices


@pytest.mark.parametrize(
    ("total", "arguments", "expected"),
    [
        # ⌊k·9/3⌋ and ⌊k·9/4⌋
        (10, {"length": 4}, [[0, 3, 6, 9]]),
        (10, {"length": 5}, [[0, 2, 4, 6, 9]]),
        (10, {"length": 1}, [[0]]),
        (3, {"length": 6}, [[0, 0, 0, 1, 1, 2]]),
        # parts 0–4, 5–9
        (10, {"length": 3, "clips": 2}, [[0, 2, 4], [5, 7, 9]]),
        # Δ = 30 − 16 = 14; starts 0, 14/3, 28/3; steps of 15/7: 4⅔ + 15/7·(0 … 7) = 4.67 6.81 8.95 11.10 13.24 …
        (
            30,
            {"length": 8, "stride": 2, "clips": 3, "policy": "slowfast"},
            [
                [0, 2, 4, 6, 8, 10, 12, 15],
                [4, 6, 8, 11, 13, 15, 17, 19],
                [9, 11, 13, 15, 17, 20, 22, 24],
            ],
        ),
        # shorter than a clip: Δ = 0, places 0, 2⅓, 4⅔, 7, clamped to frame 4
        (5, {"length": 4, "stride": 2, "policy": "slowfast"}, [[0, 2, 4, 4]]),
        # Δ = 14: round(0), round(7), round(14)
        (
            30,
            {"length": 8, "stride": 2, "clips": 3, "policy": "mmaction"},
            [[0, 2, 4, 6, 8, 10, 12, 14], [7, 9, 11, 13, 15, 17, 19, 21], [14, 16, 18, 20, 22, 24, 26, 28]],
        ),
        # Δ = 5: 0, 2.5 -> 2 (half to even), 5
        (9, {"length": 4, "clips": 3, "policy": "mmaction"}, [[0, 1, 2, 3], [2, 3, 4, 5], [5, 6, 7, 8]]),
        # one clip: ⌊5 / 2⌋
        (9, {"length": 4, "policy": "mmaction"}, [[2, 3, 4, 5]]),
        # shorter than a clip: modulo 5
        (5, {"length": 4, "stride": 2, "policy": "mmaction"}, [[0, 2, 4, 1]]),
    ],
)
def test_policies_give_the_numbers_worked_out_by_hand(total, arguments, expected):
    indices = clip_indices(total, **arguments)
    assert indices.dtype == torch.int64
    assert indices.tolist() == expected


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # frames wanted: 0, 2, 4, 6, 8 of five
        ("clamp", [0, 2, 4, 4, 4]),
        ("loop", [0, 2, 4, 1, 3]),
        ("wrap", [0, 2, 4, 0, 2]),
        ("repeat_last", [0, 2, 4, 4, 4]),
    ],
)
def test_rules_for_frames_that_the_video_does_not_have(rule, expected):
    got = clip_indices(5, length=5, stride=2, policy="mmaction", out_of_range=rule)
    assert got.tolist() == [expected]


def test_the_clips_last_frame_is_not_always_the_videos():
    # frames 0, 3, 6 of five
    assert clip_indices(5, length=3, stride=3, policy="mmaction", out_of_range="repeat_last").tolist() == [[0, 3, 3]]
    assert clip_indices(5, length=3, stride=3, policy="mmaction", out_of_range="clamp").tolist() == [[0, 3, 4]]


def test_the_rule_error_raises_only_where_a_frame_is_missing():
    with pytest.raises(ValueError, match="out_of_range: the clip needs place 8, the video ends at 8"):
        clip_indices(8, length=5, stride=2, policy="mmaction", out_of_range="error")
    clip_indices(9, length=5, stride=2, policy="mmaction", out_of_range="error")


@settings(max_examples=200)
@given(
    st.integers(1, 400),
    st.integers(1, 40),
    st.integers(1, 12),
    st.integers(1, 9),
    st.sampled_from(["uniform", "slowfast", "mmaction"]),
    st.sampled_from([None, "clamp", "loop", "wrap", "repeat_last"]),
)
def test_every_frame_exists_and_time_does_not_run_backwards(total, length, clips, stride, policy, rule):
    stride = 1 if policy == "uniform" else stride
    rows = clip_indices(total, length=length, clips=clips, stride=stride, policy=policy, out_of_range=rule)
    assert rows.shape == (clips, length)
    assert int(rows.min()) >= 0
    assert int(rows.max()) < total
    if total >= length * stride or rule in ("clamp", "repeat_last"):
        assert bool((rows.diff(dim=1) >= 0).all())
    assert bool((rows[:, 0].diff() >= 0).all())


def test_random_clips_begin_everywhere_they_can_and_follow_their_generator():
    rows = random_clip_indices(10, length=3, stride=2, clips=4000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rows - rows[:, :1], torch.tensor([0, 2, 4]).expand(4000, 3))
    share = rows[:, 0].bincount(minlength=6) / 4000
    assert len(share) == 6
    assert float((share - 1 / 6).abs().max()) < 0.03
    again = random_clip_indices(10, length=3, stride=2, clips=4000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rows, again)
    assert random_clip_indices(3, length=5).tolist() == [[0, 1, 2, 0, 1]]


def test_a_clip_by_time_shows_what_is_on_screen():
    # a second at 4 fps, then a frame that stays for 2 s, then a second at 2 fps: ends at 4 s
    timestamps = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0, 3.0, 3.5])
    at_two = clip_indices_by_time(timestamps, length=8, fps=2)
    assert at_two.tolist() == [[0, 2, 4, 4, 4, 4, 5, 6]]
    # by index every second frame would have shown the long one for a sixth of the clip
    starts = clip_indices_by_time(timestamps, length=2, fps=1, clips=3)  # at 0, 1 and 2 s
    assert starts.tolist() == [[0, 4], [4, 4], [4, 5]]
    middle = clip_indices_by_time(timestamps, length=2, fps=1)  # at 1 s
    assert middle.tolist() == [[4, 4]]


def test_frame_times_that_were_rounded_still_find_their_frame():
    # 30 fps in units of 1/90000 s and as float32: k/30 is below or above them by a rounding
    timestamps = (torch.arange(90) * 3000 / 90000).float()
    assert clip_indices_by_time(timestamps, length=90, fps=30).tolist() == [list(range(90))]
    ntsc = torch.arange(120, dtype=torch.float64) * 1001 / 30000
    assert clip_indices_by_time(ntsc, length=120, fps=30000 / 1001).tolist() == [list(range(120))]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("repeat_last", [0, 1, 2, 3, 3, 3]),
        ("clamp", [0, 1, 2, 3, 3, 3]),
        ("loop", [0, 1, 2, 3, 0, 1]),
        ("wrap", [0, 1, 2, 3, 0, 1]),
    ],
)
def test_rules_apply_to_times_too(rule, expected):
    timestamps = 5.0 + torch.arange(4) / 10
    assert clip_indices_by_time(timestamps, length=6, fps=10, out_of_range=rule).tolist() == [expected]
    # at half the rate the last time in range is 0.2 s
    if rule == "repeat_last":
        assert clip_indices_by_time(timestamps, length=3, fps=5, out_of_range=rule).tolist() == [[0, 2, 2]]
    if rule == "clamp":
        assert clip_indices_by_time(timestamps, length=3, fps=5, out_of_range=rule).tolist() == [[0, 2, 3]]
    with pytest.raises(ValueError, match="out_of_range"):
        clip_indices_by_time(timestamps, length=6, fps=10, out_of_range="error")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clip_indices(0, length=4), "total: expected at least 1, got 0"),
        (lambda: clip_indices(9, length=0), "length: expected at least 1, got 0"),
        (lambda: clip_indices(9, length=4, stride=2), "stride: expected 1 with policy 'uniform'"),
        (lambda: clip_indices(9, length=4, policy="dense"), "policy: expected one of uniform, slowfast, mmaction"),
        (lambda: clip_indices(9, length=4, out_of_range="zero"), "out_of_range: expected one of clamp, repeat_last"),
        (lambda: clip_indices_by_time(torch.tensor([0.0, 0.0]), length=2, fps=1), "timestamps: expected"),
        (lambda: clip_indices_by_time(torch.tensor([0.0, 1.0]), length=2, fps=0), "fps: expected a positive"),
        (lambda: clip_indices_by_time(torch.tensor([0.0, 1.0]), length=2, fps=1, end=1.0), "end: expected a time"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
