"""The C++ executor's own promises: bits on any number of threads, weights in bfloat16, words that cannot do harm."""

from __future__ import annotations

import pytest
import torch

from vidgen.models import PixelCNN, PixelCNNPP
from vidgen.sampling import Categorical, generate, trace
from vidgen.sampling.native import compile_program, supports
from vidgen.sampling.program import Buffer, Index, Linear, Pointwise, Program, Read, When

from . import networks
from .test_plan import build, draw, forward

WIDE = {
    # more panels than members, reads of several chains, a wavefront
    "pixelcnn": lambda times: PixelCNN((1, 10, 12), levels=7, hidden=40 * times, blocks=2),
    "pixelcnn++": lambda times: PixelCNNPP((3, 9, 8), resnets=1, filters=36 * times, mixtures=3, levels=256),
    "streams": lambda times: networks.Streams((1, 7, 9), width=37 * times),
}


def wide(name: str, dtype: torch.dtype = torch.float32, times: int = 1) -> torch.nn.Module:
    torch.manual_seed(0)
    return WIDE[name](times).to(dtype).eval()


@pytest.mark.parametrize(
    ("images", "times"),
    # many images, which threads share; some, which they share in whole lines; few, but channels enough for all
    [(100, 1), (16, 3), (7, 3)],
)
@pytest.mark.parametrize("name", WIDE)
def test_same_bits_on_any_number_of_threads_and_on_every_run(name, images, times, threads):
    model = wide(name, times=times)
    seen = []
    for count in (1, 2, 3, 2, 7, 2):
        threads(count)
        seen.append(draw(model, "cpu", images))
    for drawn, met in seen[1:]:
        assert torch.equal(drawn, seen[0][0])
        assert torch.equal(met, seen[0][1])


