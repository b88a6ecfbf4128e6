"""C3D: the paper's network to the number, whatever pools, packs or names its weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vidgen
from vidgen.models import C3D, load_checkpoint, save_checkpoint

LAYERS = ("conv1", "conv2", "conv3a", "conv3b", "conv4a", "conv4b", "conv5a", "conv5b", "fc6", "fc7", "fc8")


def small(**arguments):
    torch.manual_seed(0)
    model = C3D(**{"classes": 7, "width": 2, "input_size": (16, 40, 56), **arguments})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.uniform_(-0.1, 0.1)
    return model.eval()


def clips(n, size, dtype=torch.float32):
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(1), dtype=dtype)


def transcription(weights, x, pool5):
    """Figure 3 of the paper in plain PyTorch, every activation by name."""
    found = {}

    def conv(name, x):
        found[name] = F.relu(F.conv3d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1))
        return found[name]

    def pool(name, x, window):
        found[name] = F.max_pool3d(x, window, window)
        return found[name]

    x = pool("pool1", conv("conv1", x), (1, 2, 2))
    x = pool("pool2", conv("conv2", x), (2, 2, 2))
    x = pool("pool3", conv("conv3b", conv("conv3a", x)), (2, 2, 2))
    x = pool("pool4", conv("conv4b", conv("conv4a", x)), (2, 2, 2))
    x = conv("conv5b", conv("conv5a", x))
    options = {"caffe": {"ceil_mode": True}, "port": {"padding": (0, 1, 1)}}
    found["pool5"] = F.max_pool3d(x, (2, 2, 2), (2, 2, 2), **options[pool5])
    x = found["pool5"].reshape(len(x), -1)
    for name in ("fc6", "fc7"):
        found[name] = x = F.relu(x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"])
    found["fc8"] = x @ weights["fc8.weight"].T + weights["fc8.bias"]
    return found


@pytest.mark.parametrize("pool5", ["caffe", "port"])
@pytest.mark.parametrize("size", [(16, 112, 112), (17, 32, 48)])
def test_every_layer_is_the_papers(pool5, size):
    model = small(pool5=pool5, input_size=size).double()
    x = clips(2, size, torch.float64)
    expected = transcription(model.state_dict(), x, pool5)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected["fc8"], rtol=1e-10, atol=1e-12)
        for name, activations in expected.items() if size[1] == 32 else ():
            assert activations.abs().sum() > 0, "all zeros would prove nothing"
            raw = model.features(x, name, normalize=False)
            torch.testing.assert_close(raw, activations, rtol=1e-10, atol=1e-12)


def test_the_two_last_poolings_are_shifted_by_one():
    caffe, port = small(input_size=(16, 112, 112)), small(pool5="port", input_size=(16, 112, 112))
    x = clips(1, (16, 112, 112))
    with torch.no_grad():
        last = caffe.features(x, "conv5b", normalize=False)[0].amax(1)  # [C, 7, 7]
        for model, windows in (
            (caffe, ([0, 1], [2, 3], [4, 5], [6])),
            (port, ([0], [1, 2], [3, 4], [5, 6])),
        ):
            by_hand = torch.stack(
                [
                    torch.stack([last[:, rows][:, :, columns].amax((1, 2)) for columns in windows], -1)
                    for rows in windows
                ],
                -2,
            )
            assert torch.equal(model.features(x, "pool5", normalize=False)[0, :, 0], by_hand)
        assert not torch.allclose(caffe(x), port(x))


@pytest.mark.parametrize(("classes", "parameters"), [(487, 79_991_015), (101, 78_409_573)])
def test_published_number_of_parameters(classes, parameters):
    with torch.device("meta"):
        model = C3D(classes)
    by_hand, channels = 0, 3
    for width in (64, 128, 256, 256, 512, 512, 512, 512):
        by_hand, channels = by_hand + width * channels * 27 + width, width
    by_hand += 8192 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * classes + classes
    assert sum(p.numel() for p in model.parameters()) == by_hand == parameters
    assert tuple(model(torch.empty(2, 3, 16, 112, 112, device="meta")).shape) == (2, classes)


@pytest.mark.parametrize("layer", ["conv1", "pool2", "pool5", "fc6", "fc8"])
def test_features_have_length_one_and_their_direction(layer):
    model, x = small(), clips(3, (16, 40, 56))
    raw, unit = model.features(x, layer, normalize=False), model.features(x, layer)
    assert unit.shape == raw.shape
    assert unit.flatten(1).norm(dim=1).tolist() == pytest.approx([1.0] * 3, abs=1e-6)
    lengths = raw.flatten(1).norm(dim=1)
    torch.testing.assert_close(unit.flatten(1) * lengths[:, None], raw.flatten(1))


def test_dead_features_stay_zero():
    model = small()
    nn.init.constant_(model.fc6.bias, -1e9)
    assert torch.equal(model.features(clips(1, (16, 40, 56))), torch.zeros(1, 128))


def test_features_are_before_dropout():
    model, x = small(), clips(2, (16, 40, 56))
    expected = model.features(x, "fc6")
    assert torch.equal(model.train().features(x, "fc6"), expected)
    assert not torch.equal(model(x), model(x)), "in training fc6 and fc7 are dropped"


@pytest.mark.parametrize("pool5", ["caffe", "port"])
def test_prepacking_changes_no_bit(pool5):
    model, x = small(pool5=pool5), clips(2, (16, 40, 56))
    with torch.no_grad():
        expected, features = model(x), model.features(x, "conv3b")
        vidgen.prepack(model)
        assert torch.equal(model(x), expected)
        assert torch.equal(model.features(x, "conv3b"), features)


def test_learns_which_way_a_bar_moves(threads):
    """Its frames are the same for both classes; only their order differs."""
    # layers this small only wait for a second thread
    threads(1)
    torch.manual_seed(0)
    model = C3D(2, width=4, dropout=0.0, input_size=(8, 16, 16), in_channels=1)
    # bars of two columns, two columns further in each frame and in each clip
    right = torch.zeros(8, 1, 8, 16, 16)
    for clip in range(8):
        for t in range(8):
            column = 2 * (clip + t) % 16
            right[clip, 0, t, :, column : column + 2] = 1.0
    x, y = torch.cat([right, right.flip(2)]), torch.arange(2).repeat_interleave(8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(40):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1


# Preprocessing.


def test_preprocessing_by_hand():
    """One pixel of colour on an image that is already of the right size."""
    frames = torch.zeros(2, 128, 171, 3, dtype=torch.uint8)
    frames[1, 8, 29] = torch.tensor([10, 20, 30], dtype=torch.uint8)  # red, green, blue; the crop's first pixel
    clip = C3D.preprocess(frames)
    assert clip.dtype == torch.float32
    assert tuple(clip.shape) == (3, 2, 112, 112)
    assert clip[:, 1, 0, 0].tolist() == pytest.approx([30 - 90.25, 20 - 97.66, 10 - 101.41])
    assert clip[:, 0, 0, 0].tolist() == pytest.approx([-90.25, -97.66, -101.41])
    assert int((clip[0] > -90).sum()) == 1
    reds_first = C3D.preprocess(frames, channel_order="rgb")
    assert reds_first[:, 1, 0, 0].tolist() == pytest.approx([10 - 101.41, 20 - 97.66, 30 - 90.25])
    assert torch.equal(reds_first, clip.flip(0))


def test_resizing_puts_pixel_centres_at_a_half():
    """From 4 columns to 2, and from 2 rows to 4: (x + ½)·scale − ½ is where a new pixel looks."""
    frames = torch.tensor([[0, 40, 80, 160], [100, 100, 100, 100]], dtype=torch.uint8)[None, :, :, None].repeat(
        1, 1, 1, 3
    )
    clip = C3D.preprocess(frames, resize=(4, 2), crop=(4, 2)) + torch.tensor([90.25, 97.66, 101.41]).view(3, 1, 1, 1)
    top, bottom = [20.0, 120.0], [100.0, 100.0]
    rows = [[(1 - a) * t + a * b for t, b in zip(top, bottom, strict=True)] for a in (0.0, 0.25, 0.75, 1.0)]
    torch.testing.assert_close(clip, torch.tensor(rows).expand(3, 1, 4, 2))


def test_batches_of_clips_are_preprocessed_alike():
    frames = torch.randint(0, 256, (2, 3, 30, 44, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = C3D.preprocess(frames)
    assert tuple(batch.shape) == (2, 3, 3, 112, 112)
    assert torch.equal(batch, torch.stack([C3D.preprocess(one) for one in frames]))


# Weights of others.

SEQUENTIAL = dict(
    zip(
        LAYERS,
        [*(f"features.{i}" for i in (0, 3, 6, 8, 11, 13, 16, 18)), *(f"classifier.{i}" for i in (0, 3, 6))],
        strict=True,
    )
)
BACKBONE = {
    **{name: f"backbone.{name}.conv" for name in LAYERS[2:8]},
    "conv1": "backbone.conv1a.conv",
    "conv2": "backbone.conv2a.conv",
    "fc6": "backbone.fc6",
    "fc7": "backbone.fc7",
    "fc8": "cls_head.fc_cls",
}
LAYOUTS = {
    "own": {name: name for name in LAYERS},
    "sequential": SEQUENTIAL,
    "backbone": BACKBONE,
    "backbone-alone": {name: theirs.removeprefix("backbone.") for name, theirs in BACKBONE.items()},
}


def renamed(model, names, prefix=""):
    split = [(name.split("."), tensor) for name, tensor in model.state_dict().items()]
    return {f"{prefix}{names[layer]}.{kind}": tensor.clone() for (layer, kind), tensor in split}


def other(pool5="caffe"):
    torch.manual_seed(9)
    return C3D(7, pool5=pool5, width=2, input_size=(16, 40, 56))


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_of_every_naming_load(layout, prefix, wrapped):
    model = small()
    weights = renamed(model, LAYOUTS[layout], prefix)
    theirs = other().eval().load_checkpoint({"epoch": 3, "state_dict": weights} if wrapped else weights)
    x = clips(1, (16, 40, 56))
    assert torch.equal(theirs(x), model(x))


def test_a_port_in_plain_torch_gives_the_same_scores():
    """The naming by position is that of a network written down with nn.Sequential, and the numbers are its."""
    w, pool = 2, nn.MaxPool3d
    convs = [(3, w), (w, 2 * w), (2 * w, 4 * w), (4 * w, 4 * w), (4 * w, 8 * w), *[(8 * w, 8 * w)] * 3]
    pools = {0: pool((1, 2, 2)), 1: pool(2), 3: pool(2), 5: pool(2), 7: pool(2, 2, padding=(0, 1, 1))}
    features = nn.Sequential()
    for i, (before, after) in enumerate(convs):
        features.extend([nn.Conv3d(before, after, 3, padding=1), nn.ReLU()])
        if i in pools:
            features.append(pools[i])
    classifier = nn.Sequential(
        nn.Linear(8 * w * 2 * 2, 128),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(128, 128),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(128, 7),
    )
    port = nn.ModuleDict({"features": features, "classifier": classifier}).double().eval()
    model = C3D.from_state_dict(port.state_dict(), classes=7, width=2, pool5="port", input_size=(16, 40, 40)).double()
    model.load_checkpoint(port.state_dict())
    x = clips(2, (16, 40, 40), torch.float64)
    torch.testing.assert_close(model(x), classifier(features(x).flatten(1)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_files_load(tmp_path, suffix):
    from safetensors.torch import save_file

    model, path = small(), tmp_path / f"weights{suffix}"
    weights = renamed(model, BACKBONE)
    save_file(weights, path) if suffix == ".safetensors" else torch.save({"state_dict": weights}, path)
    before = torch.random.get_rng_state()
    again = C3D.from_state_dict(path, classes=7, width=2, input_size=(16, 40, 56))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not again.training
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in again.state_dict().items())


def test_vidgens_own_checkpoints_load_both_ways(tmp_path):
    model = small(pool5="port")
    path = save_checkpoint(model, tmp_path / "c3d.safetensors")
    x = clips(1, (16, 40, 56))
    again = load_checkpoint(path)
    assert again.config == model.config
    assert torch.equal(again(x), model(x))
    assert torch.equal(other("port").eval().load_checkpoint(path)(x), model(x))


def test_fine_tuning_keeps_the_new_classifier():
    published = small(classes=5)
    model = other()
    fresh = model.fc8.weight.clone()
    with pytest.raises(
        ValueError, match=r"wrong shape: fc8.weight \(expected \(7, 128\), got \(5, 128\)\).*new_classifier=True"
    ):
        model.load_checkpoint(published.state_dict())
    assert not torch.equal(model.conv1.weight, published.conv1.weight), "a refused file changes nothing"
    model.load_checkpoint(published.state_dict(), new_classifier=True)
    assert torch.equal(model.conv1.weight, published.conv1.weight)
    assert torch.equal(model.fc7.bias, published.fc7.bias)
    assert torch.equal(model.fc8.weight, fresh)


def test_a_feature_extractors_file_has_no_classifier():
    weights = {name: t for name, t in renamed(small(), SEQUENTIAL).items() if not name.startswith("classifier.6")}
    with pytest.raises(ValueError, match=r"missing: classifier\.6\.weight, classifier\.6\.bias \(new_classifier=True"):
        other().load_checkpoint(weights)
    model = other().load_checkpoint(weights, new_classifier=True)
    assert torch.equal(model.fc7.weight, small().fc7.weight)


def test_what_does_not_fit_is_listed():
    model, weights = other(), renamed(small(), BACKBONE)
    del weights["backbone.fc6.bias"]
    weights["backbone.bn1.weight"] = torch.zeros(3)
    weights["backbone.conv5b.conv.weight"] = torch.zeros(16, 16, 1, 1, 1)
    with pytest.raises(ValueError, match="does not fit this C3D") as caught:
        model.load_checkpoint(weights)
    message = str(caught.value)
    assert "missing: backbone.fc6.bias;" in message
    assert "unexpected: backbone.bn1.weight;" in message
    assert "wrong shape: backbone.conv5b.conv.weight (expected (16, 16, 3, 3, 3), got (16, 16, 1, 1, 1))" in message
    assert "new_classifier" not in message
    with pytest.raises(ValueError, match=r"missing: conv2\.weight, .* and 15 more"):
        model.load_checkpoint({name: t for name, t in small().state_dict().items() if name.startswith("conv1")})


def test_foreign_sources_are_refused_in_words(tmp_path):
    model = other()
    with pytest.raises(ValueError, match=r"expected C3D's weights, named conv1 … fc8, .*got layer1\.weight"):
        model.load_checkpoint({"layer1.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="source: expected a state dict of tensors, got an empty one"):
        model.load_checkpoint({})
    with pytest.raises(ValueError, match="source: expected a state dict of tensors, got int under 'epoch'"):
        model.load_checkpoint({"epoch": 3})
    with pytest.raises(FileNotFoundError, match="source: there is no file"):
        model.load_checkpoint(tmp_path / "none.pth")
    for name in ("garbage.pth", "garbage.safetensors"):
        (tmp_path / name).write_bytes(b"not weights at all")
        with pytest.raises(ValueError, match=f"source: .*{name}"):
            model.load_checkpoint(tmp_path / name)
    # a pickle that would run code
    torch.save(C3D, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="weights_only=True"):
        model.load_checkpoint(tmp_path / "code.pth")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 0}, "classes: expected at least 1, got 0"),
        ({"width": 0}, "width: expected at least 1"),
        ({"pool5": "tf"}, "pool5: expected 'caffe' or 'port', got 'tf'"),
        ({"dropout": 1.0}, "dropout: expected a number"),
        ({"input_size": (16, 112)}, "input_size: expected three sizes"),
        ({"input_size": (7, 112, 112)}, "input_size: expected at least 8×16×16 for pool5='caffe'"),
        ({"input_size": (16, 15, 112)}, "input_size: expected at least 8×16×16"),
        ({"input_size": (8, 112, 112), "pool5": "port"}, "input_size: expected at least 16×16×16 for pool5='port'"),
    ],
)
def test_bad_sizes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        C3D(**arguments)


@pytest.mark.parametrize(("pool5", "least"), [("caffe", (8, 16, 16)), ("port", (16, 16, 16))])
def test_the_smallest_clips_work(pool5, least):
    assert torch.isfinite(small(pool5=pool5, input_size=least)(clips(1, least))).all()


def test_bad_input_is_named():
    model = small()
    with pytest.raises(ValueError, match=r"clips: expected shape \(N, 3, 16, 40, 56\), got \(1, 3, 16, 40, 40\)"):
        model(clips(1, (16, 40, 40)))
    with pytest.raises(ValueError, match=r"layer: expected one of conv1, .*, fc8, got 'fc9'"):
        model.features(clips(1, (16, 40, 56)), "fc9")
    with pytest.raises(TypeError, match=r"frames: expected uint8, got torch\.float32"):
        C3D.preprocess(torch.zeros(1, 8, 8, 3))
    with pytest.raises(ValueError, match=r"frames: expected shape \(T, H, W, 3\)"):
        C3D.preprocess(torch.zeros(3, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="channel_order: expected"):
        C3D.preprocess(torch.zeros(1, 8, 8, 3, dtype=torch.uint8), channel_order="gbr")
    with pytest.raises(ValueError, match="crop: expected 1 to 128 rows"):
        C3D.preprocess(torch.zeros(1, 8, 8, 3, dtype=torch.uint8), crop=(129, 112))


def test_initial_weights_keep_a_signals_size():
    torch.manual_seed(0)
    model, x = C3D(8, width=8, input_size=(16, 32, 32)), clips(2, (16, 32, 32))
    with torch.no_grad():
        sizes = [float(model.features(x, name, normalize=False).square().mean().sqrt()) for name in LAYERS[::2]]
    assert min(sizes) > 0.1
    assert max(sizes) < 10
