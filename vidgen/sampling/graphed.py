"""The executor "graph": a sampling program as CUDA graphs, captured once and replayed for every row and pixel.

A pixel of an eager executor is hundreds of launches, each of which Python prepares. A CUDA graph is launched whole. It
holds fixed launches with fixed arguments, so what changes from moment to moment has to come from the device: moments
are sorted into few kinds (`vidgen.sampling.graphed_moments`), each has a step that reads its addresses from a table at
a counter (`vidgen.sampling.graphed_pixels`), rows likewise (`vidgen.sampling.graphed_rows`), and drawing is replaying
kind after kind. The host asks once which rows are known; then it decides nothing that depends on values and waits
for none.

On other devices the same steps run without graphs: for tests, as they are slower there than the eager executor.

Of a plan's programs the wavefront is taken where no row needs what another makes in the same moment: moments cost the
same however many rows they draw, and there are fewer of them. Else it is the one in raster order.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from vidgen.sampling.graphed_memory import Layout, Memory
from vidgen.sampling.graphed_moments import MEMORY, CrossingError, Moments, Table
from vidgen.sampling.graphed_pixels import Code, PixelStep
from vidgen.sampling.graphed_rows import Mode, RowKind, RowStep, row_kinds
from vidgen.sampling.heads import Categorical, Head, LogisticMixture
from vidgen.sampling.interpreter import Draw
from vidgen.sampling.program import Program


def supports(device: torch.device, head: object) -> str | None:
    """None, or why a model cannot be drawn from by CUDA graphs."""
    if device.type != "cuda":
        return f"it runs on CUDA devices, the model is on {device}"
    # a class of the user's own may ask the host
    if type(head) not in (Categorical, LogisticMixture):
        return f"it draws from Categorical and LogisticMixture heads, not from {type(head).__name__}"
    return None


class Compiled:
    """A program sorted into kinds, whatever the batch: what is worked out once per plan.

    Attributes:
        moments, table, codes: of pixels; the codes by kind.
        row_kinds: by mode and row.
        first_row: of the rows that have steps.
        kept: buffers that are read from memory.
    """

    def __init__(self, program: Program):
        self.program = program
        layout = Layout(program)
        self.moments = Moments(program, layout)
        self.row_kinds = row_kinds(program)
        self.first_row = min(0, *(row for _, row in self.row_kinds), 0)
        self.kept = {
            read.source
            for kind in self.moments.kinds
            for k in kind.events
            for group, sources in zip(self.moments.events[k].groups, kind.sources[k], strict=True)
            for read, source in zip(group, sources, strict=True)
            if source == MEMORY
        }
        self.kept = self.kept.union(*(kind.from_memory() for kind in self.row_kinds.values()))
        self.table = Table(self.moments)
        weights: dict[Any, Tensor] = {}
        self.codes = [Code(self.moments, kind, self.table, self.kept, weights) for kind in self.moments.kinds]


Step = Callable[[], None]


_CAPTURING = threading.Lock()  # a process captures one graph at a time


@functools.cache
def _aside(index: int) -> torch.cuda.Stream:
    """The stream of a device to capture on: one, for libraries keep memory for each."""
    return torch.cuda.Stream(index)


def capture_for(device: torch.device) -> Callable[[Step], Step]:
    """What makes of a step its replay: CUDA graphs, which share their memory; elsewhere the step itself."""
    if device.type != "cuda":
        return lambda step: step
    # replays run one after the other and leave nothing behind but in static tensors
    pool = torch.cuda.graph_pool_handle()

    def capture(step: Step) -> Step:
        here, aside = torch.cuda.current_stream(), _aside(torch.cuda.current_device())
        graph = torch.cuda.CUDAGraph()
        try:
            with _CAPTURING:
                # once before, so that libraries have made what they keep for this stream
                aside.wait_stream(here)
                with torch.cuda.stream(aside):
                    step()
                here.wait_stream(aside)
                # threads that capture nothing may use the device meanwhile
                with torch.cuda.graph(graph, pool=pool, stream=aside, capture_error_mode="thread_local"):
                    step()
        except torch.OutOfMemoryError:
            raise  # who can draw fewer at once wants to know
        except RuntimeError as error:
            raise RuntimeError(
                f"impl='graph': a step could not be captured as a CUDA graph, impl='eager' draws without: {error}"
            ) from error
        return graph.replay

    return capture


class Session:
    """The steps of a program for a batch of one size, and on a GPU their graphs.

    Args:
        compiled: the program.
        images: the batch.
        dtype, device: of state and canvas.
        draw: as for `vidgen.sampling.interpreter.run_program`; it may not ask the host.
        record: whether parameters are recorded.
    """

    def __init__(
        self, compiled: Compiled, images: int, dtype: torch.dtype, device: torch.device, draw: Draw, *, record: bool
    ):
        self.compiled, self.device = compiled, device
        moments, width, lanes = compiled.moments, compiled.table.width, compiled.moments.lanes
        self.memory = Memory(compiled.program, images, dtype, device, record=record)
        sizes = [(lanes * code.registers, lanes * sum(t.count for t in code.stores)) for code in compiled.codes]
        self.memory.reserve(max(a for a, _ in sizes), max(a + b for a, b in sizes))
        self.table = torch.from_numpy(compiled.table.numbers()).to(device)
        at = torch.zeros_like(self.table[:1])
        self._pixels = [
            PixelStep(code, self.memory, self.table, at, width, lanes, draw) if code.calls else None
            for code in compiled.codes
        ]
        self._kind_of = moments.kind_of.tolist()
        self._capture = capture_for(device)
        self._replays: dict[RowKind | int, Step] = {}
        self._captured: list[Step] = []  # graphs read what these hold, and hold nothing themselves
        self._done = torch.cuda.Event() if device.type == "cuda" else None
        self._clock = (-1, -1)  # where the counters of moments and rows stand
        self._known: list[bool] = []

    # Steps.

    def step(self, kind: RowKind | int) -> Step:
        """The step of a kind of moment, by its number, or of a kind of row: what runs where there are no graphs."""
        if isinstance(kind, RowKind):
            return RowStep(kind, self.memory, self.compiled.kept, self.compiled.first_row)
        step = self._pixels[kind]
        assert step is not None
        return step

    def _make_ready(self, kind: RowKind | int) -> None:
        """Captures a kind's step, before a run: it is run for that, on whatever the memory holds."""
        if kind not in self._replays:
            # the counters have to be within the tables
            self._set_counters(0, 0)
            step = self.step(kind)
            self._captured.append(step)
            self._replays[kind] = self._capture(step)

    def _set_counters(self, moment: int, row: int) -> None:
        self.memory.moment.fill_(moment)
        self.memory.row.fill_(row)
        self._clock = (moment, row)

    def _at_moment(self, moment: int) -> None:
        kind = self._kind_of[moment]
        if self._pixels[kind] is None:
            return
        if self._clock[0] != moment:
            self._set_counters(moment, self._clock[1])
        self._replays[kind]()
        self._clock = (moment + 1, self._clock[1])

    def _at_row(self, mode: Mode, row: int) -> None:
        kind = self.compiled.row_kinds.get((mode, row))
        if kind is None:
            return
        number = row - self.compiled.first_row
        if self._clock[1] != number:
            self._set_counters(self._clock[0], number)
        self._replays[kind]()
        self._clock = (self._clock[0], number + 1)

    # Runs.

    def begin(self, state: Tensor, canvas: Tensor, known: Tensor, noise: Tensor, *, top: int = 0) -> None:
        """Begins a run; arguments as for `vidgen.sampling.interpreter.run_program`."""
        if self._done is not None:
            self._done.wait()
        self._known = known.all(dim=3).all(dim=1).all(dim=0).tolist() if len(known) else [False] * known.shape[2]
        wave = bool(self.compiled.program.wave)
        for mode, row in self.compiled.row_kinds:
            if mode == "above" or (mode == "known") == (row < top if wave else self._known[row]):
                self._make_ready(self.compiled.row_kinds[mode, row])
        for kind, step in enumerate(self._pixels):
            if step is not None:
                self._make_ready(kind)
        if wave:
            self.table.copy_(torch.from_numpy(self.compiled.table.numbers(top)))
        self.memory.load(state, canvas, known, noise)
        self._set_counters(0, 0)

    def run(self, first: int, last: int, *, whole_rows: bool = False) -> None:
        """Runs moments first … last − 1 as `vidgen.sampling.interpreter.run_program` does."""
        if first == 0:
            for row in range(self.compiled.first_row, 0):
                self._at_row("above", row)
        for moment in range(first, last):
            if whole_rows:
                self._at_row("known", moment)
            elif self.compiled.program.wave:
                self._at_moment(moment)
            elif self._known[moment]:
                self._at_row("known", moment)
            else:
                self._at_row("drawn", moment)
                columns = len(self.compiled.moments.columns)
                for place in range(moment * columns, (moment + 1) * columns):
                    self._at_moment(place)

    def end(self) -> None:
        """After the caller's last read of the memory: who comes next, on whatever stream, waits for it."""
        if self._done is not None:
            self._done.record()

    def wait(self) -> None:
        """Returns when the device is done with the memory, which may then be given back."""
        if self._done is not None:
            self._done.synchronize()


