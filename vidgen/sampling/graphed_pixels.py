"""One moment of a sampling program as a fixed sequence of torch ops: what the executor "graph" captures for pixels.

A step reads its addresses from the table's line of the moment that a counter on the device names, gathers everything it
needs from memory at once, computes in registers, and scatters what later moments will read. Nothing of it depends on
values or asks the host, and it writes to static tensors only; so it may be captured in a CUDA graph.

On a GPU a moment costs what its launches cost, so there are few. Registers lie where the next one wants them: the input
of a product is one run of registers, of which some are gathered and others are written by the functions that make
them; a product is added to its destination, where initial value or bias have been gathered. Two calls of a function
whose registers lie side by side are one, and an addition of a product of two is one `addcmul`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy
import torch
from torch import Tensor

from vidgen.sampling.graphed_memory import Memory, Numbers
from vidgen.sampling.graphed_moments import MEMORY, Event, Kind, Moments, Table
from vidgen.sampling.interpreter import Draw
from vidgen.sampling.program import Linear, Pointwise

_INTO: dict[str, Callable[..., Any]] = {
    "copy": lambda out, x: out.copy_(x),
    "neg": lambda out, x: torch.neg(x, out=out),
    "relu": lambda out, x: torch.clamp(x, min=0, out=out),
    "elu": lambda out, x, alpha: torch.ops.aten.elu.out(x, alpha, out=out),
    "tanh": lambda out, x: torch.tanh(x, out=out),
    "sigmoid": lambda out, x: torch.sigmoid(x, out=out),
    "silu": lambda out, x: torch.ops.aten.silu.out(x, out=out),
    "leaky_relu": lambda out, x, slope: torch.ops.aten.leaky_relu.out(x, slope, out=out),
    "exp": lambda out, x: torch.exp(x, out=out),
    "abs": lambda out, x: torch.abs(x, out=out),
    "clamp": lambda out, x, low, high: torch.clamp(x, low, high, out=out),
    "scale": lambda out, x, factor, shift: torch.mul(x, factor, out=out).add_(shift),
    "add": lambda out, x, y: torch.add(x, y, out=out),
    "sub": lambda out, x, y: torch.sub(x, y, out=out),
    "mul": lambda out, x, y: torch.mul(x, y, out=out),
    "div": lambda out, x, y: torch.div(x, y, out=out),
    "maximum": lambda out, x, y: torch.maximum(x, y, out=out),
    "minimum": lambda out, x, y: torch.minimum(x, y, out=out),
    "addcmul": lambda out, x, y, z: torch.addcmul(x, y, z, out=out),
}


@dataclass(frozen=True)
class Call:
    """output = function(inputs, constants), by first register, `count` of each."""

    function: str
    inputs: tuple[int, ...]
    output: int
    count: int
    constants: tuple[float, ...] = ()


@dataclass(frozen=True)
class Product:
    """output += input · weight, (K, N)."""

    input: int
    output: int
    weight: Tensor


@dataclass(frozen=True)
class Settle:
    """The draw of a step: `count` parameters from `input` on, what is drawn or known to `output`."""

    step: int
    input: int
    count: int
    output: int


@dataclass(frozen=True)
class Transfer:
    """`count` registers from `register` on, and column and offset of the table for their address in memory."""

    register: int
    count: int
    column: int
    offset: int


class Code:
    """A kind of moment as calls on registers; see the module's docstring.

    Attributes:
        registers: how many a lane has.
        calls: in order. loads, stores: before and after them.
    """

    def __init__(self, moments: Moments, kind: Kind, table: Table, kept: set[int], weights: dict[Any, Tensor]):
        self._moments, self._kind, self._table, self._weights = moments, kind, table, weights
        self._program = moments.program
        self.registers = 0
        self.calls: list[Call | Product | Settle] = []
        self.loads: list[Transfer] = []
        self._homes: dict[int, int] = {}
        self._inputs: dict[int, tuple[list[int], list[int]]] = {}  # event -> (order of its reads, registers by read)
        self._readers = self._find_readers()
        for k in kind.events:
            self._event(k)
        self.stores = [
            Transfer(self._homes[k], event.count, *table.write(event))
            for k in kind.events
            if (event := self._events[k]).destination in kept
        ]
        self.calls = shortened(self.calls, {transfer.register for transfer in self.stores})

    @property
    def _events(self) -> list[Event]:
        return self._moments.events

    def _find_readers(self) -> dict[int, tuple[int, int]]:
        """By event the first product that reads all it makes from a register, and as which read."""
        found: dict[int, tuple[int, int]] = {}
        for k in self._kind.events:
            if self._is_linear(k):
                for r, source in enumerate(self._kind.sources[k][0]):
                    if source != MEMORY and self._events[k].groups[0][r].count == self._events[source].count:
                        found.setdefault(source, (k, r))
        return found

    def _is_linear(self, k: int) -> bool:
        number = self._events[k].number
        return number is not None and isinstance(self._program.instructions[number], Linear)

    def _take(self, count: int) -> int:
        self.registers += count
        return self.registers - count

    def _home(self, k: int) -> int:
        """Where an event's result goes: into the first product that reads it, or a place of its own."""
        if k not in self._homes:
            if k in self._readers:
                product, read = self._readers[k]
                self._homes[k] = self._input(product)[1][read]
            else:
                self._homes[k] = self._take(self._events[k].count)
        return self._homes[k]

    def _input(self, k: int) -> tuple[list[int], list[int]]:
        """(the order of a product's reads, where each begins): what is gathered first, what is computed last."""
        if k not in self._inputs:
            reads, sources = self._events[k].groups[0], self._kind.sources[k][0]
            order = sorted(range(len(reads)), key=lambda r: sources[r] != MEMORY)
            at = [0] * len(reads)
            for r in order:
                at[r] = self._take(reads[r].count)
            self._inputs[k] = order, at
        return self._inputs[k]

    def _present(self, k: int, group: int, read: int) -> int:
        """Where a read finds what an event of this moment has made."""
        source = self._kind.sources[k][group][read]
        return self._homes[source] + self._events[k].groups[group][read].start - self._events[source].start

    def _fill(self, k: int, group: int, at: list[int]) -> None:
        """Brings a group's reads to their registers."""
        for r, read in enumerate(self._events[k].groups[group]):
            if self._kind.sources[k][group][r] == MEMORY:
                self.loads.append(Transfer(at[r], read.count, *self._table.read(self._events[k], read)))
            elif (there := self._present(k, group, r)) != at[r]:
                self.calls.append(Call("copy", (there,), at[r], read.count))

    def _together(self, k: int, group: int) -> int | None:
        """Where a group lies if all of it is there already, side by side."""
        if MEMORY in self._kind.sources[k][group]:
            return None
        at = [self._present(k, group, r) for r in range(len(self._events[k].groups[group]))]
        counts = [read.count for read in self._events[k].groups[group]]
        alike = all(a + c == b for a, c, b in zip(at, counts, at[1:], strict=False))
        return at[0] if at and alike else None

    def _gathered(self, k: int, group: int) -> int:
        """Where a group lies side by side."""
        if (at := self._together(k, group)) is not None:
            return at
        places = [self._take(read.count) for read in self._events[k].groups[group]]
        self._fill(k, group, places)
        return places[0]

    def _event(self, k: int) -> None:
        event = self._events[k]
        if event.number is None:
            given = self._gathered(k, 0)
            self.calls.append(Settle(event.step, given, self._program.parameters, self._home(k)))
            return
        instruction = self._program.instructions[event.number]
        if isinstance(instruction, Pointwise):
            inputs = tuple(self._gathered(k, group) for group in range(len(event.groups)))
            self.calls.append(Call(instruction.function, inputs, self._home(k), event.count, instruction.constants))
            return
        self._linear(k, event.number, instruction)

    def _linear(self, k: int, number: int, instruction: Linear) -> None:
        event, bias = self._events[k], self._moments.layout.biases.get(number)
        given, order = None, list(range(len(event.groups[0])))
        if event.groups[0]:
            given = None if k in self._inputs else self._together(k, 0)
            if given is None:
                order, at = self._input(k)
                self._fill(k, 0, at)
                given = at[order[0]]
        home = self._home(k)
        if len(event.groups) > 1:
            starts = [home + read.start for read in event.groups[1]]
            self._fill(k, 1, starts)
            if bias is not None:
                self.loads.append(Transfer(shift := self._take(event.count), event.count, 0, bias))
                self.calls.append(Call("add", (home, shift), home, event.count))
        else:
            address = self._moments.layout.zeros if bias is None else bias
            self.loads.append(Transfer(home, event.count, 0, address))
        if given is not None:
            self.calls.append(Product(given, home, self._weight(number, instruction, event, order)))

    def _weight(self, number: int, instruction: Linear, event: Event, order: list[int]) -> Tensor:
        """The instruction's weight with its rows in the order of the registers; kinds share it."""
        if order == sorted(order):
            return instruction.weight.detach()
        key = (number, tuple(order))
        if key not in self._weights:
            rows = instruction.weight.detach().split([read.count for read in event.groups[0]])
            self._weights[key] = torch.cat([rows[r] for r in order])
        return self._weights[key]


