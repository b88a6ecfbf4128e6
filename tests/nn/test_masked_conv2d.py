"""MaskedConv2d as a stand-in for nn.Conv2d, and its packed weight's life."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import vidgen
from vidgen.nn import MaskedConv2d
from vidgen.ops import masked_conv2d


def layer(**options):
    torch.manual_seed(0)
    return MaskedConv2d(16, 32, 3, **{"mask": "B", **options})


def test_loads_a_plain_conv2d_and_computes_with_its_masked_weight():
    plain = nn.Conv2d(16, 32, 3, padding=1)
    ours = layer()
    ours.load_state_dict(plain.state_dict())
    assert list(ours.state_dict()) == list(plain.state_dict())
    x = torch.randn(2, 16, 9, 7)
    with torch.no_grad():
        plain.weight[:, :, 1, 2:] = 0
        plain.weight[:, :, 2] = 0
    torch.testing.assert_close(ours(x), plain(x), rtol=1e-4, atol=1e-5)


def test_same_initialisation_as_conv2d():
    torch.manual_seed(0)
    plain = nn.Conv2d(16, 32, 3, padding=1)
    assert torch.equal(layer().weight, plain.weight)


def test_forward_and_optimiser_leave_masked_weights_alone():
    ours = layer(mask="A")
    before = ours.weight.detach().clone()
    optimiser = torch.optim.SGD(ours.parameters(), lr=0.1)
    ours(torch.randn(2, 16, 6, 6)).square().sum().backward()
    optimiser.step()
    assert torch.equal(ours.weight[:, :, 2], before[:, :, 2])
    assert torch.equal(ours.weight[:, :, 1, 1:], before[:, :, 1, 1:])
    assert not torch.equal(ours.weight[:, :, 0], before[:, :, 0])


def test_prepack_gives_the_same_bits_and_follows_the_weight():
    ours, x = layer(), torch.randn(2, 16, 9, 7)
    expected = ours(x)
    assert vidgen.prepack(ours) is ours
    assert ours.packed is not None
    assert not ours.training
    assert torch.equal(ours(x), expected)
    assert "packed" not in ours.state_dict()
    other = MaskedConv2d(16, 32, 3, mask="B")
    ours.load_state_dict(other.state_dict())
    assert torch.equal(ours(x), other(x)), "load_state_dict must refresh the packed weight"
    clone = copy.deepcopy(ours)
    assert torch.equal(clone(x), other(x))
    ours.to(torch.float64)
    torch.testing.assert_close(ours(x.double()), other(x).double(), rtol=1e-4, atol=1e-5)
    ours.to(torch.bfloat16)
    assert ours(x.bfloat16()).dtype == torch.bfloat16
    ours.train()
    assert ours.packed is None, "an optimiser writes in place, so training drops it"


def test_prepack_reaches_every_layer_of_a_model():
    model = nn.Sequential(layer(), nn.ReLU(), nn.Sequential(MaskedConv2d(32, 8, 1, mask="B")))
    x = torch.randn(1, 16, 5, 5)
    expected = model(x)
    vidgen.prepack(model)
    assert all(m.packed is not None for m in model.modules() if isinstance(m, MaskedConv2d))
    assert torch.equal(model(x), expected)
    with torch.no_grad():
        assert torch.equal(torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected)


def test_a_prepacked_layer_still_has_gradients():
    ours, x = vidgen.prepack(layer()), torch.randn(1, 16, 5, 5, requires_grad=True)
    ours(x).sum().backward()
    expected = torch.autograd.grad(masked_conv2d(x, ours.weight, ours.bias, mask="B").sum(), (x, ours.weight))
    assert torch.equal(x.grad, expected[0])
    assert torch.equal(ours.weight.grad, expected[1])


def test_autocast_ignores_bytes_of_another_dtype():
    ours, x = vidgen.prepack(layer()), torch.randn(1, 16, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = ours(x)
    expected = masked_conv2d(x.bfloat16(), ours.weight.bfloat16(), ours.bias.bfloat16(), mask="B")
    assert torch.equal(got, expected)


def test_repr_tells_the_mask():
    text = repr(MaskedConv2d(3, 6, (3, 5), mask="A", colors=3, color_layout="blocked", algorithm="direct"))
    assert "mask='A', colors=3, color_layout='blocked', algorithm='direct'" in text
    assert text.startswith("MaskedConv2d(3, 6, kernel_size=(3, 5)")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stride": 2}, "stride must be 1, got 2"),
        ({"groups": 4}, "groups must be 1, got 4"),
        ({"padding": 0}, r"padding must be 'same' or \(1, 1\)"),
        ({"padding_mode": "reflect"}, "padding_mode must be 'zeros', got 'reflect'"),
        ({"kernel_size": 4}, "kernel_size must be odd, got 4"),
        ({"dilation": (1, 2)}, "dilation must be the same in both directions"),
        ({"mask": "C"}, "mask must be 'A' or 'B', got 'C'"),
        ({"colors": 3}, r"colors must .* divide in_channels \(16\) and out_channels \(32\), got 3"),
    ],
)
def test_constructor_messages(change, message):
    arguments = {"in_channels": 16, "out_channels": 32, "kernel_size": 3, "mask": "B", **change}
    with pytest.raises(ValueError, match=message):
        MaskedConv2d(**arguments)


def test_prepack_wants_a_module():
    with pytest.raises(TypeError, match=r"module must be a torch\.nn\.Module, got int"):
        vidgen.prepack(3)
