"""Weight normalisation: magnitudes by output channel, and a start at which every layer puts out what was asked for."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vidgen.nn import ShiftedConv2d, ShiftedConvTranspose2d, fold_weight_norm, initialize_from_data, weight_norm


def layers():
    """One of each kind and what it takes: name -> (layer, input, axis of output channels in the weight)."""
    torch.manual_seed(0)
    image = torch.randn(6, 3, 5, 7, dtype=torch.float64) * 3 + 2
    kinds = {
        "conv": (nn.Conv2d(3, 4, 3), 0),
        "shifted": (ShiftedConv2d(3, 4, 2, 2, mode="down_right"), 0),
        "transposed": (ShiftedConvTranspose2d(3, 4, (2, 3), 2, mode="down"), 1),
        "linear": (nn.Linear(7, 4), 0),
    }
    return {name: (layer.double(), image, axis) for name, (layer, axis) in kinds.items()}


KINDS = tuple(layers())


@pytest.mark.parametrize("kind", KINDS)
def test_normalising_changes_nothing_at_first_and_one_channel_per_magnitude(kind):
    layer, x, axis = layers()[kind]
    before, weight = layer(x), layer.weight.detach().clone()
    assert weight_norm(layer) is layer
    torch.testing.assert_close(layer(x), before, rtol=1e-12, atol=1e-12)

    magnitude = layer.parametrizations.weight.original0
    assert magnitude.numel() == magnitude.shape[axis] == 4
    lengths = weight.movedim(axis, 0).flatten(1).norm(dim=1)
    torch.testing.assert_close(magnitude.detach().flatten(), lengths)
    with torch.no_grad():
        magnitude.movedim(axis, 0)[2] *= 5
    scaled = weight.clone()
    scaled.movedim(axis, 0)[2] *= 5
    torch.testing.assert_close(layer.weight.detach(), scaled)


@pytest.mark.parametrize("kind", KINDS)
def test_the_length_of_the_direction_does_not_matter(kind):
    layer, x, axis = layers()[kind]
    weight_norm(layer)
    before = layer(x)
    before.square().sum().backward()
    direction = layer.parametrizations.weight.original1
    # so its gradient is at right angles to it, channel by channel
    along = (direction * direction.grad).movedim(axis, 0).flatten(1).sum(dim=1)
    assert along.abs().max() < 1e-9 * direction.grad.abs().max()
    with torch.no_grad():
        direction *= 3
    torch.testing.assert_close(layer(x), before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_outputs_start_with_mean_zero_and_the_variance_asked_for(kind, scale):
    layer, x, _ = layers()[kind]
    weight_norm(layer, scale=scale)
    torch.manual_seed(3)
    initialize_from_data(layer, x)
    with torch.no_grad():
        y = layer(x).movedim(-1 if kind == "linear" else 1, 0).flatten(1)
    torch.testing.assert_close(y.mean(dim=1), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)
    assert ((y.var(dim=1, correction=0) / scale**2 - 1).abs() < 1e-6).all()
    direction = layer.parametrizations.weight.original1
    assert 0.02 < float(direction.detach().std()) < 0.08, "drawn from N(0, 0.05²)"


def test_magnitude_and_bias_are_the_papers():
    layer, x, _ = layers()["conv"]
    weight_norm(layer, scale=0.5)
    initialize_from_data(layer, x)
    magnitude, direction = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
    unit = direction / direction.flatten(1).norm(dim=1)[:, None, None, None]
    t = F.conv2d(x, unit)
    mean, variance = t.mean(dim=(0, 2, 3)), t.var(dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(magnitude.flatten(), 0.5 / torch.sqrt(variance + 1e-10))
    torch.testing.assert_close(layer.bias, -mean * 0.5 / torch.sqrt(variance + 1e-10))


class _Chain(nn.Module):
    """Layers in another order than they are registered in."""

    def __init__(self):
        super().__init__()
        self.second = weight_norm(nn.Conv2d(4, 5, 1))
        self.first = weight_norm(nn.Conv2d(3, 4, 3, bias=False))
        self.plain = nn.Conv2d(5, 2, 1)

    def forward(self, x):
        return self.plain(torch.relu(self.second(torch.relu(self.first(x)))))


def test_layers_are_initialised_in_the_order_of_the_pass():
    torch.manual_seed(0)
    model, x, outputs = _Chain().double(), torch.randn(9, 3, 6, 6, dtype=torch.float64) + 1, {}
    plain = model.plain.weight.clone()
    initialize_from_data(model, x)
    for name in ("first", "second"):
        layer = getattr(model, name)
        layer.register_forward_hook(lambda _layer, _inputs, y, name=name: outputs.update({name: y}))
    with torch.no_grad():
        model(x)
    for name, y in outputs.items():
        assert float((y.var(dim=(0, 2, 3), correction=0) - 1).abs().max()) < 1e-6
        # without a bias only the variance can be set
        assert (float(y.mean(dim=(0, 2, 3)).abs().max()) < 1e-12) == (name == "second")
    assert torch.equal(model.plain.weight, plain)


def test_folding_keeps_the_bits_and_leaves_plain_layers():
    torch.manual_seed(0)
    model, x = _Chain(), torch.randn(2, 3, 6, 6)
    initialize_from_data(model, x)
    before = model(x)
    assert fold_weight_norm(model) is model
    assert torch.equal(model(x), before)
    assert type(model.first) is nn.Conv2d
    assert set(model.state_dict()) == {
        *("first.weight", "second.weight", "second.bias"),
        *("plain.weight", "plain.bias"),
    }


def test_folding_a_copy_leaves_the_original_normalised():
    model, x = _Chain(), torch.randn(2, 3, 6, 6)
    before = model(x)
    assert torch.equal(fold_weight_norm(copy.deepcopy(model))(x), before)
    assert torch.equal(model(x), before)
    assert "first.parametrizations.weight.original0" in model.state_dict()


class _Unused(_Chain):
    def forward(self, x):
        return self.first(x)


def test_bad_arguments_are_named():
    x = torch.randn(2, 3, 6, 6)
    with pytest.raises(TypeError, match="layer must be a convolution or a linear layer, got ReLU"):
        weight_norm(nn.ReLU())
    with pytest.raises(ValueError, match="scale must be positive, got 0"):
        weight_norm(nn.Linear(2, 2), scale=0)
    with pytest.raises(ValueError, match="layer must have a weight without parametrisation"):
        weight_norm(weight_norm(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="layer must have one group"):
        weight_norm(nn.ConvTranspose2d(4, 4, 1, groups=2))
    with pytest.raises(ValueError, match="model must have a weight-normalised layer, got Linear without any"):
        initialize_from_data(nn.Linear(2, 2), x)
    with pytest.raises(ValueError, match="not used: second"):
        initialize_from_data(_Unused(), x)
    with pytest.raises(ValueError, match="at least two values of each channel, got 1 at first"):
        initialize_from_data(_Chain(), torch.randn(1, 3, 3, 3))
