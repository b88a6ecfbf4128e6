"""The CUDA C++ kernels of optical_flow_dis compute the right thing when a CPU plays the GPU."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from tests.kernels.emulation import Emulation
from tests.kernels.problems import relative_error
from tests.ops.motions import shifted, texture
from vidgen.ops.optical_flow_dis import PRESETS, reference

# all of undefined behaviour takes the compiler twice as long, and leaves out casts of numbers that are too large
MEMORY = "address,bounds,float-cast-overflow,shift,signed-integer-overflow"
PIXELS = {torch.uint8: 0, torch.float32: 1, torch.float64: 2}


@dataclass(frozen=True)
class Flow:
    """A call, and pictures that move by (2, -1), or two of noise, in which patches go astray."""

    size: tuple[int, int]
    finest_scale: int = 0
    patch_size: int = 8
    patch_stride: int = 5
    descent_iterations: int = 4
    refinement_iterations: int = 1
    alpha: float = 20.0
    delta: float = 5.0
    gamma: float = 10.0
    channels: int = 1
    pairs: int = 2
    init: bool = False
    noise: bool = False

    @property
    def rule(self) -> tuple[int | float, ...]:
        """What the op takes after its tensors."""
        counts = self.finest_scale, self.patch_size, self.patch_stride
        return (*counts, self.descent_iterations, self.refinement_iterations, self.alpha, self.delta, self.gamma)

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
        pictures = [texture(*self.size, seed) for seed in range(self.pairs * self.channels)]
        prev = torch.stack(pictures).view(self.pairs, self.channels, *self.size)
        next = shifted(prev, 2, -1)
        if self.noise:
            prev, next = torch.rand(2, *prev.shape, generator=torch.Generator().manual_seed(3)).double()
        # grey levels that are the same in every dtype
        prev, next = (images.mul(255).round() for images in (prev, next))
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        guess = torch.tensor([1.5, -0.5])[:, None, None] + texture(*self.size, 99)
        init = guess.expand(self.pairs, 2, *self.size).to(wide) if self.init else None
        scale = 1 if dtype == torch.uint8 else 255
        return (prev / scale).to(dtype), (next / scale).to(dtype), init


@pytest.fixture(scope="module")
def emulation(tmp_path_factory):
    """Runs a problem on the kernels, under a sanitizer."""
    kernel = Emulation("optical_flow_dis", tmp_path_factory.mktemp("emulation"))

    def run(problem: Flow, tensors, sanitizer=MEMORY, channels_last=False, together=None):
        prev, next, init = tensors
        counts = (prev.shape[0], problem.channels, *problem.size, PIXELS[prev.dtype], init is not None, channels_last)
        numbers = (*problem.rule[:5], *(round(1000 * weight) for weight in problem.rule[5:]), together or prev.shape[0])
        images = [t.permute(0, 2, 3, 1) if channels_last else t for t in (prev, next)]
        flow = kernel((*counts, *numbers), (*images, init), sanitizer)
        wide = torch.float64 if prev.dtype == torch.float64 else torch.float32
        return flow.view(wide).view(prev.shape[0], 2, *problem.size)

    return run


def presets() -> list[Flow]:
    """On as many levels as there are; weights as the op has them."""
    return [replace(Flow((67, 90), pairs=1), **options) for options in PRESETS.values()]


PROBLEMS = [
    *presets(),
    # two stripes of patches, the second shorter; two tiles of the solver in both directions
    Flow((53, 49), patch_stride=5, refinement_iterations=3, alpha=7.0, delta=0.5, gamma=2.25),
    Flow((43, 20), patch_size=4, patch_stride=4, channels=3, init=True),
    Flow((38, 61), 1, 4, 3, refinement_iterations=2),
    Flow((31, 50), patch_size=16, patch_stride=7, init=True),
    Flow((17, 40), patch_stride=1, descent_iterations=2, pairs=1),
    Flow((49, 61), patch_stride=4, descent_iterations=12, refinement_iterations=3, pairs=1, noise=True),
    Flow((1, 1), channels=3, pairs=3),
    Flow((1, 30), 2, refinement_iterations=0),
    Flow((23, 3), patch_size=16, patch_stride=16, init=True),
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_emulated_kernels_are_the_reference_in_double(problem, emulation):
    """Every size, stripe and branch: in float64 rounding is far below any mistake, and turns no decision."""
    tensors = problem.tensors(torch.float64)
    got = emulation(problem, tensors)
    torch.testing.assert_close(got, reference(*tensors, *problem.rule), rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("problem", [PROBLEMS[2], PROBLEMS[4], PROBLEMS[6]], ids=str)
def test_emulated_kernels_are_near_float64(problem, dtype, emulation):
    tensors = problem.tensors(dtype)
    wanted = reference(*problem.tensors(torch.float64), *problem.rule)
    got = emulation(problem, tensors, channels_last=problem.channels > 1)
    assert relative_error(got, wanted) < 5e-4


@pytest.mark.parametrize(
    "problem", [Flow((42, 18), refinement_iterations=2), Flow((20, 24), 1, 4, 4, 2, 0, init=True, pairs=1)], ids=str
)
def test_emulated_kernels_have_no_race(problem, emulation):
    tensors = problem.tensors(torch.float64)
    got = emulation(problem, tensors, sanitizer="thread")
    torch.testing.assert_close(got, reference(*tensors, *problem.rule), rtol=0, atol=1e-8)


def test_emulated_kernels_give_a_pair_the_same_bits_in_any_batch(emulation):
    problem = Flow((24, 33), pairs=5, init=True)
    prev, next, init = problem.tensors(torch.float32)
    together = emulation(problem, (prev, next, init))
    assert torch.equal(emulation(problem, (prev, next, init), together=2), together)
    for i in (0, 4):
        one = slice(i, i + 1)
        assert torch.equal(emulation(problem, (prev[one], next[one], init[one])), together[one])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_emulated_kernels_answer_nan_with_nan(bad, emulation):
    """And no access goes astray, as the sanitizers would say, and nothing waits for ever."""
    problem = Flow((34, 48), init=True)
    good = emulation(problem, problem.tensors(torch.float32))
    for which in range(3):
        tensors = problem.tensors(torch.float32)
        tensors[which][0, 0, 12:24, 18:30] = bad
        flow = emulation(problem, tensors)
        assert flow[0, :, 16:20, 22:26].isnan().all()
        assert torch.equal(flow[1], good[1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", PIXELS)
@pytest.mark.parametrize("problem", [*PROBLEMS, replace(PROBLEMS[2], size=(480, 640), pairs=3)], ids=str)
def test_kernels_agree_with_the_reference_on_the_gpu(problem, dtype):
    tensors = [None if t is None else t.cuda() for t in problem.tensors(dtype)]
    wanted = reference(*problem.tensors(torch.float64), *problem.rule)
    got = torch.ops.vidgen.optical_flow_dis_cuda(*tensors, *problem.rule)
    assert relative_error(got, wanted) < (1e-9 if dtype == torch.float64 else 5e-4)
    assert torch.equal(got, torch.ops.vidgen.optical_flow_dis_cuda(*tensors, *problem.rule))
