"""The lines of a row as a fixed sequence of torch ops: what the executor "graph" captures for rows.

Three kinds of row have steps:

- "drawn": the row-rate instructions, before the row's first pixel;
- "known": a row whose pixels are all known; all instructions, whole lines, and the pixels;
- "above": a row above the image, for the lines that a negative lag asks for; all instructions.

Rows of one kind in which the same instructions have a line share a step. Like that of a pixel it finds its addresses in
a table, at the row that a counter on the device names. Each instruction gathers its lines from memory, but for what an
instruction before it has made in place; it writes its line back if anything reads it from memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy
import torch
from torch import Tensor

from vidgen.sampling.graphed_memory import Memory, Numbers, is_single, through
from vidgen.sampling.graphed_moments import MEMORY, Cuts, written
from vidgen.sampling.interpreter import FUNCTIONS
from vidgen.sampling.program import Index, Instruction, Linear, Program, Read

Mode = Literal["drawn", "known", "above"]


def line_of(program: Program, instruction: Instruction, row: int) -> int | None:
    """The line that an instruction makes in an image row, if any."""
    when, height = instruction.when, program.buffers[instruction.destination].height
    line, rest = divmod(row - when.lag[0], when.stride[0])
    there = not rest and 0 <= line < height and line % when.period[0] == when.phase[0]
    return line if there and _columns(program, instruction) else None


def _columns(program: Program, instruction: Instruction) -> range:
    when = instruction.when
    return range(when.phase[1], program.buffers[instruction.destination].width, when.period[1])


@dataclass
class Line:
    """An instruction, or the entering of a step's known pixels (number None), in the rows of a kind.

    Attributes:
        lines: of the destination, by row. columns: of it. start, count: channels of it.
        groups, sources: as in `vidgen.sampling.graphed_moments.Event`; a source is another line of the kind.
    """

    number: int | None
    step: int
    destination: int
    start: int
    count: int
    lines: Numbers
    columns: range
    groups: list[list[Read]] = field(default_factory=list)
    sources: list[list[int]] = field(default_factory=list)


class RowKind:
    """Rows in which the same instructions have a line.

    Attributes:
        mode: see the module's docstring. rows: their numbers.
        lines: what is computed, in order. outputs: by step the reads of its parameters and their sources.
    """

    def __init__(self, program: Program, mode: Mode, numbers: Sequence[int], rows: Sequence[int]):
        self.program, self.mode, self.rows = program, mode, list(rows)
        self._cuts, self._at = Cuts(program), numpy.array(rows)
        by_rate = {rate: [n for n in numbers if program.instructions[n].when.rate == rate] for rate in ("row", "pixel")}
        self.lines: list[Line] = []
        for number in by_rate["row"]:
            self._add(number)
        if mode == "known":
            for step, entered in enumerate(program.inputs):
                buffer = program.buffers[entered]
                self.lines.append(Line(None, step, entered, 0, buffer.channels, self._at, range(buffer.width)))
        for number in by_rate["pixel"]:
            self._add(number)
        self.outputs: list[tuple[list[Read], list[int]]] = []
        if mode == "known":
            for number, start in program.outputs:
                reads = self._cuts.parts(Read(number, start, program.parameters))
                sources = [self._source(read, self._at, range(program.shape[2])) for read in reads]
                self.outputs.append((reads, sources))

    def _add(self, number: int) -> None:
        program, instruction = self.program, self.program.instructions[number]
        when = instruction.when
        start, count = written(program, instruction)
        lines = (self._at - when.lag[0]) // when.stride[0]
        columns = _columns(program, instruction)
        line = Line(number, when.step, instruction.destination, start, count, lines, columns)
        line.groups = self._cuts.groups(program, instruction)
        line.sources = [[self._source(read, lines, columns) for read in group] for group in line.groups]
        self.lines.append(line)

    def _source(self, read: Read, lines: Numbers, columns: range) -> int:
        """The line of this step that has just what is read, the newest; else `MEMORY`."""
        for k in range(len(self.lines) - 1, -1, -1):
            other = self.lines[k]
            if other.destination != read.source or not other.start <= read.start < other.start + other.count:
                continue
            here = read.column == Index() and columns == other.columns
            return k if here and numpy.array_equal(through(read.row, lines), other.lines) else MEMORY
        return MEMORY

    def from_memory(self) -> set[int]:
        """The buffers that are read from memory."""
        reads = [
            pair
            for line in self.lines
            for group in zip(line.groups, line.sources, strict=True)
            for pair in zip(*group, strict=True)
        ]
        reads += [pair for output in self.outputs for pair in zip(*output, strict=True)]
        return {read.source for read, source in reads if source == MEMORY}


def row_kinds(program: Program) -> dict[tuple[Mode, int], RowKind]:
    """By mode and row, the kind; rows without anything to do are left out."""
    first = min(0, *(i.when.lag[0] for i in program.instructions))
    found: dict[tuple[Mode, tuple[int, ...]], list[int]] = {}
    for row in range(first, program.shape[1]):
        there = [n for n, i in enumerate(program.instructions) if line_of(program, i, row) is not None]
        at_once = [n for n in there if program.instructions[n].when.rate == "row"]
        if row < 0:
            found.setdefault(("above", tuple(there)), []).append(row)
            continue
        found.setdefault(("known", tuple(there)), []).append(row)
        if not program.wave:
            found.setdefault(("drawn", tuple(at_once)), []).append(row)
    kinds = {key: RowKind(program, key[0], key[1], rows) for key, rows in found.items()}
    return {(kind.mode, row): kind for kind in kinds.values() if kind.lines for row in kind.rows}


class RowStep:
    """A kind of row, ready to be called: runs the row that the counter names, and leaves the counter at the next.

    Args:
        kind: of row.
        memory: of the batch.
        kept: buffers whose lines are written to memory.
        first: number of the row at which the counter is 0.
    """

    def __init__(self, kind: RowKind, memory: Memory, kept: set[int], first: int):
        program, device = kind.program, memory.row.device
        self.memory, self.lines = memory, kind.lines
        self.made: list[Tensor] = []  # by line, while the step runs
        self._rows = numpy.array(kind.rows)
        self._columns: list[Numbers] = []  # of the table
        longest = max([program.shape[2], *(b.columns * b.channels for b in program.buffers)])
        self.count = torch.arange(longest, device=device)
        # where the image's row begins
        pixel = self._column(self._rows * program.shape[2])
        self._pixels = (pixel, self.count[: program.shape[2]])
        self._makers = [self._maker(line) for line in kind.lines]
        self._puts = [self._put(line) if line.destination in kept else None for line in kind.lines]
        self._outputs = []
        if memory.parameters is not None:
            places = range(program.shape[2])
            self._outputs = [_Group(self, *output, self._rows, places) for output in kind.outputs]
        table = numpy.zeros((program.shape[1] - first, len(self._columns)), dtype=numpy.int64)
        table[self._rows - first] = numpy.stack(self._columns, axis=1)
        self._table = torch.from_numpy(table).to(device)
        self._at = torch.zeros(1, len(self._columns), dtype=torch.int64, device=device)

    def _column(self, numbers: Numbers) -> slice:
        self._columns.append(numbers)
        return slice(len(self._columns) - 1, len(self._columns))

    def columns(self, numbers: list[Numbers]) -> slice:
        """A place in the table for numbers that change with the row."""
        first = len(self._columns)
        self._columns += numbers
        return slice(first, len(self._columns))

    def addresses(self, columns: slice, offsets: Tensor) -> Tensor:
        """Each number of this row, and to each all offsets added: (numbers · offsets,)."""
        return (self._at[0, columns].unsqueeze(1) + offsets).view(-1)

    def __call__(self) -> None:
        memory = self.memory
        torch.index_select(self._table, 0, memory.row, out=self._at)
        memory.row.add_(1)
        self.made = []
        for make, put in zip(self._makers, self._puts, strict=True):
            result = make()  # [N, columns, channels]
            self.made.append(result)
            if put is not None:
                memory.values.index_copy_(1, self.addresses(*put), result.reshape(len(result), -1))
        for step, output in enumerate(self._outputs):
            assert memory.parameters is not None
            of_step = memory.parameters[:, :, step]  # [N, P, pixels]
            of_step.index_copy_(2, self.addresses(*self._pixels), output().transpose(1, 2))
        self.made = []

    def _put(self, line: Line) -> tuple[slice, Tensor]:
        """The column of a line's address, and the offsets of its places from there."""
        buffer = self.memory.program.buffers[line.destination]
        places = (torch.tensor(line.columns) + buffer.left) * buffer.channels
        offsets = places[:, None] + torch.arange(line.start, line.start + line.count)
        column = self._column(self.memory.layout.lines(line.destination, line.lines))
        return column, offsets.view(-1).to(self.count.device)

    def _maker(self, line: Line) -> Callable[[], Tensor]:
        """What computes a line: (N, columns, channels)."""
        memory = self.memory
        if line.number is None:
            canvas = memory.canvas[:, line.step * line.count : (line.step + 1) * line.count]
            return lambda: canvas.index_select(2, self.addresses(*self._pixels)).transpose(1, 2)
        instruction = memory.program.instructions[line.number]
        groups = [
            _Group(self, reads, sources, line.lines, line.columns)
            for reads, sources in zip(line.groups, line.sources, strict=True)
        ]
        if isinstance(instruction, Linear):
            return _linear(instruction, groups, len(memory.values), len(line.columns))
        function, constants = FUNCTIONS[instruction.function], instruction.constants
        return lambda: function(*(group() for group in groups), *constants)


