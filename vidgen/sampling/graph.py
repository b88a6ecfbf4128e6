"""A causal network as nodes: what `vidgen.sampling.tracing` finds and `vidgen.sampling.schedule` puts in time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray
from torch import Tensor

from vidgen.sampling.program import Index, Read

Pair = tuple[int, int]

Phases = tuple[tuple[int, int, int], tuple[int, int, int]]
"""Of a reader's rows and columns: (size of its grid, period, phase)."""


@dataclass
class Part:
    """The positions with i mod period = phase of a linear node, all of it but for transposed convolutions."""

    reads: list[Read]
    weights: list[Tensor]  # (count of the read, channels of the node) each
    period: Pair = (1, 1)
    phase: Pair = (0, 0)


@dataclass
class Node:
    """A value that is computed, on a grid whose position (i, j) stands at pixel (i·stride, j·stride) of the image."""

    name: str
    channels: int
    size: Pair
    stride: Pair


@dataclass
class InputNode(Node):
    """The channels that step `step` of a pixel draws."""

    step: int


@dataclass
class ConstantNode(Node):
    """Values (1, channels, 1 or height, 1 or width); `tensor` stands on the tape where they depend on labels."""

    tensor: Tensor


@dataclass
class LinearNode(Node):
    parts: list[Part]
    bias: Tensor | None


@dataclass
class PointwiseNode(Node):
    function: str
    reads: list[Read]
    constants: tuple[float, ...] = ()


@dataclass
class GatherNode(Node):
    """Channels put together from several nodes: (read, first channel of its copy) each."""

    pieces: list[tuple[Read, int]]


@dataclass(frozen=True)
class View:
    """A node as a tensor shows it: position (i, j) is the node's (i, j) + shift inside the window, zero outside."""

    node: int
    shift: Pair
    window: tuple[Pair, Pair]  # rows from, to; columns from, to


@dataclass(frozen=True)
class Value:
    """What a tensor (1, *channels, H, W) means: for every channel a view and a channel of its node."""

    views: NDArray[numpy.int64]
    channels: NDArray[numpy.int64]
    size: Pair
    stride: Pair


