"""When each value of a causal network can be computed, and how long it is kept: from a graph to a program.

A position (i, j) of a node with stride (sh, sw) stands at pixel (sh·i, sw·j). What it depends on is summed up by the
last sub-pixel, in raster order and relative to that place: (row, column, step). The network is causal if what the
parameters of step g depend on comes before (0, 0, g).

In raster order a task (a node, or a phase of a transposed convolution) has the rate of a row if everything that reads
it can wait for the row begin that follows the last row it depends on; else that of a pixel. A pixel-rate linear task is
split: what it reads of rows that are finished becomes a row-rate task of its own, one product over the whole line, to
which the pixel adds the rest.

A wavefront visits pixel (r, c) at time c + s·r. It is possible for s if every output can be computed from what earlier
times have made; a task's lag then is the latest time of what it reads. Its tasks are those of raster order, so that
both ways add up the same numbers in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor

from vidgen.sampling.graph import (
    ConstantNode,
    GatherNode,
    Graph,
    InputNode,
    LinearNode,
    Node,
    Pair,
    PointwiseNode,
    Value,
    merge_sums,
)
from vidgen.sampling.program import Read

Moment = tuple[int, int, int]
NEVER: Moment = (-(10**9), 0, 0)
"""What a constant depends on."""


class NotCausalError(ValueError):
    """An output depends on a sub-pixel that is drawn with it or after it; the message says which."""


@dataclass
class Task:
    """One instruction of the program: a node, or the part of it with one phase.

    last: what it depends on. rate, lag, step: when it runs, as in `vidgen.sampling.program.When`.
    """

    node: int
    reads: list[Read]
    period: Pair = (1, 1)
    phase: Pair = (0, 0)
    weights: list[Tensor] = field(default_factory=list)
    bias: Tensor | None = None
    initial: int | None = None
    function: str | None = None
    constants: tuple[float, ...] = ()
    start: int = 0
    last: Moment = NEVER
    rate: Literal["row", "pixel"] = "pixel"
    lag: Pair = (0, 0)
    step: int = 0

    def all_reads(self, channels: int) -> list[Read]:
        """Its reads, and that of the sum it starts from."""
        return self.reads + ([] if self.initial is None else [Read(self.initial, 0, channels)])


def _tasks(index: int, node: Node) -> list[Task]:
    if isinstance(node, LinearNode):
        return [Task(index, p.reads, p.period, p.phase, p.weights, node.bias) for p in node.parts]
    if isinstance(node, PointwiseNode):
        return [Task(index, node.reads, function=node.function, constants=node.constants)]
    if isinstance(node, GatherNode):
        return [Task(index, [read], function="copy", start=start) for read, start in node.pieces]
    return []


class Schedule:
    """A graph's tasks in raster order, each after what it reads; tasks that no output needs are left out.

    Args:
        graph: from `vidgen.sampling.tracing`; sums of linear nodes are merged in it.
        shape: (C, H, W) of the image.
        steps: G, draws per pixel.

    Raises:
        NotCausalError: an output depends on what is not drawn yet.
    """

    def __init__(self, graph: Graph, shape: tuple[int, int, int], steps: int):
        self.graph, self.shape, self.steps = graph, shape, steps
        self.outputs = self._outputs()
        merge_sums(graph, keep={node for node, _ in self.outputs})
        self.nodes: list[Node] = list(graph.nodes)
        self._last: list[Moment] = []
        tasks: list[Task] = []
        for index, node in enumerate(graph.nodes):
            # a map without positions (all that was cut off a map of one line, say) is what its readers find: zeros
            made = _tasks(index, node) if all(node.size) else []
            for task in made:
                task.last = max((self._depends(task, read) for read in task.reads), default=NEVER)
            own = (0, 0, node.step) if isinstance(node, InputNode) else NEVER
            self._last.append(max((task.last for task in made), default=own))
            tasks += made
        self._check_causality()
        self.tasks = self._with_rates(tasks)

    def shift(self, node: int, read: Read) -> Pair:
        """Rows and columns of the image from a reader's place to the place that it reads."""
        source, reader = self.nodes[read.source].stride, self.nodes[node].stride
        indices = (read.row, read.column)
        if any(s * i.step != r * i.divisor for s, r, i in zip(source, reader, indices, strict=True)):
            raise NotCausalError(f"{self.nodes[node].name}: maps of different resolutions are combined")
        rows, columns = (s * i.offset // i.divisor for s, i in zip(source, indices, strict=True))
        return rows, columns

    def _depends(self, task: Task, read: Read) -> Moment:
        row, column, step = self._last[read.source]
        if self._last[read.source] == NEVER:
            return NEVER
        rows, columns = self.shift(task.node, read)
        return row + rows, column + columns, step

    def _outputs(self) -> list[tuple[int, int]]:
        """By step the node and first channel of its parameters."""
        output = self.graph.output
        assert output is not None
        if output.stride != (1, 1) or output.size != self.shape[1:]:
            raise NotCausalError(f"the output has size {output.size} and stride {output.stride}, not the image's")
        views, channels = (a.reshape(len(a), -1) for a in (output.views, output.channels))
        if views.shape[1] != self.steps:
            raise NotCausalError(f"the output has parameters for {views.shape[1]} steps per pixel, not {self.steps}")
        return [
            self.graph.gathered(Value(views[:, step], channels[:, step], output.size, output.stride))
            for step in range(self.steps)
        ]

    def _check_causality(self) -> None:
        for step, (node, _) in enumerate(self.outputs):
            last = self._last[node]
            if last >= (0, 0, step):
                row, column, drawn = last
                raise NotCausalError(
                    f"the parameters of pixel (i, j){f', step {step}' if self.steps > 1 else ''} depend on pixel "
                    f"(i{f'{row:+d}' if row else ''}, j{f'{column:+d}' if column else ''})"
                    f"{f', step {drawn}' if self.steps > 1 else ''}, which is not drawn before it"
                )

    # Rates.

    def _with_rates(self, tasks: list[Task]) -> list[Task]:
        """From the last task to the first: each waits for the next row begin if all its readers can."""
        # by node, the row begin (relative to the place of its line) at which its first reader wants the line
        wanted = {node: 0 for node, _ in self.outputs}
        ordered: list[Task] = []

        def place(task: Task) -> None:
            self._place(task, wanted[task.node])
            ordered.append(task)
            if task.rate == "pixel" and task.function is None and (above := self._split(task)) is not None:
                wanted[above.node] = task.lag[0]
                place(above)
            for read in task.reads:
                at = task.lag[0] - self.shift(task.node, read)[0]
                wanted[read.source] = min(wanted.get(read.source, at), at)

        for task in reversed(tasks):
            if task.node in wanted:
                place(task)
        return ordered[::-1]

    def _place(self, task: Task, deadline: int) -> None:
        row, column, step = task.last
        if row + 1 <= deadline:
            task.rate, task.lag = "row", (min(deadline, max(row + 1, 0)), 0)
        elif step + 1 < self.steps:
            task.lag, task.step = (row, column), step + 1
        else:
            task.lag = (row, column + 1)

    def _split(self, task: Task) -> Task | None:
        """Takes from a pixel-rate task, as a task before it, the sum over what it reads of finished rows."""
        early = [self._depends(task, read)[0] < task.last[0] for read in task.reads]
        if not any(early):
            return None
        node = self.nodes[task.node]
        self.nodes.append(replace(node, name=f"{node.name}, rows above"))
        above = Task(len(self.nodes) - 1, [], task.period, task.phase, [], task.bias)
        late = Task(task.node, [])
        for read, weight, is_early in zip(task.reads, task.weights, early, strict=True):
            part = above if is_early else late
            part.reads.append(read)
            part.weights.append(weight)
        task.reads, task.weights, task.bias, task.initial = late.reads, late.weights, None, above.node
        above.last = max(self._depends(above, read) for read in above.reads)
        self._last.append(above.last)
        return above

    # Wavefronts.

    def wavefront(self) -> tuple[int, list[Task]] | None:
        """(s, tasks with their lags) of the least s that makes a wavefront possible; None if none is worth it."""
        _, height, width = self.shape
        if any(task.lag[0] < 0 for task in self.tasks):
            return None  # lines that are made before their row: whole rows would need a second set of lags
        for s in range(1, width):
            if 2 * (width + s * (height - 1)) > width * height:
                return None
            tasks = self._lagged(s)
            if tasks is not None:
                return s, tasks
        return None

    def _lagged(self, s: int) -> list[Task] | None:
        # (time, step) at which a node's value is there, relative to the time of its place
        there = [
            ((0, node.step + 1) if node.step + 1 < self.steps else (1, 0)) if isinstance(node, InputNode) else (0, 0)
            for node in self.nodes
        ]
        lagged = []
        for task in self.tasks:
            # not before its own place: times begin at 0
            time = (0, 0)
            for read in task.all_reads(self.nodes[task.node].channels):
                if isinstance(self.nodes[read.source], ConstantNode):
                    continue
                rows, columns = self.shift(task.node, read)
                at, step = there[read.source]
                time = max(time, (at + columns + s * rows, step))
            there[task.node] = max(there[task.node], time)
            lagged.append(replace(task, rate="pixel", lag=(0, time[0]), step=time[1]))
        late = any(there[node] > (0, step) for step, (node, _) in enumerate(self.outputs))
        return None if late else lagged
