"""The executor "graph": its steps draw what `eager` draws, and are such that a CUDA graph may hold them.

On a CPU the steps run as they are, and replayed from a recording of their ops (`replaying.py`); on a GPU from graphs.
"""

from __future__ import annotations

import gc
from collections import Counter
from dataclasses import replace

import numpy
import pytest
import torch
from hypothesis import given, settings

from vidgen.models import PixelCNN, PixelCNNPP
from vidgen.sampling import Categorical, Request, graphed, image_noise, trace
from vidgen.sampling.executors import EXECUTORS
from vidgen.sampling.graphed_pixels import Call, Product, Settle, shortened

from . import networks
from .replaying import Recording, Replays
from .test_plan import MODELS, Random, build, conditions_of, forward, random_network

ROWS = {row.name: row for row in EXECUTORS}
DEVICES = [pytest.param("cpu", id="cpu")]
if torch.cuda.is_available():
    DEVICES.append(pytest.param("cuda", marks=pytest.mark.gpu, id="cuda-graph"))


def draw(
    model, executor, n, device="cpu", *, known=None, seed=0, plan=None, temperature=1.0, quantize=True, record=True
):
    """(images, parameters of every draw); the executor "graph" on the CPU too."""
    c, h, w = model.image_shape
    dtype = next(model.parameters()).dtype
    # an image's known values are the same in any batch
    levels = torch.randint(0, model.levels, (8, c, h, w), generator=torch.Generator().manual_seed(seed))[:n]
    recorded = (n, *forward(model.cpu(), torch.zeros(1, c, h, w, dtype=dtype)).shape[1:])
    request = Request(
        noise=torch.from_numpy(image_noise(seed, range(n), (c, h, w))).to(device),
        values=(levels.to(dtype) * (2 / (model.levels - 1)) - 1).to(device),
        known=(torch.zeros(n, c, h, w, dtype=torch.bool) if known is None else known).to(device),
        conditions={name: value.to(device) for name, value in conditions_of(model, n).items()},
        temperature=temperature,
        quantize=quantize,
        parameters=torch.full(recorded, torch.nan, dtype=dtype, device=device) if record else None,
    )
    model = model.to(device)
    with torch.inference_mode():
        images = ROWS[executor].run((model, trace(model) if plan is None else plan), request)
    return images.cpu(), None if request.parameters is None else request.parameters.cpu()


