"""The CUDA C++ kernels of optical_flow_tvl1 compute the right thing when a CPU plays the GPU."""

from dataclasses import asdict, dataclass, replace

import pytest
import torch
from torch import Tensor

from tests.kernels.emulation import Emulation
from tests.kernels.problems import relative_error
from tests.ops.motions import shifted, texture
from vidgen.ops.optical_flow_tvl1 import PRESETS, reference

PIXELS = {torch.uint8: 0, torch.float32: 1, torch.float64: 2}
# float64 leaves rounding nothing to hide; float32 is what the op promises
BOUND = {torch.uint8: 3e-5, torch.float32: 3e-5, torch.float64: 1e-12}


@dataclass(frozen=True)
class Rule:
    """What the op takes after its tensors."""

    tau: float = 0.25
    lambda_: float = 0.2
    theta: float = 0.3
    levels: int = 1
    scale_factor: float = 0.7
    warps: int = 1
    outer_iterations: int = 1
    inner_iterations: int = 8
    median: int = 0
    epsilon: float = 0.0

    def numbers(self) -> tuple[float, ...]:
        return tuple(asdict(self).values())


@dataclass(frozen=True)
class Flow:
    """Pictures that move by (1, -1), pair i of a batch a part of that."""

    size: tuple[int, int]
    rule: Rule = Rule()
    dtype: torch.dtype = torch.float64
    channels: int = 1
    pairs: int = 1
    init: bool = False

    def __str__(self) -> str:
        changed = [f"{k}={v}" for k, v in asdict(self.rule).items() if v != getattr(Rule(), k)]
        return "-".join([f"{self.size[0]}x{self.size[1]}", str(self.dtype)[6:], *changed])

    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        pictures = torch.cat([texture(*self.size, seed) for seed in range(self.pairs * self.channels)])
        prev = pictures.view(self.pairs, self.channels, *self.size)
        part = torch.arange(1, self.pairs + 1).view(-1, 1, 1, 1) / self.pairs
        next = part * shifted(prev, 1, -1) + (1 - part) * prev
        # grey levels that are the same in every dtype
        prev, next = prev.mul(255).round(), next.mul(255).round()
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        guess = texture(*self.size, 9).mul(64).round().div(64) + torch.tensor([0.5, -1.25])[:, None, None]
        init = guess.to(wide).expand(self.pairs, -1, -1, -1) if self.init else None
        if self.dtype != torch.uint8:
            prev, next = prev / 256, next / 256
        return prev.to(self.dtype), next.to(self.dtype), init

    def answer(self, prev: Tensor, next: Tensor, init: Tensor | None) -> Tensor:
        if self.dtype == torch.uint8:
            prev, next = prev / 255.0, next / 255.0
        wide = (t if t is None else t.double().cpu() for t in (prev, next, init))
        return reference(*wide, *self.rule.numbers())


@pytest.fixture(scope="module")
def emulation(tmp_path_factory):
    """Runs a problem on the kernels, under a sanitizer."""
    kernel = Emulation("optical_flow_tvl1", tmp_path_factory.mktemp("emulation"))

    def run(problem: Flow, prev, next, init, sanitizer="address,undefined"):
        rule = problem.rule
        numbers = (
            *prev.shape, PIXELS[prev.dtype], init is not None, rule.levels, rule.warps, rule.outer_iterations,
            rule.inner_iterations, rule.median, rule.tau, rule.lambda_, rule.theta, rule.scale_factor, rule.epsilon,
        )  # fmt: skip
        flow = kernel(numbers, (prev, next, init), sanitizer)
        wide = torch.float64 if prev.dtype == torch.float64 else torch.float32
        return flow.view(wide).view(len(prev), 2, *problem.size)

    return run


