"""Running a sampling program in plain PyTorch: drawing from a causal network without computing anything twice.

A program (`vidgen.sampling.program`) is a causal network taken apart into rows, pixels and sub-pixels. Running
it draws

    x[n, g, r, c] ~ head(parameters[n, :, g, r, c]),

sub-pixel after sub-pixel in raster order, where `parameters` are what the network's forward pass gives for the image
drawn so far. Every value is computed once, when the last sub-pixel that it depends on is there, and kept for as long as
something will read it. Any device, any floating dtype.

Source: Ramachandran et al., "Fast Generation for Convolutional Autoregressive Models" (2017) caches the values of two
networks by hand; here the program is derived from the network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vidgen.sampling.program import Buffer, Index, Instruction, Linear, Pointwise, Program, Read

Draw = Callable[[Tensor, Tensor], Tensor]

FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "copy": lambda x: x,
    "neg": torch.neg,
    "relu": torch.relu,
    "elu": lambda x, alpha: torch.nn.functional.elu(x, alpha),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": torch.nn.functional.silu,
    "leaky_relu": lambda x, slope: torch.nn.functional.leaky_relu(x, slope),
    "exp": torch.exp,
    "abs": torch.abs,
    "clamp": lambda x, low, high: torch.clamp(x, low, high),
    "scale": lambda x, factor, shift: x * factor + shift,
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
}
"""What elementwise instructions do, by name: (reads …, constants …) -> values."""


@dataclass
class _Line:
    """`count` places of a line from column `first`, `period` apart."""

    line: int
    first: int
    count: int
    period: int = 1

    def taken(self, values: Tensor, buffer: Buffer, row: Index, column: Index) -> Tensor:
        """What readers at the places find: values [rows, n, columns, channels] -> (n, count, channels)."""
        line = row(self.line)
        if not 0 <= line < buffer.height:
            return values.new_zeros(values.shape[1], self.count, values.shape[3])
        start = column(self.first) + buffer.left
        stride = self.period * column.step // column.divisor
        return values[line % buffer.rows, :, start : start + (self.count - 1) * stride + 1 : stride]

    def put(self, values: Tensor, buffer: Buffer, result: Tensor) -> None:
        start = self.first + buffer.left
        stop = start + (self.count - 1) * self.period + 1
        values[self.line % buffer.rows, :, start : stop : self.period] = result


class _Diagonal:
    """Places of several lines, one of each."""

    def __init__(self, lines: list[int], columns: list[int]):
        self.lines, self.columns, self.count = lines, columns, len(lines)
        # many reads have the same indices
        self._made: dict[tuple[Index, Index, int, int, int], tuple[Tensor, Tensor, list[int]]] = {}

    def _indices(self, buffer: Buffer, row: Index, column: Index) -> tuple[Tensor, Tensor, list[int]]:
        """Slots and columns in the buffer's memory, and the places whose line lies outside."""
        key = (row, column, buffer.rows, buffer.left, buffer.height)
        if key not in self._made:
            lines = [row(line) for line in self.lines]
            slots = torch.tensor([line % buffer.rows for line in lines])
            columns = torch.tensor([column(c) + buffer.left for c in self.columns])
            self._made[key] = slots, columns, [i for i, line in enumerate(lines) if not 0 <= line < buffer.height]
        return self._made[key]

    def taken(self, values: Tensor, buffer: Buffer, row: Index, column: Index) -> Tensor:
        slots, columns, outside = self._indices(buffer, row, column)
        found = values[slots, :, columns]  # [places, n, channels]
        if outside:
            found[outside] = 0
        return found.transpose(0, 1)

    def put(self, values: Tensor, buffer: Buffer, result: Tensor) -> None:
        slots, columns, _ = self._indices(buffer, Index(), Index())
        values[slots, :, columns] = result.transpose(0, 1)


_Places = _Line | _Diagonal


