"""Drawing: images follow the model's distribution, and are a function of (model, seed, number) alone."""

import itertools

import numpy
import pytest
import torch
from torch import nn

from vidgen.models import PixelCNN
from vidgen.sampling import Categorical, generate, image_noise, round_to_levels, scale_levels

# Chain looks its parameters up in a table, which has no incremental form
pytestmark = pytest.mark.filterwarnings("ignore:Chain is drawn from naively")


class Chain(nn.Module):
    """A model whose distribution is known: each sub-pixel depends on the one before it by a fixed table."""

    def __init__(self, image_shape, levels, seed=0):
        super().__init__()
        self.image_shape, self.levels, self.head = image_shape, levels, Categorical(levels)
        rows = torch.randn(levels + 1, levels, generator=torch.Generator().manual_seed(seed))
        self.table = nn.Parameter(rows)
        self.dropout = nn.Dropout(0.5)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        n, channels, height, width = x.shape
        # raster order with the channels of a pixel next to each other: [N, H·W·C]
        values = round_to_levels(x, self.levels).long().permute(0, 2, 3, 1).flatten(1)
        before = torch.cat([torch.full_like(values[:, :1], self.levels), values[:, :-1]], dim=1)
        logits = self.dropout(self.table[before])
        return logits.reshape(n, height, width, channels, self.levels).permute(0, 4, 3, 1, 2)

    def probability(self, values):
        """The exact probability of an image given as its values in drawing order."""
        table = torch.softmax(self.table.detach().double(), dim=1)
        p = 1.0
        for before, value in itertools.pairwise((self.levels, *values)):
            p *= float(table[before, value])
        return p


def _drawing_order(images):
    return images.permute(0, 2, 3, 1).flatten(1)


def test_samples_follow_the_known_distribution():
    model = Chain((2, 1, 2), 3)
    n = 20_000
    drawn = _drawing_order(generate(model, n, seed=11))
    counts = numpy.bincount((drawn * torch.tensor([27, 9, 3, 1])).sum(dim=1).numpy(), minlength=81)
    expected = n * numpy.array([model.probability(values) for values in itertools.product(range(3), repeat=4)])
    assert expected.sum() == pytest.approx(n)
    # chi-square over 81 outcomes, rare ones pooled; six standard deviations, for a fixed seed
    rare = expected < 8
    observed = numpy.append(counts[~rare], counts[rare].sum())
    wanted = numpy.append(expected[~rare], expected[rare].sum())
    statistic = ((observed - wanted) ** 2 / wanted).sum()
    freedom = len(wanted) - 1
    assert abs(statistic - freedom) < 6 * (2 * freedom) ** 0.5


def test_temperature_sharpens_as_stated():
    model = Chain((1, 1, 1), 4)
    drawn = generate(model, 20_000, seed=2, temperature=0.5).flatten()
    expected = torch.softmax(model.table[4].detach().double() / 0.5, dim=0)
    share = drawn.long().bincount(minlength=4) / len(drawn)
    assert float((share - expected).abs().max()) < 0.015


def test_categorical_inverts_the_cumulative_distribution():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64)).repeat(5, 1)
    noise = torch.tensor([2.0**-53, 0.4999, 0.5001, 0.7501, 1 - 2.0**-53], dtype=torch.float64)
    drawn = Categorical(3).sample(logits, noise[:, None, None].expand(5, 1, 2), temperature=1.0)
    assert drawn.flatten().tolist() == [-1.0, -1.0, 0.0, 1.0, 1.0]


def test_impossible_levels_are_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).repeat(2, 1)
    noise = torch.tensor([2.0**-53, 1 - 2.0**-53], dtype=torch.float64)[:, None, None].expand(2, 1, 2)
    assert Categorical(3).sample(logits, noise, temperature=1.0).flatten().tolist() == [0.0, 0.0]


def test_levels_survive_scaling():
    for levels in (2, 17, 256):
        x = torch.arange(levels)
        assert round_to_levels(scale_levels(x, levels), levels).tolist() == x.tolist()
        ends = scale_levels(x, levels)[[0, -1]].tolist()
        assert ends == [-1.0, 1.0]


def test_every_value_is_drawn_with_the_noise_of_its_own_address():
    model = Chain((2, 3, 4), 6)
    drawn = generate(model, 3, seed=8)
    table = torch.softmax(model.table.detach().double(), dim=1).cumsum(dim=1)
    noise = image_noise(8, range(3), (2, 3, 4))
    for image in range(3):
        before = 6
        for row, column, channel in itertools.product(range(3), range(4), range(2)):
            before = int((table[before] < noise[image, channel, row, column, 0]).sum())
            assert int(drawn[image, channel, row, column]) == before


def test_an_image_does_not_depend_on_the_batch():
    model = Chain((3, 4, 5), 7)
    sixteen = generate(model, 16, seed=5)
    assert torch.equal(generate(model, 1, seed=5), sixteen[:1])
    assert torch.equal(generate(model, 16, seed=5, batch_size=3), sixteen)
    assert torch.equal(generate(model, 2, seed=5, first_image=9), sixteen[9:11])
    assert not torch.equal(generate(model, 16, seed=6), sixteen)