def _linear(instruction: Linear, groups: list[_Group], n: int, columns: int) -> Callable[[], Tensor]:
    given, initial = groups[0], groups[1] if len(groups) > 1 else None
    weight = instruction.weight.detach().expand(n, -1, -1)
    bias = None if instruction.bias is None else instruction.bias.detach().expand(n, columns, -1)

    def run() -> Tensor:
        terms = [] if bias is None else [bias]
        if initial is not None:
            terms.append(initial())
        if instruction.reads:
            # one product per image: its bits do not depend on the batch
            terms.insert(0, torch.bmm(given(), weight))
        result = terms[0]
        for term in terms[1:]:
            result = result + term
        return result

    return run


@dataclass(frozen=True)
class _Tap:
    """What a read takes: channels of a line of this step, of a value that is alike everywhere, or of a gathered line.

    made: number of the line. single: (N, columns, channels). gathered: number of the gather, and of its line.
    """

    channels: slice
    made: int | None = None
    single: Tensor | None = None
    gathered: tuple[int, int] = (0, 0)
    columns: slice | None = None

    def taken(self, made: list[Tensor], gathered: list[Tensor]) -> Tensor:
        if self.made is not None:
            return made[self.made][..., self.channels]
        if self.single is not None:
            return self.single[..., self.channels]
        gather, line = self.gathered
        return gathered[gather][:, line, self.columns, self.channels]


