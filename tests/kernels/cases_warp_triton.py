"""What the Triton launchers of warp promise. Not collected by name: test_triton_interpreter.py runs this file in a
process of its own under TRITON_INTERPRET=1, benchmarks/gpu.py runs it on a GPU."""

from __future__ import annotations

import itertools
import mmap

import pytest
import torch

from tests.kernels.displacements import Displacement
from tests.kernels.problems import relative_error
from vidgen.kernels import warp as kernels
from vidgen.kernels.gemm import INTERPRETED

DEVICE = "cpu" if INTERPRETED else "cuda"
# relative rms; the interpreter cuts bfloat16 off where a GPU rounds
BOUND = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 8e-3 if INTERPRETED else 4e-3}

PROBLEMS = [
    Displacement(3),
    Displacement(3, padding="border", channels_last=True),
    Displacement(9, (3, 45), batch=1),
    Displacement(70, (3, 6), padding="border", batch=1, channels_last=True),
    Displacement(9, (4, 9), padding="border"),
    Displacement(21, (6, 5), channels_last=True),
    Displacement(1, (2, 150), batch=1, reach=1.0),
    Displacement(2, (5, 6), batch=1, reach=1e9),
    Displacement(2, (5, 6), "border", batch=1, reach=1e9),
    Displacement(4, (1, 21), "border"),
    Displacement(5, (23, 1), channels_last=True),
    Displacement(1, (1, 1), batch=3, reach=0.5),
]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def _poison(poisoned):
    """Every output starts as NaN."""


def run(problem, x, flow, grad):
    return (
        kernels.forward(x, flow, problem.padding),
        kernels.grad_x(grad, flow, problem.padding),
        kernels.grad_flow(grad, x, flow, problem.padding),
    )


@pytest.mark.parametrize("problem", [*PROBLEMS, *(p.with_dtype(d) for p in PROBLEMS[:2] for d in DTYPES[1:])], ids=str)
def test_agrees_with_float64(problem):
    x, flow, grad = problem.tensors(DEVICE)
    y, grad_x, grad_flow = run(problem, x, flow, grad)
    wanted_y, wanted_grad_x, wanted_grad_flow = problem.answer(x, flow, grad)
    assert torch.equal(y.isnan().cpu(), wanted_y.isnan())
    assert relative_error(y.nan_to_num(), wanted_y.nan_to_num()) < BOUND[problem.dtype]
    assert relative_error(grad_x, wanted_grad_x) < BOUND[problem.dtype]
    assert relative_error(grad_flow, wanted_grad_flow) < 2e-6
    assert y.dtype == grad_x.dtype == problem.dtype
    assert grad_flow.dtype == torch.float32
    assert y.stride() == grad_x.stride() == x.stride()


@pytest.mark.parametrize("problem", [PROBLEMS[0], PROBLEMS[5]], ids=str)
def test_bits_do_not_depend_on_the_batch_around_nor_on_the_run(problem):
    x, flow, grad = problem.tensors(DEVICE)
    grad[1] *= 1e5  # what is largest in one image is nothing to another
    together = run(problem, x, flow, grad)
    for first, second in zip(together, run(problem, x, flow, grad), strict=True):
        assert torch.equal(first.nan_to_num(), second.nan_to_num())
    for i in range(problem.batch):
        alone = run(problem, *(t[i : i + 1].contiguous(memory_format=_layout(t)) for t in (x, flow, grad)))
        for all_of_them, one in zip(together, alone, strict=True):
            assert torch.equal(all_of_them[i : i + 1].nan_to_num(), one.nan_to_num())


def _layout(t):
    return torch.contiguous_format if t.is_contiguous() else torch.channels_last


