"""From tasks to a program: the buffers with their sizes, the instructions with their numbers."""

from __future__ import annotations

import numpy
import torch

from vidgen.sampling.graph import ConstantNode, InputNode, Node
from vidgen.sampling.program import Buffer, Instruction, Linear, Pointwise, Program, Read, When
from vidgen.sampling.schedule import Schedule, Task


def build_program(
    schedule: Schedule, tasks: list[Task], wave: int, *, parameters: int
) -> tuple[Program, list[tuple[int, ConstantNode]]]:
    """The program of some tasks.

    Args:
        schedule: what the tasks are of.
        tasks: in order: all of the schedule's.
        wave: s of the wavefront that the tasks' lags are for, 0 for raster order.
        parameters: P, of a draw.

    Returns:
        The program, and for each constant buffer (its number, the node whose values it holds).
    """
    nodes = schedule.nodes
    inputs = [index for index, node in enumerate(nodes) if isinstance(node, InputNode)]
    edges = [(task, read) for task in tasks for read in task.all_reads(nodes[task.node].channels)]
    # in the order in which they come about; dictionaries keep it
    written = {node: None for task in tasks for node in (*(r.source for r in task.reads), task.node)}
    used = list({**dict.fromkeys(inputs), **written})
    number = {node: i for i, node in enumerate(used)}
    layout = _Layout(schedule, tasks, edges, wave)
    program = Program(
        shape=schedule.shape,
        steps=schedule.steps,
        buffers=tuple(layout.buffer(node) for node in used),
        instructions=tuple(_instruction(task, nodes[task.node], number) for task in tasks),
        inputs=tuple(number[node] for node in inputs),
        outputs=tuple((number[node], start) for node, start in schedule.outputs),
        parameters=parameters,
        wave=wave,
    )
    return program, [
        (number[i], node) for i, node in enumerate(nodes) if isinstance(node, ConstantNode) and i in number
    ]


def _instruction(task: Task, node: Node, number: dict[int, int]) -> Instruction:
    when = When(task.rate, node.stride, task.lag, task.step, task.period, task.phase)
    reads = tuple(Read(number[r.source], r.start, r.count, r.row, r.column) for r in task.reads)
    destination = number[task.node]
    if task.function is not None:
        return Pointwise(when, destination, task.function, reads, task.constants, task.start)
    initial = None if task.initial is None else number[task.initial]
    if not task.weights:
        return Linear(when, destination, reads, torch.zeros(0, node.channels), task.bias, initial)
    # reads of one line of one source stand together, so that a kernel may take them as one
    order = sorted(range(len(reads)), key=lambda i: (reads[i].source, reads[i].row.offset, reads[i].column.offset))
    weight = torch.cat([task.weights[i] for i in order])
    return Linear(when, destination, tuple(reads[i] for i in order), weight, task.bias, initial)


class _Layout:
    """How much of each value is kept, and how wide its lines are."""

    def __init__(self, schedule: Schedule, tasks: list[Task], edges: list[tuple[Task, Read]], wave: int):
        self._nodes, self._shape, self._wave = schedule.nodes, schedule.shape, wave
        self._schedule = schedule
        self._outputs = {node for node, _ in schedule.outputs}
        self._writers: dict[int, list[Task]] = {}
        for task in tasks:
            self._writers.setdefault(task.node, []).append(task)
        self._readers: dict[int, list[tuple[Task, Read]]] = {}
        for task, read in edges:
            self._readers.setdefault(read.source, []).append((task, read))

    def buffer(self, index: int) -> Buffer:
        node = self._nodes[index]
        # of a map without positions there is one, which nobody writes
        height, width = (max(size, 1) for size in node.size)
        left, right = 0, 0
        for task, read in self._readers.get(index, []):
            columns = self._lines(task, read, axis=1)[1]
            if len(columns):
                left, right = max(left, -int(columns.min())), max(right, int(columns.max()) - width + 1)
        if isinstance(node, ConstantNode):
            here = all(self._reads_in_place(task, read) for task, read in self._readers[index])
            if here and node.tensor.shape[-2:] == (1, 1):
                return Buffer(node.name, node.channels, 1, 1, 1, constant=True)
            # a grid of one line that is read beyond its edge gets a second line, or it would be read everywhere
            height, width = max(height, 2), max(width, 2)
            return Buffer(node.name, node.channels, height, width, height, left, right, constant=True)
        rows = self._rows_in_wave(index) if self._wave else self._rows_in_raster(index)
        return Buffer(node.name, node.channels, height, width, min(max(rows, 1), height), left, right)

    def _reads_in_place(self, task: Task, read: Read) -> bool:
        reader = self._nodes[task.node]
        return read == Read(read.source, read.start, read.count) and reader.size == self._nodes[read.source].size

    def _lines(self, task: Task, read: Read, axis: int) -> tuple[numpy.ndarray, numpy.ndarray]:
        """(a reader's lines or columns, those of the source that they read)."""
        own = numpy.arange(task.phase[axis], self._nodes[task.node].size[axis], task.period[axis])
        index = (read.row, read.column)[axis]
        return own, (own * index.step + index.offset) // index.divisor

    def _written(self, index: int) -> list[tuple[str, int]]:
        """(rate, lag in rows) of what writes a value; the input is written by pixels."""
        return [(task.rate, task.lag[0]) for task in self._writers.get(index, [])] or [("pixel", 0)]

    def _rows_in_raster(self, index: int) -> int:
        """Lines from the oldest that is read to the newest that may have been written by then."""
        node = self._nodes[index]
        # an output is read at its own row
        kept = 1 + max((-lag for _, lag in self._written(index)), default=0) if index in self._outputs else 1
        writers = self._written(index)
        for task, read in self._readers.get(index, []):
            own, lines = self._lines(task, read, axis=0)
            times = own * self._nodes[task.node].stride[0] + task.lag[0]
            for rate, lag in writers:
                # at a row begin no pixel of the row has been written
                by = times - (1 if task.rate == "row" and rate == "pixel" else 0)
                newest = numpy.minimum((by - lag) // node.stride[0], node.size[0] - 1)
                ages = (newest - lines)[(lines >= 0) & (lines < node.size[0])]
                kept = max(kept, int(ages.max(initial=0)) + 1)
        return kept

    def _rows_in_wave(self, index: int) -> int:
        """Lines of which no position is overwritten before its last reader has seen it."""
        node = self._nodes[index]
        line = self._wave * node.stride[0]  # times from a position to the one below
        writes = min((task.lag[1] for task in self._writers.get(index, [])), default=0)
        kept = 1 + (-writes // line if index in self._outputs else 0)  # an output is read in the time of its pixel
        for task, read in self._readers.get(index, []):
            rows, columns = self._schedule.shift(task.node, read)
            span = task.lag[1] - writes - self._wave * rows  # from a write to its read, in one column
            if (read.row.step, read.row.divisor, read.column.step, read.column.divisor) == (1, 1, 1, 1):
                # where rows are known, whole lines are made one after the other
                kept = max(kept, (span - columns) // line + 1, 1 - read.row.offset)
            else:
                # from the first write of a line to its last read
                kept = max(kept, (span + self._shape[2] - 1) // line + 1)
        return kept
