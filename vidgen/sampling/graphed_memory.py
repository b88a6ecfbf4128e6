"""The memory of the executor "graph": everything that a captured step reads and writes, at addresses that stay.

The values of one image are one run of elements (`Layout`), in which a position is a number:

    [zeros] [dump] [biases] [buffer 0: rows × columns × channels] [buffer 1] …

A read of a line that does not exist finds the zeros. What an instruction gives at a position that does not exist goes
to the dump, which nobody reads. Images lie one after the other, so that numbers for one serve all.

The canvas, what is known and the noise have a pixel more than the image: the dump's.
"""

from __future__ import annotations

import itertools

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidgen.sampling.program import Buffer, Index, Linear, Program

Numbers = NDArray[numpy.int64]


class Layout:
    """Addresses of a program's values within an image.

    Attributes:
        zeros, dump: where these begin; each has room for the longest line.
        biases: by the instruction's number.
        bases: by buffer, where its first position begins.
        numel: elements of an image.
    """

    def __init__(self, program: Program):
        self.buffers = program.buffers
        longest = max(buffer.columns * buffer.channels for buffer in program.buffers)
        self.zeros, self.dump = 0, longest
        at = 2 * longest
        self.biases: dict[int, int] = {}
        for number, instruction in enumerate(program.instructions):
            if isinstance(instruction, Linear) and instruction.bias is not None:
                self.biases[number] = at
                at += instruction.bias.numel()
        sizes = (buffer.numel(1) for buffer in program.buffers)
        *self.bases, self.numel = itertools.accumulate(sizes, initial=at)

    def position(self, number: int, line: Numbers, column: Numbers) -> tuple[Numbers, NDArray[numpy.bool_]]:
        """(elements from a buffer's base to its positions, whether their lines exist)."""
        buffer = self.buffers[number]
        if is_single(buffer):
            return numpy.zeros_like(line), numpy.ones(line.shape, dtype=numpy.bool_)
        there = (line >= 0) & (line < buffer.height)
        return (line % buffer.rows * buffer.columns + column + buffer.left) * buffer.channels, there

    def lines(self, number: int, line: Numbers) -> Numbers:
        """Addresses of whole lines of a buffer, margins included; zeros for those that do not exist."""
        buffer = self.buffers[number]
        at, there = self.position(number, line, numpy.full_like(line, -buffer.left))
        return numpy.where(there, at + self.bases[number], self.zeros)


def is_single(buffer: Buffer) -> bool:
    """Whether it has one position that is read everywhere."""
    return buffer.constant and buffer.height == 1


def through(index: Index, n: Numbers) -> Numbers:
    """What lines or columns read, as `Index` says."""
    return (n * index.step + index.offset) // index.divisor


class Memory:
    """Static tensors of a batch.

    A batch of one is run as two images. A product of one row and a product of several may be different kernels, with
    other rounding; so image i would depend on whether it is alone.

    Attributes:
        values: (N, layout.numel).
        canvas: (N, C, H·W + 1); known: bool alike; noise: float64 (N, C, H·W + 1, 2).
        parameters: (N, P, steps, H·W + 1), where they are asked for.
        row, moment: int64 (1,), the number of the next row (from the first one above the image) and of the next moment.
        images: how many of the N are drawn.
    """

    def __init__(self, program: Program, images: int, dtype: torch.dtype, device: torch.device, *, record: bool):
        channels, height, width = program.shape
        self.program, self.layout, self.images = program, Layout(program), images
        n, pixels = max(images, 2), height * width + 1
        self.values = torch.zeros(n, self.layout.numel, dtype=dtype, device=device)
        self.canvas = torch.zeros(n, channels, pixels, dtype=dtype, device=device)
        self.known = torch.zeros(n, channels, pixels, dtype=torch.bool, device=device)
        # the dump's pixel is drawn too
        self.noise = torch.full((n, channels, pixels, 2), 0.5, dtype=torch.float64, device=device)
        self.parameters = None
        if record:
            size = (n, program.parameters, program.steps, pixels)
            self.parameters = torch.zeros(size, dtype=dtype, device=device)
        self.row, self.moment = (torch.zeros(1, dtype=torch.int64, device=device) for _ in range(2))
        self._scratch = torch.empty(0, dtype=dtype, device=device)
        self._indices = torch.empty(0, dtype=torch.int64, device=device)

    def reserve(self, elements: int, indices: int) -> None:
        """Makes room for the registers of an image and the numbers of a moment; before views of them are taken."""
        self._scratch = self.values.new_zeros(len(self.values) * elements)
        self._indices = self.row.new_zeros(indices)

    def registers(self, lanes: int, elements: int) -> Tensor:
        """(N, lanes, elements); the steps share it, as they run one after the other."""
        n = len(self.values)
        return self._scratch[: n * lanes * elements].view(n, lanes, elements)

    def numbers(self, count: int) -> Tensor:
        """int64 (count,); shared likewise."""
        return self._indices[:count]

    def load(self, state: Tensor, canvas: Tensor, known: Tensor, noise: Tensor) -> None:
        """Begins a run.

        Args:
            state: as `vidgen.sampling.Plan.new_state` makes it: constants are taken from it.
            canvas, known, noise: as for `vidgen.sampling.interpreter.run_program`.
        """
        self.values.zero_()
        for number, address in self.layout.biases.items():
            instruction = self.program.instructions[number]
            assert isinstance(instruction, Linear)
            assert instruction.bias is not None
            self.values[:, address : address + instruction.bias.numel()] = instruction.bias
        n = self.images
        for number, at in enumerate(self.program.offsets(n)[0]):
            buffer = self.program.buffers[number]
            if buffer.constant:
                filled = state[at : at + buffer.numel(n)].view(buffer.rows, buffer.columns, n, buffer.channels)
                base = self.layout.bases[number]
                self.values[:n, base : base + buffer.numel(1)] = filled.permute(2, 0, 1, 3).flatten(1)
        self.canvas[:n, :, :-1] = canvas.flatten(2)
        self.known[:n, :, :-1] = known.flatten(2)
        self.noise[:n, :, :-1] = noise.flatten(2, 3)

    def drawn(self) -> Tensor:
        """(N, C, H, W) of the images, a view."""
        return self.canvas[: self.images, :, :-1].unflatten(2, self.program.shape[1:])

    def met(self) -> Tensor:
        """(N, P, steps, H, W), the parameters of all draws, a view."""
        assert self.parameters is not None
        return self.parameters[: self.images, ..., :-1].unflatten(3, self.program.shape[1:])
