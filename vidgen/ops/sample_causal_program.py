r"""The programs that `vidgen.ops.sample_causal` runs: a causal network taken apart into what each pixel needs.

A program says which values exist (buffers), how each comes from others (instructions, in an order in which every value
is made before it is read) and when. Whoever makes one (`vidgen.sampling.trace` does) answers for its causality.

**Buffers** hold values of `channels` channels on a grid of `height` × `width` positions. Only the last `rows` lines are
kept: line i lies at i mod rows. Left and right of a line are `left` and `right` positions that stay zero, so that a
tap outside the grid reads zero; so does a read of a line outside 0 … height−1. A constant buffer is filled before the
run and has 1 or `height` lines and 1 or `width` columns; one of size 1 is read at every position.

**Reads.** Position (i, j) of an instruction's grid reads its source at line (i·step + offset) / divisor, and the same
for columns; the division is exact wherever the instruction runs.

**Instructions.** `Linear`: initial + bias + Σ reads · weight, with one matrix for all reads, rows in their order.
`Pointwise`: one of FUNCTIONS, channel by channel.

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

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

#: elementwise functions by name -> (their code in an encoded program, tensors that they read, constants that they take)
FUNCTIONS: dict[str, tuple[int, int, int]] = {
    "copy": (0, 1, 0),
    "neg": (1, 1, 0),
    "relu": (2, 1, 0),
    "elu": (3, 1, 1),  # x if x > 0 else alpha·expm1(x)
    "tanh": (4, 1, 0),
    "sigmoid": (5, 1, 0),
    "silu": (6, 1, 0),
    "leaky_relu": (7, 1, 1),
    "exp": (8, 1, 0),
    "abs": (9, 1, 0),
    "clamp": (10, 1, 2),  # from, to
    "scale": (11, 1, 2),  # x · first + second
    "add": (12, 2, 0),
    "sub": (13, 2, 0),
    "mul": (14, 2, 0),
    "div": (15, 2, 0),
    "maximum": (16, 2, 0),
    "minimum": (17, 2, 0),
}

#: buffers begin at multiples of so many elements, and a position's channels are padded to one
ALIGNMENT = 16

_VERSION = 1
HEADS = {"categorical": 0, "logistic_mixture": 1}


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
    def pitch(self) -> int:
        """Elements from the channels of one image at a position to those of the next image."""
        return -(-self.channels // ALIGNMENT) * ALIGNMENT

    @property
    def columns(self) -> int:
        return self.left + self.width + self.right

    def numel(self, n: int) -> int:
        """Elements that the buffer takes for a batch of n: [rows][columns][n][pitch]."""
        return self.rows * self.columns * n * self.pitch


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
        head: "categorical" (P = levels logits) or "logistic_mixture"
            (see `vidgen.ops.discretized_logistic_mixture`).
        mixtures: K of the logistic mixture; 0 for a categorical head.
        levels: number of grey levels.
        wave: 0 for raster order, else s.
    """

    shape: tuple[int, int, int]
    steps: int
    buffers: tuple[Buffer, ...]
    instructions: tuple[Instruction, ...]
    inputs: tuple[int, ...]
    outputs: tuple[tuple[int, int], ...]
    parameters: int
    head: str
    mixtures: int
    levels: int
    wave: int = 0

    @property
    def zeros(self) -> int:
        """Elements per image of the line of zeros that stands in for lines outside a grid."""
        return max(buffer.columns * buffer.pitch for buffer in self.buffers)

    def offsets(self, n: int) -> tuple[list[int], int]:
        """(where each buffer begins in the state, elements of the whole state) for a batch of n.

        The line of zeros comes first.
        """
        offsets, at = [], self.zeros * n
        for buffer in self.buffers:
            offsets.append(at)
            at += buffer.numel(n)
        return offsets, at

    @property
    def duration(self) -> int:
        """Moments of a run: rows in raster order, times of the wavefront."""
        height, width = self.shape[1:]
        lag = max((instruction.when.lag[1] for instruction in self.instructions), default=0)
        return width + max(lag, 0) + self.wave * (height - 1) if self.wave else height

    def encode(self) -> tuple[Tensor, Tensor]:
        """(int64 program, weights) for the native op; the layout is written down at `_encoded`."""
        words = list(_encoded(self))
        dtype, tensors = torch.float32, []
        for instruction in self.instructions:
            if isinstance(instruction, Linear):
                dtype = instruction.weight.dtype
                tensors += [t.reshape(-1) for t in (instruction.weight, instruction.bias) if t is not None]
            elif instruction.constants:
                tensors.append(torch.tensor(instruction.constants, dtype=torch.float64))
        weights = torch.cat([t.detach().to("cpu", dtype) for t in tensors]) if tensors else torch.empty(0, dtype=dtype)
        return torch.tensor(words, dtype=torch.int64), weights


def _encoded(program: Program) -> Iterator[int]:
    """The words of a program. Every offset into the weights counts elements.

    header        version, C, H, W, steps, wave, parameters, head, mixtures, levels, buffers, instructions
    per step      input buffer, output buffer, output's first channel
    per buffer    channels, height, width, rows, left, right, constant
    instruction   words in all (this one included), kind (0 linear, 1 pointwise), rate (0 row, 1 pixel), sh, sw, lh, lw,
                  step, period h, period w, phase h, phase w, destination, number of reads, then
      linear      initial buffer or -1, offset of the weight, offset of the bias or -1
      pointwise   code of the function, first channel of the destination, offset of the constants or -1
      per read    source, start, count, row step, row offset, row divisor, column step, column offset, column divisor
    """
    yield from (_VERSION, *program.shape, program.steps, program.wave, program.parameters, HEADS[program.head])
    yield from (program.mixtures, program.levels, len(program.buffers), len(program.instructions))
    for source, (destination, start) in zip(program.inputs, program.outputs, strict=True):
        yield from (source, destination, start)
    for buffer in program.buffers:
        yield from (buffer.channels, buffer.height, buffer.width, buffer.rows, buffer.left, buffer.right)
        yield int(buffer.constant)
    at = 0
    for instruction in program.instructions:
        when = instruction.when
        yield 17 + 9 * len(instruction.reads)
        yield from (int(isinstance(instruction, Pointwise)), int(when.rate == "pixel"), *when.stride, *when.lag)
        yield from (when.step, *when.period, *when.phase, instruction.destination, len(instruction.reads))
        if isinstance(instruction, Linear):
            yield from (-1 if instruction.initial is None else instruction.initial, at)
            at += instruction.weight.numel()
            yield -1 if instruction.bias is None else at
            at += 0 if instruction.bias is None else instruction.bias.numel()
        else:
            yield from (FUNCTIONS[instruction.function][0], instruction.start, at if instruction.constants else -1)
            at += len(instruction.constants)
        for read in instruction.reads:
            yield from (read.source, read.start, read.count)
            for index in (read.row, read.column):
                yield from (index.step, index.offset, index.divisor)
