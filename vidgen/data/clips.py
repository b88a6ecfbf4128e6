"""Which frames of a video make a clip: the policies in use, by their names.

Published accuracies hang on these choices, and libraries differ in them. F is the number of frames of the video, T that
of a clip, n the number of clips, s the stride, k = 0 … T−1 the place in the clip, i = 0 … n−1 the clip:

    uniform    the video is cut into n parts, and a part's frames a … b give a + ⌊k·(b − a) / (T − 1)⌋, the integer
               linspace. Part i begins at ⌊i·F / n⌋ and ends before part i + 1. All are in range.
    slowfast   start = Δ·i / n with Δ = max(F − T·s, 0), not rounded, and frame ⌊start + k·(T·s − 1) / (T − 1)⌋: the
               last clip ends before the video does, by Δ / n. Out of range: "clamp".
    mmaction   start = round(i·Δ / (n − 1)), half to even, and ⌊Δ / 2⌋ where n = 1; frame start + k·s. Out of range:
               "loop".

Computed in exact fractions: an implementation in float32 may floor an exact whole number to the one below.

What is done about frames that the video does not have:

    clamp         the video's last frame
    repeat_last   the clip's last frame that is in range
    loop          frame mod F: the video begins again
    wrap          the clip's frames that are in range begin again
    error         a ValueError

Sources: Feichtenhofer, Fan, Malik and He, "SlowFast Networks for Video Recognition" (ICCV 2019), section 4, and its
authors' code; the SampleFrames transform of MMAction2; ``repeat_last``, ``wrap`` and ``error`` as TorchCodec has them.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Literal, get_args

import torch
from torch import Tensor

Policy = Literal["uniform", "slowfast", "mmaction"]
OutOfRange = Literal["clamp", "repeat_last", "loop", "wrap", "error"]

_OWN_RULE: dict[str, OutOfRange] = {"uniform": "error", "slowfast": "clamp", "mmaction": "loop"}
# a frame counts as shown, and the video as ended, a microsecond early, so that k / fps meets either, however rounded
_PER_SECOND = 1_000_000


def clip_indices(
    total: int,
    *,
    length: int,
    clips: int = 1,
    stride: int = 1,
    policy: Policy = "uniform",
    out_of_range: OutOfRange | None = None,
) -> Tensor:
    """Frames of evenly spread clips, as for testing: run the network on each, average the probabilities.

    Args:
        total: F, frames of the video.
        length: T, frames of a clip.
        clips: n.
        stride: s, every s-th frame; must be 1 with "uniform", which spans what there is.
        policy: "uniform", "slowfast" or "mmaction".
        out_of_range: "clamp", "repeat_last", "loop", "wrap" or "error"; the policy's own if not given.

    Returns:
        int64 (clips, length), values 0 … total − 1. ``video[indices]`` are the clips.

    Raises:
        ValueError: an argument is not as above, or "error" is asked for and a frame is out of range.
    """
    _check_counts(total=total, length=length, clips=clips, stride=stride)
    if policy not in get_args(Policy):
        raise ValueError(f"policy: expected one of {', '.join(get_args(Policy))}, got {policy!r}")
    if policy == "uniform" and stride != 1:
        raise ValueError(f"stride: expected 1 with policy 'uniform', which spans the video, got {stride}")
    rule = _rule(out_of_range, _OWN_RULE[policy])
    rows = [_FRAMES[policy](total, length, clips, stride, i) for i in range(clips)]
    return _frames(rows, total, rule)


def random_clip_indices(
    total: int,
    *,
    length: int,
    clips: int = 1,
    stride: int = 1,
    out_of_range: OutOfRange = "loop",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Frames of clips that begin anywhere, as for training: start uniform over 0 … F − 1 − (T − 1)·s, each for itself.

    Args:
        total, length, clips, stride: as in ``clip_indices``.
        out_of_range: what to do where the video is shorter than a clip; its start is 0 then.
        generator: of random numbers; torch's global one if not given.

    Returns:
        int64 (clips, length).

    Raises:
        ValueError: as ``clip_indices``.
    """
    _check_counts(total=total, length=length, clips=clips, stride=stride)
    rule = _rule(out_of_range, "loop")
    starts = torch.randint(max(total - (length - 1) * stride, 1), (clips,), generator=generator).tolist()
    rows = [[Fraction(start + k * stride) for k in range(length)] for start in starts]
    return _frames(rows, total, rule)


