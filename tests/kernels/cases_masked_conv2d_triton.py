"""What the Triton launchers of masked_conv2d promise. Not collected by name: test_triton_interpreter.py runs this file
in a process of its own under TRITON_INTERPRET=1, benchmarks/gpu.py runs it on a GPU."""

from __future__ import annotations

import itertools
import mmap

import pytest
import torch

from tests.kernels.problems import Problem, float32_precision, relative_error
from vidgen.kernels import masked_conv2d as kernels
from vidgen.kernels.gemm import INTERPRETED

DEVICE = "cpu" if INTERPRETED else "cuda"
# relative rms; the interpreter cuts bfloat16 off where a GPU rounds
BOUND = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 8e-3 if INTERPRETED else 4e-3}

PROBLEMS = [
    Problem(1, 8, (7, 7), "A", size=(5, 9)),
    Problem(3, 6, (5, 5), "A", 3, channels_last=True),
    Problem(6, 12, (3, 3), "B", 3, "blocked", dilation=2),
    Problem(16, 16, (3, 3), "A", size=(1, 7)),
    Problem(20, 18, (3, 3), "B", channels_last=True, bias=False),
    Problem(36, 33, (3, 5), "B", 3, "blocked", size=(4, 6)),
    Problem(36, 33, (3, 5), "A", 3, "interleaved", size=(4, 6), channels_last=True),
    Problem(33, 72, (5, 3), "B", 3, "interleaved", size=(3, 3), dilation=3),
    Problem(34, 20, (1, 1), "B", 2),
    Problem(4, 4, (1, 1), "A"),
    Problem(3, 3, (3, 1), "A", 3),
    Problem(5, 7, (1, 5), "B", size=(3, 1)),
    Problem(18, 130, (3, 3), "B", size=(9, 16), batch=1),
    Problem(16, 16, (7, 7), "A", size=(2, 3), dilation=4),
]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def _exact_float32():
    with float32_precision("ieee"):
        yield


@pytest.fixture(autouse=True)
def _poison(poisoned):
    """Every output starts as NaN."""


def run(problem: Problem, x, weight, bias, grad):
    return (
        kernels.forward(x, weight, bias, *problem.rule),
        kernels.grad_input(grad, weight, *problem.rule),
        kernels.grad_weight(grad, x, list(problem.kernel), *problem.rule),
    )


@pytest.mark.parametrize("problem", [p.with_dtype(d) for p, d in itertools.product(PROBLEMS, DTYPES)], ids=str)
def test_agrees_with_float64_and_reads_no_masked_weight(problem):
    x, weight, bias, grad = problem.tensors(DEVICE)
    wanted = problem.answer(x, weight, bias, grad)
    keep = problem.keep().to(DEVICE)
    got = run(problem, x, torch.where(keep, weight, torch.nan), bias, grad)
    for name, ours, theirs in zip(("y", "grad_x", "grad_weight"), got, wanted, strict=True):
        assert relative_error(ours, theirs) < BOUND[problem.dtype], name
    assert torch.all(got[2][~keep] == 0), "a masked weight has a gradient"
    assert got[0].is_contiguous(memory_format=torch.channels_last) or not problem.channels_last
    assert got[0].is_contiguous() or problem.channels_last


LEAKS = [p for p in PROBLEMS if p.batch == 2]


