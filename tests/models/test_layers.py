"""The layer table: the lecture's cells, the published counts, and fields that gradients confirm."""

from __future__ import annotations

import json
import time

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import vidgen
from vidgen import cli
from vidgen.models import C3D, CNN3d, EarlyFusion, LateFusion, PixelCNN, SingleFrame
from vidgen.nn import ConvPool3d, MaskedConv2d

CLIP = (3, 20, 64, 64)

#: The lecture's table of three small networks on clips of 20 frames: output C×T×H×W and receptive field T×H×W.
LECTURE = {
    LateFusion: (
        ("12×20×64×64", "1×3×3"),
        ("12×20×16×16", "1×6×6"),
        ("24×20×16×16", "1×14×14"),
        ("24×1×1×1", "20×64×64"),
    ),
    EarlyFusion: (
        ("12×64×64", "20×3×3"),
        ("12×16×16", "20×6×6"),
        ("24×16×16", "20×14×14"),
        ("24×1×1", "20×64×64"),
    ),
    CNN3d: (
        ("12×20×64×64", "3×3×3"),
        ("12×5×16×16", "6×6×6"),
        ("24×5×16×16", "14×14×14"),
        ("24×1×1", "20×64×64"),
    ),
}


def times(sizes):
    return "×".join(map(str, sizes))


def numbers(report):
    """[(output size, receptive field)], by layer."""
    return [(layer.output_size, layer.receptive_field) for layer in report.layers]


@pytest.mark.parametrize("net", LECTURE)
def test_the_lectures_table(net):
    report = vidgen.layer_report(net(), CLIP)
    assert len(report.layers) == 4
    for layer, (size, field) in zip(report.layers, LECTURE[net], strict=True):
        channels, *axes = layer.output_size
        # where time is gone the table mostly writes no T, and a T of 1 is here
        t = axes[:1] if size.count("×") == 3 else []
        assert axes[0] == 1 or t
        assert times((channels, *t, *axes[1:])) == size
        assert times(layer.receptive_field) == field
    assert [layer.kind.split()[0] for layer in report.layers] == [
        "ConvPool3d",
        "MaxPool3d",
        "ConvPool3d",
        "AdaptiveAvgPool3d",
    ]


@pytest.mark.parametrize("per_frame", [False, True])
def test_the_lectures_late_fusion_with_2d_layers(per_frame):
    """Frames as a batch: T stands behind the channels, and its field is 1 until frames are averaged."""

    class Frames(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.pool1 = nn.Conv2d(3, 12, 3, padding=1), nn.MaxPool2d(4)
            self.conv2, self.pool2 = nn.Conv2d(12, 24, 3, padding=1), nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(24, 5)

        def forward(self, x):  # [N, C, T, H, W]
            n = x.shape[0]
            x = x.transpose(1, 2).flatten(0, 1)
            x = self.pool2(torch.relu(self.conv2(self.pool1(torch.relu(self.conv1(x)))))).flatten(1)
            return self.fc(x) if per_frame else self.fc(x.unflatten(0, (n, -1)).mean(1))

    report = vidgen.layer_report(Frames(), CLIP)
    assert numbers(report)[:3] == [
        ((12, 20, 64, 64), (1, 3, 3)),
        ((12, 20, 16, 16), (1, 6, 6)),
        ((24, 20, 16, 16), (1, 14, 14)),
    ]
    last = ((5, 20), (1, 64, 64)) if per_frame else ((5,), (20, 64, 64))
    assert numbers(report)[3:] == [((24, 20, 1, 1), (1, 64, 64)), last]
    # all frames are computed
    assert report.macs == 20 * (64 * 64 * 12 * 27 + 16 * 16 * 24 * 12 * 9) + 24 * 5 * (20 if per_frame else 1)


def test_the_single_frame_network_sees_single_frames():
    report = vidgen.layer_report(SingleFrame(7), CLIP)
    assert {layer.receptive_field[0] for layer in report.layers} == {1}
    assert numbers(report)[-1] == ((20, 7), (1, 64, 64))
    # the softmax after the last layer is not followed, and hides nothing
    assert not report.notes


# Published networks.


def alexnet():
    """Krizhevsky, Sutskever and Hinton (2012), section 3.5; its groups are the halves on the two GPUs."""

    def norm():
        return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2)

    return nn.Sequential(
        *(nn.Conv2d(3, 96, 11, stride=4, padding=2), nn.ReLU(), norm(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(), norm(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Flatten(), nn.Linear(9216, 4096), nn.ReLU(), nn.Dropout()),
        *(nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 1000)),
    )


def vgg16():
    """Simonyan and Zisserman (2015), table 1, column D."""
    layers, channels = [], 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(
        *layers,
        *(nn.Flatten(), nn.Linear(512 * 7 * 7, 4096), nn.ReLU(), nn.Dropout()),
        *(nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 1000)),
    )


