"""PixelCNN++: the published arithmetic, no leak, no blind spot, and the port's checkpoints."""

import pytest
import torch
from torch import nn

from tests.models.causality import assert_all_the_past_is_seen, assert_no_bit_leaks
from tests.models.pixelcnnpp_published import Published, published_loss, random_checkpoint
from vidgen.models import PixelCNNPP, load_checkpoint, save_checkpoint
from vidgen.nn import GatedResnet, fold_weight_norm, initialize_from_data

SHAPES = [(1, 5, 5), (1, 4, 7), (1, 9, 2), (3, 5, 6), (3, 8, 3), (3, 1, 4), (3, 1, 1)]
LABELS = torch.tensor([2, 0])


def small(image_shape, *, resnets=1, filters=8, mixtures=2, levels=7, **options):
    torch.manual_seed(1)
    return PixelCNNPP(image_shape, resnets, filters, mixtures, levels=levels, **options).eval()


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("image_shape", SHAPES)
def test_no_bit_of_the_future_leaks(image_shape, classes):
    model = small(image_shape, classes=classes, filters=16)
    x = torch.rand(2, *image_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert_no_bit_leaks(model, x, (LABELS,) if classes else ())


def test_an_outputs_bits_do_not_depend_on_the_strides_of_x():
    model, x = small((1, 5, 6), filters=16), torch.rand(2, 1, 5, 6) * 2 - 1
    with torch.no_grad():
        for strided in (x.contiguous(memory_format=torch.channels_last), x.clone().as_strided(x.shape, (30, 1, 6, 1))):
            assert torch.equal(model(strided), model(x))


@pytest.mark.parametrize("image_shape", [(1, 7, 6), (3, 5, 5), (3, 2, 9)])
def test_all_of_the_past_is_seen(image_shape):
    model = small(image_shape, classes=3, resnets=2).double()
    initialize_from_data(model, torch.rand(4, *image_shape).double() * 2 - 1, torch.tensor([0, 1, 2, 0]))
    assert_all_the_past_is_seen(model, (LABELS[:1],))


@pytest.mark.parametrize("size", [(8, 8), (12, 4), (5, 7), (1, 3)])
@pytest.mark.parametrize("sizes", [{}, {"channels": 1, "resnets": 2, "filters": 6, "mixtures": 3}])
def test_the_ports_checkpoint_gives_the_published_outputs(sizes, size):
    state = random_checkpoint(**sizes)
    model = PixelCNNPP.from_port(state, image_size=size)
    x = torch.rand(2, sizes.get("channels", 3), *size, dtype=torch.float64) * 2 - 1
    expected = Published(state)(x)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-11, atol=1e-12)


