"""Sampling programs: a causal network taken apart into what each pixel needs.

A program says which values exist (buffers), how each comes from others (instructions, in an order in which every value
is made before it is read) and when. Whoever makes one (`vidgen.sampling.trace` does) answers for its causality.

**Buffers** hold values of `channels` channels on a grid of `height` × `width` positions. Only the last `rows` lines are
kept: line i lies at i mod rows. Left and right of a line are `left` and `right` positions that stay zero, so that a
tap outside the grid reads zero; so does a read of a line outside 0 … height−1. A constant buffer is filled before the
run and has 1 or `height` lines and 1 or `width` columns; one of size 1 is read at every position.

**Reads.** Position (i, j) of an instruction's grid reads its source at line (i·step + offset) / divisor, and the same
for columns; the division is exact wherever the instruction runs.

**Instructions.** `Linear`: initial + bias + Σ reads · weight, with one matrix for all reads, rows in their order.
`Pointwise`: an elementwise function, by its name in `vidgen.sampling.interpreter`.

**When.** The image is drawn in raster order, rows r, columns c, and `steps` steps within a pixel; step g draws channels
g·C/steps … of the pixel from the parameters that output g has there. An instruction with strides (sh, sw) and lag
(lh, lw) makes line i = (r − lh) / sh, where that is a line of its grid (and i mod period = phase, for the parts of a
transposed convolution), in image row r:

- rate "row": the whole line at once, before the row's first pixel;
- rate "pixel": position j = (c − lw) / sw before step `step` of pixel c, where j is a column of the grid with the right
  phase. Columns begin before the image at the least lag and run on beyond it by the largest, so that lines are whole.

With a negative lh lines are made for rows above the image: before row 0 those rows, from the least lh on, run like rows
whose pixels are known, but for the pixels, which they have not.

A row whose pixels are all known needs no draws: its row-rate instructions run, its pixels are entered, and then its
pixel-rate instructions run for whole lines.

**Wavefront** programs (`wave` = s > 0) have pixel-rate instructions only. Time t visits the pixels with c + s·r = t,
all rows together: an instruction makes every position with sw·j + s·(sh·i + lh) + lw = t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class Index:
    """Line (or column) n reads line (n·step + offset) / divisor of the source."""

    step: int = 1
    offset: int = 0
    divisor: int = 1

    def __call__(self, n: int) -> int:
        return (n * self.step + self.offset) // self.divisor


@dataclass(frozen=True)
class Read:
    """`count` channels from `start` of buffer `source`, at one place relative to the reader's."""

    source: int
    start: int
    count: int
    row: Index = Index()
    column: Index = Index()


@dataclass(frozen=True)
class Buffer:
    """Values on a grid; see the module's docstring."""

    name: str
    channels: int
    height: int
    width: int
    rows: int
    left: int = 0
    right: int = 0
    constant: bool = False

    @property
    def columns(self) -> int:
        return self.left + self.width + self.right

    def numel(self, n: int) -> int:
        """Elements that the buffer takes for a batch of n: [rows][columns][n][channels]."""
        return self.rows * self.columns * n * self.channels


@dataclass(frozen=True)
class When:
    """The moments and positions of an instruction; see the module's docstring. Pairs are (rows, columns)."""

    rate: Literal["row", "pixel"]
    stride: tuple[int, int] = (1, 1)
    lag: tuple[int, int] = (0, 0)
    step: int = 0
    period: tuple[int, int] = (1, 1)
    phase: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Linear:
    """destination = initial + bias + [reads] · weight; weight (Σ counts, channels of the destination)."""

    when: When
    destination: int
    reads: tuple[Read, ...]
    weight: Tensor
    bias: Tensor | None = None
    initial: int | None = None


@dataclass(frozen=True)
class Pointwise:
    """destination[start + c] = function(reads …)[c]; every read has as many channels."""

    when: When
    destination: int
    function: str
    reads: tuple[Read, ...]
    constants: tuple[float, ...] = ()
    start: int = 0


Instruction = Linear | Pointwise


@dataclass(frozen=True)
class Program:
    """A network as its sampler runs it.

    Attributes:
        shape: (C, H, W) of the image.
        steps: G, draws per pixel.
        buffers, instructions: see the module's docstring.
        inputs: by step the buffer of the C / G channels that it draws, as the network reads them (in [-1, 1]).
        outputs: by step the place of its P parameters, (buffer, first channel); the buffer has the image's grid.
        parameters: P.
        wave: 0 for raster order, else s.
    """

    shape: tuple[int, int, int]
    steps: int
    buffers: tuple[Buffer, ...]
    instructions: tuple[Instruction, ...]
    inputs: tuple[int, ...]
    outputs: tuple[tuple[int, int], ...]
    parameters: int
    wave: int = 0

    def offsets(self, n: int) -> tuple[list[int], int]:
        """(where each buffer begins in the state, elements of the whole state) for a batch of n."""
        offsets, at = [], 0
        for buffer in self.buffers:
            offsets.append(at)
            at += buffer.numel(n)
        return offsets, at

    @property
    def runs_whole_rows(self) -> bool:
        """Whether rows whose pixels are all known can be run one after the other, each as whole lines.

        Raster programs can: their lags say when a line is made. A wavefront has lags for positions alone, and cannot
        where one reads a line below its own.
        """
        reads = (read for instruction in self.instructions for read in instruction.reads)
        return not self.wave or all(read.row.offset <= 0 or self.buffers[read.source].constant for read in reads)

    @property
    def duration(self) -> int:
        """Moments of a run: rows in raster order, times of the wavefront."""
        height, width = self.shape[1:]
        lag = max((instruction.when.lag[1] for instruction in self.instructions), default=0)
        return width + max(lag, 0) + self.wave * (height - 1) if self.wave else height
