"""PixelCNN: a probability distribution whose factors see the past and nothing else."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidgen.models import PixelCNN
from vidgen.nn import MaskedConv2d
from vidgen.sampling import scale_levels

IMPLS = (None, "reference", "cpu")
SHAPES = [(1, 5, 5), (1, 4, 7), (1, 9, 2), (3, 5, 5), (3, 3, 6), (3, 1, 4)]


def _model(image_shape, levels=7, hidden=6, blocks=2, impl=None):
    torch.manual_seed(1)
    model = PixelCNN(image_shape, levels, hidden, blocks).eval()
    for layer in model.modules():
        if isinstance(layer, MaskedConv2d):
            layer.impl = impl
    return model


def _place(image_shape):
    """The number of every sub-pixel in drawing order: pixels in raster order, channels inside. int64 (C, H, W)"""
    channels, height, width = image_shape
    return torch.arange(channels * height * width).reshape(height, width, channels).permute(2, 0, 1)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("image_shape", SHAPES)
def test_the_future_changes_nothing_before_it_by_a_bit(image_shape, impl):
    model = _model(image_shape, impl=impl)
    x = torch.randint(0, 7, (2, *image_shape), generator=torch.Generator().manual_seed(0))
    place = _place(image_shape)
    with torch.no_grad():
        before = model(x)
        scaled = scale_levels(x, 7)
        assert torch.equal(model(scaled), before)
        for channel, row, column in itertools.product(*map(range, image_shape)):
            here = place[channel, row, column]
            settled = place <= here  # this sub-pixel's own logits included
            flipped = x.clone()
            flipped[:, channel, row, column] = 6 - flipped[:, channel, row, column]
            flipped[:, channel, row, column] += flipped[:, channel, row, column] == x[:, channel, row, column]
            assert (flipped[:, channel, row, column] != x[:, channel, row, column]).all()
            assert torch.equal(model(flipped)[..., settled], before[..., settled])
            for poison in (math.nan, math.inf, 3e38):
                poisoned = torch.where(place >= here, poison, scaled)
                assert torch.equal(model(poisoned)[..., settled], before[..., settled])


@pytest.mark.parametrize("image_shape", [(1, 6, 6), (3, 6, 6)])
def test_the_past_is_seen(image_shape):
    """An over-masked network would pass every leak test."""
    model = _model(image_shape, hidden=24, blocks=3).double()  # wide enough that no colour's ReLUs are all dead
    x = torch.zeros(1, *image_shape, dtype=torch.float64, requires_grad=True)
    place = _place(image_shape)
    channels = image_shape[0]
    row, column = 3, 3
    for channel in range(channels):
        logits = model(x)[0, :, channel, row, column]
        (gradient,) = torch.autograd.grad(logits.square().sum(), x)
        seen = gradient[0] != 0
        earlier = place < place[channel, row, column]
        assert not seen[~earlier].any()
        # its own row to the left, the rows above within the first layer's 7×7, and its own pixel's earlier colours
        assert seen[:, row, :column].all()
        assert seen[:, :row, :].all()
        assert seen[:channel, row, column].all()


@pytest.mark.parametrize(("image_shape", "levels"), [((1, 2, 2), 3), ((3, 1, 2), 2), ((3, 1, 1), 4)])
def test_probabilities_of_all_images_add_up_to_one(image_shape, levels):
    model = _model(image_shape, levels=levels).double()
    dims = math.prod(image_shape)
    images = torch.tensor(list(itertools.product(range(levels), repeat=dims)), dtype=torch.uint8)
    with torch.no_grad():
        nats = model.log_prob(images.reshape(-1, *image_shape))
    assert float(nats.exp().sum()) == pytest.approx(1.0, abs=1e-12)


def test_log_prob_is_the_chain_of_the_logits():
    model = _model((3, 4, 3))
    x = torch.randint(0, 7, (4, 3, 4, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        log_p = torch.log_softmax(model(x).double(), dim=1)
        nats = model.log_prob(x)
    by_hand = [
        sum(float(log_p[(n, int(x[(n, *at)]), *at)]) for at in itertools.product(range(3), range(4), range(3)))
        for n in range(4)
    ]
    assert nats.tolist() == pytest.approx(by_hand, rel=1e-5)
    assert torch.allclose(model.bits_per_dim(x), -nats / math.log(2) / 36)


def test_an_untrained_model_is_about_uniform():
    bits = _model((1, 8, 8), levels=17, hidden=16).bits_per_dim(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    assert bits.tolist() == pytest.approx([math.log2(17)] * 2, abs=0.5)


def test_layers_are_the_papers():
    model = PixelCNN((3, 32, 32), 256, hidden=12, blocks=4, head_channels=30)
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert all(isinstance(layer, MaskedConv2d) for layer in layers)
    table = [(layer.mask, layer.in_channels, layer.out_channels, layer.kernel_size[0]) for layer in layers]
    block = [("B", 24, 12, 1), ("B", 12, 12, 3), ("B", 12, 24, 1)]
    assert table == [("A", 3, 24, 7), *block * 4, ("B", 24, 30, 1), ("B", 30, 768, 1)]
    assert all(layer.colors == 3 for layer in layers)


def test_gradients_reach_every_kept_weight_and_no_masked_one():
    model = _model((3, 5, 5))
    x = torch.randint(0, 7, (4, 3, 5, 5), generator=torch.Generator().manual_seed(0))
    model.bits_per_dim(x).mean().backward()
    for layer in (module for module in model.modules() if isinstance(module, MaskedConv2d)):
        assert layer.weight.grad.abs().sum() > 0
        kh, kw = layer.kernel_size
        assert (layer.weight.grad[:, :, kh // 2 + 1 :] == 0).all()
        assert (layer.weight.grad[:, :, kh // 2, kw // 2 + 1 :] == 0).all()
        reader, source = torch.arange(layer.out_channels) % 3, torch.arange(layer.in_channels) % 3
        hidden = source[None] >= reader[:, None] if layer.mask == "A" else source[None] > reader[:, None]
        assert (layer.weight.grad[:, :, kh // 2, kw // 2][hidden] == 0).all()


@settings(max_examples=15)
@given(
    channels=st.integers(1, 4),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    levels=st.integers(2, 9),
    seed=st.integers(0, 99),
)
def test_no_sub_pixel_is_its_own_evidence(channels, height, width, levels, seed):
    """For any shape: the logits of a sub-pixel are the same whatever it and everything after it are."""
    generator = torch.Generator().manual_seed(seed)
    model = _model((channels, height, width), levels=levels, hidden=2 * channels, blocks=1)
    x = torch.randint(0, levels, (1, channels, height, width), generator=generator)
    other = torch.randint(0, levels, x.shape, generator=generator)
    place = _place((channels, height, width))
    here = int(torch.randint(0, place.numel(), (), generator=generator))
    mixed = torch.where(place < here, x, other)
    with torch.no_grad():
        assert torch.equal(model(mixed)[..., place == here], model(x)[..., place == here])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_shape": (1, 8)}, "image_shape: expected three positive sizes"),
        ({"image_shape": (1, 0, 8)}, "image_shape: expected three positive sizes"),
        ({"levels": 1}, "levels: expected at least 2, got 1"),
        (
            {"image_shape": (3, 8, 8), "hidden": 16},
            "hidden: expected a positive multiple of the 3 image channels, got 16",
        ),
        ({"image_shape": (3, 8, 8), "hidden": 6, "head_channels": 8}, "head_channels: expected a positive multiple"),
        ({"blocks": -1}, "blocks: expected at least 0"),
        ({"dropout": 1.0}, "dropout: expected a number"),
    ],
)
def test_bad_sizes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        PixelCNN(**arguments)


def test_bad_images_are_named():
    model = _model((1, 4, 4))
    with pytest.raises(ValueError, match=r"x: expected shape \(N, 1, H, W\), got \(2, 3, 4, 4\)"):
        model(torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match="x: expected grey levels 0 … 6, got 0 … 7"):
        model(torch.tensor([0, 7]).reshape(1, 1, 1, 2))
    with pytest.raises(TypeError, match="x: expected integer grey levels"):
        model.log_prob(torch.zeros(1, 1, 4, 4))
