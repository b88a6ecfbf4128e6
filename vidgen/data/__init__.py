"""Data sets of real images that need no download, and clips of videos."""

from vidgen.data.clips import clip_indices, clip_indices_by_time, random_clip_indices
from vidgen.data.digits import DIGITS_LEVELS, digits
from vidgen.data.moving_digits import MOTIONS, MovingDigits, moving_digits
from vidgen.data.video_files import (
    Clip,
    Frame,
    VideoWriter,
    expected_frames,
    iter_frames,
    read_clip,
    read_timestamps,
    write_clip,
)

__all__ = [
    "DIGITS_LEVELS",
    "MOTIONS",
    "Clip",
    "Frame",
    "MovingDigits",
    "VideoWriter",
    "clip_indices",
    "clip_indices_by_time",
    "digits",
    "expected_frames",
    "iter_frames",
    "moving_digits",
    "random_clip_indices",
    "read_clip",
    "read_timestamps",
    "write_clip",
]
