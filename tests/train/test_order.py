"""The data's order: a function of (seed, position), whatever the run is divided into."""

import itertools

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from vidgen.train.order import batches, epoch_order, examples_at


@given(st.integers(0, 2**64 - 1), st.integers(0, 1000), st.integers(1, 200))
def test_an_epoch_is_a_permutation(seed, epoch, size):
    assert sorted(epoch_order(seed, epoch, size)) == list(range(size))


def test_the_order_never_moves():
    # a change here makes old runs impossible to resume
    assert epoch_order(0, 0, 12).tolist() == [11, 2, 4, 0, 10, 8, 7, 5, 6, 3, 1, 9]
    assert epoch_order(0, 1, 12).tolist() == [10, 11, 7, 2, 6, 0, 9, 4, 1, 8, 3, 5]


def test_every_first_place_is_as_likely():
    first = numpy.bincount([epoch_order(5, epoch, 10)[0] for epoch in range(2000)], minlength=10)
    # 9 degrees of freedom, fixed seed
    assert ((first - 200) ** 2 / 200).sum() < 28


@given(
    size=st.integers(1, 30),
    part=st.integers(1, 4),
    accumulate=st.integers(1, 3),
    world=st.integers(1, 3),
    start=st.integers(0, 9),
    seed=st.integers(0, 9),
)
def test_processes_and_parts_share_one_stream(size, part, accumulate, world, start, seed):
    """All ranks' micro-batches of an update, put together, are that update's positions of the stream, each once."""
    data = TensorDataset(torch.arange(size))
    batch_size = part * accumulate * world
    ranks = [
        batches(data, seed=seed, batch_size=batch_size, start=start, accumulate=accumulate, rank=rank, world=world)
        for rank in range(world)
    ]
    for update in range(start, start + 3):
        pieces = [next(rank)[0] for _ in range(accumulate) for rank in ranks]
        assert all(len(piece) == part for piece in pieces)
        positions = numpy.arange(update * batch_size, (update + 1) * batch_size)
        assert torch.cat(pieces).tolist() == examples_at(positions, seed, size)


def test_workers_give_the_same_batches():
    data = TensorDataset(torch.arange(11))
    plain = batches(data, seed=3, batch_size=4, start=2)
    fetched = batches(data, seed=3, batch_size=4, start=2, workers=2)
    for here, there in itertools.islice(zip(plain, fetched, strict=False), 8):
        assert torch.equal(here[0], there[0])


def test_augmentation_is_told_the_positions():
    data = TensorDataset(torch.arange(7))
    stream = batches(data, seed=1, batch_size=4, start=3, augment=lambda batch, positions: (batch[0], positions))
    values, positions = next(stream)
    assert positions.tolist() == [12, 13, 14, 15]
    assert values.tolist() == examples_at(positions.numpy(), 1, 7)


def test_bad_divisions_are_named():
    data = TensorDataset(torch.arange(7))
    with pytest.raises(ValueError, match=r"batch_size: expected a positive multiple of accumulate × processes = 2 × 3"):
        batches(data, seed=0, batch_size=8, accumulate=2, world=3)
    with pytest.raises(ValueError, match="data: expected at least one example"):
        batches(TensorDataset(torch.zeros(0)), seed=0, batch_size=1)
