r"""Running a sampling program: drawing images from a causal network without computing anything twice.

A program (`vidgen.ops.sample_causal_program`) is a causal network taken apart into rows, pixels and sub-pixels. Running
it draws

    x[n, g, r, c] ~ head(parameters[n, :, g, r, c]),

sub-pixel after sub-pixel in raster order, where `parameters` are what the network's forward pass gives for the image
drawn so far. Every value is computed once, when the last sub-pixel that it depends on is there, and kept for as long as
something will read it.

`reference` interprets a program in plain PyTorch, on any device and in any floating dtype.

Source: Ramachandran et al., "Fast Generation for Convolutional Autoregressive Models" (2017) caches the values of two
networks by hand; here the program is derived from the network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vidgen.ops.sample_causal_program import HEADS, Instruction, Linear, Pointwise, Program, Read

Draw = Callable[[Tensor, Tensor], Tensor]

_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
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
            state[at : at + buffer.numel(n)]
            .view(buffer.rows, buffer.columns, n, buffer.pitch)[..., : buffer.channels]
            .transpose(1, 2)
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

    def read(self, read: Read, line: int, first: int, count: int, period: int) -> Tensor:
        """Channels at `count` columns from `first`, `period` apart: (n, count, channels)."""
        buffer, values = self.program.buffers[read.source], self.buffers[read.source]
        channels = slice(read.start, read.start + read.count)
        if buffer.constant and buffer.height == 1:
            return values[0, :, :1, channels].expand(-1, count, -1)
        row = read.row(line)
        if not 0 <= row < buffer.height:
            return values.new_zeros(self.n, count, read.count)
        start = read.column(first) + buffer.left
        stride = period * read.column.step // read.column.divisor
        return values[row % buffer.rows, :, start : start + (count - 1) * stride + 1 : stride, channels]

    def run(self, instruction: Instruction, line: int, first: int, count: int) -> None:
        """Computes `count` positions of a line, from `first`, a period apart."""
        period = instruction.when.period[1]
        reads = [self.read(read, line, first, count, period) for read in instruction.reads]
        buffer, values = self.program.buffers[instruction.destination], self.buffers[instruction.destination]
        start = first + buffer.left
        place = values[line % buffer.rows, :, start : start + (count - 1) * period + 1 : period]  # [n, count, channels]
        if isinstance(instruction, Pointwise):
            result = _FUNCTIONS[instruction.function](*reads, *instruction.constants)
            place = place[..., instruction.start : instruction.start + result.shape[-1]]
        else:
            result = self.sum(instruction, reads, line, first, count, period)
        place.copy_(result)

    def sum(self, instruction: Linear, reads: list[Tensor], line: int, first: int, count: int, period: int) -> Tensor:
        weight, bias = instruction.weight, instruction.bias
        result = None
        if reads:
            # one product per image: its bits do not depend on the batch
            result = torch.bmm(torch.cat(reads, dim=2), weight.expand(self.n, -1, -1))
        if bias is not None:
            result = bias if result is None else result + bias
        if instruction.initial is not None:
            above = self.read(Read(instruction.initial, 0, weight.shape[1]), line, first, count, period)
            result = above if result is None else result + above
        assert result is not None
        return result

    def whole_line(self, instruction: Instruction, row: int) -> None:
        if (line := self.line(instruction, row)) is not None:
            width = self.program.buffers[instruction.destination].width
            first, period = instruction.when.phase[1], instruction.when.period[1]
            if count := len(range(first, width, period)):
                self.run(instruction, line, first, count)

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


def reference(
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
                        run.run(instruction, line, at, 1)
                if 0 <= column < width:
                    settle(step, row, column)

    def wave_time(time: int) -> None:
        for step in range(program.steps):
            for instruction in run.pixels:
                if instruction.when.step != step:
                    continue
                for row in range(height):
                    line = run.line(instruction, row)
                    at = run.column(instruction, time - program.wave * row)
                    if line is not None and at is not None:
                        run.run(instruction, line, at, 1)
            for row in range(height):
                if 0 <= time - program.wave * row < width:
                    settle(step, row, time - program.wave * row)

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


@dataclass(frozen=True)
class Packed:
    """A program and its weights as the native op reads them."""

    program: Tensor  # int64
    weights: Tensor  # bytes


def why_not_native(program: Program, dtype: torch.dtype, device: torch.device) -> str | None:
    """None if the CPU kernel runs a program with weights of a dtype on a device, else the reason in words."""
    if device.type != "cpu":
        return f"the native sampler runs on the CPU, the network is on {device.type}"
    if dtype not in (torch.float32, torch.float64):
        return f"the native sampler computes float32 and float64, not {dtype}"
    if program.head not in HEADS:
        return "the native sampler draws from categorical distributions and logistic mixtures only"
    return None


def sample_causal_pack(program: Program) -> Packed:
    """Checks a program and puts its weights into the layout of this machine's CPU kernel."""
    words, weights = program.encode()
    return Packed(words, torch.ops.vidgen.sample_causal_pack(words, weights))


def sample_causal(
    program: Program,
    packed: Packed,
    state: Tensor,
    canvas: Tensor,
    known: Tensor,
    noise: Tensor,
    *,
    first: int,
    last: int,
    temperature: float = 1.0,
    quantize: bool = True,
    whole_rows: bool = False,
    parameters: Tensor | None = None,
) -> None:
    """Runs moments first … last − 1 of a program in C++, in place; arguments as in `reference`.

    The bits of an image depend neither on the batch around it, nor on the number of threads, nor on how a run is cut
    into calls; a wavefront program gives those of the raster program. Not differentiable.
    """
    torch.ops.vidgen.sample_causal(
        packed.program,
        packed.weights,
        state,
        canvas,
        known,
        noise,
        parameters,
        first,
        last,
        temperature,
        quantize,
        whole_rows,
    )