def test_the_ports_checkpoint_in_float32():
    """Within 1e-5 of float64 (relative to the outputs' rms), and no further off than the published code is."""
    state = random_checkpoint(resnets=2, filters=16, mixtures=5, dtype=torch.float32)
    model = PixelCNNPP.from_port({f"module.{name}": tensor for name, tensor in state.items()}, image_size=(16, 16))
    x = torch.rand(4, 3, 16, 16) * 2 - 1
    exact = Published({name: tensor.double() for name, tensor in state.items()})(x.double())
    with torch.no_grad():
        ours, theirs = model(x), Published(state)(x)
    assert ours.dtype == torch.float32
    scale = float(exact.square().mean().sqrt())
    assert float((ours - exact).abs().max()) < 1e-5 * scale
    assert float((ours - exact).square().mean()) < 2 * float((theirs - exact).square().mean())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_the_ports_likelihood(dtype, bound):
    state = random_checkpoint(resnets=2, filters=16, mixtures=5)
    state["nin_out.lin_a.bias"][10:15] -= 6  # red's log-scales: far from narrow logistics the published loss differs
    images = torch.randint(256, (3, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images[0, :, :4], images[1, :, 4:] = 0, 255
    x = (images.double() - 127.5) / 127.5
    expected = published_loss(Published(state)(x), x)
    model = PixelCNNPP.from_port(state, image_size=(8, 8), likelihood="openai").to(dtype)
    with torch.no_grad():
        torch.testing.assert_close(model.log_prob(images).double(), expected, rtol=bound, atol=0)
        other = PixelCNNPP.from_port(state, image_size=(8, 8)).log_prob(images)
    assert float(((other - expected) / expected).abs().max()) > 1e-4


def test_what_a_checkpoint_says_of_sizes_is_believed():
    model = PixelCNNPP.from_port(
        {"state_dict": random_checkpoint(channels=1, resnets=3, filters=4, mixtures=7)},
        image_size=(28, 20),
        dropout=0.1,
    )
    assert model.config == {
        "image_shape": [1, 28, 20],
        "resnets": 3,
        "filters": 4,
        "mixtures": 7,
        "classes": 0,
        "dropout": 0.1,
        "levels": 256,
        "likelihood": "exact",
    }
    assert not model.training


def test_checkpoints_that_do_not_fit_are_described():
    state = random_checkpoint()
    with pytest.raises(ValueError, match=r"expected PixelCNN\+\+ as the PyTorch port saves it.*got weight"):
        PixelCNNPP.from_port({"weight": torch.zeros(2)})
    with pytest.raises(ValueError, match="expected an image of 1 or 3 channels"):
        PixelCNNPP.from_port({**state, "u_init.conv.weight_v": torch.zeros(8, 3, 2, 3)})
    name = "down_layers.1.ul_stream.0.nin_skip.lin_a.weight_v"
    cut = {key: tensor for key, tensor in state.items() if not key.startswith("upsize_u_stream.1")}
    with pytest.raises(ValueError, match=r"missing: upsize_u_stream\.1\.deconv\.bias, .*deconv\.weight_v$"):
        PixelCNNPP.from_port(cut)
    with pytest.raises(
        ValueError, match=r"unexpected: classifier\.bias; wrong shape: .*\.nin_skip\.lin_a\.weight_v \("
    ):
        PixelCNNPP.from_port({**state, "classifier.bias": torch.zeros(1), name: torch.zeros(8, 16)})
    first = {key: tensor for key, tensor in state.items() if key.startswith(("u_init", "nin_out", "up_layers"))}
    with pytest.raises(ValueError, match=r"missing: down_layers\.0.* and \d+ more"):
        PixelCNNPP.from_port(first)


def test_data_sets_the_scale_of_every_layer():
    """Every pre-activation has mean 0 and variance 1 over the batch, those before a gate 0.01."""
    model = small((3, 9, 8), classes=3, dropout=0.0).double()
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 7, (16, 3, 9, 8), generator=generator)
    labels = torch.randint(0, 3, (16,), generator=generator)
    initialize_from_data(model, x, labels)
    gates = {id(module.gate) for module in model.modules() if isinstance(module, GatedResnet)}
    seen = []

    def look(layer, _inputs, y):
        mean, variance = y.mean(dim=(0, 2, 3)), y.var(dim=(0, 2, 3), correction=0)
        seen.append(layer)
        assert float(mean.abs().max()) < 1e-10
        assert float((variance / (0.01 if id(layer) in gates else 1) - 1).abs().max()) < 1e-5

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(look)
    with torch.no_grad():
        model(x, labels)
    assert len(seen) == len(set(map(id, seen))) == 3 + 4 + 4 + 1 + 6 * 2 + 3 + 10 * 3 == 57


def test_labels_are_added_without_bias_inside_every_block():
    model = small((3, 4, 4), classes=3).double()
    blocks = [module for module in model.modules() if isinstance(module, GatedResnet)]
    x = torch.rand(2, 3, 4, 4).double()
    model(x, LABELS).square().sum().backward()
    assert len(blocks) == 2 * (3 + 5)
    for block in blocks:
        assert block.label.weight.shape == (3, 16)
        assert (block.label.weight.grad[LABELS] != 0).all()
        assert (block.label.weight.grad[1] == 0).all()
    with torch.no_grad():
        for block in blocks:
            block.label.weight.zero_()
    unconditional = small((3, 4, 4)).double()
    kept = {name: value for name, value in model.state_dict().items() if ".label." not in name}
    unconditional.load_state_dict(kept)
    torch.testing.assert_close(model(x, LABELS), unconditional(x), rtol=0, atol=0)


def test_integers_are_scaled_levels():
    model, x = small((3, 5, 4)), torch.randint(0, 7, (2, 3, 5, 4))
    with torch.no_grad():
        assert torch.equal(model(x), model(x.float() * (2.0 / 6) - 1))


def test_folded_weights_give_the_same_bits():
    model, x = small((3, 5, 4)), torch.rand(2, 3, 5, 4)
    with torch.no_grad():
        before = model(x)
        assert torch.equal(fold_weight_norm(model)(x), before)


def test_the_file_gives_the_model_back(tmp_path):
    model = small((3, 4, 5), classes=3, dropout=0.25)
    again = load_checkpoint(save_checkpoint(model, tmp_path / "pp.safetensors"))
    x = torch.rand(2, 3, 4, 5)
    assert again.config == model.config
    assert torch.equal(again(x, LABELS), model(x, LABELS))


def test_the_published_size():
    """The paper's CIFAR-10 model: 5 blocks, 160 filters, 10 mixtures."""
    with torch.device("meta"):
        model = PixelCNNPP()
    state = random_checkpoint(resnets=5, filters=160, mixtures=10, dtype=torch.float32)
    assert sum(p.numel() for p in model.parameters()) == sum(t.numel() for t in state.values())
    assert tuple(model(torch.empty(2, 3, 32, 32, device="meta")).shape) == (2, 100, 32, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_shape": (2, 8, 8)}, "image_shape: expected 1 or 3 channels, got 2"),
        ({"image_shape": (3, 8)}, "image_shape: expected three positive sizes"),
        ({"resnets": 0}, "resnets: expected at least 1, got 0"),
        ({"filters": 0}, "filters: expected at least 1"),
        ({"mixtures": -1}, "mixtures: expected at least 1"),
        ({"levels": 1}, "levels: expected at least 2"),
        ({"classes": -1}, "classes: expected at least 0"),
        ({"dropout": 1.0}, "dropout: expected a number"),
        ({"likelihood": "best"}, "likelihood: expected one of exact, openai, got 'best'"),
    ],
)
def test_bad_sizes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        PixelCNNPP(**arguments)
