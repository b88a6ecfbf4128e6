"""What the Triton launchers of discretized_logistic_mixture promise. Not collected by name: test_triton_interpreter.py
runs this file in a process of its own under TRITON_INTERPRET=1, benchmarks/gpu.py runs it on a GPU."""

from __future__ import annotations

import itertools
import mmap

import pytest
import torch

from tests.kernels.pixels import Pixels
from tests.kernels.problems import relative_error
from vidgen.kernels import discretized_logistic_mixture as kernels
from vidgen.kernels.gemm import INTERPRETED

DEVICE = "cpu" if INTERPRETED else "cuda"
# relative rms of the gradient, which alone is rounded; the interpreter cuts bfloat16 off where a GPU rounds
BOUND = {torch.float32: 2e-6, torch.float16: 5e-4, torch.bfloat16: 8e-3 if INTERPRETED else 4e-3}

PROBLEMS = [
    Pixels(3, 2, size=(9, 17)),
    Pixels(3, 2, mode="openai", channels_last=True),
    Pixels(3, 1, levels=8, size=(1, 1)),
    Pixels(2, 3, levels=32, size=(1, 7)),
    Pixels(2, 1, mode="openai", size=(16, 16)),
    Pixels(1, 5, levels=2, size=(7, 1)),
    Pixels(1, 2, levels=65536, channels_last=True),
    Pixels(1, 3, levels=3, mode="openai"),
]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def _poison(poisoned):
    """Every output starts as NaN."""


def run(problem, params, x, grad):
    return kernels.forward(params, x, *problem.rule), kernels.grad_params(grad, params, x, *problem.rule)


@pytest.mark.parametrize("problem", [p.with_dtype(d) for p, d in itertools.product(PROBLEMS, DTYPES)], ids=str)
def test_agrees_with_float64(problem):
    params, x, grad = problem.tensors(DEVICE)
    y, grad_params = run(problem, params, x, grad)
    wanted_y, wanted_grad = problem.answer(params, x, grad)
    assert y.dtype == torch.float32
    assert relative_error(y, wanted_y) < 1e-6
    assert grad_params.dtype == problem.dtype
    assert relative_error(grad_params, wanted_grad) < BOUND[problem.dtype]
    assert grad_params.stride() == params.stride()


@pytest.mark.parametrize("problem", [PROBLEMS[0], PROBLEMS[4]], ids=str)
def test_bits_do_not_depend_on_the_batch_around_nor_on_the_run(problem):
    params, x, grad = problem.tensors(DEVICE)
    together = run(problem, params, x, grad)
    for first, second in zip(together, run(problem, params, x, grad), strict=True):
        assert torch.equal(first, second)
    for i in range(problem.batch):
        alone = run(problem, params[i : i + 1], x[i : i + 1], grad[i : i + 1])
        for all_of_them, one in zip(together, alone, strict=True):
            assert torch.equal(all_of_them[i : i + 1], one)


@pytest.mark.parametrize("problem", [PROBLEMS[1], PROBLEMS[3]], ids=str)
def test_takes_any_strides(problem):
    tensors = problem.tensors(DEVICE)
    plain = run(problem, *tensors)

    def scattered(t):
        wide = torch.full([2 * size for size in reversed(t.shape)], torch.nan, dtype=t.dtype, device=t.device)
        view = wide.permute(*reversed(range(t.dim())))[tuple(slice(1, None, 2) for _ in t.shape)]
        return view.copy_(t)

    for first, second in zip(plain, run(problem, *map(scattered, tensors)), strict=True):
        assert torch.equal(first, second)
    params, x, grad = tensors
    one = grad[:1].expand_as(grad)
    for first, second in zip(run(problem, params, x, one), run(problem, params, x, one.contiguous()), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("axis", range(4))
def test_offsets_past_two_to_the_31(axis):
    problem = Pixels(1, 1, size=(2, 2), dtype=torch.float16)
    params, x, grad = problem.tensors(DEVICE)
    strides = [16, 4, 1, 2]
    strides[axis] = 2**31 + 16
    if DEVICE == "cpu":  # anonymous pages: only those that are written take memory
        room = torch.frombuffer(mmap.mmap(-1, 2**33 + 256), dtype=torch.float16)
    else:
        room = torch.zeros(2**32 + 128, dtype=torch.float16, device=DEVICE)
    far = room.as_strided(params.shape, strides).copy_(params)
    for first, second in zip(run(problem, far, x, grad), run(problem, params, x, grad), strict=True):
        assert torch.equal(first, second)


def test_logits_of_minus_infinity_and_log_scales_below_their_floor():
    problem = Pixels(1, 3, size=(3, 4))
    params, x, grad = problem.tensors(DEVICE)
    params[:, :2] = -torch.inf
    params[:, 6:] = -7.5
    y, grad_params = run(problem, params, x, grad)
    wanted_y, _ = problem.answer(params, x, grad)
    assert relative_error(y, wanted_y) < 1e-6
    assert (grad_params[:, [0, 1, 3, 4, 6, 7, 8]] == 0).all()
    assert (grad_params[:, 5] != 0).any()


@pytest.mark.parametrize("mode", ["exact", "openai"])
@pytest.mark.parametrize("levels", [2, 256, 65536])
def test_finite_everywhere(mode, levels):
    """All pairs of a mean and a log-scale from a list of extremes, at both edges and in the middle."""
    means = [0.0, 1.0, -1.0, 0.9, 90.0, -90.0, 1e4, -1e4]
    log_scales = [0.0, -6.999, -7.0, -7.001, -20.0, 20.0, 90.0, 1e4, -1e4]
    pairs = torch.tensor(list(itertools.product(means, log_scales)), device=DEVICE).T  # [2, 72]
    params = torch.cat([pairs[:1] * 0, pairs])[None, :, :, None].expand(-1, -1, -1, 3)
    x = torch.tensor([0, levels // 2, levels - 1], device=DEVICE) * 2.0 / (levels - 1) - 1
    x = x.expand(1, 1, pairs.shape[1], 3)
    y, grad = run(Pixels(1, 1, levels, mode), params, x, torch.ones(1, device=DEVICE))
    assert torch.isfinite(y).all()
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("shape", [(0, 4, 4), (2, 0, 4), (2, 4, 0)])
def test_empty_images(shape):
    n, height, width = shape
    params, x = torch.randn(n, 20, height, width, device=DEVICE), torch.zeros(n, 3, height, width, device=DEVICE)
    assert torch.equal(kernels.forward(params, x, 256, "exact"), torch.zeros(n, device=DEVICE))
    grad = kernels.grad_params(torch.ones(n, device=DEVICE), params, x, 256, "exact")
    assert grad.shape == params.shape
