"""PNG files of 8-bit grey levels and of 16-bit colours, to the bit.

Pillow reduces 16-bit colours to 8 bits, so files are written here (a PNG is a zlib stream in three chunks) and read by
PyAV, after everything that a decoder might trust has been checked.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from vidgen.extras import require
from vidgen.files import write_atomically

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: (bits of a sample, colour type of the standard) -> samples of a pixel, numpy dtype, the decoder's name of the format
_KINDS: dict[tuple[int, int], tuple[int, np.dtype[Any], str]] = {
    (8, 0): (1, np.dtype(np.uint8), "gray"),
    (16, 2): (3, np.dtype(">u2"), "rgb48be"),
}
#: the longest side that is believed; a frame of 8K video is 7680 wide
MAX_SIDE = 32768


def write_png(path: str | Path, image: np.ndarray) -> None:
    """Writes (H, W) uint8 as grey levels or (H, W, 3) uint16 as colours, under a temporary name, then renamed."""
    grey = image.ndim == 2 and image.dtype == np.uint8
    if not grey and not (image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint16):
        raise ValueError(f"image must be (H, W) uint8 or (H, W, 3) uint16, got {image.shape} {image.dtype}")
    height, width = image.shape[:2]
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise ValueError(f"image must be 1 to {MAX_SIDE} pixels high and wide, got {image.shape}")
    bits, color_type = (8, 0) if grey else (16, 2)
    lines = np.ascontiguousarray(image.astype(_KINDS[bits, color_type][1])).view(np.uint8).reshape(height, -1)
    # filter 2 keeps the difference to the line above, which in a flow is nearly always small
    filtered = np.full((height, lines.shape[1] + 1), 2, np.uint8)
    filtered[0, 1:] = lines[0]
    np.subtract(lines[1:], lines[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 6)), (b"IEND", b""))
    write_atomically(path, _SIGNATURE + b"".join(_chunk(kind, data) for kind, data in chunks))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def read_png(path: str | Path) -> np.ndarray:
    """(H, W) uint8 or (H, W, 3) uint16 of a PNG file of 8-bit grey levels or 16-bit colours.

    Raises:
        ValueError: no such file of a PNG; the message says what is wrong. Nothing of a size that a header merely claims
            is allocated before the data are known to be there.
        ModuleNotFoundError: PyAV is missing.
    """
    path = Path(path)
    content = path.read_bytes()
    kind, height, width = _check(path, content)
    av = require("av", extra="video")
    frames = av.CodecContext.create("png", "r").decode(av.Packet(content))
    if len(frames) != 1 or frames[0].format.name != kind or (frames[0].height, frames[0].width) != (height, width):
        raise ValueError(f"{path} cannot be decoded as a PNG of {width} x {height} pixels, {kind}")
    return frames[0].to_ndarray()


def _check(path: Path, content: bytes) -> tuple[str, int, int]:
    """The decoder's name of the format, height and width of a file that is whole and as long as its header says."""
    if content[:8] != _SIGNATURE:
        raise ValueError(f"{path} is not a PNG file: it starts with {content[:8]!r}")
    at, header, streams, ended = 8, b"", [], False
    while not ended:
        if at + 12 > len(content):
            raise ValueError(f"{path} is truncated: it ends after {len(content)} bytes, before its last chunk")
        (length,) = struct.unpack_from(">I", content, at)
        kind, data = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        if at + 12 + length > len(content):
            raise ValueError(f"{path} is truncated: chunk {kind!r} of {length} bytes is not all there")
        if content[at + 8 + length : at + 12 + length] != struct.pack(">I", zlib.crc32(kind + data)):
            raise ValueError(f"{path} is damaged: chunk {kind!r} has a wrong check sum")
        if (kind == b"IHDR") != (at == 8) or (kind == b"IHDR" and length != 13):
            raise ValueError(f"{path} is not a PNG file: it must start with one header of 13 bytes")
        header = data if kind == b"IHDR" else header
        if kind == b"IDAT":
            streams.append(data)
        at, ended = at + 12 + length, kind == b"IEND"
    width, height, bits, color_type, *rest = struct.unpack(">IIBBBBB", header)
    if (bits, color_type) not in _KINDS or rest != [0, 0, 0]:
        raise ValueError(
            f"{path} must be 8-bit grey or 16-bit RGB, not interlaced, got {bits} bits, colour type {color_type}"
        )
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise ValueError(f"{path} must be 1 to {MAX_SIDE} pixels high and wide, got {width} x {height}")
    samples, dtype, name = _KINDS[bits, color_type]
    expected = height * (width * samples * dtype.itemsize + 1)
    if (got := _inflated_size(path, b"".join(streams), expected)) != expected:
        words = "more than that" if got > expected else str(got)
        raise ValueError(f"{path} must hold {expected} bytes for {width} x {height} pixels, got {words}")
    return name, height, width


def _inflated_size(path: Path, stream: bytes, limit: int) -> int:
    """How many bytes a zlib stream holds, counted in pieces and no further than just beyond `limit`."""
    inflater, size = zlib.decompressobj(), 0
    try:
        while stream and size <= limit:
            size += len(inflater.decompress(stream, 1 << 20))
            stream = inflater.unconsumed_tail
        size += len(inflater.flush()) if size <= limit else 0
    except zlib.error as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if size <= limit and not inflater.eof:
        raise ValueError(f"{path} is truncated: its data end after {size} of {limit} bytes")
    return size
