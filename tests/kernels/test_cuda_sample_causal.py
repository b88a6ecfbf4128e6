"""The persistent CUDA C++ kernel of sample_causal draws the right thing when a CPU plays the GPU."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from tests.kernels.emulation import Emulation
from tests.sampling import networks
from vidgen.models import GatedPixelCNN, PixelCNN, PixelCNNPP
from vidgen.sampling import LogisticMixture, Plan, generate, image_noise, trace
from vidgen.sampling.interpreter import run_program
from vidgen.sampling.native import program_numbers, program_words
from vidgen.sampling.program import Buffer, Index, Linear, Pointwise, Program, Read, When
from vidgen.sampling.self_check import same_as_eager

MODELS = {
    "streams": lambda: networks.Streams(),
    "streams, odd": lambda: networks.Streams((1, 7, 9)),
    "streams, one row": lambda: networks.Streams((1, 1, 6)),
    # more channels than a line's tile, and slices of several warps
    "streams, wide": lambda: networks.Streams((1, 3, 5), width=37),
    "masked, three colours": lambda: networks.Masked(),
    "masked, one column": lambda: networks.Masked((3, 6, 1)),
    "cropped": lambda: networks.Cropped(),
    "strided, wide": lambda: networks.Strided((1, 4, 11)),
    "plain": lambda: networks.Plain((1, 5, 9)),
    "PixelCNN": lambda: PixelCNN((1, 5, 6), levels=37, hidden=20, blocks=1),
    "PixelCNN, colours": lambda: PixelCNN((3, 4, 3), levels=4, hidden=6, blocks=1),
    "GatedPixelCNN": lambda: GatedPixelCNN((1, 5, 6), levels=4, hidden=6, blocks=2, classes=7),
    # gates whose halves are whole panels
    "gates": lambda: GatedPixelCNN((1, 2, 3), levels=3, hidden=8, blocks=1),
    "GatedPixelCNN, colours": lambda: GatedPixelCNN((3, 4, 3), levels=4, hidden=6, blocks=1),
    "PixelCNN++": lambda: PixelCNNPP((3, 5, 6), resnets=1, filters=8, mixtures=2, levels=8, classes=7),
    "PixelCNN++, grey": lambda: PixelCNNPP((1, 3, 8), resnets=1, filters=5, mixtures=3, levels=8),
}


@dataclass
class Problem:
    """What a batch is drawn from, all on the CPU."""

    model: nn.Module
    plan: Plan
    canvas: Tensor  # (N, C, H, W)
    known: Tensor
    noise: Tensor
    labels: Tensor

    @property
    def moments(self) -> list[tuple[int, int, bool, int]]:
        return [(0, self.plan.best_program.duration, False, 0)]

    def images(self, some: slice) -> Problem:
        parts = (t[some].contiguous() for t in (self.canvas, self.known, self.noise, self.labels))
        return Problem(self.model, self.plan, *parts)

    def state(self) -> Tensor:
        conditions = {"labels": self.labels} if self.plan.conditions else {}
        return self.plan.new_state(self.plan.best_program, conditions, len(self.canvas))

    def record(self) -> Tensor:
        program = self.plan.best_program
        _, height, width = program.shape
        size = (len(self.canvas), program.parameters, program.steps, height, width)
        return self.canvas.new_full(size, torch.nan)


def problem(name: str, n: int = 3, dtype: torch.dtype = torch.float64, known: Tensor | None = None) -> Problem:
    torch.manual_seed(0)
    model = MODELS[name]().to(dtype).eval()
    shape = model.image_shape
    generator = torch.Generator().manual_seed(1)
    values = torch.randint(0, model.levels, (n, *shape), generator=generator) * (2.0 / (model.levels - 1)) - 1
    known = torch.zeros(n, *shape, dtype=torch.bool) if known is None else known.expand(n, *shape).contiguous()
    canvas = torch.where(known, values, 0).to(dtype)
    noise = torch.from_numpy(image_noise(0, range(n), shape))
    return Problem(model, trace(model), canvas, known, noise, torch.arange(n) % 7)


def by_eager(p: Problem, moments: Iterable[tuple[int, int, bool, int]] | None = None) -> tuple[Tensor, Tensor]:
    """(images, parameters of every draw) by the interpreter."""
    canvas, state, record = p.canvas.clone(), p.state(), p.record()

    def draw(parameters: Tensor, noise: Tensor) -> Tensor:
        return p.model.head.sample(parameters, noise, temperature=0.9)

    for first, last, whole_rows, top in moments or p.moments:
        run_program(
            p.plan.best_program, state, canvas, p.known, p.noise, draw,
            first=first, last=last, whole_rows=whole_rows, top=top, parameters=record,
        )  # fmt: skip
    return canvas, record


@pytest.fixture(scope="module")
def emulation(tmp_path_factory):
    """Draws a problem's images on the kernel."""
    kernel = Emulation("sample_causal", tmp_path_factory.mktemp("emulation"))

    def run(
        p: Problem, *, blocks: int = 2, sanitizer: str = "", moments: Sequence[tuple[int, int, bool, int]] | None = None
    ) -> tuple[Tensor, Tensor]:
        program, head, dtype = p.plan.best_program, p.model.head, p.canvas.dtype
        calls = torch.tensor([[int(x) for x in call] for call in moments or p.moments])
        words, numbers, state = program_words(program), program_numbers(program, dtype), p.state()
        mixtures = head.mixtures if isinstance(head, LogisticMixture) else 0
        arguments = (
            len(p.canvas), blocks, dtype == torch.float64, head.levels, mixtures, 0.9, True,
            len(calls), len(words), len(numbers), len(state), True,
        )  # fmt: skip
        given = (numbers, calls, words, state, p.canvas, p.noise, p.known)
        out = kernel(arguments, given, sanitizer)
        return out[: p.canvas.numel()].view_as(p.canvas), out[p.canvas.numel() :].view_as(p.record())

    return run