def clip_indices_by_time(
    timestamps: Tensor,
    *,
    length: int,
    fps: float,
    clips: int = 1,
    end: float | None = None,
    out_of_range: OutOfRange = "repeat_last",
) -> Tensor:
    """Frames of clips at a frame rate of their own, picked by time: for videos whose rate varies, or is not known.

    Clip i begins at first + i·Δ / (n − 1), or first + Δ / 2 where n = 1, with Δ = max(end − first − T / fps, 0); its
    frames are those on screen at start + k / fps. Rules for what is out of range apply to times, "loop" modulo
    end − first, "clamp" to the last frame.

    Args:
        timestamps: float (F,), seconds at which frames appear, rising: ``vidgen.data.read_timestamps``.
        length: T, frames of a clip.
        fps: frames per second of the clip.
        clips: n.
        end: second at which the last frame goes; if not given, it stays for as long as the one before it did.
        out_of_range: "clamp", "repeat_last", "loop", "wrap" or "error".

    Returns:
        int64 (clips, length), values 0 … F − 1. A frame comes several times where the video has fewer per second.

    Raises:
        ValueError: an argument is not as above, or "error" is asked for and a time is out of range.
    """
    times = timestamps.detach().to("cpu", torch.float64)
    if times.dim() != 1 or len(times) == 0 or not bool((times.diff() > 0).all()):
        raise ValueError(f"timestamps: expected (F,) rising seconds, got shape {tuple(timestamps.shape)}")
    _check_counts(length=length, clips=clips)
    if not 0 < fps < float("inf"):
        raise ValueError(f"fps: expected a positive number, got {fps}")
    first, last = float(times[0]), float(times[-1])
    if end is None:
        end = last + (last - float(times[-2]) if len(times) > 1 else 1 / fps)
    if end <= last:
        raise ValueError(f"end: expected a time after the last frame's, {last}, got {end}")
    rule = _rule(out_of_range, "repeat_last")
    # exact from here: fps is the fraction that was meant, 29.97 being 2997/100
    step = 1 / Fraction(fps).limit_denominator(100_000)
    duration = Fraction(round((end - first) * _PER_SECOND) - 1, _PER_SECOND)
    room = max(duration - length * step, Fraction(0))
    starts = [room * i / (clips - 1) if clips > 1 else room / 2 for i in range(clips)]
    shown = Fraction(last - first)
    rows = [_resolved([start + k * step for k in range(length)], duration, shown, rule) for start in starts]
    wanted = torch.tensor([[float(second) for second in row] for row in rows], dtype=torch.float64) + first
    return (torch.searchsorted(times, wanted + 1 / _PER_SECOND, right=True) - 1).clamp(min=0)


def _uniform(total: int, length: int, clips: int, stride: int, i: int) -> list[Fraction]:
    begin, end = i * total // clips, (i + 1) * total // clips
    # a video of fewer frames than clips has parts without a frame; they show the frame that they stand at
    last = max(end - 1, begin)
    return [Fraction(begin + k * (last - begin) // max(length - 1, 1)) for k in range(length)]


def _slowfast(total: int, length: int, clips: int, stride: int, i: int) -> list[Fraction]:
    span = length * stride
    start = Fraction(max(total - span, 0) * i, clips)
    return [Fraction((start + Fraction(k * (span - 1), max(length - 1, 1))).__floor__()) for k in range(length)]


def _mmaction(total: int, length: int, clips: int, stride: int, i: int) -> list[Fraction]:
    room = max(total - length * stride, 0)
    # Python rounds half to even, as numpy does
    start = round(Fraction(i * room, clips - 1)) if clips > 1 else room // 2
    return [Fraction(start + k * stride) for k in range(length)]


_FRAMES: dict[str, Callable[[int, int, int, int, int], list[Fraction]]] = {
    "uniform": _uniform,
    "slowfast": _slowfast,
    "mmaction": _mmaction,
}


def _frames(rows: list[list[Fraction]], total: int, rule: OutOfRange) -> Tensor:
    places = [_resolved(row, Fraction(total), Fraction(total - 1), rule) for row in rows]
    return torch.tensor([[int(place) for place in row] for row in places])


def _resolved(places: list[Fraction], total: Fraction, last: Fraction, rule: OutOfRange) -> list[Fraction]:
    """The clip with every place inside [0, total): frames, or seconds since the first frame.

    Places rise, and the first is in range; ``last`` is where the video's last frame is.
    """
    inside = [place for place in places if place < total]
    if len(inside) == len(places):
        return places
    if rule == "error":
        raise ValueError(
            f"out_of_range: the clip needs place {float(places[-1]):g}, the video ends at {float(total):g}"
        )
    if rule == "loop":
        return [place % total for place in places]
    if rule == "wrap":
        return [inside[k % len(inside)] for k in range(len(places))]
    return [*inside, *[inside[-1] if rule == "repeat_last" else last] * (len(places) - len(inside))]


def _rule(given: OutOfRange | None, own: OutOfRange) -> OutOfRange:
    if given is not None and given not in get_args(OutOfRange):
        raise ValueError(f"out_of_range: expected one of {', '.join(get_args(OutOfRange))}, got {given!r}")
    return given or own


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
