"""What the Triton launchers of conv3d_pool3d promise. Not collected by name: test_triton_interpreter.py runs this file
in a process of its own under TRITON_INTERPRET=1, benchmarks/gpu.py runs it on a GPU."""

from __future__ import annotations

import itertools
import mmap

import pytest
import torch

from tests.kernels.clips import NONE, Clip
from tests.kernels.problems import float32_precision, relative_error
from vidgen.kernels import conv3d_pool3d as kernels
from vidgen.kernels.gemm import INTERPRETED

DEVICE = "cpu" if INTERPRETED else "cuda"
# relative rms; the interpreter cuts bfloat16 off where a GPU rounds
BOUND = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 8e-3 if INTERPRETED else 4e-3}
NAMES = ("y", "grad_z", "grad_x", "grad_weight")

PROBLEMS = [
    Clip(3, 16, pool=(1, 2, 2), size=(2, 5, 7)),
    Clip(17, 18, (2, 2, 2), (0, 1, 0, 1, 0, 1), (2, 2, 2), size=(3, 5, 4), channels_last=True),
    Clip(20, 5, (1, 1, 1), NONE, (4, 4, 4), True, (5, 6, 7)),
    Clip(2, 6, (2, 2, 2), (0, 1, 0, 1, 0, 1), (1, 4, 4), True, (2, 5, 6), channels_last=True),
    Clip(16, 33, (1, 3, 3), (0, 0, 1, 1, 1, 1), (3, 2, 1), size=(7, 3, 4), activation="identity"),
    Clip(5, 4, (7, 1, 2), (3, 3, 0, 0, 1, 0), (3, 2, 1), True, (4, 3, 5), "identity", bias=False),
    Clip(18, 16, (3, 3, 3), (2, 0, 1, 2, 0, 1), size=(2, 3, 4), channels_last=True),
    Clip(16, 70, (3, 1, 1), (1, 1, 0, 0, 0, 0), (2, 3, 3), True, (2, 4, 4)),
    Clip(1, 1, (1, 2, 7), NONE, (1, 1, 3), size=(1, 3, 12), batch=1),
    # the windows of floor mode leave the far ends of z uncovered
    Clip(4, 3, (1, 1, 1), NONE, (4, 4, 4), False, (5, 6, 7)),
    Clip(2, 3, (1, 1, 1), NONE, (1, 4, 4), False, (2, 7, 5)),
]
# 16-bit types go through the same code, and the interpreter is slow
IN_16_BITS = [PROBLEMS[0], PROBLEMS[1], PROBLEMS[5]] if INTERPRETED else PROBLEMS
HARD = [
    problem.with_values(values)
    for problem, values in [
        *itertools.product([*PROBLEMS[:2], PROBLEMS[4]], ("ties", "nan", "negative")),
        (PROBLEMS[3], "nan"),
        (PROBLEMS[5], "ties"),
        (PROBLEMS[7], "nan"),
        (Clip(1, 2, (1, 1, 1), NONE, (2, 2, 2), True, (3, 4, 5), "identity"), "infinite"),
        (Clip(1, 2, (1, 1, 1), NONE, (1, 1, 3), True, (1, 2, 7)), "infinite"),
    ]
]


@pytest.fixture(autouse=True)
def _exact_float32():
    with float32_precision("ieee"):
        yield


@pytest.fixture(autouse=True)
def _poison(poisoned):
    """Every output starts as NaN."""


def run(problem: Clip, x, weight, bias, grad_y, grad_z):
    return (
        kernels.forward(x, weight, bias, *problem.rule),
        kernels.grad_preactivation(grad_y, x, weight, bias, *problem.rule),
        kernels.grad_input(grad_z, weight, problem.padding),
        kernels.grad_weight(grad_z, x, list(problem.kernel), problem.padding),
    )


@pytest.mark.parametrize(
    "problem",
    PROBLEMS + [p.with_dtype(d) for p, d in itertools.product(IN_16_BITS, (torch.float16, torch.bfloat16))],
    ids=str,
)
def test_agrees_with_float64(problem):
    x, weight, bias, grad_y, grad_z = problem.tensors(DEVICE)
    wanted = (*problem.answer(x, weight, bias, grad_y), *problem.adjoints(x, weight, grad_z))
    got = run(problem, x, weight, bias, grad_y, grad_z)
    for name, ours, theirs in zip(NAMES, got, wanted, strict=True):
        assert relative_error(ours, theirs) < BOUND[problem.dtype], name
        assert ours.dtype == problem.dtype
    assert torch.equal(got[1].cpu() == 0, wanted[1] == 0), "a voxel that is no maximum has a gradient"
    for ours in got[:3]:
        order = torch.channels_last_3d if problem.channels_last else torch.contiguous_format
        assert ours.is_contiguous(memory_format=order)


