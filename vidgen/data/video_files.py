"""Video files: reading and writing frames, as clips or one by one, by PyAV, which brings its FFmpeg along.

Frames are uint8 (T, H, W, 3), red first, the right way up: a rotation that the file asks players for, as phones do, is
carried out. Which frames make a clip is ``vidgen.data.clips``' matter:

    timestamps = read_timestamps(path)                                        # no frame is decoded
    indices = clip_indices_by_time(timestamps, length=16, fps=5, clips=10)    # [10, 16]
    clip = read_clip(path, indices.flatten())                                 # [160, H, W, 3]

``iter_frames`` and ``VideoWriter`` hold a frame or two at a time, however long the video is.
"""

import contextlib
import io
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

import numpy
import torch
from torch import Tensor

from vidgen.extras import require
from vidgen.files import write_atomically

_CONTAINERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
# the unit of MPEG's clocks: 1/24, 1/25, 1/30 and 1001/30000 s are whole numbers of it
_TICKS_PER_SECOND = 90_000


class Clip(NamedTuple):
    """Some frames of a video.

    Attributes:
        frames: uint8 (T, H, W, 3), red first.
        timestamps: float64 (T,), seconds at which they appear, as the file has them.
    """

    frames: Tensor
    timestamps: Tensor


class Frame(NamedTuple):
    """One frame of a video that is read from the beginning to the end.

    Attributes:
        seconds: when it appears, as the file has it.
        size: height and width, the right way up.
        picture: gives uint8 (H, W, 3), red first; with an argument, (height, width), resized by the triangle filter,
            antialiased. A frame whose picture is not asked for is not converted.
    """

    seconds: float
    size: tuple[int, int]
    picture: Callable[..., numpy.ndarray]


def read_timestamps(path: str | Path) -> Tensor:
    """Seconds at which the frames of a video's first video stream appear, float64 (F,), rising.

    The file's packets are read, not decoded (unless it gives them no times).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no video that can be read.
        ModuleNotFoundError: PyAV is not installed (``pip install 'vidgen[video]'``).
    """
    with _opened(path) as (container, stream):
        ticks, _ = _index(container, stream)
        return _seconds(ticks, stream)


def read_clip(path: str | Path, indices: Tensor | Sequence[int] | None = None) -> Clip:
    """Frames of a video's first video stream.

    Of each stretch between two key frames that has a frame asked for, the frames up to the last such are decoded, one
    after the other: memory is that of the frames asked for.

    Args:
        path: the file.
        indices: which frames, (T,), 0 … F − 1, in any order and as often as wanted; all if not given.

    Returns:
        The frames in the order of ``indices``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no video that can be read, a frame asked for is damaged or missing, or an index is not one.
        ModuleNotFoundError: PyAV is not installed (``pip install 'vidgen[video]'``).
    """
    with _opened(path) as (container, stream):
        ticks, keys = _index(container, stream)
        chosen = list(range(len(ticks))) if indices is None else [int(i) for i in indices]
        for i in chosen:
            if not 0 <= i < len(ticks):
                raise ValueError(f"indices: expected 0 to {len(ticks) - 1}, the frames of {path}, got {i}")
        if not chosen:
            raise ValueError("indices: expected at least one frame, got none")
        pictures: dict[int, numpy.ndarray] = {}
        needed = sorted({ticks[i] for i in chosen})
        # frames that begin at one key frame are decoded together
        for key, group in groupby(needed, lambda tick: keys[max(bisect_right(keys, tick) - 1, 0)]):
            pictures |= _decoded(container, stream, key, list(group), path)
        frames = numpy.stack([pictures[ticks[i]] for i in chosen])
        return Clip(torch.from_numpy(frames), _seconds([ticks[i] for i in chosen], stream))


def iter_frames(path: str | Path, *, threads: int = 0) -> Iterator[Frame]:
    """The frames of a video's first video stream, one by one, in the order in which they appear.

    Memory is that of the decoder. A frame that the file gives no time follows the one before it at the average rate.
    Pictures (png, jpeg, …) are videos of one frame.

    Args:
        path: the file.
        threads: of the decoder, 0 for as many as there are processor cores; each may hold a frame.

    Raises:
        FileNotFoundError, ValueError, ModuleNotFoundError: as ``read_clip``, damage when it is reached.
    """
    with _opened(path) as (container, stream):
        stream.thread_type, stream.codec_context.thread_count = "AUTO", threads
        step, seconds = 1 / float(stream.average_rate or 25), None
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise ValueError(f"path: {path} is damaged, or cut off, after {seconds or 0:g} s")
            for frame in packet.decode():
                following = 0.0 if seconds is None else seconds + step
                seconds = following if frame.time is None else float(frame.time)
                if frame.is_corrupt:
                    raise ValueError(f"path: the frame at {seconds:g} s of {path} is damaged")
                turned = round(frame.rotation / 90) % 2 == 1
                size = (frame.width, frame.height) if turned else (frame.height, frame.width)
                yield Frame(seconds, size, partial(_upright, frame))
        if seconds is None:
            raise ValueError(f"path: {path} has no frame")


