"""Buffers whose values are gone within the moment in which they are made share memory, as registers do.

A wavefront touches another column of every buffer at every time. What is not read again would leave the cache unread
and be fetched anew to be written; sharing keeps a few buffers in use, which stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from vidgen.sampling.program import Buffer, Index, Instruction, Linear, Program, Read, When


@dataclass
class _Life:
    """From the first instruction that writes a buffer to the last that reads it, all run at the same moments."""

    when: When
    begin: int
    end: int
    written: set[int]  # channels


def share_buffers(program: Program) -> tuple[Program, list[int]]:
    """The same program with fewer buffers, and the new number of each old one.

    Two buffers become one where they are alike and one is read for the last time before the other is written. Between
    the two there is a linear instruction: threads that divide channels among them meet there anyway.
    """
    lives = _lives(program)
    linear = [i for i, instruction in enumerate(program.instructions) if isinstance(instruction, Linear)]
    merged = list(range(len(program.buffers)))
    free: dict[tuple[When, int, int, int], list[tuple[int, int]]] = {}  # (end, buffer) by what they are alike in
    for number in sorted(lives, key=lambda number: lives[number].begin):
        life, buffer = lives[number], program.buffers[number]
        ended = free.setdefault((life.when, buffer.channels, buffer.height, buffer.width), [])
        fitting = [pair for pair in ended if any(pair[0] < at < life.begin for at in linear)]
        if fitting:
            # the one that was used last is the likeliest to be in the cache still
            taken = max(fitting)
            ended.remove(taken)
            merged[number] = taken[1]
        ended.append((life.end, merged[number]))
    kept = sorted(set(merged))
    renumbered = {old: new for new, old in enumerate(kept)}
    numbers = [renumbered[old] for old in merged]
    return (
        replace(
            program,
            buffers=tuple(program.buffers[old] for old in kept),
            instructions=tuple(_renumbered(instruction, numbers) for instruction in program.instructions),
            inputs=tuple(numbers[old] for old in program.inputs),
            outputs=tuple((numbers[old], start) for old, start in program.outputs),
        ),
        numbers,
    )


def _renumbered(instruction: Instruction, numbers: list[int]) -> Instruction:
    reads = tuple(replace(read, source=numbers[read.source]) for read in instruction.reads)
    changed = replace(instruction, destination=numbers[instruction.destination], reads=reads)
    if isinstance(changed, Linear) and changed.initial is not None:
        return replace(changed, initial=numbers[changed.initial])
    return changed


def _lives(program: Program) -> dict[int, _Life]:
    """The buffers that hold nothing from one moment to the next."""
    lasting = {*program.inputs, *(number for number, _ in program.outputs)}
    lives: dict[int, _Life] = {}
    for at, instruction in enumerate(program.instructions):
        for read in _all_reads(program, instruction):
            life = lives.get(read.source)
            if life is None or not _in_place(program, instruction, read) or life.when != instruction.when:
                lasting.add(read.source)
            else:
                life.end = at
        number, buffer = instruction.destination, program.buffers[instruction.destination]
        life = lives.setdefault(number, _Life(instruction.when, at, at, set()))
        if life.when != instruction.when or life.end > at or not _can_be_short(buffer, instruction.when):
            lasting.add(number)
        start, count = (
            (0, buffer.channels) if isinstance(instruction, Linear) else (instruction.start, instruction.reads[0].count)
        )
        life.written.update(range(start, start + count))
        life.end = at
    return {
        number: life
        for number, life in lives.items()
        if number not in lasting and len(life.written) == program.buffers[number].channels
    }


def _all_reads(program: Program, instruction: Instruction) -> Iterator[Read]:
    yield from instruction.reads
    if isinstance(instruction, Linear) and instruction.initial is not None:
        yield Read(instruction.initial, 0, program.buffers[instruction.initial].channels)


def _in_place(program: Program, instruction: Instruction, read: Read) -> bool:
    source, own = program.buffers[read.source], program.buffers[instruction.destination]
    return (read.row, read.column) == (Index(), Index()) and (source.height, source.width) == (own.height, own.width)


def _can_be_short(buffer: Buffer, when: When) -> bool:
    whole = (when.period, when.phase) == ((1, 1), (0, 0))
    return whole and buffer.rows == 1 and buffer.left == buffer.right == 0 and not buffer.constant