class _Interpreter:
    """A program's instructions over the buffers of one state."""

    def __init__(self, program: Program, state: Tensor, n: int):
        self.program = program
        offsets, numel = program.offsets(n)
        if state.shape != (numel,):
            raise ValueError(f"state: expected shape ({numel},) for {n} images, got {tuple(state.shape)}")
        self.n = n
        # [rows, n, columns, channels]
        self.buffers = [
            state[at : at + buffer.numel(n)].view(buffer.rows, buffer.columns, n, buffer.channels).transpose(1, 2)
            for buffer, at in zip(program.buffers, offsets, strict=True)
        ]
        self.rows = [i for i in program.instructions if i.when.rate == "row"]
        self.pixels = [i for i in program.instructions if i.when.rate == "pixel"]
        columns = [0, *(i.when.lag[1] for i in self.pixels)]
        self.columns = range(min(columns), program.shape[2] + max(columns))
        self.first_row = min(0, *(i.when.lag[0] for i in program.instructions))

    def line(self, instruction: Instruction, row: int) -> int | None:
        """The line that an instruction makes in an image row, if any."""
        when = instruction.when
        line, rest = divmod(row - when.lag[0], when.stride[0])
        height = self.program.buffers[instruction.destination].height
        if rest or not 0 <= line < height or line % when.period[0] != when.phase[0]:
            return None
        return line

    def column(self, instruction: Instruction, column: int) -> int | None:
        """The column that a pixel-rate instruction makes at an image column, if any."""
        when = instruction.when
        at, rest = divmod(column - when.lag[1], when.stride[1])
        width = self.program.buffers[instruction.destination].width
        if rest or not 0 <= at < width or at % when.period[1] != when.phase[1]:
            return None
        return at

    def read(self, read: Read, places: _Places) -> Tensor:
        """Channels at some places: (n, places, channels)."""
        buffer, values = self.program.buffers[read.source], self.buffers[read.source]
        values = values[..., read.start : read.start + read.count]
        if buffer.constant and buffer.height == 1:
            return values[0, :, :1].expand(-1, places.count, -1)
        return places.taken(values, buffer, read.row, read.column)

    def run(self, instruction: Instruction, places: _Places) -> None:
        """Computes an instruction's value at some places."""
        reads = [self.read(read, places) for read in instruction.reads]
        values, start = self.buffers[instruction.destination], 0
        if isinstance(instruction, Pointwise):
            result = FUNCTIONS[instruction.function](*reads, *instruction.constants)
            start = instruction.start
        else:
            result = self.sum(instruction, reads, places)
        buffer = self.program.buffers[instruction.destination]
        places.put(values[..., start : start + result.shape[-1]], buffer, result)

    def sum(self, instruction: Linear, reads: list[Tensor], places: _Places) -> Tensor:
        weight, bias = instruction.weight, instruction.bias
        result = None
        if reads:
            # one product per image: its bits do not depend on the batch
            result = torch.bmm(torch.cat(reads, dim=2), weight.expand(self.n, -1, -1))
        if bias is not None:
            result = bias.expand(self.n, places.count, -1) if result is None else result + bias
        if instruction.initial is not None:
            above = self.read(Read(instruction.initial, 0, weight.shape[1]), places)
            result = above if result is None else result + above
        assert result is not None
        return result

    def whole_line(self, instruction: Instruction, row: int) -> None:
        if (line := self.line(instruction, row)) is not None:
            width = self.program.buffers[instruction.destination].width
            first, period = instruction.when.phase[1], instruction.when.period[1]
            if count := len(range(first, width, period)):
                self.run(instruction, _Line(line, first, count, period))

    def enter(self, values: Tensor, step: int, row: int, column: int) -> None:
        """Puts drawn or known channels (n, C / steps, columns) of a step into the network's input."""
        number = self.program.inputs[step]
        buffer = self.program.buffers[number]
        start = column + buffer.left
        self.buffers[number][row % buffer.rows, :, start : start + values.shape[2]] = values.transpose(1, 2)

    def parameters(self, step: int, row: int, column: int) -> Tensor:
        number, start = self.program.outputs[step]
        buffer = self.program.buffers[number]
        at = self.buffers[number][row % buffer.rows, :, column + buffer.left]
        return at[:, start : start + self.program.parameters]  # [n, P]


