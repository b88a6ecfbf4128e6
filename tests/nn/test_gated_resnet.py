"""The gated residual block against its formula, and dropout that drops values, not channels."""

import pytest
import torch
import torch.nn.functional as F

from vidgen.nn import GatedResnet, concat_elu, initialize_from_data


def test_concat_elu_keeps_both_signs():
    x = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64).reshape(1, 3, 1, 1)
    expected = torch.tensor([torch.e**-2 - 1, 0.0, 3.0, 2.0, 0.0, torch.e**-3 - 1], dtype=torch.float64)
    torch.testing.assert_close(concat_elu(x).flatten(), expected)


def block(**options):
    torch.manual_seed(0)
    made = GatedResnet(4, options.pop("kernel", (2, 3)), **{"mode": "down", "dropout": 0.0, **options}).double()
    return made, torch.randn(3, 4, 5, 6, dtype=torch.float64)


@pytest.mark.parametrize("aux_channels", [0, 6])
@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize(("mode", "kernel", "sides"), [("down", (2, 3), (1, 1)), ("down_right", (2, 2), (1, 0))])
def test_a_block_is_its_formula(mode, kernel, sides, classes, aux_channels):
    net, x = block(mode=mode, kernel=kernel, classes=classes, aux_channels=aux_channels)
    aux = torch.randn(3, aux_channels, 5, 6, dtype=torch.float64) if aux_channels else None
    labels = torch.tensor([2, 0, 1]) if classes else None

    def twice(t):
        return torch.cat([torch.where(s > 0, s, s.exp() - 1) for s in (t, -t)], dim=1)

    def conv(t, layer):
        padded = F.pad(t, (*sides, 1, 0))
        taps = padded.unfold(2, kernel[0], 1).unfold(3, kernel[1], 1)  # [N, C, H, W, kh, kw]
        return torch.einsum("nchwpq,ocpq->nohw", taps, layer.weight) + layer.bias[:, None, None]

    t = conv(twice(x), net.conv)
    if aux is not None:
        t = t + torch.einsum("nchw,oc->nohw", twice(aux), net.aux.weight[:, :, 0, 0]) + net.aux.bias[:, None, None]
    t = conv(twice(t), net.gate)
    if labels is not None:
        t = t + net.label.weight[labels][:, :, None, None]
    expected = x + t[:, :4] / (1 + torch.exp(-t[:, 4:]))
    torch.testing.assert_close(net(x, aux, labels), expected, rtol=1e-12, atol=1e-12)


def test_dropout_drops_single_values_and_in_training_only():
    net, x = block(dropout=0.5)
    seen = []
    net.gate.register_forward_pre_hook(lambda _layer, inputs: seen.append(inputs[0]))
    net.eval()(x)
    net.train()(x)
    whole, dropped = seen
    assert not (whole == 0).any()
    share = (dropped == 0).double()
    assert 0.4 < float(share.mean()) < 0.6
    of_channels = share.mean(dim=(2, 3))  # [N, C]; all or nothing if whole channels were dropped
    assert ((of_channels > 0.1) & (of_channels < 0.9)).all()
    torch.testing.assert_close(dropped[dropped != 0], 2 * whole[dropped != 0])


def test_a_block_starts_near_the_identity():
    net, x = block(aux_channels=4)
    initialize_from_data(net, x, torch.randn_like(x))
    with torch.no_grad():
        assert float((net(x, torch.randn_like(x)) - x).std()) < 0.2 * float(x.std())


@pytest.mark.parametrize(
    ("options", "call", "message"),
    [
        ({"aux_channels": 2}, {}, "aux must be given for this block"),
        ({}, {"aux": torch.zeros(3, 2, 5, 6)}, "aux must be None for this block"),
        ({"classes": 2}, {}, "labels must be given for this block"),
        ({}, {"labels": torch.zeros(3, dtype=torch.long)}, "labels must be None for this block"),
        ({"dropout": 1.0}, {}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"aux_channels": -1}, {}, "aux_channels must be at least 0"),
        ({"classes": -1}, {}, "classes must be at least 0"),
    ],
)
def test_bad_arguments_are_named(options, call, message):
    def make_and_call():
        net, x = block(**options)
        net(x, **call)

    with pytest.raises(ValueError, match=message):
        make_and_call()