# Published under the name of FLOP: 0.7, 13.6 and 39.5 G. Counted are multiply-accumulates of convolutions and of fully
# connected layers. AlexNet's count is the published one. VGG-16's layers have more, and would have 13.62 without one of
# the six that have 1.85; C3D's have less.
PUBLISHED = [
    # build, input, parameters, MAC of convolutions, of fully connected layers, giga-MAC of all, published
    (alexnet, (3, 224, 224), 60_965_224, 665_784_864, 58_621_952, 0.72, 0.7),
    (vgg16, (3, 224, 224), 138_357_544, 15_346_630_656, 123_633_664, 15.47, 13.6),
    (C3D, (3, 16, 112, 112), 79_991_015, 38_496_632_832, 52_326_400, 38.55, 39.5),
]


@pytest.mark.parametrize(("build", "size", "parameters", "convs", "linear", "giga", "published"), PUBLISHED)
def test_counts_beside_the_published(build, size, parameters, convs, linear, giga, published):
    with torch.device("meta"):
        model = build()
    report = vidgen.layer_report(model, size)
    assert report.parameters == sum(layer.parameters for layer in report.layers) == parameters
    assert report.conv_macs == convs
    assert report.macs - report.conv_macs == linear
    assert report.flops == 2 * report.macs
    assert round(report.macs / 1e9, 2) == giga
    # none of the three is the number of additions and multiplications
    assert abs(report.macs / 1e9 - published) < abs(report.flops / 1e9 - published)
    assert not report.notes


def test_published_receptive_fields():
    """VGG-16's last pool sees 212 pixels, AlexNet's 195."""
    for build, field in ((vgg16, 212), (alexnet, 195)):
        with torch.device("meta"):
            model = build()
        layers = vidgen.layer_report(model, (3, 224, 224)).layers
        last = [layer for layer in layers if "MaxPool" in layer.kind][-1]
        assert last.receptive_field == (field, field)


