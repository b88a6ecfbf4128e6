"""The CUDA C++ kernel of masked_conv2d computes the right thing when a CPU plays the GPU."""

import itertools
from dataclasses import replace

import pytest
import torch

from tests.kernels.emulation import Emulation
from tests.kernels.problems import Problem, relative_error


@pytest.fixture(scope="module")
def emulation(tmp_path_factory):
    """Runs a problem on the kernel, under a sanitizer."""
    kernel = Emulation("masked_conv2d", tmp_path_factory.mktemp("emulation"))

    def run(problem: Problem, x, weight, bias, sanitizer="address,undefined"):
        (h, w), (kh, kw) = problem.size, problem.kernel
        numbers = (
            len(x), problem.cin, problem.cout, h, w, kh, kw, problem.dilation, problem.colors, problem.mask == "B",
            problem.layout == "interleaved", kernel.dtypes[problem.dtype], problem.channels_last, bias is not None,
        )  # fmt: skip
        x = x.permute(0, 2, 3, 1) if problem.channels_last else x
        y = kernel(numbers, (x, weight, bias), sanitizer)
        if problem.channels_last:
            return y.view(len(x), h, w, problem.cout).permute(0, 3, 1, 2)
        return y.view(len(x), problem.cout, h, w)

    return run


PROBLEMS = [
    Problem(1, 64, (7, 7), "A", size=(9, 12)),
    Problem(3, 66, (7, 7), "A", 3, size=(8, 8)),
    Problem(3, 36, (7, 7), "B", 3, "blocked", size=(5, 33), channels_last=True),
    Problem(4, 72, (5, 7), "B", 2, size=(3, 18), channels_last=True),
    Problem(4, 8, (3, 5), "A", 4, "blocked", dilation=4, size=(11, 7)),
    Problem(2, 30, (7, 7), "B", dilation=2, size=(10, 16), bias=False),
    Problem(3, 9, (7, 5), "B", 3, dilation=5, size=(17, 21), channels_last=True),
    Problem(1, 1, (1, 1), "A", size=(1, 1)),
    Problem(2, 5, (1, 7), "B", 1, size=(1, 40), batch=1),
]
BOUND = {torch.float32: 5e-7, torch.float16: 5e-4, torch.bfloat16: 4e-3}


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_emulated_kernel_agrees_with_float64(problem, emulation):
    for dtype in (torch.float32, torch.float16, torch.bfloat16) if problem is PROBLEMS[2] else (problem.dtype,):
        case = problem.with_dtype(dtype)
        x, weight, bias, grad = case.tensors()
        wanted, _, _ = case.answer(x, weight, bias, grad)
        got = emulation(case, x, torch.where(case.keep(), weight, torch.nan), bias)
        assert relative_error(got, wanted) < BOUND[dtype]


@pytest.mark.parametrize("problem", [PROBLEMS[0], PROBLEMS[3], PROBLEMS[6], PROBLEMS[-1]], ids=str)
def test_emulated_kernel_has_no_race(problem, emulation):
    x, weight, bias, grad = problem.tensors()
    got = emulation(problem, x, weight, bias, sanitizer="thread")
    assert relative_error(got, problem.answer(x, weight, bias, grad)[0]) < BOUND[problem.dtype]


@pytest.mark.parametrize("problem", [PROBLEMS[1], PROBLEMS[2], PROBLEMS[4], PROBLEMS[6]], ids=str)
def test_emulated_kernel_lets_nothing_later_reach_an_earlier_output(problem, emulation):
    x, weight, bias, _ = problem.tensors()
    before = emulation(problem, x, weight, bias).flatten(2)
    source, reader = problem.colour(problem.cin), problem.colour(problem.cout)
    pixel, colour = x[0, 0].numel() // 2, 1
    spoiled = x.contiguous().clone()
    spoiled.flatten(2)[:, :, pixel + 1 :] = torch.nan
    spoiled.flatten(2)[:, source >= colour, pixel] = torch.nan
    after = emulation(problem, spoiled, weight, bias).flatten(2)
    blind = reader < colour if problem.mask == "B" else reader <= colour
    assert torch.equal(after[:, :, :pixel], before[:, :, :pixel])
    assert torch.equal(after[:, blind, pixel], before[:, blind, pixel])


def test_emulated_kernel_gives_a_sample_the_same_bits_in_any_batch(emulation):
    problem = replace(PROBLEMS[1], batch=12)  # more tiles than blocks, so blocks walk
    x, weight, bias, _ = problem.tensors()
    together = emulation(problem, x, weight, bias)
    for i in (0, 11):
        assert torch.equal(together[i : i + 1], emulation(problem, x[i : i + 1], weight, bias))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    "problem",
    [p.with_dtype(d) for p, d in itertools.product(PROBLEMS, (torch.float32, torch.float16, torch.bfloat16))],
    ids=str,
)
def test_kernel_agrees_with_float64_on_the_gpu(problem):
    pytest.importorskip("vidgen.ops")
    x, weight, bias, grad = problem.tensors("cuda")
    wanted, _, _ = problem.answer(x, weight, bias, grad)
    masked = torch.where(problem.keep().cuda(), weight, torch.nan)
    got = torch.ops.vidgen.masked_conv2d_cuda(x, masked, bias, *problem.rule)
    layout = torch.channels_last if problem.channels_last else torch.contiguous_format
    assert got.is_contiguous(memory_format=layout)
    assert relative_error(got, wanted) < BOUND[problem.dtype]
