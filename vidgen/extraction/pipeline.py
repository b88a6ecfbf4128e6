"""The flow of one video, in bounded memory: frames are decoded ahead and flows written behind, in threads of their own.

    decoding ──queue of 2 batches──▸ flow of a batch of pairs ──at most 2 batches──▸ writing

FFmpeg, the ops and zlib all let other Python threads run. A batch holds pairs that follow one another; which pairs
share one changes no bit of their flow.
"""

from __future__ import annotations

import queue
import threading
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from vidgen.extraction.outputs import Output, Settings
from vidgen.extraction.sources import Source
from vidgen.ops import optical_flow

# threads that write files of one video, where they need not come in order: compressing takes longer than a fast flow
_WRITERS = 4


class StoppedError(Exception):
    """The run was asked to stop."""


class _Step(NamedTuple):
    """A frame that is used: its number in the video, its time, and its picture (H, W, 3) if anybody needs it."""

    number: int
    seconds: float
    picture: Tensor | None


def extract_one(
    source: Source,
    output: Output,
    settings: Settings,
    *,
    batch: int,
    stop: threading.Event,
    advance: Callable[[], None],
) -> int:
    """Computes and writes what is missing of one video's flow; `output` has begun.

    Args:
        batch: pairs of frames in one call of the op.
        stop: set by whoever wants an early end; what is computed by then is written.
        advance: called for each flow that is there.

    Returns:
        Number of flows of the video.

    Raises:
        StoppedError: `stop` was set.
        ValueError, RuntimeError, OSError, ModuleNotFoundError: the video is damaged or has fewer than two frames in
            use, the method refuses it, or it cannot be written.
    """
    seconds, last = array("d"), -1
    pending: list[_Step] = []
    try:
        with (
            _Writing(output, 1 if output.in_order else _WRITERS, 2 * batch, advance) as writing,
            _decoded_ahead(source, output.done, settings, 2 * batch) as steps,
        ):
            for step in steps:
                if stop.is_set():
                    raise StoppedError
                if isinstance(step, Exception):
                    # what came before the damage is as good as ever, and the same whatever the batch
                    _compute(pending, settings, writing)
                    raise step
                seconds.append(step.seconds)
                if last in output.done:
                    advance()
                    # a pair that is there already ends the batch before it
                    _compute(pending, settings, writing)
                    pending = []
                last = step.number
                if step.picture is not None:
                    pending.append(step)
                if len(pending) == batch + 1:
                    _compute(pending, settings, writing)
                    pending = pending[-1:]
            _compute(pending, settings, writing)
        if len(seconds) < 2:
            every = f" among every {settings.stride}th" if settings.stride > 1 else ""
            raise ValueError(f"it has {len(seconds)} frame{every}, flow needs two")
        output.finish(len(seconds) - 1, seconds)
    except BaseException:
        output.abandon()
        raise
    return len(seconds) - 1


def _compute(steps: list[_Step], settings: Settings, writing: _Writing) -> None:
    """The flow between each frame and the next."""
    if len(steps) < 2:
        return
    images = torch.stack([step.picture for step in steps if step.picture is not None]).permute(0, 3, 1, 2)
    how: dict[str, Any] = {"method": settings.method, "preset": settings.preset}
    flow = optical_flow(images[:-1], images[1:], **how)
    for step, each in zip(steps, flow, strict=False):
        writing.submit(step.number, step.seconds, each)


class _Writing:
    """Writes behind, at most `room` flows; an error comes out of a later `submit` or of the end of the block."""

    def __init__(self, output: Output, threads: int, room: int, advance: Callable[[], None]) -> None:
        self._output, self._room, self._advance = output, room, advance
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="vidgen-flow-write")
        self._futures: deque[Future[None]] = deque()

    def submit(self, number: int, seconds: float, flow: Tensor) -> None:
        self._futures.append(self._pool.submit(self._output.write, number, seconds, flow))
        self._collect(self._room)

    def _collect(self, left: int) -> None:
        while len(self._futures) > left:
            self._futures.popleft().result()
            self._advance()

    def __enter__(self) -> _Writing:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        # flows that are computed are written also where the video cannot be gone on with
        self._pool.shutdown(wait=True, cancel_futures=False)
        if kind is None:
            self._collect(0)


@contextmanager
def _decoded_ahead(
    source: Source, done: frozenset[int], settings: Settings, room: int
) -> Iterator[Iterator[_Step | Exception]]:
    """The frames in use, decoded in a thread that is at most `room` of them ahead; last the damage, if there is any."""
    items: queue.Queue[_Step | Exception | None] = queue.Queue(room)
    over = threading.Event()

    def put(item: _Step | Exception | None) -> None:
        while not over.is_set():
            try:
                return items.put(item, timeout=0.1)
            except queue.Full:
                continue

    def decode() -> None:
        try:
            for step in _steps(source, done, settings):
                put(step)
                if over.is_set():
                    return
            put(None)
        except Exception as error:
            put(error)

    def steps() -> Iterator[_Step | Exception]:
        while (item := items.get()) is not None:
            yield item

    thread = threading.Thread(target=decode, name="vidgen-flow-decode", daemon=True)
    thread.start()
    try:
        yield steps()
    finally:
        over.set()
        thread.join()


def _steps(source: Source, done: frozenset[int], settings: Settings) -> Iterator[_Step]:
    size: tuple[int, int] | None = None
    # its share of the machine is this worker's also in decoding
    for number, frame in enumerate(source.frames(threads=torch.get_num_threads())):
        if number % settings.stride:
            continue
        # a frame between two flows that are there already need not be converted
        if number in done and (number == 0 or number - settings.stride in done):
            yield _Step(number, frame.seconds, None)
            continue
        target = settings.size or (_short_side(frame.size, settings.short_side) if settings.short_side else None)
        pixels = torch.from_numpy(numpy.ascontiguousarray(frame.picture(target)))
        size = size or (pixels.shape[0], pixels.shape[1])
        if pixels.shape[:2] != size:
            raise ValueError(
                f"its frames must have one size: {size[1]} x {size[0]}, then {pixels.shape[1]} x {pixels.shape[0]} at "
                f"frame {number}; --size makes them one"
            )
        yield _Step(number, frame.seconds, pixels)


def _short_side(size: tuple[int, int], side: int) -> tuple[int, int]:
    height, width = size
    if height <= width:
        return side, max(round(width * side / height), 1)
    return max(round(height * side / width), 1), side
