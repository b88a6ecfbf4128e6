"""Shifted convolutions: each output is the sum that the head of the module promises, and reads nothing else."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vidgen.nn import ShiftedConv2d, ShiftedConvTranspose2d, down_shift, right_shift

MODES = ("down", "down_right")


def _columns(mode, kw):
    """Distance of a kernel's first column from a pixel's own."""
    return -(kw // 2) if mode == "down" else -(kw - 1)


def convolved(x, weight, bias, stride, mode):
    """Output by output, tap by tap, in float64."""
    (n, _, height, width), (outs, _, kh, kw) = x.shape, weight.shape
    y = torch.zeros(n, outs, -(-height // stride[0]), -(-width // stride[1]), dtype=torch.float64)
    for i, j in itertools.product(*map(range, y.shape[2:])):
        y[:, :, i, j] = bias
        for p, q in itertools.product(range(kh), range(kw)):
            row, column = i * stride[0] + p - (kh - 1), j * stride[1] + q + _columns(mode, kw)
            if 0 <= row < height and 0 <= column < width:
                y[:, :, i, j] += x[:, :, row, column] @ weight[:, :, p, q].T
    return y


def scattered(x, weight, bias, stride, mode):
    """The transposed one: every input pixel adds its patch, which starts at its own row and stride times its column."""
    (n, _, height, width), (_, outs, kh, kw) = x.shape, weight.shape
    y = torch.zeros(n, outs, height * stride[0], width * stride[1], dtype=torch.float64) + bias[:, None, None]
    left = kw // 2 if mode == "down" else 0
    for i, j, p, q in itertools.product(range(height), range(width), range(kh), range(kw)):
        row, column = i * stride[0] + p, j * stride[1] + q - left
        if 0 <= row < y.shape[2] and 0 <= column < y.shape[3]:
            y[:, :, row, column] += x[:, :, i, j] @ weight[:, :, p, q]
    return y


@settings(max_examples=40)
@given(
    mode=st.sampled_from(MODES),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    transposed=st.booleans(),
)
def test_outputs_are_the_promised_sums(mode, size, kernel, stride, transposed):
    kernel = (kernel[0], kernel[1] | 1) if mode == "down" else kernel
    torch.manual_seed(0)
    kind, by_hand = (ShiftedConvTranspose2d, scattered) if transposed else (ShiftedConv2d, convolved)
    layer = kind(2, 3, kernel, stride, mode=mode, dtype=torch.float64)
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), by_hand(x, layer.weight, layer.bias, stride, mode), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stride", [1, 2])
def test_what_is_later_changes_no_output_by_a_bit(mode, stride):
    """In float32, values and NaNs: every pixel after the one at which an output stands, in the mode's own order."""
    torch.manual_seed(0)
    layer = ShiftedConv2d(16, 24, (2, 3) if mode == "down" else (2, 2), stride, mode=mode)
    x = torch.randn(2, 16, 7, 9)
    rows, columns = torch.arange(7)[:, None], torch.arange(9)
    with torch.no_grad():
        before = layer(x)
        for i, j in itertools.product(*map(range, before.shape[2:])):
            later = rows > i * stride
            if mode == "down_right":
                later = later | (columns > j * stride)
            for poison in (math.nan, math.inf, 7.0):
                after = layer(torch.where(later, poison, x))
                seen = after[:, :, : i + 1] if mode == "down" else after[:, :, : i + 1, : j + 1]
                assert torch.equal(seen, before[:, :, : i + 1, : seen.shape[3]])


@pytest.mark.parametrize("mode", MODES)
def test_a_transposed_convolution_writes_below_only(mode):
    torch.manual_seed(0)
    layer = ShiftedConvTranspose2d(16, 24, (2, 3) if mode == "down" else (2, 2), 2, mode=mode)
    x = torch.randn(2, 16, 4, 5)
    rows, columns = torch.arange(4)[:, None], torch.arange(5)
    with torch.no_grad():
        before = layer(x)
        for i, j in itertools.product(range(4), range(5)):
            later = (rows > i) if mode == "down" else (rows > i) | (columns > j)
            for poison in (math.nan, 7.0):
                after = layer(torch.where(later, poison, x))[:, :, : 2 * i + 2]
                width = after.shape[3] if mode == "down" else 2 * j + 2
                assert torch.equal(after[..., :width], before[:, :, : 2 * i + 2, :width])


def test_shifts_move_and_start_with_exact_zeros():
    x = torch.full((2, 3, 4, 5), math.nan)
    x[:, :, :-1, :-1] = torch.arange(12.0).reshape(3, 4)
    down, right = down_shift(x), right_shift(x)
    assert torch.equal(down[:, :, 0], torch.zeros(2, 3, 5))
    assert torch.equal(down[:, :, 1:, :-1], x[:, :, :-1, :-1])
    assert torch.equal(right[:, :, :, 0], torch.zeros(2, 3, 4))
    assert torch.equal(right[:, :, :-1, 1:], x[:, :, :-1, :-1])
    for shift in (down_shift, right_shift):
        assert torch.equal(shift(torch.ones(1, 1, 1, 1)), torch.zeros(1, 1, 1, 1))
        assert shift(torch.ones(0, 2, 3, 3)).shape == (0, 2, 3, 3)


@pytest.mark.parametrize(("kind", "plain"), [(ShiftedConv2d, nn.Conv2d), (ShiftedConvTranspose2d, nn.ConvTranspose2d)])
def test_parameters_are_those_of_the_plain_layer(kind, plain):
    torch.manual_seed(0)
    theirs = plain(3, 5, (2, 3), stride=2)
    torch.manual_seed(0)
    ours = kind(3, 5, (2, 3), 2, mode="down")
    assert torch.equal(ours.weight, theirs.weight)
    ours.load_state_dict(theirs.state_dict())
    assert list(kind(3, 5, 2, mode="down_right", bias=False).state_dict()) == ["weight"]
    assert "mode='down'" in repr(ours)


@pytest.mark.parametrize("kind", [ShiftedConv2d, ShiftedConvTranspose2d])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "up"}, "mode must be 'down' or 'down_right', got 'up'"),
        ({"kernel_size": 2}, "kernel_size must have an odd width in mode 'down', got 2"),
        ({"kernel_size": (2, 3, 3)}, "kernel_size must be a positive int or a pair of them"),
        ({"kernel_size": (0, 3)}, "kernel_size must be a positive int"),
        ({"stride": 0}, "stride must be a positive int"),
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"out_channels": -1}, "out_channels must be at least 1, got -1"),
    ],
)
def test_constructor_messages(kind, change, message):
    arguments = {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "stride": 1, "mode": "down", **change}
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


def test_a_transposed_convolution_has_one_size():
    with pytest.raises(ValueError, match="output_size must be None"):
        ShiftedConvTranspose2d(1, 1, 3, 2, mode="down")(torch.ones(1, 1, 2, 2), output_size=[4, 5])