def test_no_memory_is_needed():
    """36 TB of weights and 400 TB of activations."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 10**6, 3, padding=1), nn.ReLU(), nn.Conv2d(10**6, 10**6, 3, padding=1))
    started = time.process_time()
    report = vidgen.layer_report(model, (3, 10**4, 10**4))
    assert report.layers[1].macs == 9 * 10**20
    assert time.process_time() - started < 30


# Receptive fields against gradients.


def seen(model, size, output=lambda y: y):
    """The box of the input that the middle output value depends on, by gradient; weights are made positive."""
    model = model.double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.abs() + 0.1)
    x = torch.ones(1, *size, dtype=torch.float64, requires_grad=True)
    y = output(model(x))
    y[(0, 0, *(s // 2 for s in y.shape[2:]))].backward()
    touched = x.grad[0].abs().sum(0).nonzero()
    return tuple((touched.amax(0) - touched.amin(0) + 1).tolist())


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(st.sampled_from(["conv", "pool"]), *[st.integers(1, 3)] * 6).map(list),
        min_size=1,
        max_size=4,
    )
)
def test_fields_are_those_of_the_gradient(layers):
    """Kernel, stride and dilation of their own for each axis, in any order."""
    modules, smallest = [], [1, 1]
    for kind, *numbers in layers:
        kernel, stride, dilation = numbers[:2], numbers[2:4], numbers[4:]
        if kind == "conv":
            modules.append(nn.Conv2d(1, 1, kernel, stride, dilation=dilation))
        else:
            modules.append(nn.AvgPool2d(kernel, stride))
    for kind, *numbers in reversed(layers):
        for i in range(2):
            dilation = numbers[4 + i] if kind == "conv" else 1
            smallest[i] = (smallest[i] - 1) * numbers[2 + i] + (numbers[i] - 1) * dilation + 1
    model, size = nn.Sequential(*modules), (1, *smallest)
    report = vidgen.layer_report(model, size)
    assert report.layers[-1].output_size == (1, 1, 1)
    assert report.layers[-1].receptive_field == seen(model, size)


def test_a_linear_layer_sees_what_its_inputs_see():
    """Not the columns that pooling has left over."""
    model, size = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4, 1), nn.Unflatten(1, (1, 1, 1))), (1, 11, 9)
    report = vidgen.layer_report(model, size)
    assert [layer.receptive_field for layer in report.layers[:3]] == [(4, 4), (4, 4), (8, 8)]
    assert seen(model, size) == (8, 8)


class Residual(nn.Module):
    """A residual block with a projection, and a dense layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, stride=2)
        self.narrow = nn.Conv2d(4, 4, 1)
        self.wide = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 5, padding=2))
        self.dense = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x):
        x = self.stem(x)
        y = self.narrow(x) + self.wide(x)
        y += 1.0
        return self.dense(torch.cat([x, y.relu()], dim=1))


def test_where_branches_meet_the_widest_counts():
    model, size = Residual(), (2, 61, 67)
    report = vidgen.layer_report(model, size)
    fields = {layer.name: layer.receptive_field for layer in report.layers}
    assert fields["narrow"] == (3, 3)
    assert fields["wide.2"] == (15, 15)
    assert fields["dense"] == (19, 19) == seen(model, size)
    assert not report.notes