class GraphedPlan:
    """What a plan keeps for this executor: its program in kinds, and the sessions that were used last.

    Args:
        programs: in order of preference; the last is in raster order, which always has steps.
        dtype, device: of the network's weights.
    """

    KEPT = 2  # sessions: a full batch, and the rest of a series

    def __init__(self, *programs: Program, dtype: torch.dtype, device: torch.device):
        self.dtype, self.device = dtype, device
        self.compiled = _first_compiled(programs)
        self._idle: dict[object, Session] = {}

    @contextlib.contextmanager
    def session(
        self, images: int, head: Head, *, temperature: float, quantize: bool, record: bool
    ) -> Iterator[Session]:
        """A session for this caller alone. One that fails or is interrupted is not used again."""

        def draw(parameters: Tensor, noise: Tensor) -> Tensor:
            return head.sample(parameters, noise, temperature=temperature, quantize=quantize)

        # products are captured as they are asked for now
        tf32 = torch.backends.cuda.matmul.allow_tf32
        key = (images, head, temperature, quantize, record, tf32)
        here = torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False), here:
            session = self._idle.pop(key, None)
            if session is None:
                session = Session(self.compiled, images, self.dtype, self.device, draw, record=record)
            yield session
            session.end()
        self._idle[key] = session
        while len(self._idle) > self.KEPT:
            self._idle.pop(next(iter(self._idle))).wait()


def _first_compiled(programs: tuple[Program, ...]) -> Compiled:
    for program in programs[:-1]:
        try:
            return Compiled(program)
        except CrossingError:
            continue
    return Compiled(programs[-1])