@pytest.mark.parametrize("name", MODELS)
def test_emulated_kernel_draws_what_the_eager_executor_draws(name, emulation):
    p = problem(name)
    images, met = emulation(p)
    wanted, distributions = by_eager(p)
    torch.testing.assert_close(met, distributions, rtol=1e-11, atol=1e-12)
    assert torch.equal(images, wanted)


@pytest.mark.parametrize("name", ["streams, odd", "streams, wide", "plain", "gates"])
def test_emulated_kernel_gives_an_image_the_same_bits_in_any_batch_and_on_any_number_of_blocks(name, emulation):
    """Of ten images two groups are made; rows that are known in one image alone are run by pixels in the batch."""
    p = problem(name, n=10, dtype=torch.float32)
    half = p.model.image_shape[1] // 2
    p.known[9, :, :half] = True
    p.canvas[9, :, :half] = -1
    images, met = emulation(p, blocks=3)
    assert met.isfinite().all()
    for blocks in (1, 4):
        for got, wanted in zip(emulation(p, blocks=blocks), (images, met), strict=True):
            assert torch.equal(got, wanted)
    for some in (slice(0, 1), slice(9, 10), slice(3, 6)):
        alone, met_alone = emulation(p.images(some))
        assert torch.equal(alone, images[some])
        assert torch.equal(met_alone, met[some])