def test_a_gate_that_has_seen_everything_shows_it_to_all():
    """Squeeze and excitation."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.squeeze, self.excite = nn.Conv2d(2, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Linear(4, 4)
            self.last = nn.Conv2d(4, 1, 1)

        def forward(self, x):
            x = self.conv(x)
            return self.last(x * self.excite(self.squeeze(x).flatten(1)).sigmoid().view(1, 4, 1, 1))

    model, size = Gated(), (2, 9, 12)
    report = vidgen.layer_report(model, size)
    assert [layer.receptive_field for layer in report.layers] == [(3, 3), (9, 12), (9, 12), (9, 12)]
    assert seen(model, size) == (9, 12)


def test_frames_that_become_channels_are_all_seen_by_the_next_convolution():
    class Stack(nn.Module):
        def __init__(self, groups):
            super().__init__()
            self.frames = nn.Conv3d(1, 1, (3, 1, 1), padding=(1, 0, 0))
            self.images = nn.Conv2d(10, 10, 3, padding=1, groups=groups)
            self.last = nn.Conv2d(10, 1, 1)

        def forward(self, x):
            return self.last(self.images(self.frames(x).squeeze(1)))

    fields = [layer.receptive_field for layer in vidgen.layer_report(Stack(1), (1, 10, 9, 9)).layers]
    assert fields == [(3, 1, 1), (10, 3, 3), (10, 3, 3)]
    # a group sees some of the frames, and which is not followed
    report = vidgen.layer_report(Stack(5), (1, 10, 9, 9))
    assert [layer.receptive_field for layer in report.layers] == [(3, 1, 1), None, None]
    assert report.notes == ("receptive fields are unknown after: images",)


def test_masked_convolutions_see_the_past():
    model = nn.Sequential(MaskedConv2d(1, 2, 7, mask="A"), nn.ReLU(), MaskedConv2d(2, 1, 3, mask="B"))
    report = vidgen.layer_report(model, (1, 31, 31))
    # rows: 3 above its own, then 1; columns: 3 and 3 around, then 1 and 1
    assert [layer.receptive_field for layer in report.layers] == [(4, 7), (5, 9)]
    assert seen(model, (1, 31, 31)) == (5, 9)
    assert [layer.macs for layer in report.layers] == [31 * 31 * 2 * 24, 31 * 31 * 2 * 5]


def test_a_pixelcnn_is_followed_through_its_residual_blocks():
    model = PixelCNN((3, 32, 32), 4, hidden=6, blocks=2)
    report = vidgen.layer_report(model, (3, 32, 32))
    assert report.parameters == sum(layer.parameters for layer in report.layers)
    assert report.layers[-1].receptive_field == (6, 11)
    assert seen(model, (3, 32, 32), output=lambda y: y.flatten(1, 2)) == (6, 11)


# What is not known is said.


def test_unknown_functions_end_what_is_known():
    class Up(nn.Module):
        def __init__(self, branch):
            super().__init__()
            self.before, self.after, self.fc = (
                nn.Conv2d(1, 1, 3, padding=1),
                nn.Conv2d(1, 1, 3, padding=1),
                nn.Linear(8, 2),
            )
            self.branch = branch

        def forward(self, x):
            x = self.before(x)
            y = F.interpolate(x, scale_factor=1.0)
            return self.fc(self.after(x + y if self.branch else y))

    for branch in (False, True):
        report = vidgen.layer_report(Up(branch), (1, 8, 8))
        assert [layer.receptive_field for layer in report.layers] == [(3, 3), None, None]
        assert report.notes == ("receptive fields are unknown after: interpolate",)
        assert "unknown" in str(report)
        assert "unknown" in report.markdown()
        assert json.loads(report.json())["layers"][1]["receptive_field"] is None


def test_unknown_layers_are_no_zero():
    model = nn.Sequential(nn.Linear(4, 6), nn.LSTM(6, 8))
    report = vidgen.layer_report(model, (5, 4))
    assert report.layers[1].macs is None
    assert report.macs == 5 * 4 * 6
    assert any(note == "MAC of LSTM are not known and not in the sum" for note in report.notes)
    assert report.parameters == sum(p.numel() for p in model.parameters())


def test_parameters_outside_layers_are_told():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.shift = nn.Conv2d(1, 1, 1), nn.Parameter(torch.zeros(5))

        def forward(self, x):
            return self.conv(x) + self.shift

    report = vidgen.layer_report(Shifted(), (1, 5, 5))
    assert report.parameters == 7
    assert report.notes == ("5 parameters are in no layer above",)


def test_shared_layers_run_twice_and_are_counted_once():
    conv = nn.Conv1d(2, 2, 3, padding=1)
    report = vidgen.layer_report(nn.Sequential(conv, nn.Tanh(), conv), (2, 10))
    assert [layer.parameters for layer in report.layers] == [14, 0]
    assert [layer.macs for layer in report.layers] == [120, 120]
    assert [layer.receptive_field for layer in report.layers] == [(3,), (5,)]


def test_a_layer_of_two_parents_is_watched_once():
    conv = nn.Conv1d(2, 2, 3, padding=1)
    report = vidgen.layer_report(nn.Sequential(nn.Sequential(conv), nn.Sequential(conv)), (2, 10))
    assert [layer.macs for layer in report.layers] == [120, 120]


def test_the_convolutions_share_goes_by_what_a_layer_is():
    class Standardised(nn.Conv1d):
        pass

    class ConvHead(nn.Linear):
        pass

    report = vidgen.layer_report(nn.Sequential(Standardised(2, 2, 3, padding=1), ConvHead(10, 4)), (2, 10))
    assert (report.conv_macs, report.macs) == (120, 200)


def test_ceil_mode_and_uneven_pools_of_the_fused_layer():
    layer = ConvPool3d(2, 4, (3, 1, 3), pool=(2, 1, 3), ceil_mode=True)
    report = vidgen.layer_report(layer, (2, 5, 6, 7))
    assert numbers(report) == [((4, 5, 6, 7), (3, 1, 3)), ((4, 3, 6, 3), (4, 1, 5))]
    assert report.macs == 5 * 6 * 7 * 4 * 2 * 9
    assert layer(torch.zeros(1, 2, 5, 6, 7)).shape[1:] == (4, 3, 6, 3)


def test_the_fused_layer_is_the_two_layers():
    fused = vidgen.layer_report(nn.Sequential(ConvPool3d(3, 8, 3, padding="valid", pool=(1, 2, 2))), (3, 9, 13, 14))
    apart = vidgen.layer_report(nn.Sequential(nn.Conv3d(3, 8, 3), nn.ReLU(), nn.MaxPool3d((1, 2, 2))), (3, 9, 13, 14))
    assert numbers(fused) == numbers(apart)
    assert (fused.macs, fused.parameters) == (apart.macs, apart.parameters)


@pytest.mark.parametrize("size", [(6, 4), (5, 7)])
def test_adaptive_pools_are_followed_where_windows_are_equal(size):
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.AdaptiveAvgPool2d(size))
    fields = [layer.receptive_field for layer in vidgen.layer_report(model, (1, 12, 12)).layers]
    assert fields == [(3, 3), (4, 5) if size == (6, 4) else None]


# The model stays as it was; the table says the same in three languages.


def test_the_model_is_left_as_it_is():
    model = nn.Sequential(
        ConvPool3d(3, 8, 3, pool=(1, 2, 2)), nn.BatchNorm3d(8), nn.Sequential(nn.Dropout(), ConvPool3d(8, 2, 3))
    )
    vidgen.prepack(model)
    model[1].train()
    x = torch.randn(1, 3, 4, 6, 6)
    held = {name: value for name, value in [*model.named_parameters(), *model.named_buffers()]}
    copies = {name: value.clone() for name, value in held.items()}
    modes = [module.training for module in model.modules()]
    vidgen.layer_report(model, (3, 4, 6, 6))
    after = {name: value for name, value in [*model.named_parameters(), *model.named_buffers()]}
    assert after.keys() == held.keys()
    assert all(after[name] is held[name] and torch.equal(after[name], copies[name]) for name in held)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model(x).device.type == "cpu"


def test_a_failing_model_is_left_as_it_is_too():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(5, 5))
    with pytest.raises(RuntimeError):
        vidgen.layer_report(model, (3, 8, 8))
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model[0].weight.device.type == "cpu"


def test_three_forms_of_one_table():
    report = vidgen.layer_report(LateFusion(3), CLIP)
    line = ["conv2", "ConvPool3d 1×3×3, 12 → 24", "24×20×16×16", "1×14×14", "2,616", "13.27 M", "26.54 M"]
    assert f"| {' | '.join(line)} |" in report.markdown().splitlines()
    assert any(all(cell in text for cell in line) for text in str(report).splitlines())
    found = json.loads(report.json())
    assert found["layers"][2] == {
        "name": "conv2",
        "kind": line[1],
        "output_size": [24, 20, 16, 16],
        "receptive_field": [1, 14, 14],
        "parameters": 24 * 12 * 9 + 24,
        "macs": 20 * 16 * 16 * 24 * 12 * 9,
        "convolves": True,
        "flops": 2 * 20 * 16 * 16 * 24 * 12 * 9,
    }
    assert found["macs"] == sum(layer["macs"] for layer in found["layers"]) == report.macs
    assert found["input_size"] == list(CLIP)


def test_the_command(capsys):
    assert cli.main(["layers", "c3d"]) == 0
    assert "79,991,015 parameters; 38.55 G MAC = 77.10 G FLOP" in capsys.readouterr().out
    assert cli.main(["layers", "3d-cnn", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"][0]["receptive_field"] == [3, 3, 3]
    assert cli.main(["layers", "early-fusion", "--markdown"]) == 0
    assert capsys.readouterr().out.startswith("**EarlyFusion, input 3×20×64×64**")
    assert cli.main(["layers", "late-fusion", "--markdown", "--json"]) == 1
    assert "expected one of them, got both" in capsys.readouterr().err


def test_bad_arguments_are_named():
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got str"):
        vidgen.layer_report("c3d", CLIP)
    for size in ((), (3, 0, 8, 8), (3, 8.0, 8)):
        with pytest.raises(ValueError, match="input_size: expected positive sizes"):
            vidgen.layer_report(nn.Conv2d(3, 3, 3), size)
