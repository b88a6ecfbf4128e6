"""Gated PixelCNN: two stacks, no blind spot, no leak, and the paper's arithmetic."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.models.causality import assert_all_the_past_is_seen, assert_no_bit_leaks
from vidgen.models import GatedPixelCNN, load_checkpoint, save_checkpoint
from vidgen.nn import MaskedConv2d, ShiftedConv2d

SHAPES = [(1, 5, 5), (1, 4, 7), (1, 9, 2), (3, 5, 4), (3, 3, 6), (3, 1, 4)]
LABELS = torch.tensor([2, 0])


def small(image_shape, *, levels=7, hidden=6, blocks=2, **options):
    torch.manual_seed(1)
    return GatedPixelCNN(image_shape, levels, hidden, blocks, **options).eval()


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("image_shape", SHAPES)
def test_no_bit_of_the_future_leaks(image_shape, classes):
    model = small(
        image_shape, classes=classes, hidden=9 if image_shape[0] == 3 else 16, kernel_size=5 - classes % 2 * 2
    )
    x = torch.rand(2, *image_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert_no_bit_leaks(model, x, (LABELS,) if classes else ())


def test_an_outputs_bits_do_not_depend_on_the_strides_of_x():
    model, x = small((1, 5, 6), hidden=16), torch.rand(2, 1, 5, 6) * 2 - 1
    with torch.no_grad():
        for strided in (x.contiguous(memory_format=torch.channels_last), x.clone().as_strided(x.shape, (30, 1, 6, 1))):
            assert torch.equal(model(strided), model(x))


@pytest.mark.parametrize("image_shape", [(1, 6, 7), (3, 4, 5), (3, 1, 3)])
def test_all_of_the_past_is_seen(image_shape):
    """Where PixelCNN is blind, to the right above a pixel, this network is not."""
    model = small(image_shape, hidden=12, blocks=3, classes=3).double()
    assert_all_the_past_is_seen(model, (LABELS[:1],))


def test_labels_reach_every_sub_pixel_through_both_gates_of_both_stacks():
    model = small((3, 3, 3), classes=3).double()
    x = torch.zeros(3, 3, 3, 3, dtype=torch.float64)
    with torch.no_grad():
        one, two, three = model(x, torch.tensor([0, 1, 2]))
    assert ((one != two).any(dim=0)).all()
    assert ((two != three).any(dim=0)).all()
    model(x, torch.tensor([0, 1, 1])).square().sum().backward()
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    assert len(tables) == 2 * 3
    last = model.layers[-1].vertical_label.weight  # nothing reads the last layer's v
    for weight in (table.weight for table in tables):
        if weight is last:
            assert weight.grad is None
        else:
            assert (weight.grad[:2] != 0).all(), "f and g, of both classes that occur"
            assert (weight.grad[2] == 0).all()


def masked(kernel, width, colors, first):
    """The kept taps of a 1×n convolution, for interleaved colours: bool (out, in, 1, n)."""
    outs, ins, _, n = kernel
    keep = torch.zeros(kernel, dtype=torch.bool)
    keep[..., : n // 2] = True
    for o, i in itertools.product(range(outs), range(ins)):
        keep[o, i, 0, n // 2] = i % colors < o % colors if first else i % colors <= o % colors
    return keep


def transcription(model, x, labels):
    """Figure 2 of the paper with torch.nn.functional alone; masks by multiplication, shifts by concatenation."""
    colors, state = x.shape[1], {name: value.detach() for name, value in model.state_dict().items()}

    def across(t, name, first=False):
        weight = state[f"{name}.weight"]
        weight = weight * masked(weight.shape, weight.shape[3], colors, first)
        return F.conv2d(t, weight, state[f"{name}.bias"], padding=(0, weight.shape[3] // 2))

    def gated(t, name):
        if labels is not None:
            t = t + state[f"{name}.weight"][labels][:, :, None, None]
        f, g = t.chunk(2, dim=1)
        return torch.tanh(f) * torch.sigmoid(g)

    v = h = x
    skips = 0
    for number in range(len(model.layers)):
        layer = f"layers.{number}"
        weight = state[f"{layer}.vertical.weight"]
        rows, columns = weight.shape[2:]
        # the n×n convolution whose rows below its own are zero
        square = torch.cat([weight, torch.zeros(*weight.shape[:2], rows - 1, columns, dtype=x.dtype)], dim=2)
        t = F.conv2d(v, square, state[f"{layer}.vertical.bias"], padding=(rows - 1, columns // 2))
        shifted = torch.cat([torch.zeros_like(t[:, :, :1]), t[:, :, :-1]], dim=2)
        link = F.conv2d(shifted, state[f"{layer}.link.weight"], state[f"{layer}.link.bias"])
        o = gated(across(h, f"{layer}.horizontal", first=number == 0) + link, f"{layer}.horizontal_label")
        h = across(o, f"{layer}.out") + (h if number else 0)
        v = gated(t, f"{layer}.vertical_label")
        skips = skips + across(o, f"{layer}.skip")
    y = across(torch.relu(across(torch.relu(skips), "head_hidden")), "head_logits")
    n, _, height, width = x.shape
    return y.reshape(n, model.levels, colors, height, width)


@pytest.mark.parametrize(("image_shape", "classes", "kernel_size"), [((1, 5, 6), 0, 3), ((3, 4, 5), 3, 5)])
def test_the_network_is_figure_2(image_shape, classes, kernel_size):
    model = small(image_shape, hidden=9, classes=classes, kernel_size=kernel_size).double()
    x = torch.rand(2, *image_shape, dtype=torch.float64) * 2 - 1
    labels = LABELS if classes else None
    with torch.no_grad():
        torch.testing.assert_close(model(x, labels), transcription(model, x, labels), rtol=1e-11, atol=1e-12)


def test_layers_are_the_papers():
    model = GatedPixelCNN((3, 32, 32), 256, hidden=12, blocks=2, kernel_size=5, head_channels=30)
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    table = [(type(m), getattr(m, "mask", None), m.in_channels, m.out_channels, m.kernel_size) for m in convs]

    def layer(ins, n, mask):
        return [
            (ShiftedConv2d, None, ins, 24, (n // 2 + 1, n)),
            (nn.Conv2d, None, 24, 24, (1, 1)),
            (MaskedConv2d, mask, ins, 24, (1, n)),
            (MaskedConv2d, "B", 12, 12, (1, 1)),
            (MaskedConv2d, "B", 12, 12, (1, 1)),
        ]

    head = [(MaskedConv2d, "B", 12, 30, (1, 1)), (MaskedConv2d, "B", 30, 768, (1, 1))]
    assert table == [*layer(3, 7, "A"), *layer(12, 5, "B") * 2, *head]
    assert all(m.colors == 3 for m in convs if isinstance(m, MaskedConv2d))


@pytest.mark.parametrize(("image_shape", "levels", "classes"), [((1, 2, 2), 3, 0), ((3, 1, 2), 2, 2)])
def test_probabilities_of_all_images_add_up_to_one(image_shape, levels, classes):
    model = small(image_shape, levels=levels, classes=classes).double()
    images = torch.tensor(list(itertools.product(range(levels), repeat=math.prod(image_shape))), dtype=torch.uint8)
    for label in range(classes) if classes else (None,):
        labels = None if label is None else torch.full((len(images),), label)
        with torch.no_grad():
            nats = model.log_prob(images.reshape(-1, *image_shape), labels)
        assert float(nats.exp().sum()) == pytest.approx(1.0, abs=1e-12)


def test_integer_images_and_labels_are_what_log_prob_scores():
    model, x = small((3, 4, 3), classes=3), torch.randint(0, 7, (2, 3, 4, 3), dtype=torch.uint8)
    with torch.no_grad():
        scaled = x.float() * (2.0 / 6) - 1
        assert torch.equal(model(x, LABELS), model(scaled, LABELS))
        log_p = torch.log_softmax(model(x, LABELS).double(), dim=1).gather(1, x.long()[:, None]).sum((1, 2, 3, 4))
        torch.testing.assert_close(model.log_prob(x, LABELS).double(), log_p)
        torch.testing.assert_close(model.bits_per_dim(x, LABELS).double(), -log_p / math.log(2) / 36)


def test_dropout_drops_single_values_in_training_only():
    model, x = small((1, 6, 6), hidden=16, dropout=0.5), torch.rand(2, 1, 6, 6)
    assert torch.equal(model(x), model(x))
    seen = []
    model.layers[0].out.register_forward_pre_hook(lambda _layer, inputs: seen.append(inputs[0]))
    model.train()(x)
    of_channels = (seen[0] == 0).double().mean(dim=(2, 3))
    assert ((of_channels > 0.1) & (of_channels < 0.9)).all()


def test_the_file_gives_the_model_back(tmp_path):
    model = small((3, 4, 5), classes=3, kernel_size=5, dropout=0.25)
    again = load_checkpoint(save_checkpoint(model, tmp_path / "gated.safetensors"))
    x = torch.rand(2, 3, 4, 5)
    assert again.config == model.config
    assert torch.equal(again(x, LABELS), model(x, LABELS))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_shape": (1, 8)}, "image_shape: expected three positive sizes"),
        ({"levels": 1}, "levels: expected at least 2, got 1"),
        (
            {"image_shape": (3, 8, 8), "hidden": 16},
            "hidden: expected a positive multiple of the 3 image channels, got 16",
        ),
        ({"image_shape": (3, 8, 8), "hidden": 6, "head_channels": 8}, "head_channels: expected a positive multiple"),
        ({"blocks": -1}, "blocks: expected at least 0"),
        ({"kernel_size": 4}, "kernel_size: expected a positive odd number, got 4"),
        ({"classes": -1}, "classes: expected at least 0"),
        ({"dropout": 1.0}, "dropout: expected a number"),
    ],
)
def test_bad_sizes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        GatedPixelCNN(**arguments)


def test_bad_inputs_are_named():
    model, plain = small((1, 4, 4), classes=3), small((1, 4, 4))
    x = torch.zeros(2, 1, 4, 4)
    cases = [
        (plain, (torch.zeros(2, 3, 4, 4),), ValueError, r"x: expected shape \(N, 1, H, W\), got \(2, 3, 4, 4\)"),
        (plain, (torch.full((1, 1, 1, 2), 7),), ValueError, "x: expected grey levels 0 … 6, got 7 … 7"),
        (plain, (x, LABELS), ValueError, "labels: GatedPixelCNN has no classes here, expected None"),
        (model, (x,), ValueError, "labels: expected int64 labels of the 3 classes, got None"),
        (model, (x, LABELS.int()), TypeError, "labels: expected int64, got torch.int32"),
        (model, (x, LABELS[:1]), ValueError, r"labels: expected shape \(2,\), got \(1,\)"),
        (model, (x, LABELS + 1), ValueError, "labels: expected 0 … 2, got 1 … 3"),
    ]
    for network, inputs, kind, message in cases:
        with pytest.raises(kind, match=message):
            network(*inputs)
    with pytest.raises(ValueError, match="labels: GatedPixelCNN has no classes here"):
        plain.log_prob(x.long(), LABELS)
    with pytest.raises(TypeError, match="x: expected integer grey levels"):
        model.log_prob(x, LABELS)
