"""LogisticMixture: what it draws has the distribution that it scores."""

import math

import numpy
import pytest
import torch
from torch import nn

from vidgen.models import PixelCNNPP
from vidgen.ops.discretized_logistic_mixture import parameters_per_mixture
from vidgen.sampling import Categorical, LogisticMixture, generate, scale_levels

# its networks look into tables, which have no incremental form
pytestmark = pytest.mark.filterwarnings("ignore:Rows is drawn from naively")


def test_channels_that_are_drawn_together_are_known_together():
    """Given one channel the mixture's weights change; the head would draw the others as if nothing were known."""
    torch.manual_seed(0)
    model = PixelCNNPP((3, 4, 4), resnets=1, filters=4, mixtures=2, levels=8).eval()
    values = torch.full((3, 4, 4), 7)
    red = torch.zeros(3, 4, 4, dtype=torch.bool)
    red[0, 2] = True
    for impl in ("eager", "naive"):
        with pytest.raises(ValueError, match="known: expected one mask for the channels"):
            generate(model, 2, known=(values, red), impl=impl)
        drawn = generate(model, 2, known=(values, red.any(dim=0)), impl=impl)
        assert (drawn[:, :, 2] == 7).all()
        assert generate(model, 0, known=(values, red.any(dim=0)), impl=impl).shape == (0, 3, 4, 4)


def test_draws_follow_the_scored_distribution():
    """A chi-square test over every pixel of two channels and five levels: edges, coefficients and mixtures included."""
    levels, n = 5, 40_000
    head = LogisticMixture(3, 2, levels)
    generator = torch.Generator().manual_seed(3)
    params = torch.randn(head.parameters_per_pixel, generator=generator, dtype=torch.float64)
    params[6:9] -= 1
    values = torch.cartesian_prod(torch.arange(levels), torch.arange(levels))
    grid = params[None, :, None, None].expand(len(values), -1, 1, 1)
    probability = head.log_prob(grid, values[:, :, None, None]).exp().numpy()
    assert probability.sum() == pytest.approx(1)
    noise = torch.rand(n, 2, 2, generator=generator, dtype=torch.float64)
    drawn = head.sample(params.expand(n, -1), noise, temperature=1.0)
    level = ((drawn + 1) * (levels - 1) / 2).round().long()
    assert torch.equal(scale_levels(level, levels, torch.float64), drawn), "grey levels to the bit"
    counts = numpy.bincount((level[:, 0] * levels + level[:, 1]).numpy(), minlength=levels**2)
    statistic = ((counts - n * probability) ** 2 / (n * probability)).sum()
    freedom = levels**2 - 1
    assert abs(statistic - freedom) < 6 * (2 * freedom) ** 0.5


def test_a_draw_by_hand():
    """RGB, two mixtures: the second is chosen; clipped and rounded red feeds green, both feed blue."""
    head = LogisticMixture(2, 3, 256)
    params = torch.zeros(1, 20, dtype=torch.float64)
    params[0, :2] = torch.tensor([0.0, math.log(3.0)])
    for channel, (mean, log_scale, coefficient) in enumerate([(0.9, -1.0, 0.3), (-0.2, -9.0, -0.4), (0.1, -2.0, 0.5)]):
        params[0, 3 + 6 * channel :: 18][:1] = mean
        params[0, 5 + 6 * channel] = log_scale
        params[0, 7 + 6 * channel] = coefficient
    noise = torch.tensor([[[0.26, 0.9], [0.1, 0.3], [0.1, 1 - 1e-12]]], dtype=torch.float64)
    logit = [math.log(u / (1 - u)) for u in (0.9, 0.3, 1 - 1e-5)]
    for quantize in (True, False):

        def finish(value, quantize=quantize):
            value = min(max(value, -1.0), 1.0)
            return round((value + 1) * 127.5) / 127.5 - 1 if quantize else value

        red = finish(0.9 + math.exp(-1 + math.log(0.7)) * logit[0])
        green = finish(-0.2 + math.tanh(0.3) * red + math.exp(-7) * 0.7 * logit[1])
        blue = finish(0.1 + math.tanh(-0.4) * red + math.tanh(0.5) * green + math.exp(-2) * 0.7 * logit[2])
        drawn = head.sample(params, noise, temperature=0.7, quantize=quantize)
        torch.testing.assert_close(drawn, torch.tensor([[red, green, blue]], dtype=torch.float64))
    assert head.sample(params.float(), noise).dtype == torch.float32
    assert head.sample(params.bfloat16(), noise).dtype == torch.float32


def test_the_mixture_is_chosen_as_a_category_is():
    """At the boundary between two mixtures too, where another order of summation would choose otherwise."""
    logits = torch.randn(500, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cumulative = torch.softmax(logits / 0.8, -1).cumsum(-1)
    u = cumulative[:, 1] / cumulative[:, -1]
    noise = torch.stack([u, torch.full_like(u, 0.5)], -1)[:, None]
    category = Categorical(4).sample(logits, noise, temperature=0.8)
    means = torch.tensor([-1.0, -1 / 3, 1 / 3, 1.0], dtype=torch.float64).expand(500, 4)
    drawn = LogisticMixture(4, 1, 4).sample(torch.cat([logits, means, means * 0 - 7], 1), noise, temperature=0.8)
    torch.testing.assert_close(drawn, category)


class Rows(nn.Module):
    """Each pixel depends on the one left of it; parameters (N, P, H, W) mean one step per pixel."""

    def __init__(self):
        super().__init__()
        self.image_shape, self.levels, self.head = (3, 2, 4), 9, LogisticMixture(2, 3, 9)
        weight = torch.randn(2 * parameters_per_mixture(3), 3, generator=torch.Generator().manual_seed(1))
        self.weight = nn.Parameter(weight.double())

    def forward(self, x):
        before = nn.functional.pad(x, (1, 0))[..., :-1]
        return torch.einsum("pc,nchw->nphw", self.weight, before)


def test_generate_takes_one_step_for_all_channels():
    model = Rows()
    drawn = generate(model, 5, seed=4)
    assert torch.equal(generate(model, 2, seed=4, first_image=3), drawn[3:])
    parameters = model(scale_levels(drawn, 9, torch.float64))
    assert torch.isfinite(model.head.log_prob(parameters, drawn)).all()
    smooth = generate(model, 5, seed=4, quantize=False)
    # the first pixel of a row has no pixel before it: rounding red is all that differs
    first = ((smooth[:, 0, :, 0] + 1) * 4).round()
    assert torch.equal(first, drawn[:, 0, :, 0].double())
    assert not torch.equal(((smooth + 1) * 4).round(), (smooth + 1) * 4)


@pytest.mark.parametrize("arguments", [(0, 3, 256), (2, 4, 256), (2, 3, 1)])
def test_impossible_heads_are_refused(arguments):
    with pytest.raises(ValueError, match=r"mixtures|channels|levels"):
        LogisticMixture(*arguments)