U8, F32 = torch.uint8, torch.float32
PROBLEMS = [
    # several windows of the image across and down; those of double are half as high
    Flow((5, 119), Rule(inner_iterations=12, median=3, outer_iterations=2)),
    Flow((67, 9), Rule(inner_iterations=10)),
    Flow((70, 66), Rule(inner_iterations=7, tau=0.2, theta=0.4), dtype=F32),
    # all of a pyramid
    Flow((24, 41), Rule(levels=9, scale_factor=0.8, warps=2, median=5), pairs=2),
    Flow((24, 41), Rule(levels=9, warps=2, median=5), dtype=F32, pairs=2, init=True),
    Flow((33, 30), Rule(levels=9, scale_factor=0.5, lambda_=0.1), dtype=U8, channels=3, init=True),
    # blocks of one iteration, and of nine and two
    Flow((3, 17), Rule(inner_iterations=1, warps=3, epsilon=1e-4), init=True),
    Flow((17, 3), Rule(inner_iterations=21, median=5, outer_iterations=3), channels=3),
    Flow((1, 1), Rule(warps=2), channels=3, pairs=3, init=True),
    Flow((1, 66), Rule(warps=2, levels=9), init=True),
    Flow((66, 1), Rule(warps=2, levels=9, median=3), init=True),
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_emulated_kernels_agree_with_float64(problem, emulation):
    tensors = problem.tensors()
    got, wanted = emulation(problem, *tensors), problem.answer(*tensors)
    assert wanted.abs().max() > 0.1 or not problem.init
    assert relative_error(got, wanted) < BOUND[problem.dtype]


@pytest.mark.parametrize("preset", PRESETS)
def test_emulated_kernels_know_every_preset(preset, emulation):
    params = {**PRESETS["accurate"], "median": 5, "inner_iterations": 20, **PRESETS[preset], "levels": 2, "warps": 1}
    params["outer_iterations"] = min(2, params.get("outer_iterations", 1))
    params["inner_iterations"] = min(30, params["inner_iterations"])
    problem = Flow((23, 25), Rule(**params))
    tensors = problem.tensors()
    assert relative_error(emulation(problem, *tensors), problem.answer(*tensors)) < BOUND[problem.dtype]


@pytest.mark.parametrize(("epsilon", "median", "first", "second"), [(0.03, 3, 20, 25), (0.08, 0, 10, 20)])
def test_emulated_pairs_come_to_rest_each_at_its_time(epsilon, median, first, second, emulation):
    """Pair 0 after `first` iterations, pair 1 after `second`, of twice 25; then both move again in the next warp."""
    rule = Rule(outer_iterations=2, inner_iterations=25, median=median, epsilon=epsilon)
    problem = Flow((16, 17), rule, pairs=3)
    tensors = problem.tensors()
    got = emulation(problem, *tensors)
    for pair, count in enumerate((first, second)):
        fixed = replace(problem, rule=Rule(inner_iterations=count, median=median))
        assert relative_error(got[pair], fixed.answer(*tensors)[pair]) < BOUND[problem.dtype]
    problem = replace(problem, rule=replace(rule, warps=2))
    assert relative_error(emulation(problem, *tensors), problem.answer(*tensors)) < BOUND[problem.dtype]


def test_emulated_kernels_give_a_pair_the_same_bits_in_any_batch(emulation):
    problem = Flow((16, 67), Rule(inner_iterations=20, median=3, epsilon=0.01), dtype=F32, pairs=3)
    prev, next, _ = problem.tensors()
    together = emulation(problem, prev, next, None)
    for i in (0, 2):
        assert torch.equal(together[i : i + 1], emulation(problem, prev[i : i + 1], next[i : i + 1], None))


def test_emulated_kernels_have_no_race(emulation):
    problem = Flow((11, 67), Rule(inner_iterations=9, median=3, epsilon=0.001), dtype=F32, init=True)
    tensors = problem.tensors()
    assert relative_error(emulation(problem, *tensors, sanitizer="thread"), problem.answer(*tensors)) < 3e-5


@pytest.mark.parametrize("which", [0, 1, 2])
def test_emulated_kernels_let_a_nan_be_seen(which, emulation):
    problem = Flow((17, 20), Rule(warps=2, median=5, epsilon=0.01), dtype=F32, pairs=2, init=True)
    tensors = problem.tensors()
    clean = emulation(problem, *tensors)
    spoiled = [t.clone() for t in tensors]
    spoiled[which][1, 0, 8, 9] = torch.nan
    got = emulation(problem, *spoiled)
    assert torch.equal(got[0], clean[0])
    assert got[1].isnan().any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_kernels_agree_with_float64_on_the_gpu(problem):
    tensors = problem.tensors()
    on_gpu = (t if t is None else t.cuda() for t in tensors)
    got = torch.ops.vidgen.optical_flow_tvl1_cuda(*on_gpu, *problem.rule.numbers())
    assert got.is_contiguous()
    assert relative_error(got, problem.answer(*tensors)) < BOUND[problem.dtype]
