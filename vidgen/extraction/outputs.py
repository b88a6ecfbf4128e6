"""Where the flow of a video goes, in which form, and what is there already from an earlier run.

    flo          NAME/flow_000000.flo …           Middlebury's format
    kitti        NAME/flow_000000.png …           KITTI's 16-bit PNG
    images       NAME/flow_x_000000.png, flow_y…  8-bit grey, ±bound, as two-stream networks read them
    safetensors  NAME.safetensors                 "flow" (P, 2, H, W), "timestamps" (P + 1,) float64 seconds
    mp4          NAME.mp4                         the colour wheel; `bound` has the full colour

A file's number is that of the frame that its flow starts from. NAME/flow.json holds the settings, the source's name and
size, whether all is there, and then the times of the frames; the other two forms carry the same within them.

Every file is written under another name, beginning with a dot, then renamed. So a file that is there is whole: after a
run that was killed the next one takes the folder's files as they are, and a single file, of which there was nothing,
begins anew. Where the settings, or the source, are not the same as before, nothing is touched and the reason told.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import struct
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

from torch import Tensor

from vidgen import flow_io
from vidgen.data import VideoWriter
from vidgen.extras import require
from vidgen.files import write_atomically
from vidgen.flow_io.png import MAX_SIDE
from vidgen.ops.optical_flow import METHODS

Format = Literal["flo", "kitti", "images", "safetensors", "mp4"]
FORMATS: tuple[Format, ...] = get_args(Format)
#: forms that are one file for each video, and its suffix
SINGLE_FILES: dict[Format, str] = {"safetensors": ".safetensors", "mp4": ".mp4"}

_RECORD = "flow.json"


@dataclass(frozen=True)
class Settings:
    """All that decides the bytes which are written.

    Attributes:
        format: see the head of this module.
        method, preset: of `vidgen.ops.optical_flow`.
        stride: every stride-th frame is used.
        short_side: frames are resized so that this is their shorter side; None leaves them.
        size: (height, width) to which frames are resized; None leaves them.
        bound: of "images" and "mp4", in pixels.
        dtype: of "safetensors", "float32" or "float16".
        fps: of folders of pictures.
    """

    format: Format
    method: str
    preset: str
    stride: int = 1
    short_side: int | None = None
    size: tuple[int, int] | None = None
    bound: float = 20.0
    dtype: Literal["float32", "float16"] = "float32"
    fps: float = 25.0

    def check(self) -> None:
        """Raises a ValueError that names what cannot be."""
        if self.format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {self.format!r}")
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        presets = METHODS[self.method].presets
        if self.preset not in presets:
            raise ValueError(
                f"preset must be one of {', '.join(presets)} for method {self.method!r}, got {self.preset!r}"
            )
        if self.stride < 1:
            raise ValueError(f"stride must be at least 1, got {self.stride}")
        if self.short_side is not None and not 1 <= self.short_side <= MAX_SIDE:
            raise ValueError(f"short_side must be from 1 to {MAX_SIDE} pixels, got {self.short_side}")
        if self.size is not None and not all(1 <= side <= MAX_SIDE for side in self.size):
            raise ValueError(f"size must be a height and a width from 1 to {MAX_SIDE} pixels, got {self.size}")
        if self.size is not None and self.short_side is not None:
            raise ValueError(f"size must be left out where short_side is given, got {self.size} and {self.short_side}")
        for name, value in (("bound", self.bound), ("fps", self.fps)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, got {value}")
        if self.dtype not in ("float32", "float16"):
            raise ValueError(f"dtype must be float32 or float16, got {self.dtype!r}")
        if self.dtype == "float16" and self.format != "safetensors":
            raise ValueError(f"dtype must be float32 for format {self.format!r}, got 'float16'")

    def record(self, *, is_video: bool) -> dict[str, Any]:
        """Of these, what matters for the bytes of one source; it is written beside its flow."""
        matters = {"format": True, "method": True, "preset": True, "stride": self.stride != 1}
        matters |= {"short_side": self.short_side is not None, "size": self.size is not None}
        matters |= {"bound": self.format in ("images", "mp4"), "dtype": self.format == "safetensors"}
        matters["fps"] = not is_video
        record = {name: value for name, value in asdict(self).items() if matters[name]}
        return json.loads(json.dumps(record))


class Output(ABC):
    """What one video's flow is written to. `write` and then `finish`, or `abandon`.

    Attributes:
        path: the folder or file.
        in_order: flows must come one after the other; otherwise in any order, from several threads.
        done: numbers of the frames whose flow is there; set by `begin`.
    """

    in_order = True

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self.path = path
        self._record = record
        self.done: frozenset[int] = frozenset()

    @abstractmethod
    def _earlier(self) -> dict[str, Any] | None:
        """The record that an earlier run left; an empty one if it left none with what is there, None if nothing is."""

    def is_complete(self) -> bool:
        """Whether an earlier run has done it all.

        Raises:
            ValueError: what is there was made with other settings, or of another source.
        """
        earlier = self._earlier()
        if earlier is None:
            return False
        differing = []
        for part in ("settings", "source"):
            before, now = earlier.get(part, {}), self._record[part]
            names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
            differing += [f"{name} {before.get(name, 'none')} (now {now.get(name, 'none')})" for name in names]
        if differing:
            what = f"was made with {', '.join(differing)}" if earlier else "is not known to be of this command"
            raise ValueError(f"OUT: {self.path} {what}; choose another OUT, or --overwrite to replace it")
        return bool(earlier.get("complete"))

    @abstractmethod
    def begin(self, *, overwrite: bool) -> None:
        """Makes ready to write; with `overwrite` what an earlier run left is removed."""

    @abstractmethod
    def write(self, number: int, seconds: float, flow: Tensor) -> None:
        """Writes the flow (2, H, W) that starts from frame `number`, which appears at `seconds`."""

    @abstractmethod
    def finish(self, flows: int, seconds: array[float]) -> None:
        """All `flows` flows are written; `seconds` has the times of the frames between which they are."""

    @abstractmethod
    def abandon(self) -> None:
        """Removes what cannot be gone on with."""


class FolderOutput(Output):
    """A folder with one or two files for each flow."""

    in_order = False

    def __init__(
        self, path: Path, record: dict[str, Any], names: Sequence[str], write_files: Callable[..., None]
    ) -> None:
        super().__init__(path, record)
        self._names, self._write_files = names, write_files

    def _earlier(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        if not self.path.is_dir():
            return {}
        try:
            earlier = json.loads((self.path / _RECORD).read_bytes())
        except FileNotFoundError:
            return {} if self._numbers() else None
        except ValueError:
            return {}
        if not isinstance(earlier, dict):
            return {}
        # somebody may have removed files since
        return {**earlier, "complete": earlier.get("complete") and len(self._numbers()) == earlier.get("flows")}

    def _numbers(self) -> frozenset[int]:
        """Of the flows all of whose files are there."""
        names = set(os.listdir(self.path))
        # as {:06d} writes them, and so in one way only
        numbers = (int(found) for name in names for found in re.findall(r"_(\d{6,})\.", name))
        return frozenset(n for n in numbers if all(pattern.format(n) in names for pattern in self._names))

    def begin(self, *, overwrite: bool) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        for path in self.path.iterdir():
            # what a killed run was writing, and with overwrite what it had written
            if path.name.startswith((".flow_", f".{_RECORD}")) or (
                overwrite and re.fullmatch(r"flow_(x_|y_)?\d{6,}\.(flo|png)", path.name)
            ):
                path.unlink()
        write_atomically(self.path / _RECORD, _json({**self._record, "complete": False}))
        self.done = self._numbers()

    def write(self, number: int, seconds: float, flow: Tensor) -> None:
        self._write_files(*(self.path / name.format(number) for name in self._names), flow)

    def finish(self, flows: int, seconds: array[float]) -> None:
        ending = {"complete": True, "flows": flows, "timestamps": seconds.tolist()}
        write_atomically(self.path / _RECORD, _json({**self._record, **ending}))

    def abandon(self) -> None:
        # where there is no flow at all, as of a file that is no video, no folder is to tell of it
        if not self._numbers():
            (self.path / _RECORD).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.path.rmdir()


def _json(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, indent=1) + "\n").encode()


class _SingleFile(Output):
    """One file, written under another name until it is whole."""

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        super().__init__(path, record)
        self._temporary = path.with_name(f".{path.name}.partial")

    def begin(self, *, overwrite: bool) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def _publish(self) -> None:
        with self._temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(self._temporary, self.path)

    def abandon(self) -> None:
        self._temporary.unlink(missing_ok=True)


class SafetensorsOutput(_SingleFile):
    """A safetensors file: its length is not known before the end, so room for the header is left in front."""

    def __init__(self, path: Path, record: dict[str, Any], dtype: str) -> None:
        super().__init__(path, record)
        self._dtype = {"float32": "<f4", "float16": "<f2"}[dtype]
        self._file: BinaryIO | None = None
        self._shape: tuple[int, ...] = ()

    def _earlier(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        try:
            with self.path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                # headers of this command's have less than a thousandth of that
                metadata = json.loads(file.read(min(length, 1 << 20)))["__metadata__"]
                return {**json.loads(metadata["vidgen_flow"]), "complete": True}
        except (OSError, ValueError, KeyError, TypeError, struct.error):
            return {}

    def _header(self, flows: int) -> bytes:
        size = int(self._dtype[-1])
        for length in self._shape:
            size *= length
        flow = {"dtype": {"<f4": "F32", "<f2": "F16"}[self._dtype], "shape": [flows, *self._shape]}
        times = {"dtype": "F64", "shape": [flows + 1], "data_offsets": [flows * size, flows * size + 8 * (flows + 1)]}
        header = {
            "__metadata__": {"vidgen_flow": json.dumps(self._record)},
            "flow": {**flow, "data_offsets": [0, flows * size]},
            "timestamps": times,
        }
        return json.dumps(header).encode()

    def write(self, number: int, seconds: float, flow: Tensor) -> None:
        if self._file is None:
            self._shape = tuple(flow.shape)
            self._file = self._temporary.open("wb")
            # as many digits as will ever be, and the data begin at a multiple of 64 bytes
            room = -(-(8 + len(self._header(10**12))) // 64) * 64
            self._file.write(bytes(room))
            self._room = room
        self._file.write(flow.numpy().astype(self._dtype).tobytes())

    def finish(self, flows: int, seconds: array[float]) -> None:
        assert self._file is not None
        self._file.write(b"".join(struct.pack("<d", each) for each in seconds))
        self._file.seek(0)
        # blanks after the header are allowed, in front of it they are not
        self._file.write(struct.pack("<Q", self._room - 8) + self._header(flows).ljust(self._room - 8))
        self._file.close()
        self._publish()

    def abandon(self) -> None:
        if self._file is not None:
            self._file.close()
        super().abandon()


class VideoOutput(_SingleFile):
    """The colour wheel as H.264, each picture at the time of the frame that its flow starts from."""

    def __init__(self, path: Path, record: dict[str, Any], bound: float) -> None:
        super().__init__(path, record)
        self._bound = bound
        self._writer: VideoWriter | None = None

    def _earlier(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        av = require("av", extra="video")
        try:
            with av.open(str(self.path.absolute())) as container:
                return {**json.loads(container.metadata["comment"]), "complete": True}
        except (av.error.FFmpegError, OSError, ValueError, KeyError, TypeError):
            return {}

    def write(self, number: int, seconds: float, flow: Tensor) -> None:
        if self._writer is None:
            size, comment = (flow.shape[1], flow.shape[2]), {"comment": json.dumps(self._record)}
            # flat colours come out as small and as near as with x264's default, in half the time
            self._writer = VideoWriter(self._temporary, size, preset="veryfast", metadata=comment)
        self._writer.write(flow_io.flow_to_rgb(flow, self._bound).numpy(), seconds)

    def finish(self, flows: int, seconds: array[float]) -> None:
        assert self._writer is not None
        self._writer.close()
        self._publish()

    def abandon(self) -> None:
        if self._writer is not None:
            self._writer.close(whole=False)
        super().abandon()


def open_output(folder: Path, name: Path, settings: Settings, record: dict[str, Any]) -> Output:
    """The output of the source `name` under the folder; nothing is written before its `begin`."""
    path = folder / name
    if settings.format in SINGLE_FILES:
        path = path.with_name(path.name + SINGLE_FILES[settings.format])
    return output_at(path, settings, record)


def output_at(path: Path, settings: Settings, record: dict[str, Any]) -> Output:
    """The output that is this very folder or file."""
    if settings.format == "safetensors":
        return SafetensorsOutput(path, record, settings.dtype)
    if settings.format == "mp4":
        return VideoOutput(path, record, settings.bound)
    if settings.format == "kitti":
        return FolderOutput(path, record, ["flow_{:06d}.png"], flow_io.write_kitti)
    if settings.format == "images":

        def write_images(path_x: Path, path_y: Path, flow: Tensor) -> None:
            flow_io.write_bounded(path_x, path_y, flow, settings.bound)

        return FolderOutput(path, record, ["flow_x_{:06d}.png", "flow_y_{:06d}.png"], write_images)
    return FolderOutput(path, record, ["flow_{:06d}.flo"], flow_io.write_flo)
