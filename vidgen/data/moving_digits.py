"""Moving digits: clips whose class is told by the order of their frames and by nothing else, with exact optical flow.

A real digit of scikit-learn's, drawn larger, goes round on an ellipse, once or twice, clockwise or anticlockwise. It
never leaves the picture and is never cut by its border.

The T frames of a clip show the digit at T places, evenly spread over one turn:

    place j = centre + (rx·cos, ry·sin)(2π·(j + offset) / T), rounded to whole pixels,   j = 0 … T−1

(y points down, so growing j is clockwise). At time t stands the digit at place (order[t] + start) mod T:

    clockwise              order = 0, 1, 2, … T−1
    clockwise twice        order = 0, 2, 4, … then 1, 3, 5, …
    anticlockwise (twice)  the same, backwards

Single frames tell nothing of the class, exactly. Every order is a permutation of the places, and all else (digit,
ellipse, offset, start) is drawn without regard to the class: so a clip's collection of frames has the same
distribution in every class, and with it whatever ignores the frames' order, such as probabilities averaged over frames.
Since ``start`` is uniform over 0 … T−1, the frame of any one time t is each of the T frames with probability 1/T, in
every class, too.

Behind the digit is nothing, or a texture like a photograph's, which stands still or pans as before a moving camera
(``vidgen.data.textures``). A camera's path is drawn without regard to the class, so the frame of any one time still has
the same distribution in every class. A panning one shows, over several frames, in which order they were taken; their
collection is then no longer the same in every class, though no one of them tells anything.

Everything about clip i is a function of (seed, i): Philox4x32-10 with key ``seed`` and counter (i, 0 or 1, 0, 2).
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vidgen.data.digits import DIGITS_LEVELS, Split, digits
from vidgen.data.textures import margin, pans, textures, views
from vidgen.sampling.philox import philox4x32

Motion = Literal["clockwise", "anticlockwise", "clockwise twice", "anticlockwise twice"]

MOTIONS: tuple[Motion, ...] = get_args(Motion)
"""Names of the motion classes, in the order of their labels."""

Background = Literal["plain", "texture", "panning texture"]

_LEAST_FRAMES = 5
_SOURCE = 8


@dataclass(frozen=True)
class MovingDigits:
    """Clips with all that is known of them.

    Attributes:
        video: uint8 (N, 1, T, H, W), 0 (plain background) to 255 (ink); divided by 255 it is what
            ``vidgen.models.C3D`` with ``in_channels=1`` takes.
        motion: int64 (N,), index into ``MOTIONS``.
        digit: int64 (N,), 0 … 9.
        source: int64 (N,), which image of ``digits(split)`` moves.
        position: int64 (N, T, 2), x and y of the digit's upper left corner, in pixels.
        camera: int64 (N, T, 2), x and y of the upper left corner of what is seen of the texture, in its pixels; None
            where the background is plain.
        ink: bool (N, T, H, W), which pixels the digit covers; None where the background is plain, and ink all that is
            not 0.
    """

    video: Tensor
    motion: Tensor
    digit: Tensor
    source: Tensor
    position: Tensor
    camera: Tensor | None = None
    ink: Tensor | None = None

    @property
    def flow(self) -> Tensor:
        """Optical flow, float32 (N, T−1, 2, H, W): F(x, y) = (dx, dy) in pixels, I_{t+1}(x + dx, y + dy) = I_t(x, y).

        Whole numbers; dx is channel 0. Ink moves as its digit does, and never out of the picture; a background moves
        against its camera, which is 0 where it is plain or stands still. So the equation holds to the bit at every
        pixel with one exception, occlusion: background that the digit covers in the next frame or that leaves the
        picture. Made when asked for, since it takes eight times the memory of the clips.
        """
        ink = self.video[:, 0] > 0 if self.ink is None else self.ink
        step = self.position.diff(dim=1).float()  # [N, T−1, 2]
        behind = torch.zeros_like(step) if self.camera is None else -self.camera.diff(dim=1).float()
        return torch.where(ink[:, :-1, None], step[..., None, None], behind[..., None, None])


def moving_digits(
    split: Split = "train",
    *,
    n: int,
    frames: int = 16,
    height: int = 32,
    width: int = 32,
    digit_size: int | None = None,
    motion: Motion | None = None,
    background: Background = "plain",
    seed: int = 0,
) -> MovingDigits:
    """Clips 0 … n−1 of an endless list (what they are: the head of this module).

    Args:
        split: whose digits move: ``"train"``, ``"validation"`` or ``"test"`` of ``vidgen.data.digits``. One seed gives
            other clips in another split, with the same motions.
        n: number of clips; clip i is the same whatever n is.
        frames: T, at least 5; with fewer some orders would be one.
        height, width: of the picture, in pixels.
        digit_size: height and width of the digit, in pixels; half of the picture's smaller side if not given. The
            picture must be larger by at least 2. Other sizes than 8 are interpolated (bicubic, antialiased).
        motion: every clip's class, in place of one drawn for each with equal probabilities. Nothing else about a clip
            depends on it: with another motion the same digit takes the same places in another order.
        background: "plain"; "texture", like a photograph and of one's own in each clip; or "panning texture", over
            which a camera pans by up to a pixel per frame along each axis. Digit and motion are the same before each.
        seed: 0 … 2⁶⁴ − 1.

    Returns:
        The clips, on the CPU.

    Raises:
        ValueError: an argument is not as above.
        ModuleNotFoundError: scikit-learn is not installed (``pip install 'vidgen[data]'``).
    """
    if motion is not None and motion not in MOTIONS:
        raise ValueError(f"motion: expected None or one of {', '.join(MOTIONS)}, got {motion!r}")
    if background not in get_args(Background):
        raise ValueError(f"background: expected one of {', '.join(get_args(Background))}, got {background!r}")
    if not 0 <= n <= 2**32:
        raise ValueError(f"n: expected 0 to 2**32, got {n}")
    if frames < _LEAST_FRAMES:
        raise ValueError(f"frames: expected at least {_LEAST_FRAMES}, got {frames}")
    size = min(height, width) // 2 if digit_size is None else digit_size
    if not 1 <= size <= min(height, width) - 2:
        raise ValueError(
            f"digit_size: expected at least 1, and a picture larger by 2 each way, got {size} in {height}×{width}"
        )
    images, labels = digits(split)
    draws = _draws(n, seed)
    source = _integers(draws[:, 0], len(images))
    classes = _integers(draws[:, 1], len(MOTIONS)) if motion is None else numpy.full(n, MOTIONS.index(motion))
    order = numpy.stack([_order(name, frames) for name in MOTIONS])[classes]  # [N, T]
    shown = (order + _integers(draws[:, 2], frames)[:, None]) % frames
    places = _places(draws[:, 3:], frames, (width - size, height - size))  # [N, T, 2]
    position = numpy.take_along_axis(places, shown[..., None], axis=1)
    rows = torch.from_numpy(source)
    video = _drawn(_enlarged(images[rows], size), torch.from_numpy(position), height, width)
    camera = ink = None
    if background != "plain":
        camera, ink = pans(n, frames, seed), video[:, 0] > 0
        if background == "texture":
            camera = torch.zeros_like(camera)
        room = margin(frames)
        behind = views(textures(n, height + room, width + room, seed), camera, height, width)
        video = torch.where(ink, video[:, 0], behind)[:, None]
    return MovingDigits(
        video=video,
        motion=torch.from_numpy(classes.astype(numpy.int64)),
        digit=labels[rows],
        source=rows,
        position=torch.from_numpy(position),
        camera=camera,
        ink=ink,
    )


def _draws(n: int, seed: int) -> NDArray[numpy.uint32]:
    """Eight random words for each clip, (n, 8)."""
    # the last word keeps these numbers apart from those that images are drawn with and that put examples in order
    words = [philox4x32((numpy.arange(n), block, 0, 2), seed) for block in (0, 1)]
    return numpy.concatenate(words, axis=1)


def _integers(words: NDArray[numpy.uint32], count: int) -> NDArray[numpy.int64]:
    """Uniform over 0 … count−1."""
    return (words.astype(numpy.uint64) * numpy.uint64(count) >> numpy.uint64(32)).astype(numpy.int64)


def _order(motion: Motion, frames: int) -> NDArray[numpy.int64]:
    """The places in the order in which they are shown, (T,); a permutation."""
    places = numpy.arange(frames)
    if motion.endswith("twice"):
        places = numpy.concatenate([places[::2], places[1::2]])
    return places[::-1] if motion.startswith("anticlockwise") else places


def _places(words: NDArray[numpy.uint32], frames: int, room: tuple[int, int]) -> NDArray[numpy.int64]:
    """Where the digit's corner goes on one turn, (N, T, 2); ``room`` is the greatest x and the greatest y."""
    u = (words.astype(numpy.float64) + 0.5) / 2**32  # [N, 5], in (0, 1)
    angle = 2 * numpy.pi * (numpy.arange(frames) + u[:, :1]) / frames  # [N, T]
    axes = []
    for axis, wave in enumerate((numpy.cos(angle), numpy.sin(angle))):
        # from half of what there is room for to all of it, and never less than a pixel
        radius = numpy.maximum(room[axis] / 2 * (0.5 + 0.5 * u[:, 1 + axis]), 1.0)
        centre = radius + (room[axis] - 2 * radius) * u[:, 3 + axis]
        axes.append(numpy.rint(centre[:, None] + radius[:, None] * wave))
    return numpy.clip(numpy.stack(axes, axis=-1), 0, room).astype(numpy.int64)


def _enlarged(images: Tensor, size: int) -> Tensor:
    """Digits (N, 1, 8, 8), 0 … 16 -> uint8 (N, size, size), 0 … 255."""
    scaled = images.float() * (255 / (DIGITS_LEVELS - 1))
    if size != _SOURCE and len(images):
        scaled = F.interpolate(scaled, size=(size, size), mode="bicubic", antialias=True)
    return scaled[:, 0].round().clamp(0, 255).to(torch.uint8)


def _drawn(sprites: Tensor, position: Tensor, height: int, width: int) -> Tensor:
    """Sprites (N, S, S) at their positions (N, T, 2) -> clips (N, 1, T, H, W)."""
    n, frames, _ = position.shape
    size = sprites.shape[-1]
    inside = torch.arange(size)
    rows = position[..., 1, None] + inside  # [N, T, S]
    columns = position[..., 0, None] + inside
    video = torch.zeros(n, 1, frames, height, width, dtype=torch.uint8)
    clip, time = torch.arange(n)[:, None, None, None], torch.arange(frames)[:, None, None]
    video[clip, 0, time, rows[..., :, None], columns[..., None, :]] = sprites[:, None]
    return video