def run_program(
    program: Program,
    state: Tensor,
    canvas: Tensor,
    known: Tensor,
    noise: Tensor,
    draw: Draw,
    *,
    first: int,
    last: int,
    whole_rows: bool = False,
    top: int = 0,
    parameters: Tensor | None = None,
) -> None:
    """Runs moments first … last − 1 of a program, in place.

    Args:
        program: what to run.
        state: (program.offsets(N)[1],), zeros and constants at first; what earlier moments have left.
        canvas: (N, C, H, W), in [-1, 1]; kept where known, drawn elsewhere.
        known: bool (N, C, H, W).
        noise: float64 (N, C, H, W, 2) in (0, 1).
        draw: parameters (N, P), noise (N, C / steps, 2) -> values (N, C / steps).
        first, last: rows in raster order; times of a wavefront program.
        whole_rows: first and last are rows, whose pixels are all known; for wavefront programs, before the first time.
        top: rows above it are finished; a wavefront leaves them alone.
        parameters: (N, P, steps, H, W) that takes all parameters met, or None.
    """
    run = _Interpreter(program, state, canvas.shape[0])
    channels, height, width = program.shape
    each = channels // program.steps

    def settle(step: int, row: int, column: int) -> None:
        """Draws a step of a pixel, or takes what is known."""
        group = slice(step * each, (step + 1) * each)
        given = run.parameters(step, row, column)
        if parameters is not None:
            parameters[:, :, step, row, column] = given
        keep = known[:, group, row, column]
        if not bool(keep.all()):
            drawn = draw(given, noise[:, group, row, column]).to(canvas.dtype)
            canvas[:, group, row, column] = torch.where(keep, canvas[:, group, row, column], drawn)
        run.enter(canvas[:, group, row, column].unsqueeze(2), step, row, column)

    def known_row(row: int) -> None:
        for instruction in run.rows:
            run.whole_line(instruction, row)
        for step in range(program.steps):
            run.enter(canvas[:, step * each : (step + 1) * each, row], step, row, 0)
        for instruction in run.pixels:
            run.whole_line(instruction, row)
        if parameters is not None:
            for step in range(program.steps):
                for column in range(width):
                    parameters[:, :, step, row, column] = run.parameters(step, row, column)

    def raster_row(row: int) -> None:
        if bool(known[:, :, row].all()):
            known_row(row)
            return
        for instruction in run.rows:
            run.whole_line(instruction, row)
        lines = [(i, line) for i in run.pixels if (line := run.line(i, row)) is not None]
        by_step = [[pair for pair in lines if pair[0].when.step == step] for step in range(program.steps)]
        for column in run.columns:
            for step, active in enumerate(by_step):
                for instruction, line in active:
                    if (at := run.column(instruction, column)) is not None:
                        run.run(instruction, _Line(line, at, 1, instruction.when.period[1]))
                if 0 <= column < width:
                    settle(step, row, column)

    def wave_time(time: int) -> None:
        for step in range(program.steps):
            # instructions of one grid have the same places
            made: dict[object, _Diagonal] = {}
            for instruction in run.pixels:
                if instruction.when.step == step and (places := diagonal(instruction, time, made)).count:
                    run.run(instruction, places)
            for row in range(top, height):
                if 0 <= time - program.wave * row < width:
                    settle(step, row, time - program.wave * row)

    def diagonal(instruction: Instruction, time: int, made: dict[object, _Diagonal]) -> _Diagonal:
        buffer = program.buffers[instruction.destination]
        key = (instruction.when, buffer.height, buffer.width)
        if key not in made:
            pairs = [
                (line, column)
                for row in range(top, height)
                if (line := run.line(instruction, row)) is not None
                and (column := run.column(instruction, time - program.wave * row)) is not None
            ]
            made[key] = _Diagonal([line for line, _ in pairs], [column for _, column in pairs])
        return made[key]

    for row in range(run.first_row if first == 0 else 0, 0):
        for instruction in (*run.rows, *run.pixels):
            run.whole_line(instruction, row)
    for moment in range(first, last):
        if whole_rows:
            known_row(moment)
        elif program.wave:
            wave_time(moment)
        else:
            raster_row(moment)
