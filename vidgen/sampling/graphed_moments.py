"""The moments of a program, sorted into kinds: what the executor "graph" knows before it draws anything.

At a moment one pixel is drawn (of each lane, see below). Which instructions run there depends on row and column modulo
the strides; so does where each finds what it reads: in memory, or, made in the same moment, in a register. Moments for
which both agree are of one *kind*, and one captured graph serves them all. What differs between them are addresses:
a table holds those of every moment.

An instruction that does not exist at some moments of a kind, at the edges of its grid, runs there all the same: it
reads zeros and writes to the dump. Columns beside the image, where only a few instructions run, are kinds of their own.

**Lanes.** A wavefront program draws several rows at once. Row r is the business of lane r modulo the number of lanes,
and a lane without a row reads zeros and writes to the dump. So a moment gathers all it needs before it computes
anything; a program in which a lane would need what another makes in the same moment is refused (`CrossingError`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy
from numpy.typing import NDArray

from vidgen.sampling.graphed_memory import Layout, Numbers, is_single, through
from vidgen.sampling.program import Instruction, Linear, Pointwise, Program, Read, When

MEMORY = -1
"""The source of a read that finds its value in memory."""
_NOWHERE = -2
_OUTSIDE = -(10**6)  # a column of no grid


class CrossingError(ValueError):
    """A row needs what another row makes in the same moment."""


@dataclass
class Event:
    """An instruction, or the drawing of a step, and where it stands at every moment.

    Attributes:
        number: of the instruction; None for a draw.
        step: of the pixel.
        groups: what it reads, each group to be side by side: a linear instruction's reads, and its initial value if it
            has one; each read of an elementwise one; the parameters of a draw. Reads are cut where instructions that
            write their source meet, so that one instruction makes all of each.
        destination, start, count: the channels that it writes.
        line, column: [moments, lanes], in the destination's grid. there: whether there is such a position.
        sources: by group and read, [moments, lanes]: `MEMORY`, or the event of the same moment that makes the value.
    """

    number: int | None
    step: int
    groups: list[list[Read]]
    destination: int
    start: int
    count: int
    line: Numbers
    column: Numbers
    there: NDArray[numpy.bool_]
    sources: list[list[NDArray[numpy.int16]]] = field(default_factory=list)


@dataclass(frozen=True)
class Kind:
    """Moments with the same events in the same relations: sources[event] by group and read as in `Event`."""

    events: tuple[int, ...]
    sources: dict[int, tuple[tuple[int, ...], ...]]


class Cuts:
    """Where, in the channels of a buffer, instructions that write it meet."""

    def __init__(self, program: Program):
        self._at: list[set[int]] = [set() for _ in program.buffers]
        for instruction in program.instructions:
            start, count = written(program, instruction)
            self._at[instruction.destination] |= {start, start + count}

    def parts(self, read: Read) -> list[Read]:
        end = read.start + read.count
        at = [read.start, *sorted(c for c in self._at[read.source] if read.start < c < end), end]
        return [Read(read.source, a, b - a, read.row, read.column) for a, b in itertools.pairwise(at)]

    def groups(self, program: Program, instruction: Instruction) -> list[list[Read]]:
        """As in `Event`."""
        if isinstance(instruction, Pointwise):
            return [self.parts(read) for read in instruction.reads]
        groups = [[part for read in instruction.reads for part in self.parts(read)]]
        if instruction.initial is not None:
            count = program.buffers[instruction.initial].channels
            groups.append(self.parts(Read(instruction.initial, 0, count)))
        return groups


def written(program: Program, instruction: Instruction) -> tuple[int, int]:
    """(first channel, channels) that an instruction writes."""
    if isinstance(instruction, Linear):
        return 0, program.buffers[instruction.destination].channels
    return instruction.start, instruction.reads[0].count


class Moments:
    """A program's moments: of raster order, row by row; else the times of the wavefront.

    Attributes:
        columns: of a row in raster order; they begin before the image and end behind it.
        lanes: rows at once.
        rows, places: [moments, lanes], the pixel of the image. height and width of 0 for none.
        events: in the order in which they run.
        kinds: as few as there may be. kind_of: by moment.
    """

    def __init__(self, program: Program, layout: Layout):
        self.program, self.layout = program, layout
        _, height, width = program.shape
        self._pixels = [i for i in program.instructions if i.when.rate == "pixel"]
        lags = [0, *(i.when.lag[1] for i in self._pixels)]
        self.columns = range(min(lags), width + max(lags))
        self.lanes = min(height, -(-len(self.columns) // program.wave)) if program.wave else 1
        self.rows, self.places = self._wavefront() if program.wave else self._raster()
        self._made: dict[object, tuple[Numbers, Numbers, NDArray[numpy.bool_]]] = {}
        self.events = list(self._events())
        self._find_sources()
        self.kinds: list[Kind] = []
        self.kind_of = self._sort_into_kinds()

    def _raster(self) -> tuple[Numbers, Numbers]:
        rows, places = numpy.meshgrid(numpy.arange(self.program.shape[1]), numpy.array(self.columns), indexing="ij")
        return rows.reshape(-1, 1), places.reshape(-1, 1)

    def _wavefront(self) -> tuple[Numbers, Numbers]:
        wave, height = self.program.wave, self.program.shape[1]
        time, lane = numpy.arange(self.program.duration)[:, None], numpy.arange(self.lanes)
        newest = numpy.minimum(time // wave, height - 1)
        rows = newest - (newest - lane) % self.lanes  # negative: none yet
        places = time - wave * rows
        return rows, numpy.where((rows >= 0) & (places < len(self.columns)), places, _OUTSIDE)

    def _events(self) -> Iterator[Event]:
        program, cuts = self.program, Cuts(self.program)
        _, height, width = program.shape
        for step in range(program.steps):
            for number, instruction in enumerate(program.instructions):
                when = instruction.when
                if when.rate == "pixel" and when.step == step:
                    groups = cuts.groups(program, instruction)
                    start, count = written(program, instruction)
                    buffer = program.buffers[instruction.destination]
                    place = self._positions(when, (buffer.height, buffer.width))
                    yield Event(number, step, groups, instruction.destination, start, count, *place)
            number, start = program.outputs[step]
            groups = [cuts.parts(Read(number, start, program.parameters))]
            place = self._positions(When("pixel"), (height, width))
            entered = program.inputs[step]
            yield Event(None, step, groups, entered, 0, program.buffers[entered].channels, *place)

    def _positions(self, when: When, size: tuple[int, int]) -> tuple[Numbers, Numbers, NDArray[numpy.bool_]]:
        """(line, column, whether they exist) at every moment, of a grid's instructions; many have the same."""
        key = (replace(when, step=0), size)
        if key not in self._made:
            found, there = [], numpy.ones(self.rows.shape, dtype=numpy.bool_)
            for axis, at in enumerate((self.rows, self.places)):
                n, rest = numpy.divmod(at - when.lag[axis], when.stride[axis])
                there &= (rest == 0) & (n >= 0) & (n < size[axis]) & (n % when.period[axis] == when.phase[axis])
                found.append(n)
            self._made[key] = found[0], found[1], there
        return self._made[key]

    def when(self, event: Event) -> When:
        return When("pixel") if event.number is None else self.program.instructions[event.number].when

    def _find_sources(self) -> None:
        writers: dict[int, list[int]] = {}
        for k, event in enumerate(self.events):
            for group in event.groups:
                event.sources.append([self._source(event, read, writers.get(read.source, [])) for read in group])
            writers.setdefault(event.destination, []).append(k)

    def _source(self, event: Event, read: Read, writers: list[int]) -> NDArray[numpy.int16]:
        found = numpy.where(event.there, MEMORY, _NOWHERE).astype(numpy.int16)
        line, column = through(read.row, event.line), through(read.column, event.column)
        for w in writers:
            writer = self.events[w]
            if not writer.start <= read.start < writer.start + writer.count:
                continue
            when, buffer = self.when(writer), self.program.buffers[read.source]
            # the pixel at which the writer makes what is read
            row, place = line * when.stride[0] + when.lag[0], column * when.stride[1] + when.lag[1]
            made = event.there & (line >= 0) & (line < buffer.height) & (column >= 0) & (column < buffer.width)
            made &= (line % when.period[0] == when.phase[0]) & (column % when.period[1] == when.phase[1])
            here = made & (row == self.rows) & (place == self.places)
            wave = self.program.wave
            if wave and (made & ~here & (place + wave * row == self.places + wave * self.rows)).any():
                raise CrossingError(f"{buffer.name} is read by another row in the moment in which it is made")
            found[here] = w
        return found

    # Kinds.

    def _sort_into_kinds(self) -> Numbers:
        sources = numpy.array([s for e in self.events for group in e.sources for s in group])  # [reads, moments, lanes]
        owner = numpy.array([k for k, e in enumerate(self.events) for group in e.groups for _ in group])
        bare = numpy.array([e.there for e in self.events])  # [events, moments, lanes]: some read nothing
        kind_of = numpy.zeros(len(self.rows), dtype=numpy.int64)
        for members in self._classes():
            groups = [members]
            if self._clash(sources[:, members]):
                groups = _alike(members, sources, bare)
                if any(self._clash(sources[:, group]) for group in groups):
                    raise CrossingError("rows that are drawn at once find what they read in different places")
            for group in groups:
                events = numpy.flatnonzero(bare[:, group].any(axis=(1, 2)))
                kind = self._kind(events, sources[:, group].max(axis=(1, 2), initial=_NOWHERE), owner)
                if kind not in self.kinds:
                    self.kinds.append(kind)
                kind_of[group] = self.kinds.index(kind)
        return kind_of

    def _classes(self) -> Iterator[Numbers]:
        """Moments with the same row and column modulo what instructions ask for; beside the image, the same column."""
        if self.program.wave:
            yield numpy.arange(len(self.rows))
            return
        whens = [i.when for i in self._pixels]
        every = [math.lcm(*(when.stride[a] * when.period[a] for when in whens)) for a in (0, 1)]
        row, column = self.rows[:, 0] % every[0], self.places[:, 0]
        inside = (column >= 0) & (column < self.program.shape[2])
        names = numpy.stack([row, numpy.where(inside, column % every[1], column), inside], axis=1)
        _, which = numpy.unique(names, axis=0, return_inverse=True)
        for name in range(which.max() + 1):
            yield numpy.flatnonzero(which.reshape(-1) == name)

    def _clash(self, sources: Numbers) -> bool:
        """Whether a read finds its value in a register at one moment and elsewhere at another."""
        there = sources > _NOWHERE
        least = numpy.where(there, sources, len(self.events)).min(axis=(1, 2), initial=len(self.events))
        most = sources.max(axis=(1, 2), initial=_NOWHERE)
        return bool(((least < most) & (most > _NOWHERE)).any())

    def _kind(self, events: Numbers, source: Numbers, owner: Numbers) -> Kind:
        found: dict[int, tuple[tuple[int, ...], ...]] = {}
        for k in events.tolist():
            flat = iter(source[owner == k].tolist())
            found[k] = tuple(tuple(next(flat) for _ in group) for group in self.events[k].groups)
        return Kind(tuple(events.tolist()), found)