def test_takes_any_strides():
    problem = PROBLEMS[0]
    tensors = problem.tensors(DEVICE)

    def scattered(t):
        wide = torch.full([2 * size for size in reversed(t.shape)], torch.nan, dtype=t.dtype, device=t.device)
        view = wide.permute(*reversed(range(t.dim())))[tuple(slice(1, None, 2) for _ in t.shape)]
        return view.copy_(t)

    for first, second in zip(run(problem, *tensors), run(problem, *map(scattered, tensors)), strict=True):
        assert torch.equal(first.nan_to_num(), second.nan_to_num())
    x, flow, grad = tensors
    one = grad[:1, :1, :1, :1].expand_as(grad)
    for first, second in zip(run(problem, x, flow, one), run(problem, x, flow, one.contiguous()), strict=True):
        assert torch.equal(first.nan_to_num(), second.nan_to_num())


@pytest.mark.parametrize("axis", range(4))
def test_offsets_past_two_to_the_31(axis):
    problem = Displacement(2, (2, 2), reach=0.5, dtype=torch.float16)
    x, flow, grad = problem.tensors(DEVICE)
    strides = [16, 4, 1, 2]
    strides[axis] = 2**31 + 16
    if DEVICE == "cpu":  # anonymous pages: only those that are written take memory
        room = torch.frombuffer(mmap.mmap(-1, 2**33 + 256), dtype=torch.float16)
    else:
        room = torch.zeros(2**32 + 128, dtype=torch.float16, device=DEVICE)
    wanted = run(problem, x, flow, grad)
    far = room.as_strided(x.shape, strides)
    assert torch.equal(kernels.forward(far.copy_(x), flow, "zeros"), wanted[0])
    assert torch.equal(kernels.grad_flow(grad, far, flow, "zeros"), wanted[2])
    assert torch.equal(kernels.grad_x(far.copy_(grad), flow, "zeros"), wanted[1])


def test_whole_displacements_copy_bits():
    x = torch.randn(1, 3, 9, 40, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    flow = torch.tensor([17.0, -5.0], device=DEVICE)[:, None, None].expand(1, 2, 9, 40)
    expected = torch.zeros_like(x)
    expected[:, :, 5:, :-17] = x[:, :, :-5, 17:]
    assert torch.equal(kernels.forward(x, flow, "zeros"), expected)


@pytest.mark.parametrize("size", [1e-37, 1e-20, 1.0, 3e38])
def test_gradients_of_any_size_add_up_where_all_come_to_one_pixel(size):
    flow = torch.stack(torch.meshgrid(-torch.arange(9.0), -torch.arange(20.0), indexing="ij")[::-1])[None].to(DEVICE)
    flow[..., 0, :, :] += 4
    flow[..., 1, :, :] += 5
    grad = torch.full((1, 1, 9, 20), size, device=DEVICE) / 180
    grad_x = kernels.grad_x(grad, flow, "zeros").cpu()
    wanted = (grad.double().sum()).item()
    assert grad_x[0, 0, 5, 4].item() == pytest.approx(wanted, rel=1e-6, abs=0)
    assert (grad_x != 0).sum() == 1


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_gradient_that_is_not_finite_is_seen_where_it_goes_and_nowhere_else(bad):
    problem = Displacement(3, (6, 9), batch=2, reach=1.0)
    _, flow, grad = problem.tensors(DEVICE)
    flow[1] = 0.25
    clean = kernels.grad_x(grad, flow, "zeros")
    grad[1, 2, 3, 4] = bad
    got = kernels.grad_x(grad, flow, "zeros")
    touched = torch.zeros_like(got, dtype=torch.bool)
    touched[1, 2, 3:5, 4:6] = True
    assert torch.equal(got.isnan(), touched)
    assert torch.equal(got[~touched], clean[~touched])


@pytest.mark.parametrize("shape", [(0, 2, 4, 4), (2, 0, 4, 4), (2, 2, 0, 4), (2, 2, 4, 0)])
def test_empty_images(shape):
    x = torch.randn(shape, device=DEVICE)
    flow = torch.zeros(shape[0], 2, *shape[2:], device=DEVICE)
    y, grad_x, grad_flow = run(Displacement(shape[1]), x, flow, x)
    assert y.shape == grad_x.shape == x.shape
    assert torch.equal(grad_flow, flow)


def test_every_layout_and_padding_is_among_the_problems():
    seen = {(p.padding, p.channels_last) for p in PROBLEMS}
    assert seen == set(itertools.product(("zeros", "border"), (False, True)))