def holes(n, c, h, w):
    """Known rows at the top and further down, and pixels here and there; channels of a pixel together."""
    known = (torch.rand(n, 1, h, w, generator=torch.Generator().manual_seed(1)) < 0.4).expand(n, c, h, w).clone()
    known[:, :, : h // 3] = True
    known[:, :, h // 3 + 1 : h // 3 + 2] = True
    return known


def assert_same(found, expected):
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("where", DEVICES)
@pytest.mark.parametrize("name", MODELS)
def test_draws_what_eager_draws_in_float64(name, where):
    model = build(name)
    plan = trace(model.to(where))
    for seed, (n, some_known) in enumerate([(3, True), (1, False), (0, True), (3, False)]):
        known = holes(n, *model.image_shape) if some_known else None
        expected = draw(model, "eager", n, where, known=known, seed=seed, plan=plan)
        assert_same(draw(model, "graph", n, where, known=known, seed=seed, plan=plan), expected)


@pytest.mark.parametrize("where", DEVICES)
@pytest.mark.parametrize("name", ["PixelCNN++", "plain"])
def test_temperature_and_values_between_levels(name, where):
    model = build(name)
    settings = {"temperature": 0.7, "quantize": False, "record": False, "plan": trace(model.to(where))}
    images, _ = draw(model, "graph", 2, where, **settings)
    expected, _ = draw(model, "eager", 2, where, **settings)
    torch.testing.assert_close(images, expected, rtol=1e-11, atol=1e-12)
    warmer, _ = draw(model, "graph", 2, where, **settings | {"temperature": 1.3})
    assert not torch.equal(warmer, images)


@pytest.mark.parametrize("where", DEVICES)
@settings(max_examples=15)
@given(description=random_network())
def test_random_networks(where, description):
    torch.manual_seed(description[-1])
    model = Random(*description).double().eval()
    assert_same(draw(model, "graph", 2, where), draw(model, "eager", 2, where))


@pytest.mark.parametrize("name", ["streams, odd", "masked, three colours", "plain", "strided", "PixelCNN++"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_image_is_the_same_to_the_bit_in_any_batch(name, dtype):
    model = build(name).to(dtype)
    plan = trace(model)
    known = holes(7, *model.image_shape)
    for mask in (None, known):
        images, met = draw(model, "graph", 7, known=mask, plan=plan)
        for n in (1, 5):
            fewer, met_too = draw(model, "graph", n, known=None if mask is None else mask[:n], plan=plan)
            assert torch.equal(fewer, images[:n])
            # functions over a whole line: on CPUs PyTorch rounds the last elements of a tensor in another way
            if name in ("masked, three colours", "plain", "strided"):
                assert torch.equal(met_too, met[:n])
            else:
                torch.testing.assert_close(met_too, met[:n])


@pytest.mark.parametrize("where", DEVICES)
def test_float32_distributions_are_those_of_a_full_forward_pass(where):
    for name in ("PixelCNN++", "plain", "streams, odd"):
        model = build(name).float()
        images, met = draw(model, "graph", 2, where)
        full = forward(model.cpu().double(), images.double())
        torch.testing.assert_close(met.double(), full, rtol=0, atol=1e-4)


class TestCapture:
    """What a CUDA graph asks of a step: fixed ops on fixed memory, and never a question to the host."""

    @pytest.fixture
    def replays(self, monkeypatch):
        made = Replays()
        monkeypatch.setattr(graphed, "capture_for", lambda device: made)
        return made

    @pytest.mark.parametrize(
        "name", [name for name in MODELS if name not in ("streams", "PixelCNN++, grey", "PixelCNN")]
    )
    def test_a_replay_of_recorded_ops_draws_what_eager_draws(self, name, replays):
        model = build(name)
        plan = trace(model)
        for seed, known in ((0, None), (1, holes(2, *model.image_shape)), (2, None)):
            gc.collect()
            expected = draw(model, "eager", 2, known=known, seed=seed, plan=plan)
            assert_same(draw(model, "graph", 2, known=known, seed=seed, plan=plan), expected)
        # kinds are recorded once, and pixels and rows replayed
        compiled = plan.graphed.compiled
        assert len(replays.recordings) <= len(compiled.codes) + len(set(compiled.row_kinds.values()))
        assert replays.replayed > len(replays.recordings)

    @pytest.mark.parametrize("name", ["streams, odd", "masked, three colours", "plain", "PixelCNN++", "GatedPixelCNN"])
    def test_a_kind_is_the_same_ops_on_the_same_memory_at_every_moment(self, name, monkeypatch):
        """And it leaves every tensor where it was."""
        seen: dict[object, list[Recording]] = {}

        def recorded(step):
            def run():
                with Recording() as recording:
                    step()
                seen.setdefault(step, []).append(recording)

            return run

        monkeypatch.setattr(graphed, "capture_for", lambda device: recorded)
        model = build(name)
        draw(model, "graph", 2, known=holes(2, *model.image_shape))
        assert seen
        for recordings in seen.values():
            for recording in recordings[1:]:
                assert recording.names() == recordings[0].names()
                assert recording.static() == recordings[0].static()
        assert max(map(len, seen.values())) > 5

    def test_this_recording_refuses_what_a_graph_cannot_hold(self):
        x = torch.arange(4.0)
        for bad in (
            lambda: x.sum().item(),
            lambda: bool(x.any()),
            lambda: x[x > 1],
            lambda: torch.nonzero(x),
            lambda: torch.tensor([1, 2]),
            lambda: x.masked_select(x > 1),
            lambda: x.to("meta"),
        ):
            with pytest.raises(AssertionError), Recording():
                bad()

    def test_a_choice_that_python_makes_would_be_seen(self, replays):
        """A head that asks nobody, yet draws otherwise from call to call: its replays are frozen."""

        class Counting(Categorical):
            calls = 0

            def sample(self, parameters, noise, *, temperature, quantize):
                self.calls += 1
                return super().sample(parameters * (self.calls % 3), noise, temperature=temperature)

        model = build("streams")
        model.head = Counting(4)
        images, _ = draw(model, "graph", 3)
        model.head = Counting(4)
        expected, _ = draw(model, "eager", 3)
        assert not torch.equal(images, expected)


class TestKinds:
    """Few graphs, and few launches in each."""

    @pytest.fixture(scope="class")
    @classmethod
    def plan(cls):
        torch.manual_seed(0)
        return trace(PixelCNNPP((3, 32, 32), resnets=5, filters=4, mixtures=10).eval())

    def test_pixelcnnpp_has_seven_kinds_of_moment_and_eight_of_row(self, plan):
        compiled = plan.graphed.compiled
        moments = Counter(compiled.moments.kind_of.tolist())
        assert sum(moments.values()) == 32 * 35  # columns −2 … 32
        assert len([kind for kind in moments if compiled.codes[kind].calls]) == 7
        # the first row, and three by its number modulo 4; with the pixels or without
        modes = Counter(kind.mode for kind in set(compiled.row_kinds.values()))
        assert modes == {"drawn": 4, "known": 4}

    def test_launches(self, plan):
        """What a replay costs: three quarters of the moments are of a kind with little more than a hundred calls."""
        compiled = plan.graphed.compiled
        moments = Counter(compiled.moments.kind_of.tolist())
        ((common, often),) = moments.most_common(1)
        assert often == 752
        functions = Counter(getattr(call, "function", type(call).__name__) for call in compiled.codes[common].calls)
        # per resnet two products; of eleven at full resolution
        assert functions["Product"] == 24
        assert functions["addcmul"] == functions["sigmoid"] == 11
        assert functions.total() <= 102
        calls = sum(often * len(compiled.codes[kind].calls) for kind, often in moments.items())
        assert calls / 32**2 < 140

    def test_a_wavefront_is_one_kind_of_moment(self):
        plan = trace(PixelCNN((1, 28, 28), hidden=4, blocks=15).eval())
        compiled = plan.graphed.compiled
        assert compiled.program is plan.wavefront
        assert compiled.moments.lanes == 7  # 28 columns, 4 times from row to row
        assert compiled.moments.kind_of.tolist() == [0] * 136

    @pytest.mark.parametrize("name", ["cropped", "strided"])
    def test_rows_that_need_each_other_within_a_moment_are_drawn_in_raster_order(self, name):
        plan = trace(build(name))
        assert plan.wavefront is not None
        assert plan.graphed.compiled.program is plan.program

    @pytest.mark.parametrize("name", MODELS)
    def test_everything_is_written_in_its_own_buffer_or_in_the_dump(self, name):
        """Never where zeros, biases or constants are read; nothing of rows that are finished."""
        compiled = trace(build(name)).graphed.compiled
        moments, layout = compiled.moments, compiled.moments.layout
        lane = compiled.table.width * numpy.arange(moments.lanes)
        for top in (0, 2):
            numbers = compiled.table.numbers(top)
            dumped = 0
            for kind, code in enumerate(compiled.codes):
                of_kind = moments.kind_of == kind
                for store in code.stores:
                    at = numbers[of_kind][:, lane + store.column] + store.offset
                    ends = at + store.count
                    fits = (at == layout.dump) & (ends <= 2 * layout.dump)
                    dumped += int(fits.sum())
                    assert fits[moments.rows[of_kind] < top].all() or not compiled.program.wave
                    for buffer, base in zip(compiled.program.buffers, layout.bases, strict=True):
                        if not buffer.constant:
                            fits |= (at >= base) & (ends <= base + buffer.numel(1))
                    assert fits.all()
        assert dumped or moments.lanes == 1

    def test_a_product_is_added_in_one_call_only_where_nobody_else_reads_it(self):
        mul, add = Call("mul", (0, 4), 8, 4), Call("add", (12, 8), 16, 4)
        assert shortened([mul, add], set()) == [Call("addcmul", (12, 0, 4), 16, 4)]
        assert shortened([mul, replace(add, inputs=(8, 12))], set()) == [Call("addcmul", (12, 0, 4), 16, 4)]
        for others, kept in (
            ([], {8}),
            ([Call("neg", (8,), 20, 4)], set()),
            ([Call("neg", (9,), 20, 2)], set()),
            ([Product(6, 20, torch.zeros(3, 2))], set()),
            ([Settle(0, 5, 4, 20)], set()),
        ):
            assert shortened([mul, add, *others], kept) == [mul, add, *others]
        assert shortened([mul, replace(add, inputs=(8, 8))], set()) == [mul, replace(add, inputs=(8, 8))]
        assert shortened([replace(mul, count=2), add], set())[1] == add

    def test_functions_of_neighbours_are_one_call(self):
        a, b = Call("elu", (0,), 20, 4, (1.0,)), Call("elu", (4,), 24, 2, (1.0,))
        assert shortened([a, b], set()) == [Call("elu", (0,), 20, 6, (1.0,))]
        for other in (
            replace(b, constants=(2.0,)),
            replace(b, output=30),
            replace(b, inputs=(5,)),
            replace(b, function="exp"),
        ):
            assert shortened([a, other], set()) == [a, other]
        # the second reads what the first makes
        chain = [Call("neg", (0,), 4, 4), Call("neg", (4,), 8, 4)]
        assert shortened(chain, set()) == chain

    def test_a_table_grows_with_the_image_and_registers_do_not(self):
        small, large = (trace(networks.Streams((1, 8, width)).eval()).graphed.compiled for width in (8, 32))
        assert [code.registers for code in small.codes] == [code.registers for code in large.codes]
        assert small.table.width == large.table.width
        assert len(large.table.numbers()) == 8 * (32 + 2)


class TestSessions:
    def test_one_image_is_multiplied_as_several_are(self, monkeypatch):
        """A product of a single row may be another kernel, with other rounding."""
        made = Replays()
        monkeypatch.setattr(graphed, "capture_for", lambda device: made)
        model = build("streams, odd")
        images, _ = draw(model, "graph", 1)
        products = [call for recording in made.recordings for call in recording.names() if "bmm" in call[0]]
        assert products
        assert {shape[0] for _, shapes in products for shape in shapes} == {2}
        assert torch.equal(images, draw(model, "eager", 1)[0])

    def test_the_last_two_are_kept(self):
        plan = trace(build("plain"))
        model = build("plain")
        for n in (2, 3, 4, 3):
            draw(model, "graph", n, plan=plan)
        assert [key[0] for key in plan.graphed._idle] == [4, 3]
        kept = list(plan.graphed._idle.values())
        draw(model, "graph", 4, plan=plan)
        assert list(plan.graphed._idle.values()) == kept[::-1]

    def test_one_that_was_interrupted_is_not_used_again(self):
        model = build("streams, odd")
        plan = trace(model)
        head = model.head

        class StopError(Exception):
            pass

        def begin(stop):
            with plan.graphed.session(2, head, temperature=1.0, quantize=True, record=False) as session:
                if stop:
                    raise StopError
                return session

        first = begin(stop=False)
        with pytest.raises(StopError):
            begin(stop=True)
        assert begin(stop=False) is not first

    def test_two_at_once_do_not_share_one(self):
        plan, head = trace(build("plain")), build("plain").head
        settings = {"temperature": 1.0, "quantize": True, "record": False}
        with plan.graphed.session(2, head, **settings) as one, plan.graphed.session(2, head, **settings) as other:
            assert one is not other

    def test_a_step_that_cannot_be_captured_is_named(self, monkeypatch):
        class Refusing:
            def __init__(self, *args, **kwargs):
                pass

            def __enter__(self):
                raise RuntimeError("operation not permitted when stream is capturing")

            def __exit__(self, *error):
                pass

            wait_stream = replay = lambda *args: None

        for name in ("Stream", "CUDAGraph", "graph"):
            monkeypatch.setattr(torch.cuda, name, Refusing)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: torch.no_grad())
        monkeypatch.setattr(torch.cuda, "current_stream", Refusing)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        graphed._aside.cache_clear()
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
        capture = graphed.capture_for(torch.device("cuda"))
        ran = []
        with pytest.raises(RuntimeError, match=r"impl='graph': a step could not be captured.*not permitted"):
            capture(lambda: ran.append(1))
        assert ran == [1], "run once to warm up"
        graphed._aside.cache_clear()