def _alike(members: Numbers, sources: Numbers, there: NDArray[numpy.bool_]) -> list[Numbers]:
    """Moments, divided into those with exactly the same events and sources."""
    found: dict[bytes, list[int]] = {}
    for moment in members.tolist():
        found.setdefault(sources[:, moment].tobytes() + there[:, moment].tobytes(), []).append(moment)
    return [numpy.array(group) for group in found.values()]


class Table:
    """The addresses of every moment, one column per thing that is found or put somewhere.

    Column 0 is 0, for what stands at one address at all moments. A moment's line is that of each lane, one after the
    other, and then the pixel of each lane, height·width where it has none.
    """

    def __init__(self, moments: Moments):
        self._moments, self._layout = moments, moments.layout
        self._columns: list[Numbers] = [numpy.zeros(moments.rows.shape, dtype=numpy.int64)]
        self._known = {self._columns[0].tobytes(): 0}
        self._written: dict[int, int] = {}

    @property
    def width(self) -> int:
        return len(self._columns)

    def _column(self, addresses: Numbers) -> int:
        key = addresses.tobytes()
        if key not in self._known:
            self._known[key] = self.width
            self._columns.append(addresses)
        return self._known[key]

    def read(self, event: Event, read: Read) -> tuple[int, int]:
        """(column, what to add to it) for the first channel that an event reads in memory."""
        base = self._layout.bases[read.source] + read.start
        if is_single(self._moments.program.buffers[read.source]):
            return 0, base
        place = through(read.row, event.line), through(read.column, event.column)
        at, there = self._layout.position(read.source, *place)
        if there[event.there].all():
            # relative to the base many reads are alike
            return self._column(numpy.where(event.there, at, 0)), base
        return self._column(numpy.where(event.there & there, at + base, self._layout.zeros)), 0

    def write(self, event: Event) -> tuple[int, int]:
        """The same for where an event's first channel is put."""
        at, there = self._layout.position(event.destination, event.line, event.column)
        base = self._layout.bases[event.destination] + event.start
        column = self._column(numpy.where(event.there & there, at + base, self._layout.dump))
        self._written[column] = self._layout.dump
        return column, 0

    def numbers(self, top: int = 0) -> Numbers:
        """[moments, lanes · width + lanes]; rows above `top` are left alone."""
        moments = self._moments
        _, height, width = moments.program.shape
        finished = moments.rows < top
        columns = [
            numpy.where(finished, self._written[k], column) if k in self._written else column
            for k, column in enumerate(self._columns)
        ]
        inside = (moments.places >= 0) & (moments.places < width) & ~finished
        pixels = numpy.where(inside, moments.rows * width + moments.places, height * width)
        return numpy.concatenate([numpy.stack(columns, axis=2).reshape(len(pixels), -1), pixels], axis=1)