@pytest.mark.parametrize("name", ["streams, odd", "masked, three colours", "cropped", "plain", "GatedPixelCNN"])
def test_emulated_kernel_keeps_what_is_known(name, emulation):
    """Pixels here and there, and rows, some of them in all images; a wavefront begins below rows that are known."""
    shape = MODELS[name]().image_shape
    steps_apart = torch.rand(3, 1, *shape[1:], generator=torch.Generator().manual_seed(1)) < 0.4
    known = steps_apart.expand(3, *shape).clone()
    known[:, :, : shape[1] // 2] = True
    known[0] = True
    p = problem(name, known=known)
    program, rows = p.plan.best_program, shape[1] // 2
    moments = p.moments
    if program.wave and program.runs_whole_rows:
        moments = [(0, rows, True, rows), (program.wave * rows, program.duration, False, rows)]
    images, met = emulation(p, moments=moments)
    wanted, distributions = by_eager(p, moments)
    assert torch.equal(images, wanted)
    assert torch.equal(images[known], p.canvas[known])
    torch.testing.assert_close(met, distributions, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["streams, odd", "plain", "PixelCNN++, grey"])
def test_emulated_kernel_goes_on_where_a_call_has_ended(name, emulation):
    p = problem(name, dtype=torch.float32)
    duration = p.plan.best_program.duration
    cuts = [0, 1, duration // 2, duration // 2, duration]
    moments = [(a, b, False, 0) for a, b in pairwise(cuts)]
    for got, wanted in zip(emulation(p, moments=moments), emulation(p), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("name", ["streams, one row", "plain", "gates"])
def test_emulated_kernel_keeps_inside_of_its_memory(name, emulation):
    p = problem(name, n=2, dtype=torch.float32)
    for got, wanted in zip(emulation(p, sanitizer="address,undefined"), emulation(p), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("name", ["streams, one row", "plain", "gates"])
def test_emulated_kernel_has_no_race(name, emulation):
    """Blocks meet where one needs what others have made, and the threads of a block wait for each other."""
    p = problem(name, n=2)
    _, met = emulation(p, sanitizer="thread", blocks=2)
    torch.testing.assert_close(met, by_eager(p)[1], rtol=1e-11, atol=1e-12)


class Handmade(Plan):
    """A plan that is its program, without constants."""

    def __init__(self, program: Program):
        self.best_program, self.conditions = program, ()

    def new_state(self, program, conditions, n, device="cpu"):
        return torch.zeros(program.offsets(n)[1], dtype=torch.float64, device=device)


def test_emulated_kernel_does_not_overwrite_what_others_still_read(emulation):
    """A value is summed up by all blocks and then, by what was there before they met last, replaced."""
    p = problem("plain", n=20)
    x, value, other, sums, out = range(5)
    pixel, left = When("pixel"), Read(x, 0, 1, column=Index(offset=-1))
    weights = torch.randn(5, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    program = Program(
        shape=p.model.image_shape,
        steps=1,
        buffers=(
            Buffer("x", 1, 5, 9, rows=1, left=1),
            *(Buffer(name, 8, 5, 9, rows=1) for name in ("value", "other", "sums")),
            Buffer("out", 4, 5, 9, rows=1),
        ),
        instructions=(
            Linear(pixel, value, (left,), weights[0, :1], weights[0, 1]),
            Linear(pixel, other, (left,), weights[1, :1], weights[1, 1]),
            Linear(pixel, sums, (Read(value, 0, 8),), weights[2]),
            Pointwise(pixel, value, "copy", (Read(other, 0, 8),)),
            Linear(pixel, out, (Read(value, 0, 8), Read(sums, 0, 8)), weights[3:, :, :4].reshape(16, 4)),
        ),
        inputs=(x,),
        outputs=((out, 0),),
        parameters=4,
    )
    p.plan = Handmade(program)
    wanted, distributions = by_eager(p)
    for sanitizer in ("", "thread"):
        images, met = emulation(p, blocks=3, sanitizer=sanitizer)
        torch.testing.assert_close(met, distributions, rtol=1e-11, atol=1e-12)
        assert torch.equal(images, wanted)


def test_emulated_kernel_lets_a_nan_through_to_later_pixels_only(emulation):
    p = problem("plain", known=torch.ones(1, dtype=torch.bool))
    p.known[:, :, 2, 4] = False
    clean = emulation(p)[1]
    p.canvas[1, 0, 2, 3] = torch.nan
    _, met = emulation(p)
    _, distributions = by_eager(p)
    assert torch.equal(met.isnan(), distributions.isnan())
    assert met[1].isnan().any()
    assert torch.equal(met[[0, 2]], clean[[0, 2]])
    assert torch.equal(met[1, ..., :2, :], clean[1, ..., :2, :])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", MODELS, ids=lambda name: f"cuda-persistent-{name}")
def test_kernel_draws_what_the_eager_executor_draws_on_the_gpu(name):
    torch.manual_seed(0)
    model = MODELS[name]().double().eval().cuda()
    labels = {"labels": torch.arange(33, device="cuda") % 7} if getattr(model, "conditional", False) else {}
    settings = {"seed": 3, "progress": False}
    images = generate(model, 33, impl="persistent", **labels, **settings)
    assert torch.equal(images, generate(model, 33, impl="eager", **labels, **settings))
    settings["quantize"] = False
    # the same bits on every run, in float32 and for an image alone
    model, again = model.float(), []
    for _ in range(2):
        again.append(generate(model, 33, impl="persistent", **labels, **settings))
    assert torch.equal(again[0], again[1])
    one = {key: value[20:21] for key, value in labels.items()}
    assert torch.equal(generate(model, 1, first_image=20, impl="persistent", **one, **settings)[0], again[0][20])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["cuda-persistent"])
def test_self_check_passes_on_the_gpu(name):
    assert same_as_eager("persistent")(torch.device("cuda")) is None


def test_executor_says_why_it_cannot_draw():
    model = MODELS["plain"]().eval()
    with pytest.raises(ValueError, match=r"'persistent' cannot draw from Plain: it runs on CUDA devices"):
        generate(model, 1, impl="persistent", progress=False)
