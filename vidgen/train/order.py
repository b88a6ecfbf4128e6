"""Which example is seen when: a pure function of (seed, position), so that nothing has to be stored to resume.

Position p of the endless stream is place p mod n of epoch p // n, and an epoch's order is a permutation of the n
examples: they are sorted by the 64 random bits that Philox4x32-10 gives for key ``seed`` and counter
(example, epoch, 0, 1). Update u takes the positions u·B … u·B + B − 1, B being the batch over all processes and
accumulation steps together, so a run sees the same batches however it is divided.
"""

from collections.abc import Callable, Iterator, Sized
from functools import lru_cache
from typing import Any, Protocol

import numpy
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from vidgen.sampling.philox import philox4x32


class Examples(Sized, Protocol):
    """A data set: its length, and the batch of a list of indices (tensors, or tuples or dicts of tensors)."""

    def __getitem__(self, indices: list[int], /) -> Any: ...


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, size: int) -> NDArray[numpy.int64]:
    """The permutation of ``size`` examples in an epoch, int64 (size,); read-only."""
    # the last word keeps these numbers apart from those that images are drawn with
    words = philox4x32((numpy.arange(size), epoch, 0, 1), seed).astype(numpy.uint64)
    order = numpy.argsort(words[:, 0] << numpy.uint64(32) | words[:, 1], kind="stable")
    order.flags.writeable = False
    return order


def examples_at(positions: NDArray[numpy.int64], seed: int, size: int) -> list[int]:
    """The examples at some positions of the stream."""
    epochs, places = numpy.divmod(positions, size)
    return [int(epoch_order(seed, int(epoch), size)[place]) for epoch, place in zip(epochs, places, strict=True)]


class _Positions(Sampler[list[int]]):
    """The micro-batches of one process from update ``start`` on, each a list of positions; endless."""

    def __init__(self, start: int, batch_size: int, accumulate: int, rank: int, world: int):
        self.start, self.batch_size, self.accumulate, self.rank, self.world = start, batch_size, accumulate, rank, world

    def __iter__(self) -> Iterator[list[int]]:
        size = self.batch_size // (self.accumulate * self.world)
        update = self.start
        while True:
            for part in range(self.accumulate):
                first = update * self.batch_size + (part * self.world + self.rank) * size
                yield list(range(first, first + size))
            update += 1


class _Stream:
    """Positions -> batches."""

    def __init__(self, data: Examples, seed: int, augment: Callable[[Any, NDArray[numpy.int64]], Any] | None):
        self.data, self.seed, self.augment = data, seed, augment

    def __getitem__(self, positions: list[int]) -> Any:
        where = numpy.asarray(positions, dtype=numpy.int64)
        batch = self.data[examples_at(where, self.seed, len(self.data))]
        return batch if self.augment is None else self.augment(batch, where)


def _ignore_interrupts(worker: int) -> None:
    # Ctrl-C reaches every process of the terminal; the workers must live on while the run is saved
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)


def batches(
    data: Examples,
    *,
    seed: int,
    batch_size: int,
    start: int = 0,
    accumulate: int = 1,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    augment: Callable[[Any, NDArray[numpy.int64]], Any] | None = None,
    pin_memory: bool = False,
) -> Iterator[Any]:
    """This process's micro-batches from update ``start`` on, without end.

    Args:
        data: the examples, at least one.
        seed: decides the order.
        batch_size: examples in an update, over all processes and accumulation steps.
        start: first update.
        accumulate: micro-batches that make up an update.
        rank, world: this process's number and the number of processes.
        workers: processes that fetch batches; 0 fetches them in this one.
        augment: (batch, positions) -> batch; a function of its arguments alone keeps the run reproducible.
        pin_memory: page-locked batches, for copies to a GPU.

    Raises:
        ValueError: the data set is empty, or the batch cannot be divided.
    """
    if len(data) == 0:
        raise ValueError("data: expected at least one example, got an empty data set")
    if batch_size < 1 or batch_size % (accumulate * world):
        parts = f"{accumulate} × {world}"
        raise ValueError(
            f"batch_size: expected a positive multiple of accumulate × processes = {parts}, got {batch_size}"
        )
    # none of the loader's own randomness is used; a generator of its own keeps it from drawing on the global one, whose
    # state would otherwise differ between a resumed run and an uninterrupted one
    loader: DataLoader[Any] = DataLoader(
        _Stream(data, seed, augment),  # type: ignore[arg-type]
        sampler=_Positions(start, batch_size, accumulate, rank, world),
        batch_size=None,
        num_workers=workers,
        worker_init_fn=_ignore_interrupts,
        generator=torch.Generator(),
        pin_memory=pin_memory,
    )
    return iter(loader)