@pytest.mark.parametrize("image_shape", [(1, 5, 7), (3, 4, 3)])
def test_pixelcnn_draws_the_same_image_in_any_batch(image_shape):
    # the eager executor multiplies image by image
    torch.manual_seed(0)
    model = PixelCNN(image_shape, 17, hidden=12, blocks=2)
    sixteen = generate(model, 16, seed=3)
    for number in (0, 7, 15):
        assert torch.equal(generate(model, 1, seed=3, first_image=number), sixteen[number : number + 1])
    assert torch.equal(generate(model, 16, seed=3, batch_size=5), sixteen)


def test_completion_keeps_what_is_known_and_draws_the_rest_as_before():
    model = Chain((3, 4, 4), 5)
    free = generate(model, 6, seed=1)
    mask = torch.zeros(3, 4, 4, dtype=torch.bool)
    mask[:, :2] = True
    done = generate(model, 6, seed=1, known=(free, mask))
    assert torch.equal(done, free)

    values = torch.full((3, 4, 4), 4, dtype=torch.uint8)
    changed = generate(model, 6, seed=1, known=(values, mask))
    assert torch.equal(changed[:, :, :2], values[:, :2].expand(6, 3, 2, 4))
    # the first drawn value depends on the known one before it by the chain's table, with the noise of its own address
    assert not torch.equal(changed[:, :, 2:], free[:, :, 2:])

    # known values in the middle: what comes before them is drawn as if they were not there
    middle = torch.zeros(3, 4, 4, dtype=torch.bool)
    middle[1, 2, 1] = True
    inpainted = generate(model, 6, seed=1, known=(values, middle))
    before, after = _drawing_order(free), _drawing_order(inpainted)
    place = (2 * 4 + 1) * 3 + 1
    assert torch.equal(before[:, :place], after[:, :place])
    assert (after[:, place] == 4).all()


def test_known_steps_cost_no_forward_pass():
    model = Chain((1, 4, 4), 5)
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[:, :3] = True
    generate(model, 2, known=(torch.ones(1, 4, 4, dtype=torch.uint8), mask), impl="naive")
    assert model.calls == 4


def test_rows_stream_as_they_are_finished():
    model = Chain((3, 4, 5), 7)
    rows = []
    whole = generate(
        model, 5, seed=5, batch_size=3, on_row=lambda first, row, values: rows.append((first, row, values))
    )
    assert [(first, row) for first, row, _ in rows] == [(first, row) for first in (0, 3) for row in range(4)]
    for first, row, values in rows:
        assert torch.equal(values, whole[first : first + 3, :, row])


def test_model_is_drawn_from_in_eval_mode_and_left_as_it_was():
    model = Chain((1, 2, 2), 3)
    model.train()
    model.dropout.eval()
    drawn = generate(model, 4)
    assert model.training
    assert not model.dropout.training
    model.eval()
    assert torch.equal(generate(model, 4), drawn)


def test_interrupt_leaves_the_model_as_it_was():
    model = Chain((1, 4, 4), 3)
    model.train()

    def interrupt(first, row, values):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(model, 2, on_row=interrupt, progress=True)
    assert model.training
    assert not torch.is_inference_mode_enabled()


def test_result_is_an_ordinary_tensor_of_real_grey_levels():
    model = Chain((1, 2, 2), 300)
    drawn = generate(model, 2)
    assert drawn.dtype == torch.int64
    assert not drawn.is_inference()
    smooth = generate(model, 2, quantize=False)
    assert torch.equal(round_to_levels(smooth, 300), drawn)
    assert generate(Chain((1, 2, 2), 3), 0).shape == (0, 1, 2, 2)


MODEL = Chain((1, 2, 2), 3)
ONES = torch.ones(1, 2, 2, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": nn.Linear(1, 1)}, TypeError, "model: expected an autoregressive model"),
        ({"n": -1}, ValueError, "n: expected at least 0, got -1"),
        ({"n": 2.0}, TypeError, "n: expected an int, got float"),
        ({"batch_size": 0}, ValueError, "batch_size: expected at least 1"),
        ({"first_image": 2**32}, ValueError, "first_image: images are numbered below"),
        ({"temperature": 0.0}, ValueError, "temperature: expected a positive number"),
        ({"temperature": float("nan")}, ValueError, "temperature: expected a positive number"),
        ({"seed": -1}, ValueError, "seed: expected"),
        ({"labels": torch.zeros(2, dtype=torch.int64)}, ValueError, "labels: Chain is not conditional"),
        (
            {"impl": "cached"},
            ValueError,
            "impl: expected None or one of 'cpu', 'persistent', 'graph', 'eager', 'naive', got 'cached'",
        ),
        ({"known": ONES}, TypeError, "known: expected a pair"),
        ({"known": (ONES, ONES)}, TypeError, "known: expected a bool mask"),
        ({"known": (ONES.float(), ONES.bool())}, TypeError, "known: expected integer values"),
        ({"known": (3 * ONES, ONES.bool())}, ValueError, "known: expected values 0 … 2, got 3 … 3"),
        ({"known": (ONES, torch.ones(3, 2, 2).bool())}, ValueError, "known: expected values and mask that broadcast"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        generate(**{"model": MODEL, "n": 2, **arguments})
