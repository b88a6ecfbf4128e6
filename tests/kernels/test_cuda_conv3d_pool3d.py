"""The CUDA C++ kernel of conv3d_pool3d computes the right thing when a CPU plays the GPU."""

import itertools
from dataclasses import replace

import pytest
import torch

from tests.kernels.clips import NONE, Clip
from tests.kernels.emulation import Emulation
from tests.kernels.problems import relative_error


@pytest.fixture(scope="module")
def emulation(tmp_path_factory):
    """Runs a problem on the kernel, under a sanitizer."""
    kernel = Emulation("conv3d_pool3d", tmp_path_factory.mktemp("emulation"))

    def run(problem: Clip, x, weight, bias, sanitizer="address,undefined"):
        numbers = (
            len(x), problem.cin, problem.cout, *problem.size, *problem.kernel, *problem.padding, *problem.pool,
            problem.ceil_mode, problem.activation == "relu", kernel.dtypes[problem.dtype], problem.channels_last,
            bias is not None,
        )  # fmt: skip
        x = x.permute(0, 2, 3, 4, 1) if problem.channels_last else x
        y = kernel(numbers, (x, weight, bias), sanitizer)
        if problem.channels_last:
            return y.view(len(x), *problem.y_size, problem.cout).permute(0, 4, 1, 2, 3)
        return y.view(len(x), problem.cout, *problem.y_size)

    return run


PROBLEMS = [
    Clip(3, 64, pool=(1, 2, 2), size=(2, 5, 37), batch=1),
    Clip(3, 40, pool=(1, 2, 2), size=(2, 9, 17), channels_last=True),
    Clip(1, 33, (1, 1, 1), NONE, (4, 4, 4), True, (5, 6, 7)),
    Clip(2, 66, (2, 2, 2), (0, 1, 0, 1, 0, 1), (1, 4, 4), True, (2, 5, 6), "identity"),
    Clip(4, 8, (1, 3, 3), (0, 0, 1, 1, 1, 1), (3, 2, 1), size=(7, 9, 18), channels_last=True, bias=False),
    Clip(4, 12, (7, 1, 2), (3, 3, 0, 0, 1, 0), (3, 2, 1), True, (4, 5, 20), "identity"),
    # too large a part of the clip for shared memory: read from the clip itself
    Clip(4, 10, (1, 7, 7), (0, 0, 3, 3, 3, 3), (4, 4, 4), True, (3, 10, 13)),
    Clip(4, 16, (1, 7, 7), (0, 0, 0, 6, 6, 0), (4, 3, 4), size=(6, 8, 11), channels_last=True),
    Clip(3, 5, (3, 3, 3), (2, 0, 1, 2, 0, 1), size=(2, 3, 35), activation="identity"),
    Clip(1, 1, (1, 2, 7), NONE, (1, 1, 3), size=(1, 3, 12), batch=1),
]
BOUND = {torch.float32: 5e-7, torch.float16: 5e-4, torch.bfloat16: 4e-3}


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_emulated_kernel_agrees_with_float64(problem, emulation):
    all_dtypes = problem in (PROBLEMS[1], PROBLEMS[7])
    for dtype in (torch.float32, torch.float16, torch.bfloat16) if all_dtypes else (problem.dtype,):
        case = problem.with_dtype(dtype)
        x, weight, bias, grad, _ = case.tensors()
        assert relative_error(emulation(case, x, weight, bias), case.answer(x, weight, bias, grad)[0]) < BOUND[dtype]


@pytest.mark.parametrize(
    "problem",
    [
        PROBLEMS[0].with_values("nan"),
        PROBLEMS[2].with_values("nan"),
        PROBLEMS[3].with_values("nan"),
        PROBLEMS[6].with_values("nan"),
        PROBLEMS[1].with_values("negative"),
        PROBLEMS[5].with_values("negative"),
        replace(PROBLEMS[2], activation="identity", values="infinite"),
    ],
    ids=str,
)
def test_nan_and_negative_windows_are_exact(problem, emulation):
    x, weight, bias, grad, _ = problem.tensors()
    got, want = emulation(problem, x, weight, bias).double(), problem.answer(x, weight, bias, grad)[0]
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("problem", [PROBLEMS[1], PROBLEMS[4], PROBLEMS[6], PROBLEMS[8]], ids=str)
def test_emulated_kernel_has_no_race(problem, emulation):
    x, weight, bias, grad, _ = problem.tensors()
    got = emulation(problem, x, weight, bias, sanitizer="thread")
    assert relative_error(got, problem.answer(x, weight, bias, grad)[0]) < BOUND[problem.dtype]


def test_emulated_kernel_gives_a_clip_the_same_bits_in_any_batch(emulation):
    problem = replace(PROBLEMS[5], batch=7)  # more tiles than blocks, so blocks walk
    x, weight, bias, *_ = problem.tensors()
    together = emulation(problem, x, weight, bias)
    for i in (0, 6):
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
    x, weight, bias, grad, _ = problem.tensors("cuda")
    wanted, _ = problem.answer(x, weight, bias, grad)
    got = torch.ops.vidgen.conv3d_pool3d_cuda(x, weight, bias, *problem.rule)
    order = torch.channels_last_3d if problem.channels_last else torch.contiguous_format
    assert got.is_contiguous(memory_format=order)
    assert relative_error(got, wanted) < BOUND[problem.dtype]