@pytest.mark.parametrize("problem", HARD, ids=str)
def test_ties_and_what_is_no_number_go_where_they_go_in_pytorch(problem):
    """Sums of these values are exact, so every voxel is compared to the bit, and also with PyTorch's own pooling."""
    for dtype in (torch.bfloat16,) if INTERPRETED else (torch.float32, torch.bfloat16):
        problem = problem.with_dtype(dtype)
        x, weight, bias, grad_y, _ = problem.tensors(DEVICE)
        y, grad_z = problem.answer(x, weight, bias, grad_y)
        ours = kernels.forward(x, weight, bias, *problem.rule).cpu().double()
        torch.testing.assert_close(ours, y, rtol=0, atol=0, equal_nan=True)
        routed = kernels.grad_preactivation(grad_y, x, weight, bias, *problem.rule).cpu().double()
        assert torch.equal(routed, grad_z)
        z = problem._z(x.cpu().double(), weight.cpu().double(), None if bias is None else bias.cpu().double())
        z.requires_grad_()
        active = z.relu() if problem.activation == "relu" else z
        eager = torch.nn.functional.max_pool3d(active, problem.pool, ceil_mode=problem.ceil_mode)
        assert torch.equal(eager.isnan(), y.isnan())
        if problem.activation == "identity":
            assert torch.equal(torch.autograd.grad(eager, z, grad_y.cpu().double())[0], routed)


@pytest.mark.parametrize("problem", [PROBLEMS[1], PROBLEMS[3]], ids=str)
@pytest.mark.usefixtures("products_in_order")
def test_bits_do_not_depend_on_the_batch_around_nor_on_the_run(problem):
    x, weight, bias, grad_y, grad_z = problem.tensors(DEVICE)
    together = run(problem, x, weight, bias, grad_y, grad_z)
    again = run(problem, x, weight, bias, grad_y, grad_z)
    for first, second in zip(together, again, strict=True):
        assert torch.equal(first, second)
    for i in range(problem.batch):
        one = slice(i, i + 1)
        alone = run(problem, x[one], weight, bias, grad_y[one], grad_z[one])
        for j in range(3):
            assert torch.equal(together[j][one], alone[j])


@pytest.mark.parametrize("problem", [PROBLEMS[1], PROBLEMS[3]], ids=str)
def test_takes_any_strides(problem):
    given = problem.tensors(DEVICE)
    plain = run(problem, *given)

    def scattered(t):
        wide = torch.full([2 * size for size in reversed(t.shape)], torch.nan, dtype=t.dtype, device=t.device)
        view = wide.permute(*reversed(range(t.dim())))[tuple(slice(1, None, 2) for _ in t.shape)]
        return view.copy_(t)

    odd = run(problem, *map(scattered, given))
    for first, second in zip(plain, odd, strict=True):
        assert torch.equal(first, second)
    x, weight, bias, grad_y, _ = given
    spread_x, spread_grad = x[:1, :, :1].expand_as(x), grad_y[:, :1].expand_as(grad_y)
    assert torch.equal(
        kernels.grad_preactivation(spread_grad, spread_x, weight, bias, *problem.rule),
        kernels.grad_preactivation(spread_grad.clone(), spread_x.clone(), weight, bias, *problem.rule),
    )


@pytest.mark.parametrize("axis", range(5))
def test_offsets_past_two_to_the_31(axis):
    problem = Clip(2, 3, pool=(1, 2, 2), size=(2, 2, 2), dtype=torch.float16)
    x, weight, bias, grad_y, grad_z = problem.tensors(DEVICE)
    strides = [8, 16, 1, 2, 4]
    strides[axis] = 2**31 + 8
    if DEVICE == "cpu":  # anonymous pages: only those that are written take memory
        room = torch.frombuffer(mmap.mmap(-1, 2**32 + 128), dtype=torch.float16)
    else:
        room = torch.zeros(2**31 + 64, dtype=torch.float16, device=DEVICE)
    far = room.as_strided(x.shape, strides).copy_(x)
    for near, distant in zip(
        run(problem, x, weight, bias, grad_y, grad_z), run(problem, far, weight, bias, grad_y, grad_z), strict=True
    ):
        assert torch.equal(near, distant)


def test_empty_batches():
    weight = torch.randn(6, 3, 3, 3, 3, device=DEVICE)
    x = torch.randn(0, 3, 4, 4, 4, device=DEVICE)
    padding = [1] * 6
    y = kernels.forward(x, weight, None, padding, "relu", [1, 2, 2], True)
    assert y.shape == (0, 6, 4, 2, 2)
    z = kernels.grad_preactivation(y, x, weight, None, padding, "relu", [1, 2, 2], True)
    assert z.shape == (0, 6, 4, 4, 4)
    assert kernels.grad_input(z, weight, padding).shape == x.shape
    assert torch.equal(kernels.grad_weight(z, x, [3, 3, 3], padding), torch.zeros_like(weight))


@pytest.mark.skipif(INTERPRETED, reason="the interpreter has no tf32")
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_tf32_where_torch_allows_it(problem):
    x, weight, bias, grad_y, grad_z = problem.tensors(DEVICE)
    wanted = (problem.answer(x, weight, bias, grad_y)[0], *problem.adjoints(x, weight, grad_z))
    with float32_precision("tf32"):
        got = run(problem, x, weight, bias, grad_y, grad_z)
    for ours, theirs in zip((got[0], *got[2:]), wanted, strict=True):
        assert relative_error(ours, theirs) < 2e-3