def shortened(calls: list[Call | Product | Settle], kept: set[int]) -> list[Call | Product | Settle]:
    """The same with fewer calls."""
    read: dict[int, int] = {}
    for call in calls:
        inputs = call.inputs if isinstance(call, Call) else (call.input,)
        for at in inputs:
            read[at] = read.get(at, 0) + 1
    found: list[Call | Product | Settle] = []
    for call in calls:
        last = found[-1] if found else None
        if isinstance(call, Call) and isinstance(last, Call):
            if _side_by_side(last, call):
                found[-1] = replace(last, count=last.count + call.count)
                continue
            factor = last.output
            if (last.function, call.function) == ("mul", "add") and call.inputs.count(factor) == 1:
                # a range of the factor that others read would have another first register or a second reader
                whole = last.count == call.count and read[factor] == 1 and factor not in kept
                if whole and not _overlapped(calls, last, call):
                    (other,) = (at for at in call.inputs if at != factor)
                    found[-1] = Call("addcmul", (other, *last.inputs), call.output, call.count)
                    continue
        found.append(call)
    return found


def _side_by_side(a: Call, b: Call) -> bool:
    return (
        (a.function, a.constants) == (b.function, b.constants)
        and all(x + a.count == y for x, y in zip(a.inputs, b.inputs, strict=True))
        and a.output + a.count == b.output
        # the second must not read what the first writes
        and not any(a.output < x + b.count and x < a.output + a.count for x in b.inputs)
    )


