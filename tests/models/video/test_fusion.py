"""Where frames come together: the small nets against 2-d and 3-d networks written down by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import vidgen
from vidgen.models import CNN3d, EarlyFusion, LateFusion, SingleFrame, load_checkpoint, save_checkpoint

CLIPS = torch.randn(2, 3, 6, 13, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def built(kind, *args, **kwargs):
    torch.manual_seed(0)
    return kind(*args, **kwargs).double().eval()


def flat(layer):
    """The layer's weight for a 2-d convolution, and its bias."""
    return layer.weight[:, :, 0], layer.bias


def frame_maps(model, frames, activation):
    """The 2-d network, frame by frame: (N·T, C, H, W) -> maps."""
    x = activation(F.conv2d(frames, *flat(model.conv1), padding=1))
    x = F.max_pool2d(x, 4)
    return activation(F.conv2d(x, *flat(model.conv2), padding=1))


@pytest.mark.parametrize(("activation", "function"), [("relu", torch.relu), ("identity", lambda x: x)])
def test_late_fusion_is_a_2d_network_per_frame(activation, function):
    model = built(LateFusion, 5, activation=activation)
    frames = CLIPS.transpose(1, 2).flatten(0, 1)  # [N·T, C, H, W]
    maps = frame_maps(model, frames, function).unflatten(0, (2, 6))  # [N, T, 24, H', W']
    expected = maps.mean((1, 3, 4)) @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(model(CLIPS), expected)
    # the average does not know which frame came first
    torch.testing.assert_close(model(CLIPS.flip(2)), expected)


def test_late_fusion_with_fully_connected_layers_knows_the_order():
    model = built(LateFusion, 5, fusion="fc", input_size=(6, 13, 18), hidden=9)
    frames = CLIPS.transpose(1, 2).flatten(0, 1)
    maps = frame_maps(model, frames, torch.relu).unflatten(0, (2, 6)).transpose(1, 2).flatten(1)
    layer = model.fusion[1]
    hidden = torch.relu(maps @ layer.weight.T + layer.bias)
    expected = hidden @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(model(CLIPS), expected)
    assert not torch.allclose(model(CLIPS.flip(2)), expected)


def test_single_frames_probabilities_are_averaged():
    model = built(SingleFrame, 5)
    frames = CLIPS.transpose(1, 2).flatten(0, 1)
    pooled = frame_maps(model, frames, torch.relu).mean((2, 3))
    logits = (pooled @ model.classifier.weight.T + model.classifier.bias).unflatten(0, (2, 6))
    torch.testing.assert_close(model.frame_logits(CLIPS), logits)
    torch.testing.assert_close(model(CLIPS).softmax(1), logits.softmax(2).mean(1))
    torch.testing.assert_close(model(CLIPS).exp().sum(1), torch.ones(2, dtype=torch.float64))


def test_early_fusion_is_a_2d_network_whose_channels_are_frames():
    model = built(EarlyFusion, 5, frames=6)
    maps = frame_maps(model, CLIPS.reshape(2, 18, 13, 18), torch.relu)
    expected = maps.mean((2, 3)) @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(model(CLIPS), expected)
    assert not torch.allclose(model(CLIPS.flip(2)), expected)


def test_3d_cnn_is_a_3d_network():
    model = built(CNN3d, 5)
    x = torch.relu(F.conv3d(CLIPS, model.conv1.weight, model.conv1.bias, padding=1))
    x = torch.relu(F.conv3d(F.max_pool3d(x, 4), model.conv2.weight, model.conv2.bias, padding=1))
    expected = x.mean((2, 3, 4)) @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(model(CLIPS), expected)


NETS = [
    (SingleFrame, {"classes": 4}),
    (LateFusion, {"classes": 4}),
    (LateFusion, {"classes": 4, "fusion": "fc", "input_size": (6, 13, 18)}),
    (EarlyFusion, {"classes": 4, "frames": 6}),
    (CNN3d, {"classes": 4, "widths": (3, 5), "activation": "identity"}),
]


@pytest.mark.parametrize(("kind", "arguments"), NETS)
def test_checkpoints_and_packing_give_the_same_scores(kind, arguments, tmp_path):
    torch.manual_seed(0)
    model, x = kind(**arguments).eval(), CLIPS.float()
    again = load_checkpoint(save_checkpoint(model, tmp_path / "net.safetensors"))
    with torch.no_grad():
        expected = model(x)
        assert expected.shape == (2, 4)
        assert torch.equal(again(x), expected)
        # the size of clips is not known when these weights are packed, so another form may be chosen than in a call
        torch.testing.assert_close(vidgen.prepack(model)(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "arguments"), NETS)
def test_gradients_reach_every_weight(kind, arguments):
    torch.manual_seed(0)
    model = kind(**arguments)
    F.cross_entropy(model(CLIPS.float()), torch.tensor([0, 3])).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("kind", [LateFusion, lambda: EarlyFusion(frames=6), CNN3d])
def test_without_classes_the_averages_come_out(kind):
    model = kind()
    assert model(CLIPS.float()).shape == (2, 24)
    assert not list(model.classifier.parameters())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LateFusion(0), "classes: expected at least 1, got 0"),
        (lambda: CNN3d(2, in_channels=0), "in_channels: expected at least 1"),
        (lambda: CNN3d(2, widths=(3,)), "widths: expected two positive"),
        (lambda: EarlyFusion(2, frames=0), "frames: expected at least 1, got 0"),
        (lambda: LateFusion(2, fusion="sum"), "fusion: expected 'pool' or 'fc', got 'sum'"),
        (lambda: LateFusion(fusion="fc"), "classes: expected a number for fusion='fc'"),
        (lambda: LateFusion(2, fusion="fc", input_size=(1, 3, 8)), "input_size: expected"),
        (
            lambda: EarlyFusion(2, frames=5)(CLIPS.float()),
            r"clips: expected shape \(N, 3, 5, H, W\), got \(2, 3, 6, 13, 18\)",
        ),
        (lambda: CNN3d(2)(CLIPS.float()[:, 0]), r"clips: expected shape \(N, 3, T, H, W\)"),
        (lambda: LateFusion(2, fusion="fc")(CLIPS.float()), r"clips: expected frames, height and width \(20, 64, 64\)"),
    ],
)
def test_bad_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
