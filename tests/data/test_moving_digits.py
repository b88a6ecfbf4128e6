"""What moving digits are for: order alone tells the class, and their flow is exact. Both to the bit."""

import hashlib

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidgen.data import MOTIONS, digits, moving_digits

SIZES = st.fixed_dictionaries(
    {
        "frames": st.integers(5, 19),
        "height": st.integers(6, 40),
        "width": st.integers(6, 40),
        "seed": st.integers(0, 2**64 - 1),
    }
)


def frame_set(video):
    """Every frame of a clip as a sorted list of bytes: what is left of it when order is taken away."""
    return sorted(frame.numpy().tobytes() for frame in video[0])


@settings(max_examples=15)
@given(SIZES)
def test_a_clip_shows_the_same_frames_in_every_class(sizes):
    clips = [moving_digits("train", n=6, motion=motion, **sizes) for motion in MOTIONS]
    for number in range(6):
        sets = [frame_set(each.video[number]) for each in clips]
        assert all(one == sets[0] for one in sets)
    assert all(torch.equal(each.source, clips[0].source) for each in clips)


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("frames", [5, 8, 13, 16])
def test_the_frame_of_any_one_time_is_each_place_equally_often(motion, frames):
    """Over clips that differ in nothing but their start, frame t is every frame of the clip once, whatever t is."""
    from vidgen.data.moving_digits import _order

    order = _order(motion, frames)
    for t in range(frames):
        assert sorted((order[t] + start) % frames for start in range(frames)) == list(range(frames))


def test_starts_and_classes_are_uniform_and_independent():
    """The other half of exchangeability: nobody draws the start with regard to the class."""
    clips = moving_digits("train", n=20000, frames=5, height=6, width=6, digit_size=2)
    assert (clips.motion.bincount(minlength=4) / 20000 - 0.25).abs().max() < 0.015
    angle = torch.atan2(*(clips.position.double() - clips.position.double().mean(1, keepdim=True))[:, 0].T)
    for label in range(4):
        of_class = angle[clips.motion == label]
        # mean direction of the first frame's place, seen from the middle of the path: none, in any class
        assert torch.stack([of_class.cos().mean(), of_class.sin().mean()]).norm() < 0.05
        assert (clips.digit[clips.motion == label].bincount(minlength=10) / len(of_class) - 0.1).abs().max() < 0.02


def test_classes_are_what_they_are_called():
    """On the screen, where y points down: the sign of the area that the path encloses, and how often it goes round."""
    for label, motion in enumerate(MOTIONS):
        clips = moving_digits("test", n=40, frames=16, height=64, width=64, digit_size=10, motion=motion)
        assert (clips.motion == label).all()
        centred = clips.position.double() - clips.position.double().mean(1, keepdim=True)
        angle = torch.atan2(centred[..., 1], centred[..., 0])
        turned = (angle.diff(dim=1) + torch.pi).remainder(2 * torch.pi) - torch.pi
        turns = turned.sum(1) / (2 * torch.pi)
        expected = (2 if motion.endswith("twice") else 1) * (-1 if motion.startswith("anti") else 1)
        # the last step of the way round is not shown
        assert ((turns - expected * 15 / 16).abs() < 0.15).all()


@settings(max_examples=15)
@given(SIZES)
def test_flow_carries_every_frame_to_the_next(sizes):
    clips = moving_digits("test", n=4, **sizes)
    video, flow = clips.video[:, 0], clips.flow
    n, frames, height, width = video.shape
    assert flow.shape == (n, frames - 1, 2, height, width)
    assert flow.dtype == torch.float32
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    seen = 0
    for i in range(n):
        for t in range(frames - 1):
            dx, dy = flow[i, t].long()
            assert torch.equal(torch.stack([dx, dy]).float(), flow[i, t])  # whole pixels
            # never out of the picture: indexing would raise or, below 0, wrap
            assert ((x + dx >= 0) & (y + dy >= 0)).all()
            warped = video[i, t + 1][y + dy, x + dx]
            ink = video[i, t] > 0
            occluded = ~ink & (video[i, t + 1] > 0)
            assert torch.equal(warped[~occluded], video[i, t][~occluded])
            assert not flow[i, t][:, ~ink].any()
            seen += int(ink.sum())
    assert seen > 0


@settings(max_examples=10)
@given(SIZES, st.sampled_from(["texture", "panning texture"]))
def test_flow_carries_a_texture_with_its_camera(sizes, background):
    """At every pixel but those that vanish: behind the digit, or out of the picture."""
    clips = moving_digits("test", n=3, background=background, **sizes)
    video, flow = clips.video[:, 0], clips.flow.long()
    n, frames, height, width = video.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    for i in range(n):
        for t in range(frames - 1):
            dx, dy = flow[i, t]
            inside = (x + dx >= 0) & (x + dx < width) & (y + dy >= 0) & (y + dy < height)
            assert inside[clips.ink[i, t]].all()
            there = (y + dy).clamp(0, height - 1), (x + dx).clamp(0, width - 1)
            covered = ~clips.ink[i, t] & clips.ink[i, t + 1][there]
            kept = inside & ~covered
            assert torch.equal(video[i, t + 1][there][kept], video[i, t][kept])
    steps = clips.camera.diff(dim=1)
    assert steps.abs().max() <= 1
    assert background == "panning texture" or not steps.any()


