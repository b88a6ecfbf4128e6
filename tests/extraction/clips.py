"""Small videos, and the flow that the op itself finds in them."""

import hashlib
import struct
from pathlib import Path

import torch
import torch.nn.functional as F

from vidgen.data import read_clip, write_clip
from vidgen.extraction import Settings
from vidgen.ops import optical_flow

FAST = {"method": "tvl1", "preset": "fast"}


def settings(format="flo", **others):
    return Settings(format, **FAST, **others)


def panned(frames=6, height=48, width=64, seed=0):
    """A window that wanders over a soft random texture, uint8 (T, H, W, 3)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 20, 24, generator=generator) * 255
    wide = F.interpolate(coarse, size=(height + 40, width + 40), mode="bicubic").clamp(0, 255).to(torch.uint8)[0]
    places = [(abs(k % 40 - 20), abs((2 * k + 9) % 40 - 20)) for k in range(frames)]
    return torch.stack([wide[:, y : y + height, x : x + width].permute(1, 2, 0) for y, x in places])


def make(path, frames=6, **options):
    """Writes a clip; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_clip(path, panned(frames, **options), 25, lossless=True)
    return path


def flow_of(path, stride=1):
    """(P, 2, H, W) by the op, of the frames that `read_clip` reads."""
    frames = read_clip(path).frames[::stride].permute(0, 3, 1, 2)
    return optical_flow(frames[:-1], frames[1:], **FAST)


def turn(source: Path, target: Path, matrix):
    """A copy of an MP4 file that asks players to turn it: (a, b, c, d) of its track header's matrix."""
    content = bytearray(source.read_bytes())
    # ISO/IEC 14496-12, 8.3.2, version 0: the matrix (a b u c d v x y w) is 40 bytes after the header's flags
    where = content.index(b"tkhd") + 4 + 40
    one = [value * 0x10000 for value in matrix]
    content[where : where + 36] = struct.pack(">9i", one[0], one[1], 0, one[2], one[3], 0, 0, 0, 0x40000000)
    target.write_bytes(content)


def tree(folder):
    """Every file under a folder, hidden ones as well, with its content's hash."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