class Graph:
    """Nodes in the order in which they were made, and the views by which tensors show them."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.views: list[View] = []
        self.output: Value | None = None
        self._ids: dict[View, int] = {}
        self._functions: dict[tuple[object, ...], int] = {}

    def add(self, node: Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1

    def add_once(self, node: PointwiseNode) -> int:
        """A function of the same values is one node, however often a network writes it down."""
        key = (node.function, tuple(node.reads), node.constants, node.size)
        if key not in self._functions:
            self._functions[key] = self.add(node)
        return self._functions[key]

    def view(self, view: View) -> int:
        if view not in self._ids:
            self._ids[view] = len(self.views)
            self.views.append(view)
        return self._ids[view]

    def value(self, nodes: list[int]) -> Value:
        """The tensor of these nodes, one after the other."""
        views: list[int] = []
        channels: list[int] = []
        for node in nodes:
            height, width = self.nodes[node].size
            views += [self.view(View(node, (0, 0), ((0, height), (0, width))))] * self.nodes[node].channels
            channels += range(self.nodes[node].channels)
        first = self.nodes[nodes[0]]
        return Value(numpy.array(views), numpy.array(channels), first.size, first.stride)

    def runs(self, *values: Value) -> Iterator[tuple[NDArray[numpy.int64], list[tuple[int, int]]]]:
        """Groups of channels that every value takes from one view in one run.

        Yields (positions of the group's channels, [(view, first channel) per value]).
        """
        views = numpy.stack([value.views.reshape(-1) for value in values])
        channels = numpy.stack([value.channels.reshape(-1) for value in values])
        order = numpy.lexsort([*channels[::-1], *views[::-1]])
        views, channels = views[:, order], channels[:, order]
        ends = (views[:, 1:] != views[:, :-1]) | (channels[:, 1:] != channels[:, :-1] + 1)
        borders = [0, *(numpy.flatnonzero(ends.any(axis=0)) + 1).tolist(), len(order)]
        for start, end in itertools.pairwise(borders):
            if start < end:
                first = zip(views[:, start].tolist(), channels[:, start].tolist(), strict=True)
                yield order[start:end], list(first)

    def read(self, view: int, start: int, count: int, row: Index, column: Index, phases: Phases) -> Read:
        """How a node reads channels of a view: what the view is, folded into the indices.

        Args:
            row, column: index of a position in the view.
            phases: size, period and phase of the reader.
        """
        v = self.views[view]
        indices = [row, column]
        shown = [
            _shows_zeros(index, shift, window, size, *p)
            for index, shift, window, size, p in zip(
                indices, v.shift, v.window, self.nodes[v.node].size, phases, strict=True
            )
        ]
        if not all(shown):
            v = self.views[self._cropped(v)]
        shifted = [
            Index(index.step, index.offset + shift * index.divisor, index.divisor)
            for index, shift in zip(indices, v.shift, strict=True)
        ]
        return Read(v.node, start, count, *shifted)

    def gathered(self, value: Value) -> tuple[int, int]:
        """(node, first channel) where the channels of a value lie side by side; a node is made if none has them so."""
        phases = ((value.size[0], 1, 0), (value.size[1], 1, 0))
        pieces: list[tuple[Read, int]] = []
        for group, [(view, start)] in self.runs(value):
            breaks = [0, *(numpy.flatnonzero(numpy.diff(group) != 1) + 1), len(group)]
            for begin, end in itertools.pairwise(breaks):
                read = self.read(view, start + int(begin), int(end - begin), Index(), Index(), phases)
                pieces.append((read, int(group[begin])))
        first, _ = pieces[0]
        in_place = (first.row, first.column) == (Index(), Index()) and self.nodes[first.source].size == value.size
        if len(pieces) == 1 and in_place:
            return first.source, first.start
        return self.add(GatherNode("output", len(value.views), value.size, value.stride, pieces)), 0

    def _cropped(self, v: View) -> int:
        """A copy of what the window shows: a crop that takes away values, whose place a later padding fills."""
        source = self.nodes[v.node]
        (top, bottom), (left, right) = v.window
        read = Read(v.node, 0, source.channels, Index(offset=top + v.shift[0]), Index(offset=left + v.shift[1]))
        size = (bottom - top, right - left)
        copy = self.add(PointwiseNode(source.name, source.channels, size, source.stride, "copy", [read]))
        return self.view(View(copy, (-top, -left), v.window))

    def shifted(self, value: Value, before: Pair, size: Pair) -> Value:
        """The value padded with zeros (cropped, where negative) by `before` above and on the left, to a new size."""

        def moved(view: int) -> int:
            v = self.views[view]
            window = tuple(
                (max(lo + move, 0), min(hi + move, length))
                for (lo, hi), move, length in zip(v.window, before, size, strict=True)
            )
            shift = (v.shift[0] - before[0], v.shift[1] - before[1])
            return self.view(View(v.node, shift, (window[0], window[1])))

        ids, where = numpy.unique(value.views, return_inverse=True)
        views = numpy.array([moved(int(view)) for view in ids])[where].reshape(value.views.shape)
        return Value(views, value.channels, size, value.stride)


def _shows_zeros(index: Index, shift: int, window: Pair, size: int, length: int, period: int, phase: int) -> bool:
    """Whether what a reader meets outside the window lies outside the node too, and so is zero anyhow."""
    positions = numpy.arange(phase, length, period) * index.step + index.offset
    positions //= index.divisor
    inside = (positions >= window[0]) & (positions < window[1])
    exists = (positions + shift >= 0) & (positions + shift < size)
    return bool((inside == exists).all())


def merge_sums(graph: Graph, keep: set[int]) -> None:
    """Makes one linear node of the sum of two that nothing else reads: one product in place of two and a sum.

    Args:
        keep: nodes that are read from outside.
    """
    readers: dict[int, int] = {}
    for node in graph.nodes:
        for read in reads_of(node):
            readers[read.source] = readers.get(read.source, 0) + 1
    for index, node in enumerate(graph.nodes):
        if not isinstance(node, PointwiseNode) or node.function != "add":
            continue
        terms = [graph.nodes[read.source] for read in node.reads]
        alone = all(readers[read.source] == 1 and read.source not in keep for read in node.reads)
        whole = all(read == Read(read.source, 0, node.channels) for read in node.reads)
        same_grid = all(term.size == node.size and term.channels == node.channels for term in terms)
        if not (alone and whole and same_grid):
            continue
        first, second = terms
        if not isinstance(first, LinearNode) or not isinstance(second, LinearNode):
            continue
        if len(first.parts) > 1 or len(second.parts) > 1:
            continue
        a, b = first.parts[0], second.parts[0]
        biases = [bias for bias in (first.bias, second.bias) if bias is not None]
        graph.nodes[index] = LinearNode(
            f"{first.name} + {second.name}",
            node.channels,
            node.size,
            node.stride,
            [Part(a.reads + b.reads, a.weights + b.weights)],
            sum(biases[1:], biases[0]) if biases else None,
        )


def reads_of(node: Node) -> list[Read]:
    """All places from which a node is computed."""
    if isinstance(node, LinearNode):
        return [read for part in node.parts for read in part.reads]
    if isinstance(node, GatherNode):
        return [read for read, _ in node.pieces]
    return node.reads if isinstance(node, PointwiseNode) else []
