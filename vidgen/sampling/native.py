"""Sampling programs for the C++ kernel (csrc/cpu/sample_causal.h): as words that it checks and numbers that it packs.

One call of the op runs some rows, or times of a wavefront, on all of torch's threads. It does what
`vidgen.sampling.interpreter.run_program` does, on the same state, and draws what the heads of `vidgen.sampling.heads`
draw. Weights may be stored as bfloat16: sums stay float32, and half as many bytes are read for every pixel.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vidgen.sampling.heads import Categorical, LogisticMixture
from vidgen.sampling.program import Buffer, Instruction, Linear, Program, Read

_FUNCTIONS = (
    *("copy", "neg", "relu", "elu", "tanh", "sigmoid", "silu", "leaky_relu", "exp", "abs", "clamp", "scale"),
    *("add", "sub", "mul", "div", "maximum", "minimum"),
)
"""In the order of SamplingFunction."""


def _words(program: Program) -> Iterator[int]:
    yield from (*program.shape, program.steps, program.parameters, program.wave)
    yield from (len(program.buffers), len(program.instructions))
    for buffer in program.buffers:
        yield from _buffer_words(buffer)
    for number, output in zip(program.inputs, program.outputs, strict=True):
        yield from (number, *output)
    for instruction in program.instructions:
        yield from _instruction_words(program, instruction)


def _buffer_words(b: Buffer) -> Iterator[int]:
    yield from (b.channels, b.height, b.width, b.rows, b.left, b.right, int(b.constant))


def _instruction_words(program: Program, instruction: Instruction) -> Iterator[int]:
    when, linear = instruction.when, isinstance(instruction, Linear)
    yield from (0 if linear else 1, 0 if when.rate == "row" else 1)
    yield from (*when.stride, *when.lag, when.step, *when.period, *when.phase)
    yield instruction.destination
    if isinstance(instruction, Linear):
        yield from (0, program.buffers[instruction.destination].channels, len(instruction.reads))
        yield from (int(instruction.bias is not None), -1 if instruction.initial is None else instruction.initial)
    else:
        yield from (instruction.start, instruction.reads[0].count, len(instruction.reads))
        yield _FUNCTIONS.index(instruction.function)
        # the bits of two doubles
        yield from struct.unpack("2q", struct.pack("2d", *(*instruction.constants, 0.0, 0.0)[:2]))
    for read in instruction.reads:
        yield from _read_words(read)


def _read_words(read: Read) -> Iterator[int]:
    yield from (read.source, read.start, read.count)
    for index in (read.row, read.column):
        yield from (index.step, index.offset, index.divisor)


@dataclass(frozen=True)
class NativeProgram:
    """A program as the kernel reads it.

    Attributes:
        words: int64 (words,).
        packed: uint8 (bytes,), the weights in the layout of this machine's instruction set.
        narrow_weights: they are bfloat16.
    """

    words: Tensor
    packed: Tensor
    narrow_weights: bool

    def run(
        self,
        state: Tensor,
        canvas: Tensor,
        known: Tensor,
        noise: Tensor,
        head: Categorical | LogisticMixture,
        *,
        first: int,
        last: int,
        temperature: float,
        quantize: bool,
        whole_rows: bool = False,
        top: int = 0,
        parameters: Tensor | None = None,
    ) -> None:
        """Runs moments first … last − 1 in place; arguments as for `vidgen.sampling.interpreter.run_program`."""
        torch.ops.vidgen.sample_causal(
            self.words,
            self.packed,
            self.narrow_weights,
            state,
            canvas,
            known,
            noise,
            parameters,
            first,
            last,
            whole_rows,
            top,
            head.levels,
            head.mixtures if isinstance(head, LogisticMixture) else 0,
            temperature,
            quantize,
        )


def program_words(program: Program) -> Tensor:
    """A program as the kernels check and read it: int64 (words,)."""
    return torch.tensor(list(_words(program)), dtype=torch.int64)


def program_numbers(program: Program, dtype: torch.dtype) -> Tensor:
    """Of every linear instruction the weight and then the bias, one after the other, on the CPU: (numbers,)."""
    numbers = []
    for instruction in program.instructions:
        if isinstance(instruction, Linear):
            numbers.append(instruction.weight.detach().reshape(-1))
            if instruction.bias is not None:
                numbers.append(instruction.bias.detach().reshape(-1))
    return torch.cat([n.to("cpu", dtype) for n in numbers]) if numbers else torch.zeros(0, dtype=dtype)


def compile_program(program: Program, dtype: torch.dtype, *, narrow_weights: bool = False) -> NativeProgram:
    """Writes a program's words and packs its weights.

    Args:
        program: of `vidgen.sampling.trace`.
        dtype: float32 or float64, of the state.
        narrow_weights: round weights to bfloat16; for float32.
    """
    words = program_words(program)
    packed = torch.ops.vidgen.sample_causal_pack(words, program_numbers(program, dtype), narrow_weights)
    return NativeProgram(words, packed, narrow_weights)


def supports(dtype: torch.dtype, device: torch.device, head: object) -> str | None:
    """None, or why the kernel cannot draw from a model."""
    if device.type != "cpu":
        return f"it runs on the CPU, the model is on {device}"
    return supports_numbers(dtype, head)


def supports_numbers(dtype: torch.dtype, head: object) -> str | None:
    """None, or why no native kernel can draw from a model of such numbers and head."""
    if dtype not in (torch.float32, torch.float64):
        return f"it computes float32 and float64, the model {dtype}"
    # a class of the user's own may draw otherwise
    if type(head) not in (Categorical, LogisticMixture):
        return f"it draws from Categorical and LogisticMixture heads, not from {type(head).__name__}"
    return None