@pytest.mark.parametrize("problem", LEAKS, ids=str)
def test_nothing_later_reaches_an_earlier_output(problem):
    x, weight, bias, _ = problem.tensors(DEVICE)
    height, width = problem.size
    before = kernels.forward(x, weight, bias, *problem.rule)
    source, reader = problem.colour(problem.cin), problem.colour(problem.cout)
    for pixel, colour in itertools.product({0, height * width // 2, height * width - 1}, range(problem.colors)):
        spoiled = x.clone(memory_format=torch.preserve_format)
        flat = spoiled.flatten(2) if spoiled.is_contiguous() else spoiled.permute(0, 2, 3, 1).flatten(1, 2).mT
        flat[:, :, pixel + 1 :] = torch.nan
        flat[:, source >= colour, pixel] = torch.nan
        assert spoiled.isnan().any()
        after = kernels.forward(spoiled, weight, bias, *problem.rule).flatten(2)
        blind = reader < colour if problem.mask == "B" else reader <= colour
        assert torch.equal(after[:, :, :pixel], before.flatten(2)[:, :, :pixel])
        assert torch.equal(after[:, blind, pixel], before.flatten(2)[:, blind, pixel])


@pytest.mark.parametrize("problem", LEAKS, ids=str)
def test_no_earlier_output_reaches_a_later_inputs_gradient(problem):
    _, weight, _, grad = problem.tensors(DEVICE)
    before = kernels.grad_input(grad, weight, *problem.rule)
    pixel = grad[0, 0].numel() // 2
    spoiled = grad.contiguous().clone()
    spoiled.flatten(2)[:, :, : pixel + 1] = torch.nan
    after = kernels.grad_input(spoiled.contiguous(memory_format=torch.preserve_format), weight, *problem.rule)
    assert torch.equal(after.flatten(2)[:, :, pixel + 1 :], before.flatten(2)[:, :, pixel + 1 :])


@pytest.mark.parametrize("problem", [PROBLEMS[1], PROBLEMS[4], PROBLEMS[5]], ids=str)
@pytest.mark.usefixtures("products_in_order")
def test_bits_do_not_depend_on_the_batch_around_nor_on_the_run(problem):
    x, weight, bias, grad = problem.tensors(DEVICE)
    together = run(problem, x, weight, bias, grad)
    again = run(problem, x, weight, bias, grad)
    for first, second in zip(together, again, strict=True):
        assert torch.equal(first, second)
    for i in range(problem.batch):
        alone = run(problem, x[i : i + 1], weight, bias, grad[i : i + 1])
        assert torch.equal(together[0][i : i + 1], alone[0])
        assert torch.equal(together[1][i : i + 1], alone[1])


@pytest.mark.parametrize("problem", [Problem(4, 6, (3, 3), "B", 2), Problem(17, 16, (3, 3), "A")], ids=str)
def test_takes_any_strides(problem):
    x, weight, bias, grad = problem.tensors(DEVICE)
    plain = run(problem, x, weight, bias, grad)

    def scattered(t):
        wide = torch.full([2 * size for size in reversed(t.shape)], torch.nan, dtype=t.dtype, device=t.device)
        view = wide.permute(*reversed(range(t.dim())))[tuple(slice(1, None, 2) for _ in t.shape)]
        return view.copy_(t)

    odd = run(problem, scattered(x), scattered(weight), scattered(bias), scattered(grad))
    for first, second in zip(plain, odd, strict=True):
        assert torch.equal(first, second)
    spread = x[:1, :, :, :1].expand_as(x)
    assert torch.equal(
        kernels.forward(spread, weight, bias, *problem.rule),
        kernels.forward(spread.contiguous(), weight, bias, *problem.rule),
    )


@pytest.mark.parametrize("axis", range(4))
def test_offsets_past_two_to_the_31(axis):
    problem = Problem(2, 3, (3, 3), "B", size=(2, 2), dtype=torch.float16)
    x, weight, bias, grad = problem.tensors(DEVICE)
    strides = [4, 8, 1, 2]
    strides[axis] = 2**31 + 8
    if DEVICE == "cpu":  # anonymous pages: only those that are written take memory
        room = torch.frombuffer(mmap.mmap(-1, 2**32 + 128), dtype=torch.float16)
    else:
        room = torch.zeros(2**31 + 64, dtype=torch.float16, device=DEVICE)
    far = room.as_strided(x.shape, strides).copy_(x)
    assert torch.equal(
        kernels.forward(far, weight, bias, *problem.rule), kernels.forward(x, weight, bias, *problem.rule)
    )
    assert torch.equal(
        kernels.grad_weight(grad, far, [3, 3], *problem.rule), kernels.grad_weight(grad, x, [3, 3], *problem.rule)
    )


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4), (2, 3, 4, 0)])
def test_empty_images(shape):
    weight = torch.randn(6, 3, 3, 3, device=DEVICE)
    x = torch.randn(shape, device=DEVICE)
    y = kernels.forward(x, weight, None, "B", 1, "interleaved", 1)
    assert y.shape == (shape[0], 6, *shape[2:])
    assert kernels.grad_input(y, weight, "B", 1, "interleaved", 1).shape == shape
    assert torch.equal(kernels.grad_weight(y, x, [3, 3], "B", 1, "interleaved", 1), torch.zeros_like(weight))


@pytest.mark.skipif(INTERPRETED, reason="the interpreter has no tf32")
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_tf32_where_torch_allows_it(problem):
    x, weight, bias, grad = problem.tensors(DEVICE)
    wanted = problem.answer(x, weight, bias, grad)
    with float32_precision("tf32"):
        got = run(problem, x, weight, bias, grad)
    for ours, theirs in zip(got, wanted, strict=True):
        assert relative_error(ours, theirs) < 2e-3