@pytest.mark.parametrize(("images", "times"), [(36, 1), (16, 3)])
@pytest.mark.parametrize("name", WIDE)
def test_rows_that_are_known_in_some_images_only(name, images, times, threads):
    """Threads that draw images of their own pass over rows at once where all of theirs are known."""
    model = wide(name, times=times)
    _, height, _ = model.image_shape
    known = torch.zeros(images, *model.image_shape, dtype=torch.bool)
    known[: images // 3] = True
    known[images // 3 : images // 2, :, : height // 2] = True
    known[-1, :, 0] = True
    seen = []
    for count in (1, 2, 3):
        threads(count)
        seen.append(draw(model, "cpu", images, known))
    for drawn, met in seen[1:]:
        assert torch.equal(drawn, seen[0][0])
        assert torch.equal(met, seen[0][1])


@pytest.mark.parametrize("name", WIDE)
def test_float32_distributions_are_those_of_a_full_forward_pass(name):
    model = wide(name)
    images, met = draw(model, "cpu", 2)
    full = forward(model.double(), images.double())
    torch.testing.assert_close(met.double(), full, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", WIDE)
def test_later_pixels_change_no_earlier_distribution_by_a_bit(name):
    model = wide(name)
    c, h, w = model.image_shape
    steps = model.head.steps_per_pixel(c)
    # every pixel but one row known: what is recorded above and left of a change must stay
    known = torch.ones(1, c, h, w, dtype=torch.bool)
    known[:, :, h // 2] = False
    _, first = draw(model, "cpu", 1, known, seed=1)
    _, second = draw(model, "cpu", 1, known, seed=1)
    assert torch.equal(first, second)
    plan = trace(model)
    values = torch.rand(1, c, h, w, generator=torch.Generator().manual_seed(5)) * 2 - 1

    def met(image: torch.Tensor) -> torch.Tensor:
        program = plan.best_program
        state = plan.new_state(program, {"labels": torch.zeros(1, dtype=torch.int64)} if plan.conditions else {}, 1)
        record = torch.full((1, program.parameters, steps, h, w), torch.nan)
        plan.native.run(
            state,
            image.clone(),
            torch.ones(1, c, h, w, dtype=torch.bool),
            torch.full((1, c, h, w, 2), 0.5, dtype=torch.float64),
            model.head,
            first=0,
            last=program.duration,
            temperature=1.0,
            quantize=True,
            parameters=record,
        )
        return record

    before = met(values)
    for row, column in ((0, 0), (h // 2, w // 2), (h - 1, w - 2)):
        for channel in range(c):
            changed = values.clone()
            changed[0, channel, row, column] = 1e3
            after = met(changed)
            place = torch.arange(h)[:, None] * w + torch.arange(w)  # [h, w]
            here = row * w + column
            step = channel // (c // steps)
            assert torch.equal(
                after[..., place <= here][:, :, : step + 1], before[..., place <= here][:, :, : step + 1]
            )
            assert torch.equal(after[..., place < here], before[..., place < here])
            if here + 1 < h * w:
                assert not torch.equal(after, before)


def test_bfloat16_weights_are_rounded_and_sums_are_not():
    model = wide("pixelcnn++")
    rounded = wide("pixelcnn++")
    plan = trace(model)
    native = compile_program(plan.program, torch.float32, narrow_weights=True)
    assert native.packed.numel() < 0.6 * plan.native.packed.numel()
    # the same network with weights that bfloat16 can hold
    with torch.no_grad():
        for instruction in (exact := trace(rounded)).program.instructions:
            if hasattr(instruction, "weight"):
                instruction.weight.copy_(instruction.weight.bfloat16().float())
    n, (c, h, w) = 2, model.image_shape

    def met(program) -> torch.Tensor:
        record = torch.full((n, plan.program.parameters, 1, h, w), torch.nan)
        values = torch.rand(n, c, h, w, generator=torch.Generator().manual_seed(5)) * 2 - 1
        program.run(
            plan.new_state(plan.program, {}, n),
            values,
            torch.ones(n, c, h, w, dtype=torch.bool),
            torch.full((n, c, h, w, 2), 0.5, dtype=torch.float64),
            model.head,
            first=0,
            last=h,
            temperature=1.0,
            quantize=True,
            parameters=record,
        )
        return record

    assert torch.equal(met(native), met(compile_program(exact.program, torch.float32)))


def test_generate_draws_with_bfloat16_weights_where_asked_to():
    model = wide("pixelcnn")
    rounded = wide("pixelcnn")
    with torch.no_grad():
        for name, parameter in rounded.named_parameters():
            if name.endswith("weight"):
                parameter.copy_(parameter.bfloat16().float())
    settings = {"seed": 3, "progress": False}
    narrow = generate(model, 4, weight_dtype=torch.bfloat16, **settings)
    assert torch.equal(narrow, generate(rounded, 4, impl="cpu", **settings))
    with pytest.raises(ValueError, match=r"'eager' cannot draw from PixelCNN with weights in torch.bfloat16"):
        generate(model, 1, impl="eager", weight_dtype=torch.bfloat16, **settings)
    with pytest.raises(ValueError, match="float16: it runs the model as it is"):
        generate(model, 1, weight_dtype=torch.float16, **settings)


def test_what_it_cannot_draw_from():
    cpu = torch.device("cpu")
    assert supports(torch.float32, cpu, Categorical(4)) is None
    assert "bfloat16" in supports(torch.bfloat16, cpu, Categorical(4))
    assert "meta" in supports(torch.float32, torch.device("meta"), Categorical(4))


class TestWords:
    """Whatever the words are, the kernel refuses or stays inside of its buffers."""

    def call(self, words, first=0, last=1, **changes):
        model = networks.Plain((1, 4, 5)).eval()
        plan = trace(model)
        program = plan.best_program
        native = plan.native
        arguments = {
            "program": native.words if words is None else words,
            "packed": native.packed,
            "narrow_weights": False,
            "state": plan.new_state(program, {}, 1),
            "canvas": torch.zeros(1, 1, 4, 5),
            "known": torch.zeros(1, 1, 4, 5, dtype=torch.bool),
            "noise": torch.full((1, 1, 4, 5, 2), 0.5, dtype=torch.float64),
            "parameters": None,
            "first": first,
            "last": last,
            "whole_rows": False,
            "top": 0,
            "levels": 4,
            "mixtures": 0,
            "temperature": 1.0,
            "quantize": True,
        }
        torch.ops.vidgen.sample_causal(**{**arguments, **changes})

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"top": 5}, "top must be within"),
            ({"last": 99}, "first and last must be within"),
            ({"first": 3, "last": 2}, "first and last must be within"),
            ({"levels": 5}, "a softmax over 5"),
            ({"mixtures": 2}, "2 logistics of 1 channels"),
            ({"temperature": 0.0}, "temperature must be positive"),
            ({"noise": torch.zeros(1, 1, 4, 5, 2)}, "noise must be contiguous"),
            ({"known": torch.zeros(1, 1, 5, 4, dtype=torch.bool)}, r"known must be .* \(1, 1, 4, 5\)"),
            ({"state": torch.zeros(3)}, "state must be"),
            ({"packed": torch.zeros(3, dtype=torch.uint8)}, "packed must be"),
            ({"parameters": torch.zeros(1, 3, 1, 4, 5)}, "parameters must be"),
        ],
    )
    def test_arguments_are_checked(self, changes, message):
        self.call(None)
        with pytest.raises(RuntimeError, match=message):
            self.call(None, **changes)

    def test_too_short_and_too_long(self):
        words = trace(networks.Plain((1, 4, 5)).eval()).native.words
        for wrong, message in ((words[:-1], "ends too early"), (torch.cat([words, words[:1]]), "1 words too many")):
            with pytest.raises(RuntimeError, match=message):
                self.call(wrong.contiguous())

    def test_any_word_may_be_wrong(self, threads):
        threads(1)
        words = trace(networks.Plain((1, 4, 5)).eval()).native.words
        refused = 0
        for at in range(0, len(words), 3):
            for value in (-(2**62), -1, 10**6, 2**62):
                wrong = words.clone()
                wrong[at] = value
                try:
                    self.call(wrong)
                except RuntimeError:
                    refused += 1
        assert refused > len(words)


def test_double_and_small_networks_use_one_member_for_few_channels(threads):
    threads(2)
    model = build("plain")
    images, met = draw(model, "cpu", 5)
    torch.testing.assert_close(met, forward(model, images), rtol=1e-11, atol=1e-12)


def rewritten_while_others_read() -> Program:
    """`a` is read by a product, then written by an elementwise function that reads nothing of others."""
    generator = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) / rows**0.5

    pixel = When("pixel")
    x, t, a, b, logits = range(5)
    left = Read(x, 0, 1, column=Index(offset=-1))
    return Program(
        shape=(1, 6, 16),
        steps=1,
        buffers=(
            Buffer("x", 1, 6, 16, 1, left=1),
            *(Buffer(name, channels, 6, 16, 1) for name, channels in (("t", 64), ("a", 64), ("b", 512), ("logits", 5))),
        ),
        instructions=(
            Linear(pixel, t, (left,), matrix(1, 64)),
            Linear(pixel, a, (left,), matrix(1, 64)),
            Linear(pixel, b, (Read(a, 0, 64),), matrix(64, 512)),
            Pointwise(pixel, a, "scale", (Read(t, 0, 64),), (100.0, 1.0)),
            Linear(pixel, logits, (Read(a, 0, 64), Read(b, 0, 512)), matrix(576, 5)),
        ),
        inputs=(x,),
        outputs=((logits, 0),),
        parameters=5,
    )


def test_nothing_is_overwritten_that_others_still_read(threads):
    program, n = rewritten_while_others_read(), 64
    native = compile_program(program, torch.float32)

    def met() -> torch.Tensor:
        record = torch.full((n, 5, 1, 6, 16), torch.nan)
        size = (n, 1, 6, 16)
        native.run(
            torch.zeros(program.offsets(n)[1]),
            torch.zeros(size),
            torch.zeros(size, dtype=torch.bool),
            torch.full((*size, 2), 0.5, dtype=torch.float64),
            Categorical(5),
            first=0,
            last=6,
            temperature=1.0,
            quantize=True,
            parameters=record,
        )
        return record

    threads(1)
    alone = met()
    threads(2)
    for _ in range(20):
        assert torch.equal(met(), alone)