@pytest.mark.parametrize("background", ["texture", "panning texture"])
def test_a_background_changes_nothing_but_itself(background):
    """Digit and motion are those before a plain one, and neither texture nor camera knows of them."""
    plain, one = (moving_digits("train", n=6, background=name, seed=9) for name in ("plain", background))
    for name in ("motion", "digit", "source", "position"):
        assert torch.equal(getattr(plain, name), getattr(one, name))
    assert torch.equal(one.video[:, 0][one.ink], plain.video[:, 0][one.ink])
    assert torch.equal(one.ink, plain.video[:, 0] > 0)
    # one more clip in another class, in a set of another size
    other = moving_digits("train", n=5, background=background, motion="clockwise", seed=9)
    assert torch.equal(other.camera, one.camera[:5])
    seen = ~other.ink & ~one.ink[:5]
    assert torch.equal(other.video[:, 0][seen], one.video[:5, 0][seen])


def test_textures_have_the_spectrum_of_photographs():
    """Amplitudes fall as 1/f: their logarithm against that of f is a line of slope −1; every texture is its own."""
    from vidgen.data.textures import DEVIATION, MEAN, textures

    pictures = textures(300, 32, 48, seed=1).double()
    assert abs(float(pictures.mean()) - MEAN) < 0.5
    assert abs(float(pictures.std(dim=(1, 2)).mean()) - DEVIATION) < 0.5
    amplitude = torch.fft.rfft2(pictures).abs().mean(0)
    f = torch.hypot(torch.fft.fftfreq(32)[:, None], torch.fft.rfftfreq(48)).double()
    band = (f > 0) & (f < 0.4)
    x, y = f[band].log(), amplitude[band].log()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    assert abs(float(slope) + 1) < 0.05
    correlation = torch.corrcoef(pictures.flatten(1))
    assert (correlation - torch.eye(300)).abs().max() < 0.9
    assert correlation.sum() / 300 - 1 < 3


def test_cameras_pan_straight_ahead_within_the_margin():
    from vidgen.data.textures import SPEED, margin, pans

    for frames in (5, 16, 33):
        corner = pans(2000, frames, seed=3)
        assert corner.min() >= 0
        assert corner.max() <= margin(frames)
        # the whole way is what a constant speed makes of it, up to rounding at both ends
        speed = (corner[:, -1] - corner[:, 0]).double() / (frames - 1)
        straight = corner[:, :1] + speed[:, None] * torch.arange(frames)[:, None]
        assert (straight - corner).abs().max() <= 1.5
        assert abs(float(speed.mean())) < 0.05
        assert abs(float(speed.std()) - SPEED / 3**0.5) < 0.05


def test_clips_are_the_digits_at_their_positions():
    """Painted again the slow way, at the digits' own size, where nothing is interpolated."""
    clips = moving_digits("validation", n=5, frames=6, height=12, width=17, digit_size=8, seed=7)
    images, labels = digits("validation")
    for i in range(5):
        sprite = (images[clips.source[i], 0].double() * 255 / 16).round().to(torch.uint8)
        assert clips.digit[i] == labels[clips.source[i]]
        for t in range(6):
            x, y = clips.position[i, t].tolist()
            expected = torch.zeros(12, 17, dtype=torch.uint8)
            expected[y : y + 8, x : x + 8] = sprite
            assert torch.equal(clips.video[i, 0, t], expected)


def test_a_clip_is_a_function_of_seed_and_index():
    many, few = moving_digits(n=50, seed=3), moving_digits(n=7, seed=3)
    for name in ("video", "motion", "digit", "source", "position"):
        assert torch.equal(getattr(many, name)[:7], getattr(few, name))
    assert not torch.equal(moving_digits(n=7, seed=4).position, few.position)
    assert moving_digits(n=0).flow.shape == (0, 15, 2, 32, 32)


def test_clips_never_change():
    """Figures of different years are about the same clips. (Of the positions: interpolation may round elsewhere.)"""
    clips = moving_digits("test", n=64)
    words = torch.cat([clips.position.flatten(), clips.motion, clips.source]).numpy().astype("<i8").tobytes()
    assert hashlib.sha256(words).hexdigest() == "f78972877b92bebfff42cd9edbb46f344560ceb25f1420d5d91fff55b144e089"


def test_splits_share_no_digit():
    sets = []
    for split in ("train", "validation", "test"):
        images, labels = digits(split)
        clips = moving_digits(split, n=3000, frames=5, height=10, width=10, digit_size=8)
        assert torch.equal(clips.digit, labels[clips.source])
        first = clips.video[torch.arange(3000), 0, 0]
        x, y = clips.position[:, 0].unbind(1)
        found = torch.stack([frame[b : b + 8, a : a + 8] for frame, a, b in zip(first, x, y, strict=True)])
        assert torch.equal(found, (images[clips.source, 0].double() * 255 / 16).round().to(torch.uint8))
        sets.append({numpy.asarray(digit).tobytes() for digit in found})
    assert len(sets[2]) > 300
    assert not sets[0] & sets[2]
    assert not sets[1] & sets[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": -1}, "n: expected 0 to"),
        ({"n": 1, "frames": 4}, "frames: expected at least 5, got 4"),
        ({"n": 1, "digit_size": 31}, "digit_size: expected at least 1, and a picture larger by 2 each way, got 31"),
        ({"n": 1, "height": 2}, "digit_size"),
        ({"n": 1, "motion": "left"}, "motion: expected None or one of clockwise"),
        ({"n": 1, "split": "dev"}, "split: expected one of"),
        ({"n": 1, "background": "sea"}, "background: expected one of plain, texture, panning texture, got 'sea'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        moving_digits(**arguments)