def expected_frames(path: str | Path) -> int | None:
    """How many frames a video says that it has, else about how many its length makes; None if it tells neither.

    Raises:
        FileNotFoundError, ValueError, ModuleNotFoundError: as ``read_clip``. Only the file's header is read.
    """
    with _opened(path) as (container, stream):
        if stream.frames:
            return int(stream.frames)
        if container.duration and stream.average_rate:
            return max(round(container.duration / 1e6 * float(stream.average_rate)), 1)
        return None


class VideoWriter:
    """Writes frames as H.264, one by one; at the end of its ``with`` statement, or after ``close``, the file is whole.

    The bytes depend on the frames, their times and the version of x264, not on the number of processor cores.

    Args:
        file: path, or file open for writing and seeking. It is not whole, and so no video, until the end.
        size: (height, width) of the frames.
        container: "mp4", "mov" or "matroska".
        fps: about how many frames come per second; x264 spends its bits by it.
        lossless, crf: as in ``write_clip``.
        preset: x264's, from "ultrafast" to "placebo": the slower, the smaller the file.
        threads: of x264; the bytes depend on their number.
        metadata: name to text, such as title or comment.
    """

    def __init__(
        self, file: str | Path | IO[bytes], size: tuple[int, int], *, container: str = "mp4", fps: float = 25.0,
        lossless: bool = False, crf: int = 18, preset: str = "medium", threads: int = 1,
        metadata: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self._av = require("av", extra="video")
        target = str(Path(file).absolute()) if isinstance(file, (str, Path)) else file
        self._container = self._av.open(target, "w", format=container)
        self._container.metadata.update(metadata or {})
        rate = Fraction(fps).limit_denominator(1001)
        self._stream = self._container.add_stream("libx264rgb" if lossless else "libx264", rate=rate)
        self._stream.height, self._stream.width = size
        halves = size[0] % 2 == 0 and size[1] % 2 == 0
        self._stream.pix_fmt = "rgb24" if lossless else "yuv420p" if halves else "yuv444p"
        self._stream.options = {"preset": preset, **({"qp": "0"} if lossless else {"crf": str(crf)})}
        context = self._stream.codec_context
        context.time_base = self._stream.time_base = Fraction(1, _TICKS_PER_SECOND)
        context.thread_count = threads
        self._tick = -1

    def write(self, picture: numpy.ndarray, seconds: float) -> None:
        """Adds a frame, uint8 (H, W, 3); its time is moved to 1/90,000 s after that of the one before, if not later."""
        self._tick = max(round(seconds * _TICKS_PER_SECOND), self._tick + 1)
        frame = self._av.VideoFrame.from_ndarray(numpy.ascontiguousarray(picture), format="rgb24")
        frame.pts, frame.time_base = self._tick, Fraction(1, _TICKS_PER_SECOND)
        self._container.mux(self._stream.encode(frame))

    def close(self, *, whole: bool = True) -> None:
        """Ends the file; where it is not to be whole, frames that x264 still holds are dropped."""
        try:
            if whole:
                self._container.mux(self._stream.encode())
        finally:
            self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(whole=kind is None)


def write_clip(
    path: str | Path,
    frames: Tensor | numpy.ndarray,
    fps: float | None = None,
    *,
    timestamps: Sequence[float] | Tensor | None = None,
    lossless: bool = False,
    crf: int = 18,
) -> None:
    """Writes frames as H.264; the file appears whole or not at all, and replaces one of that name.

    Args:
        path: .mp4, .mov or .mkv.
        frames: uint8 (T, H, W, 3), red first, T at least 1.
        fps: frames per second.
        timestamps: (T,) seconds at which the frames appear, rising, rounded to 1/90,000 s; in place of ``fps``.
        lossless: keep every bit (H.264 in RGB; not every player shows it). Otherwise colours are kept at half the
            resolution, as in most videos (4:2:0), or, where H or W is odd, at all of it.
        crf: x264's constant rate factor, 0 … 51; lower is better and larger.

    Raises:
        ValueError, TypeError: an argument is not as above. FileNotFoundError: the folder does not exist.
        ModuleNotFoundError: PyAV is not installed (``pip install 'vidgen[video]'``).
    """
    path = Path(path)
    pictures = numpy.asarray(frames.cpu() if isinstance(frames, Tensor) else frames)
    ticks = _check_writing(path, pictures, fps, timestamps, crf)
    rate = fps if fps is not None else len(ticks)
    buffer = io.BytesIO()
    options: dict[str, Any] = {"container": _CONTAINERS[path.suffix], "lossless": lossless, "crf": crf, "threads": 0}
    with VideoWriter(buffer, pictures.shape[1:3], fps=rate, **options) as writer:
        for picture, tick in zip(pictures, ticks, strict=True):
            writer.write(picture, tick / _TICKS_PER_SECOND)
    write_atomically(path, buffer.getvalue())


def _check_writing(
    path: Path, pictures: numpy.ndarray, fps: float | None, timestamps: Sequence[float] | Tensor | None, crf: int
) -> list[int]:
    """The frames' times in ticks."""
    if path.suffix not in _CONTAINERS:
        raise ValueError(f"path: expected a name that ends in {', '.join(_CONTAINERS)}, got {path.name!r}")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"path: there is no folder {path.parent}")
    if pictures.dtype != numpy.uint8:
        raise TypeError(f"frames: expected uint8, got {pictures.dtype}")
    if pictures.ndim != 4 or pictures.shape[-1] != 3 or 0 in pictures.shape:
        raise ValueError(f"frames: expected shape (T, H, W, 3) with at least one frame, got {pictures.shape}")
    if not 0 <= crf <= 51:
        raise ValueError(f"crf: expected 0 to 51, got {crf}")
    if (fps is None) == (timestamps is None):
        raise ValueError("fps: expected either fps or timestamps")
    if fps is not None:
        if not 0 < fps <= _TICKS_PER_SECOND:
            raise ValueError(f"fps: expected a number in (0, {_TICKS_PER_SECOND}], got {fps}")
        return [round(Fraction(k * _TICKS_PER_SECOND) / Fraction(fps)) for k in range(len(pictures))]
    assert timestamps is not None
    if not all(math.isfinite(second) for second in timestamps):
        raise ValueError(f"timestamps: expected finite seconds, got {list(map(float, timestamps))}")
    ticks = [round(float(second) * _TICKS_PER_SECOND) for second in timestamps]
    rising = all(before < after for before, after in pairwise(ticks)) and ticks[0] >= 0
    if len(ticks) != len(pictures) or not rising:
        raise ValueError(
            f"timestamps: expected {len(pictures)} rising times from 0 on, got {list(map(float, timestamps))}"
        )
    return ticks


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[tuple[Any, Any]]:
    """The file and its first video stream; FFmpeg's errors inside become a ValueError that names the file."""
    av = require("av", extra="video")
    if not Path(path).is_file():
        raise FileNotFoundError(f"path: there is no file {path}")
    if Path(path).stat().st_size == 0:
        raise ValueError(f"path: {path} is empty")
    try:
        with av.open(str(Path(path).absolute()), metadata_errors="replace") as container:
            if not container.streams.video:
                raise ValueError(f"path: {path} has no video stream")
            yield container, container.streams.video[0]
    except av.error.FFmpegError as error:
        reason = error.strerror or type(error).__name__
        raise ValueError(f"path: {path} is damaged, or no video that FFmpeg can read: {reason}") from None


