"""Shared buffers: every instruction finds what it would find if each value had a buffer of its own."""

from __future__ import annotations

import pytest

from vidgen.models import PixelCNN
from vidgen.sampling import trace
from vidgen.sampling.program import Linear, Program
from vidgen.sampling.sharing import share_buffers

from .test_plan import MODELS, build


def readings(program: Program) -> list[list[tuple[int, bool]]]:
    """For each read in place: which instruction of the same moment has written what is found there; −1: none has."""
    found, writer = [], {}
    for at, instruction in enumerate(program.instructions):
        reads = [read.source for read in instruction.reads]
        if isinstance(instruction, Linear) and instruction.initial is not None:
            reads.append(instruction.initial)
        found.append([writer.get((source, instruction.when), -1) for source in reads])
        writer[instruction.destination, instruction.when] = at
    return found


@pytest.mark.parametrize("name", MODELS)
def test_every_read_finds_the_same_value(name):
    plan = trace(build(name))
    shared, numbers = share_buffers(plan.program)
    assert readings(shared) == readings(plan.program)
    assert len(numbers) == len(plan.program.buffers)
    for old, new in enumerate(numbers):
        one, other = plan.program.buffers[old], shared.buffers[new]
        assert (one.channels, one.rows, one.columns, one.constant) == (
            other.channels,
            other.rows,
            other.columns,
            other.constant,
        )
    # what lasts has a buffer to itself
    lasting = {number for number, buffer in enumerate(plan.program.buffers) if buffer.rows > 1 or buffer.left}
    lasting |= {*plan.program.inputs, *(number for number, _ in plan.program.outputs)}
    for number in lasting:
        assert numbers.count(numbers[number]) == 1


def test_threads_meet_before_a_buffer_is_written_again():
    program = trace(PixelCNN((1, 9, 9), hidden=8, blocks=3).eval()).best_program
    last_read: dict[int, int] = {}
    again = 0
    for at, instruction in enumerate(program.instructions):
        if (seen := last_read.pop(instruction.destination, None)) is not None:
            assert any(isinstance(between, Linear) for between in program.instructions[seen + 1 : at])
            again += 1
        last_read.update({read.source: at for read in instruction.reads})
    assert again > 5


def test_depth_costs_no_memory_but_what_it_keeps_between_pixels():
    small, deep = (trace(PixelCNN((1, 16, 16), hidden=8, blocks=blocks).eval()) for blocks in (4, 12))
    kept = [plan.state_bytes(1, plan.best_program) for plan in (small, deep)]
    # a block's convolution reads two rows of 8 channels, with a column of padding on both sides
    assert kept[1] - kept[0] == 8 * 2 * (16 + 2) * 8 * 4
