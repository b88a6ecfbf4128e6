"""Data sets of real images that need no download, and clips of videos."""

from vidgen.data.clips import clip_indices, clip_indices_by_time, random_clip_indices
from vidgen.data.digits import DIGITS_LEVELS, digits
from vidgen.data.moving_digits import MOTIONS, MovingDigits, moving_digits
from vidgen.data.video_files import Clip, read_clip, read_timestamps, write_clip

__all__ = [
    "DIGITS_LEVELS",
    "MOTIONS",
    "Clip",
    "MovingDigits",
    "clip_indices",
    "clip_indices_by_time",
    "digits",
    "moving_digits",
    "random_clip_indices",
    "read_clip",
    "read_timestamps",
    "write_clip",
]
