"""A plan gives what the network gives: the same parameters at every draw, the same images, nothing kept too long."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from vidgen.models import GatedPixelCNN, PixelCNN, PixelCNNPP
from vidgen.sampling import Categorical, NotCausalError, Request, UntraceableError, generate, image_noise, trace
from vidgen.sampling.executors import EXECUTORS

from . import networks

CACHED = ("eager", "cpu")

MODELS = {
    "streams": lambda: networks.Streams(),
    "streams, odd": lambda: networks.Streams((1, 7, 9)),
    "streams, small": lambda: networks.Streams((1, 3, 2)),
    "streams, one pixel": lambda: networks.Streams((1, 1, 1)),
    "streams, one row": lambda: networks.Streams((1, 1, 6)),
    "masked, three colours": lambda: networks.Masked(),
    "masked, two colours blocked": lambda: networks.Masked((2, 5, 4), layout="blocked"),
    "masked, one column": lambda: networks.Masked((3, 6, 1)),
    "cropped": lambda: networks.Cropped(),
    "strided": lambda: networks.Strided(),
    "strided, wide": lambda: networks.Strided((1, 4, 11)),
    "plain": lambda: networks.Plain(),
    "PixelCNN": lambda: PixelCNN((1, 9, 10), levels=5, hidden=6, blocks=2),
    "GatedPixelCNN": lambda: GatedPixelCNN((1, 5, 6), levels=4, hidden=6, blocks=2, classes=7),
    "GatedPixelCNN, colours": lambda: GatedPixelCNN((3, 4, 3), levels=4, hidden=6, blocks=2),
    "PixelCNN++": lambda: PixelCNNPP((3, 7, 6), resnets=1, filters=4, mixtures=2, levels=8, classes=7),
    "PixelCNN++, grey": lambda: PixelCNNPP((1, 5, 8), resnets=2, filters=4, mixtures=2, levels=8),
    "PixelCNN, colours": lambda: PixelCNN((3, 5, 6), levels=4, hidden=6, blocks=2),
}


def build(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return MODELS[name]().double().eval()


def conditions_of(model: nn.Module, n: int) -> dict[str, torch.Tensor]:
    return {"labels": torch.arange(n) % 7} if getattr(model, "conditional", False) else {}


def draw(
    model: nn.Module, executor: str, n: int, known: torch.Tensor | None = None, seed: int = 0, plan=None, record=True
):
    """(images, parameters of every draw) by one executor."""
    c, h, w = model.image_shape
    steps = model.head.steps_per_pixel(c)
    generator = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    values = torch.randint(0, model.levels, (n, c, h, w), generator=generator).to(dtype) * (2 / (model.levels - 1)) - 1
    of_a_draw = forward(model, torch.zeros(1, c, h, w, dtype=dtype)).shape[1:2]  # P
    request = Request(
        noise=torch.from_numpy(image_noise(seed, range(n), (c, h, w))),
        values=values,
        known=torch.zeros(n, c, h, w, dtype=torch.bool) if known is None else known,
        conditions=conditions_of(model, n),
        temperature=1.0,
        quantize=True,
        parameters=torch.full((n, *of_a_draw, steps, h, w), torch.nan, dtype=dtype) if record else None,
    )
    row = next(row for row in EXECUTORS if row.name == executor)
    with torch.inference_mode():
        return row.run(row.prepare(model, plan, None), request), request.parameters


def forward(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        output = model(images, **conditions_of(model, len(images)))
    return output if output.dim() == 5 else output.unsqueeze(2)


@pytest.mark.parametrize("executor", CACHED)
@pytest.mark.parametrize("name", MODELS)
def test_every_draw_sees_what_a_full_forward_pass_gives(name, executor):
    model = build(name)
    images, met = draw(model, executor, 3)
    full = forward(model, images)
    assert met.shape == full.shape
    torch.testing.assert_close(met, full, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_same_images_as_naive_drawing_in_float64(name):
    model = build(name)
    naive, _ = draw(model, "naive", 64, record=False)
    for executor in CACHED:
        images, _ = draw(model, executor, 64, record=False)
        assert torch.equal(images, naive), executor
    assert len(images.flatten(1).unique(dim=0)) > 1 or images[0].numel() == 1


@pytest.mark.parametrize("executor", CACHED)
@pytest.mark.parametrize("name", ["streams, odd", "masked, three colours", "plain", "strided"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_image_is_the_same_to_the_bit_in_any_batch(name, dtype, executor):
    model = build(name).to(dtype)
    labels = {} if not conditions_of(model, 5) else {"labels": torch.tensor([4, 4, 2, 4, 2])}
    together = generate(model, 5, seed=9, impl=executor, quantize=False, progress=False, **labels)
    for image in range(5):
        one = {key: value[image : image + 1] for key, value in labels.items()}
        alone = generate(model, 1, seed=9, first_image=image, impl=executor, quantize=False, progress=False, **one)
        assert torch.equal(alone[0], together[image])


@pytest.mark.parametrize("executor", CACHED)
@pytest.mark.parametrize("name", ["streams, odd", "masked, three colours", "cropped", "plain", "strided"])
def test_known_pixels_stay_and_known_rows_are_run_whole(name, executor):
    model = build(name)
    c, h, w = model.image_shape
    known = torch.rand(3, c, h, w, generator=torch.Generator().manual_seed(1)) < 0.4
    known[:, :, : h // 2] = True
    images, met = draw(model, executor, 3, known)
    naive, _ = draw(model, "naive", 3, known)
    assert torch.equal(images, naive)
    torch.testing.assert_close(met, forward(model, images), rtol=1e-11, atol=1e-12)


class TestTime:
    """When things are computed, and for how long they are kept."""

    def test_what_depends_on_rows_above_only_is_computed_row_by_row(self):
        plan = trace(build("streams"))
        work = plan.multiply_adds
        rates = {plan.program.buffers[i.destination].name: i.when.rate for i in plan.program.instructions}
        assert {rates[name] for name in ("rows", "rows_conv", "rows_down", "rows_up")} == {"row"}
        assert {rates[name] for name in ("pixels_down", "last", "out")} == {"pixel"}
        # the taps of the row above are taken out of the pixels' work
        assert {rates[f"{name}, rows above"] for name in ("pixels_down", "last")} == {"row"}
        assert 0 < work["pixel"] < work["row"]

    @pytest.mark.parametrize("name", ["streams", "masked, three colours", "plain"])
    def test_memory_grows_with_the_width_and_not_with_the_height(self, name):
        model = build(name)
        channels = model.image_shape[0]
        of_size = {(h, w): trace(model, (channels, h, w)).state_bytes() for h, w in ((32, 32), (256, 32), (32, 64))}
        # the plane of ones that Streams reads is a constant, which has all rows
        constant = 255 * 32 * 16 * 8 if name == "streams" else 0
        assert of_size[256, 32] <= of_size[32, 32] + constant
        assert 1.5 * of_size[32, 32] < of_size[32, 64] < 2 * of_size[32, 32] + constant

    def test_every_kept_line_is_needed(self):
        """With one line less in any buffer something is overwritten before it is read."""
        import dataclasses

        model = build("streams, odd")
        plan = trace(model)
        images, _ = draw(model, "eager", 2)
        shortened = 0
        for number, buffer in enumerate(plan.program.buffers):
            if buffer.constant or buffer.rows == 1:
                continue
            buffers = list(plan.program.buffers)
            buffers[number] = dataclasses.replace(buffer, rows=buffer.rows - 1)
            short = trace(model)
            short.program = dataclasses.replace(plan.program, buffers=tuple(buffers))
            short.best_program = short.program
            short._forms = (dataclasses.replace(short._forms[0], program=short.program),)
            _, other = draw(model, "eager", 2, torch.ones_like(images, dtype=torch.bool), plan=short)
            _, right = draw(model, "eager", 2, torch.ones_like(images, dtype=torch.bool))
            assert not torch.equal(other, right), buffer.name
            shortened += 1
        assert shortened >= 3

    def test_the_table_names_what_a_person_would_check(self):
        text = str(trace(build("streams")))
        lines = {line.split("  ")[0]: line for line in text.splitlines()}
        assert "row +1" in lines["rows"]
        assert "1/1" in lines["rows"]
        assert "1/2" in lines["rows_down"]
        assert "row" in lines["rows_down"]
        assert "column" in lines["out"]
        assert "KiB kept" in text
        assert "multiply-adds line by line" in text

    def test_least_slope_of_a_wavefront(self):
        assert trace(build("plain")).wavefront.wave == 2
        assert trace(build("plain")).wavefront.duration == 13 + 2 * 8
        # 7×7 in the first layer reaches three columns to the right in the row above
        assert trace(PixelCNN((1, 16, 24), levels=3, hidden=4, blocks=1)).wavefront.wave == 4
        # both streams together see everything above
        assert trace(build("streams")).wavefront is None


class TestRefusals:
    """What has no incremental form is named, with its module and the reason."""

    @pytest.mark.parametrize(
        ("layer", "reason"),
        [
            (nn.AdaptiveAvgPool2d(1), "does not know the op"),
            (nn.Upsample(scale_factor=2), "does not know the op"),
            (nn.GroupNorm(1, 6), "does not know the op"),
            (nn.ConstantPad2d((1, 0, 0, 0), 1.0), "pads with 1.0"),
        ],
    )
    def test_op(self, layer, reason):
        model = networks.Plain((1, 4, 4))
        model.layers[1] = layer
        with pytest.raises(UntraceableError, match=f"'layers.1'.*{reason}"):
            trace(model.eval())

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (lambda y: y.unsqueeze(0).squeeze(0), "the axis of images"),
            (lambda y: y.squeeze(), "the axis of images"),
            (lambda y: torch.clamp(y, min=torch.zeros(6, 1, 1)), "its bounds are tensors"),
            (lambda y: y[:, :, ::2].repeat_interleave(2, 2), "skips rows or columns"),
            (lambda y: y.double().float(), "changes the dtype"),
            (lambda y: y.relu_(), "does not know the op"),
            (lambda y: torch.cat([y, y], dim=0)[:1], "another dimension than channels"),
        ],
    )
    def test_what_would_be_misunderstood(self, change, reason):
        model = networks.Plain((1, 4, 4))
        first = model.first.forward
        model.first.forward = lambda x: change(first(x))
        with pytest.raises(UntraceableError, match=reason):
            trace(model.eval())

    def test_leak(self):
        class Leaky(networks.Causal):
            def __init__(self):
                super().__init__((1, 6, 6))
                self.conv = nn.Conv2d(1, 4, 3, padding=1)

            def forward(self, x):
                return self.conv(x).unsqueeze(2)

        with pytest.raises(NotCausalError, match=r"pixel \(i\+1, j\+1\)"):
            trace(Leaky().eval())

    def test_leak_of_a_colour(self):
        class Swapped(networks.Masked):
            def forward(self, x):
                first, second, third = super().forward(x).unbind(2)
                return torch.cat([y.unsqueeze(2) for y in (second, first, third)], dim=2)

        with pytest.raises(NotCausalError, match=r"step 0 depend on pixel \(i, j\), step 0, which is not drawn"):
            trace(Swapped().eval())

    def test_colours_seen_too_early(self):
        model = networks.Masked()
        model.out.colors = 1
        with pytest.raises(NotCausalError, match=r"step 0 depend on pixel \(i, j\), step 1"):
            trace(model.eval())

    def test_generate_falls_back_with_a_warning(self):
        class Sorting(networks.Plain):
            def forward(self, x):
                return super().forward(x) + 0 * x.sort().values.sum()

        model = Sorting((1, 2, 2)).eval()
        with pytest.warns(UserWarning, match=r"Sorting is drawn from naively.*aten.sort"):
            generate(model, 1, progress=False)
        with pytest.raises(ValueError, match=r"'eager' cannot draw from Sorting.*aten.sort"):
            generate(model, 1, impl="eager", progress=False)


@st.composite
def random_network(draw_from):
    """A causal network from layers in random order, with skips between maps of one resolution."""
    height, width = draw_from(st.integers(1, 7)), draw_from(st.integers(1, 7))
    kinds = st.sampled_from(["conv", "function", "skip", "down", "up", "shift", "gate", "concat"])
    return height, width, draw_from(st.lists(kinds, min_size=1, max_size=7)), draw_from(st.integers(0, 10**6))


class Random(networks.Causal):
    def __init__(self, height, width, kinds, seed):
        super().__init__((1, height, width), levels=3)
        self.kinds, self.seed = kinds, seed
        self.first = MaskedFirst()
        # every kind of layer that may come, by its place
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, (1 + i % 3, 1 + (i // 2) % 3), dilation=1 + i % 2) for i in range(8))
        self.downs = nn.ModuleList(nn.Conv2d(4, 4, 2, stride=(1 + i % 2, 2)) for i in range(8))
        self.ups = nn.ModuleList(nn.ConvTranspose2d(4, 4, 2, stride=(1 + i % 2, 2)) for i in range(8))
        self.gates = nn.ModuleList(nn.Conv2d(4, 8, 1) for _ in range(8))
        self.narrow = nn.ModuleList(nn.Conv2d(8, 4, 1) for _ in range(8))
        self.out = nn.Conv2d(4, 3, 1)

    def forward(self, x):
        import torch.nn.functional as F

        y = self.first(x)
        # maps by resolution, the newest last; what goes down comes up again
        stack, last = [], {y.shape: y}
        for i, kind in enumerate(self.kinds):
            if kind == "conv":
                kernel, dilation = self.convs[i].kernel_size, self.convs[i].dilation
                above, left = (dilation[a] * (kernel[a] - 1) for a in range(2))
                y = self.convs[i](F.pad(y, (left, 0, above, 0)))
            elif kind == "function":
                y = (torch.relu, torch.tanh, F.elu, torch.neg, torch.sigmoid)[(i + self.seed) % 5](y)
            elif kind == "skip" and y.shape in last:
                y = y + last[y.shape]
            elif kind == "down":
                stack.append((i, y.shape))
                y = self.downs[i](F.pad(y, (1, 0, 1, 0)))
            elif kind == "up" and stack:
                y = self._up(y, *stack.pop())
            elif kind == "shift":
                y = networks.down(y) if (i + self.seed) % 2 else networks.right(y)
            elif kind == "gate":
                a, b = self.gates[i](y).chunk(2, dim=1)
                y = torch.tanh(a) * torch.sigmoid(b)
            elif kind == "concat" and y.shape in last:
                y = self.narrow[i](torch.cat([last[y.shape], y], dim=1))
            last[y.shape] = y
        while stack:
            y = self._up(y, *stack.pop())
        return self.out(y).unsqueeze(2)

    def _up(self, y, i, shape):
        y = self.ups[i](y)[..., : shape[-2], : shape[-1]]
        import torch.nn.functional as F

        return F.pad(y, (0, shape[-1] - y.shape[-1], 0, shape[-2] - y.shape[-2]))


class MaskedFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.above, self.left = nn.Conv2d(1, 4, (2, 3)), nn.Conv2d(1, 4, (1, 2))

    def forward(self, x):
        import torch.nn.functional as F

        above = networks.down(self.above(F.pad(x, (1, 1, 1, 0))))
        return above + networks.right(self.left(F.pad(x, (1, 0))))


@settings(max_examples=60)
@given(random_network())
@example((1, 1, ["down", "conv", "shift"], 1))  # a map of one line, cut to none before a transposed convolution
def test_random_networks(description):
    torch.manual_seed(description[-1])
    model = Random(*description).double().eval()
    for executor in CACHED:
        images, met = draw(model, executor, 2)
        torch.testing.assert_close(met, forward(model, images), rtol=1e-10, atol=1e-11)


def test_a_head_of_ones_own_is_drawn_from_eagerly():
    class Coin(Categorical):
        def sample(self, parameters, noise, *, temperature, quantize):
            return 1 - super().sample(parameters, noise, temperature=temperature, quantize=quantize)

    model = build("plain")
    model.head = Coin(4)
    naive, _ = draw(model, "naive", 3)
    images, _ = draw(model, "eager", 3)
    assert torch.equal(images, naive)
    with pytest.raises(ValueError, match=r"'cpu' cannot draw from Plain.*not from Coin"):
        generate(model, 1, impl="cpu", progress=False)