def _index(container: Any, stream: Any) -> tuple[list[int], list[int]]:
    """Times of all frames and of the key frames, in the stream's ticks, rising."""
    # of each packet its time alone is kept: together they are the whole file
    times = [(each.pts, each.is_keyframe) for each in container.demux(stream) if each.size and not each.is_discard]
    if any(tick is None for tick, _ in times):
        # an old container without presentation times: they come out of the decoder
        container.seek(0, stream=stream)
        times = [(frame.pts, False) for frame in container.decode(stream) if frame.pts is not None]
    ticks = sorted({tick for tick, _ in times})
    if not ticks:
        raise ValueError(f"path: {container.name} has no frame")
    # what comes before the first key frame is asked of the beginning
    return ticks, sorted(tick for tick, is_key in times if is_key) or ticks[:1]


def _decoded(container: Any, stream: Any, key: int, needed: list[int], path: str | Path) -> dict[int, numpy.ndarray]:
    """The frames of these times, which are at or after the key frame."""
    found: dict[int, numpy.ndarray] = {}
    wanted = set(needed)
    container.seek(key, stream=stream)
    for frame in container.decode(stream):
        if frame.pts in wanted:
            if frame.is_corrupt:
                raise ValueError(f"path: the frame at {float(frame.pts * stream.time_base):g} s of {path} is damaged")
            found[frame.pts] = _upright(frame)
        if len(found) == len(wanted) or (frame.pts is not None and frame.pts > needed[-1]):
            break
    missing = sorted(wanted - found.keys())
    if missing:
        at = float(missing[0] * stream.time_base)
        raise ValueError(f"path: {path} is damaged: the frame at {at:g} s cannot be decoded")
    return found


def _upright(frame: Any, size: tuple[int, int] | None = None) -> numpy.ndarray:
    # the angle counts anticlockwise, and so does rot90
    quarters = round(frame.rotation / 90) % 4
    resizing: dict[str, Any] = {}
    if size is not None:
        height, width = size if quarters % 2 == 0 else (size[1], size[0])
        resizing = {"height": height, "width": width, "interpolation": "BILINEAR"}
    return numpy.rot90(frame.to_ndarray(format="rgb24", **resizing), k=quarters)


def _seconds(ticks: Sequence[int], stream: Any) -> Tensor:
    return torch.tensor([float(tick * stream.time_base) for tick in ticks], dtype=torch.float64)
