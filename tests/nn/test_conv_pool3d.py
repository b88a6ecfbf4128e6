"""ConvPool3d as a stand-in for nn.Conv3d, ReLU and MaxPool3d, and its packed weight's life."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vidgen
from vidgen.nn import ConvPool3d, conv_pool3d
from vidgen.ops.backends import TABLE, Backend


def layer(**options):
    torch.manual_seed(0)
    return ConvPool3d(4, 6, 3, **options)


@pytest.fixture
def packing(monkeypatch):
    """A CPU row that computes float32 by the reference, and a packing op whose bytes are the weight's."""
    calls = []
    reference = TABLE["conv3d_pool3d"][-1]
    cpu = Backend(
        "cpu",
        ("cpu",),
        lambda: None,
        lambda x, *_: None if x.dtype == torch.float32 else f"not {x.dtype}",
        reference.run,
    )
    monkeypatch.setitem(TABLE, "conv3d_pool3d", (cpu, replace(reference)))

    def pack(weight, **options):
        calls.append(options)
        return weight.detach().contiguous().view(-1).view(torch.uint8).clone()

    monkeypatch.setattr(conv_pool3d, "conv3d_pool3d_pack", pack)
    return calls


def holds(ours, weight):
    return torch.equal(ours.packed, weight.detach().contiguous().view(-1).view(torch.uint8))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, lambda z: z.relu()),
        ({"pool": 2}, lambda z: F.max_pool3d(z.relu(), 2)),
        ({"pool": (1, 2, 3), "ceil_mode": True}, lambda z: F.max_pool3d(z.relu(), (1, 2, 3), ceil_mode=True)),
        ({"pool": (2, 1, 1), "activation": "identity"}, lambda z: F.max_pool3d(z, (2, 1, 1))),
    ],
)
def test_loads_a_plain_conv3d_and_computes_what_the_three_layers_do(options, expected):
    plain = nn.Conv3d(4, 6, 3, padding=1, dtype=torch.float64)
    ours = layer(dtype=torch.float64, **options)
    ours.load_state_dict(plain.state_dict())
    assert list(ours.state_dict()) == list(plain.state_dict())
    x = torch.randn(2, 4, 5, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(ours(x), expected(plain(x)), rtol=1e-12, atol=1e-12)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    assert ours(x).is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("padding", ["same", "valid", 2, (0, 1, 3)])
def test_padding_is_that_of_conv3d(padding):
    plain = nn.Conv3d(4, 6, (4, 3, 5) if padding != 2 else 3, padding=padding, dtype=torch.float64)
    ours = ConvPool3d(4, 6, plain.kernel_size, padding=padding, activation="identity", dtype=torch.float64)
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(1, 4, 6, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(ours(x), plain(x), rtol=1e-12, atol=1e-12)


def test_same_initialisation_as_conv3d():
    torch.manual_seed(0)
    plain = nn.Conv3d(4, 6, 3, padding=1)
    assert torch.equal(layer().weight, plain.weight)


def test_prepack_follows_the_weight(packing):
    ours = layer(pool=(1, 2, 2), input_size=(4, 8, 8), algorithm="direct")
    assert vidgen.prepack(ours) is ours
    assert not ours.training
    assert holds(ours, ours.weight)
    expected = {"input_size": (4, 8, 8), "padding": "same", "pool": (1, 2, 2), "algorithm": "direct"}
    assert packing == [expected]
    assert "packed" not in ours.state_dict()
    other = ConvPool3d(4, 6, 3)
    ours.load_state_dict(other.state_dict())
    assert holds(ours, other.weight), "load_state_dict must refresh the packed weight"
    nn.Sequential(ours).load_state_dict({f"0.{k}": v for k, v in layer().state_dict().items()})
    assert holds(ours, layer().weight), "of a model around it, too"
    clone = copy.deepcopy(ours)
    clone.load_state_dict(other.state_dict())
    assert holds(clone, other.weight)
    assert holds(ours, layer().weight)
    ours.to(torch.float64)
    assert ours.packed is None, "the row does not compute float64"
    ours.to(torch.float32)
    vidgen.prepack(ours)
    assert ours.packed is not None
    ours.train()
    assert ours.packed is None, "an optimiser writes in place, so training drops it"


def test_without_a_kernel_that_packs_nothing_is_packed(packing, monkeypatch):
    monkeypatch.setitem(TABLE, "conv3d_pool3d", TABLE["conv3d_pool3d"][1:])
    assert vidgen.prepack(layer()).packed is None
    assert not packing


def test_runs_compiled():
    ours, x = vidgen.prepack(layer(pool=2)), torch.randn(1, 4, 4, 6, 6)
    with torch.no_grad():
        assert torch.equal(torch.compile(ours, fullgraph=True, backend="aot_eager")(x), ours(x))


def test_repr_tells_what_follows_the_convolution():
    text = repr(ConvPool3d(3, 6, (1, 3, 3), pool=(1, 2, 2), ceil_mode=True, algorithm="direct", impl="reference"))
    assert text.startswith("ConvPool3d(3, 6, kernel_size=(1, 3, 3)")
    assert "activation='relu', pool=(1, 2, 2), ceil_mode=True, algorithm='direct', impl='reference'" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stride": 2}, "stride must be 1, got 2"),
        ({"dilation": (1, 2, 1)}, r"dilation must be 1, got \(1, 2, 1\)"),
        ({"groups": 2}, "groups must be 1, got 2"),
        ({"padding_mode": "reflect"}, "padding_mode must be 'zeros', got 'reflect'"),
        ({"kernel_size": 8}, "kernel_size must be 1 to 7 taps per axis, got 8"),
        ({"padding": 3}, "padding must be from 0 to kernel size - 1, got 3"),
        ({"padding": "full"}, "padding must be 'same', 'valid'"),
        ({"activation": "gelu"}, "activation must be 'relu' or 'identity', got 'gelu'"),
        ({"pool": 5}, "pool must be windows of 1 to 4 per axis, or None, got 5"),
        ({"pool": (2, 2)}, "pool must be an int or three ints"),
    ],
)
def test_constructor_messages(change, message):
    with pytest.raises(ValueError, match=message):
        ConvPool3d(**{"in_channels": 4, "out_channels": 6, "kernel_size": 3, **change})