def _overlapped(calls: list[Call | Product | Settle], made: Call, reader: Call) -> bool:
    """Whether anything but `reader` reads some of what `made` writes."""
    for call in calls:
        if call is reader:
            continue
        if isinstance(call, Call):
            spans = [(at, at + call.count) for at in call.inputs]
        elif isinstance(call, Product):
            spans = [(call.input, call.input + call.weight.shape[0])]
        else:
            spans = [(call.input, call.input + call.count)]
        if any(a < made.output + made.count and made.output < b for a, b in spans):
            return True
    return False


class PixelStep:
    """A kind of moment, ready to be called: draws its pixels and leaves the counter at the next moment.

    Args:
        code: the kind.
        memory: of the batch, with room reserved.
        table: int64 (moments, lanes · width + lanes), of `vidgen.sampling.graphed_moments.Table`.
        at: int64 (1, the same), which every step refreshes.
        width, lanes: of the table.
        draw: as for `vidgen.sampling.interpreter.run_program`.
    """

    def __init__(self, code: Code, memory: Memory, table: Tensor, at: Tensor, width: int, lanes: int, draw: Draw):
        self._memory, self._table, self._at, self._draw = memory, table, at, draw
        self._lanes = lanes
        self._pixels = at[0, lanes * width :]
        self._registers = memory.registers(lanes, code.registers)
        self._flat = self._registers.view(len(memory.values), -1)
        segment, lane, stored = _expanded(code, width, lanes)
        device = memory.row.device
        self._segment, self._lane, self._stored = (torch.from_numpy(a).to(device) for a in (segment, lane, stored))
        self._index = memory.numbers(len(segment))
        self._found = self._index[: lanes * code.registers]
        self._put = self._index[lanes * code.registers :]
        self._calls = [self._bound(call) for call in code.calls]

    def _view(self, at: int, count: int) -> Tensor:
        return self._registers[:, :, at : at + count]  # [N, lanes, count]

    def _bound(self, call: Call | Product | Settle) -> Callable[[], Any]:
        if isinstance(call, Product):
            # one product per image: its bits do not depend on the batch
            weight = call.weight.expand(len(self._registers), -1, -1)
            output, given = self._view(call.output, weight.shape[2]), self._view(call.input, weight.shape[1])
            return lambda: output.baddbmm_(given, weight)
        if isinstance(call, Settle):
            program = self._memory.program
            given = self._view(call.input, call.count)
            entered = self._view(call.output, program.shape[0] // program.steps)
            return lambda: self._settle(call.step, given, entered)
        function, constants = _INTO[call.function], call.constants
        output = self._view(call.output, call.count)
        inputs = [self._view(at, call.count) for at in call.inputs]
        return lambda: function(output, *inputs, *constants)

    def _settle(self, step: int, given: Tensor, entered: Tensor) -> None:
        """Draws a step of a pixel of every lane, or takes what is known."""
        memory, pixels = self._memory, self._pixels
        n, lanes, each = entered.shape
        group = slice(step * each, (step + 1) * each)
        if memory.parameters is not None:
            memory.parameters[:, :, step].index_copy_(2, pixels, given.transpose(1, 2))
        noise = memory.noise[:, group].index_select(2, pixels)  # [N, each, lanes, 2]
        drawn = self._draw(given.reshape(n * lanes, -1), noise.transpose(1, 2).reshape(n * lanes, each, 2))
        drawn = drawn.to(entered.dtype).view(n, lanes, each).transpose(1, 2)
        canvas = memory.canvas[:, group]
        kept = memory.known[:, group].index_select(2, pixels)
        value = torch.where(kept, canvas.index_select(2, pixels), drawn)  # [N, each, lanes]
        canvas.index_copy_(2, pixels, value)
        entered.copy_(value.transpose(1, 2))

    def __call__(self) -> None:
        """Runs the moment that the counter names."""
        memory = self._memory
        torch.index_select(self._table, 0, memory.moment, out=self._at)
        memory.moment.add_(1)
        torch.index_select(self._at[0], 0, self._segment, out=self._index)
        self._index.add_(self._lane)
        torch.index_select(memory.values, 1, self._found, out=self._flat)
        for call in self._calls:
            call()
        if len(self._stored):
            memory.values.index_copy_(1, self._put, self._flat.index_select(1, self._stored))


def _expanded(code: Code, width: int, lanes: int) -> tuple[Numbers, Numbers, Numbers]:
    """From runs of registers to single ones, first all that are gathered, then all that are stored.

    Returns:
        Columns of the table and what to add to them, (lanes · (registers + stores),), and the registers to be stored,
        (lanes · stores,).
    """

    def runs(transfers: list[Transfer]) -> tuple[Numbers, Numbers, Numbers]:
        made = [numpy.zeros(0, dtype=numpy.int64)]
        columns = numpy.concatenate([*made, *(numpy.full(t.count, t.column) for t in transfers)])
        offsets = numpy.concatenate([*made, *(t.offset + numpy.arange(t.count) for t in transfers)])
        registers = numpy.concatenate([*made, *(t.register + numpy.arange(t.count) for t in transfers)])
        return columns, offsets, registers

    columns, offsets, registers = runs(code.loads)
    # registers that are computed are gathered too, from the zeros: one launch for all
    column, offset = (numpy.zeros(code.registers, dtype=numpy.int64) for _ in range(2))
    column[registers], offset[registers] = columns, offsets
    put_column, put_offset, stored = runs(code.stores)
    lane = numpy.arange(lanes)[:, None]
    segment = numpy.concatenate([(column + lane * width).reshape(-1), (put_column + lane * width).reshape(-1)])
    added = numpy.concatenate([numpy.tile(offset, lanes), numpy.tile(put_offset, lanes)])
    return segment, added, (stored + lane * code.registers).reshape(-1)
