"""What the Triton launcher of corr_lookup promises. Not collected by name: test_triton_interpreter.py runs this file in
a process of its own under TRITON_INTERPRET=1, benchmarks/gpu.py runs it on a GPU."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.kernels.correlations import Correlations
from tests.kernels.problems import relative_error
from vidgen.kernels import corr_lookup as kernels
from vidgen.kernels.gemm import INTERPRETED

DEVICE = "cpu" if INTERPRETED else "cuda"

PROBLEMS = [
    Correlations(5, on_demand=False),
    Correlations(5, on_demand=True),
    Correlations(16, on_demand=True, channels_last=True, levels=1, radius=2),
    Correlations(3, on_demand=False, size=(2, 9), other=(11, 12), levels=3, radius=4, batch=1, channels_last=True),
    Correlations(1, on_demand=True, size=(1, 3), other=(1, 4), levels=1, radius=0),
    Correlations(2, on_demand=False, size=(3, 1), other=(4, 1), levels=1, radius=1),
    Correlations(40, on_demand=True, size=(5, 8), other=(4, 5), levels=1, radius=1, batch=1),
]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def _poison(poisoned):
    """Every output starts as NaN."""


@pytest.mark.parametrize("problem", [p.with_dtype(d) for p, d in itertools.product(PROBLEMS, DTYPES)], ids=str)
def test_agrees_with_float64(problem):
    arguments = problem.arguments(DEVICE)
    got = kernels.forward(*arguments)
    assert got.dtype == torch.float32
    assert relative_error(got, problem.answer(*arguments)) < 1e-6
    assert got.is_contiguous(memory_format=torch.channels_last if problem.channels_last else torch.contiguous_format)


@pytest.mark.parametrize("problem", PROBLEMS[:2], ids=str)
def test_bits_do_not_depend_on_the_batch_around_nor_on_the_run(problem):
    pyramid, coords, radius, fmap1 = problem.arguments(DEVICE)
    together = kernels.forward(pyramid, coords, radius, fmap1)
    assert torch.equal(together, kernels.forward(pyramid, coords, radius, fmap1))
    for i in range(problem.batch):
        one = slice(i, i + 1)
        alone = kernels.forward([t[one] for t in pyramid], coords[one], radius, None if fmap1 is None else fmap1[one])
        assert torch.equal(together[one], alone)


@pytest.mark.parametrize("problem", PROBLEMS[:2], ids=str)
def test_takes_any_strides(problem):
    pyramid, coords, radius, fmap1 = problem.arguments(DEVICE)

    def scattered(t):
        wide = torch.full([2 * size for size in reversed(t.shape)], torch.nan, dtype=t.dtype, device=t.device)
        return wide.permute(*reversed(range(t.dim())))[tuple(slice(1, None, 2) for _ in t.shape)].copy_(t)

    got = kernels.forward(
        [scattered(t) for t in pyramid], scattered(coords), radius, None if fmap1 is None else scattered(fmap1)
    )
    assert torch.equal(got, kernels.forward(pyramid, coords, radius, fmap1))


@pytest.mark.parametrize("problem", PROBLEMS[:2], ids=str)
def test_coordinates_that_are_not_finite_or_huge(problem):
    pyramid, coords, radius, fmap1 = problem.arguments(DEVICE)
    coords[0, 0, 0, 0], coords[1, 1, 2, 4], coords[0, 0, 1, 1] = torch.nan, -torch.inf, torch.inf
    coords[1, 0, 0, 0], coords[0, 1, 2, 2] = 3e38, -1e9
    got = kernels.forward(pyramid, coords, radius, fmap1)
    unknown = ~coords.isfinite().all(dim=1, keepdim=True)
    assert torch.equal(got.isnan(), unknown.expand_as(got))
    assert (got[1, :, 0, 0] == 0).all()
    assert (got[0, :, 2, 2] == 0).all()


@pytest.mark.parametrize("problem", PROBLEMS[:2], ids=str)
def test_a_pixel_that_no_window_has_is_not_read(problem):
    pyramid, coords, radius, fmap1 = problem.arguments(DEVICE)
    coords[:] = 1.5
    expected = kernels.forward(pyramid, coords, radius, fmap1)
    for level in pyramid[:1]:
        level[..., 4:, :] = torch.nan
        level[..., :, 4:] = torch.nan
    assert torch.equal(kernels.forward(pyramid, coords, radius, fmap1), expected)


def test_an_empty_batch():
    pyramid, coords, radius, _ = PROBLEMS[0].arguments(DEVICE)
    assert kernels.forward([t[:0] for t in pyramid], coords[:0], radius, None).shape == (0, 18, 3, 5)