class _Group:
    """Reads of an instruction, side by side in channels; called, it gives (N, columns, channels).

    Lines that it needs of buffers of one size are gathered together.
    """

    def __init__(self, step: RowStep, reads: list[Read], sources: list[int], lines: Numbers, columns: range):
        self._step = step
        self._taps: list[_Tap] = []
        needed: dict[tuple[int, int], list[Numbers]] = {}  # addresses of lines, by their size
        for read, source in zip(reads, sources, strict=True):
            self._taps.append(self._tap(read, source, lines, columns, needed))
        self._gathers = [(step.columns(found), *size) for size, found in needed.items()]

    def _tap(
        self, read: Read, source: int, lines: Numbers, columns: range, needed: dict[tuple[int, int], list[Numbers]]
    ) -> _Tap:
        memory, buffer = self._step.memory, self._step.memory.program.buffers[read.source]
        channels = slice(read.start, read.start + read.count)
        if source != MEMORY:
            start = self._step.lines[source].start
            return _Tap(slice(read.start - start, read.start - start + read.count), made=source)
        if is_single(buffer):
            base = memory.layout.bases[read.source]
            one = memory.values[:, None, base : base + buffer.channels]
            return _Tap(channels, single=one.expand(-1, len(columns), -1))
        found = needed.setdefault((buffer.columns, buffer.channels), [])
        address = memory.layout.lines(read.source, through(read.row, lines))
        which = next((i for i, other in enumerate(found) if numpy.array_equal(other, address)), len(found))
        if which == len(found):
            found.append(address)
        start = read.column(columns[0]) + buffer.left
        stride = columns.step * read.column.step // read.column.divisor
        places = slice(start, start + (len(columns) - 1) * stride + 1, stride)
        gather = list(needed).index((buffer.columns, buffer.channels))
        return _Tap(channels, gathered=(gather, which), columns=places)

    def __call__(self) -> Tensor:
        step, gathered = self._step, []
        for columns, width, channels in self._gathers:
            index = step.addresses(columns, step.count[: width * channels])
            taken = step.memory.values.index_select(1, index)
            gathered.append(taken.view(len(taken), -1, width, channels))  # [N, lines, columns, channels]
        parts = [tap.taken(step.made, gathered) for tap in self._taps]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
