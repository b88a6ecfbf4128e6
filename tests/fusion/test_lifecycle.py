"""State dicts, training, moving, copying: a fused module through all that happens to modules."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vidgen
from tests.fusion.networks import assert_same, build, randomise_norms
from vidgen.nn.prepack import PackedWeights
from vidgen.ops.backends import TABLE, Backend
from vidgen.ops.masked_conv2d import keep_mask


def model_and_input(seed=0, dims=3):
    torch.manual_seed(seed)
    conv, norm, pool = (
        (nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d) if dims == 3 else (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d)
    )
    model = nn.Sequential(
        nn.Sequential(conv(3, 4, 3, padding=1, bias=False), norm(4), nn.ReLU(), pool(2)),
        nn.Sequential(conv(4, 4, 3, padding=1), norm(4, affine=False), nn.ReLU()),
        conv(4, 2, 1),
    )
    randomise_norms(model, seed)
    return model.eval(), torch.randn(2, 3, *(4, 8, 10)[-dims:])


@pytest.fixture
def packing(monkeypatch):
    """A CPU row for float32, and a packed weight that the op believes: results come from it, not from the weight."""
    from vidgen.fusion import layer, module

    row = Backend("cpu", ("cpu",), lambda: None, lambda x, *_: None if x.dtype == torch.float32 else "no", None)
    monkeypatch.setitem(TABLE, "conv3d_pool3d", (row, TABLE["conv3d_pool3d"][-1]))
    monkeypatch.setattr(module, "conv3d_pool3d_pack", lambda weight, **_: weight.detach().clone())
    plain = layer.conv3d_pool3d

    def believing(x, weight, bias, *, packed, **options):
        return plain(x, weight if packed is None else packed, bias, **{**options, "impl": "reference"})

    monkeypatch.setattr(layer, "conv3d_pool3d", believing)


@pytest.mark.parametrize("name", ["c3d-functional", "vgg11-sequential", "resnet18-3d", "densenet-3d", "two-heads"])
def test_state_dicts_load_both_ways(name):
    model, x = build(name)
    fused = vidgen.fuse(model, algorithm="direct")
    assert list(fused.state_dict()) == list(model.state_dict())
    other = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(1.1).add_(0.01)
        expected = other(x)
        fused.load_state_dict(other.state_dict())
        assert_same(fused(x), expected, 1e-5)
        model.load_state_dict(fused.state_dict())
        assert_same(model(x), expected, 1e-6)


@pytest.mark.parametrize("dims", [2, 3])
def test_loading_refreshes_what_is_packed(packing, dims):
    (model, x), (other, _) = model_and_input(0, dims), model_and_input(1, dims)
    fused = vidgen.fuse(model, x)
    with torch.no_grad():
        assert_same(fused(x), model(x), 1e-5)
        fused.load_state_dict(other.state_dict())
        assert_same(fused(x), other(x), 1e-5)
        # a part of it, a part of a chain, and a whole of which it is a part
        for key in ("0", "0.1", "1.0", "2"):
            for net in (fused, other):
                net.get_submodule(key).load_state_dict(model.get_submodule(key).state_dict())
            assert_same(fused(x), other(x), 1e-5)
        nn.ModuleList([fused]).load_state_dict(nn.ModuleList([model]).state_dict())
        assert_same(fused(x), model(x), 1e-5)


class Parts(nn.Module):
    """Two convolutions and a normalisation; apart, each is a fused module of its own."""

    def __init__(self, apart):
        super().__init__()
        self.a, self.b, self.apart = nn.Conv3d(4, 4, 1), nn.Sequential(nn.Conv3d(4, 4, 1), nn.BatchNorm3d(4)), apart
        randomise_norms(self)

    def forward(self, x):
        return self.b(self.a(x)) if not self.apart or x.mean() < 100 else x


@pytest.mark.parametrize("apart", [False, True])
def test_loading_refreshes_what_is_tied(packing, apart):
    model, x = Parts(apart).eval(), torch.randn(2, 4, 3, 5, 5)
    model.b[0].weight = model.a.weight
    fused, other = vidgen.fuse(model), nn.Conv3d(4, 4, 1)
    assert fused.b[0].weight is fused.a.weight
    assert isinstance(fused, PackedWeights) is not apart
    clone = copy.deepcopy(fused)
    with torch.no_grad():
        before = model(x)
        for net in (fused, model):
            net.a.load_state_dict(other.state_dict())
        assert_same(fused(x), model(x), 1e-5)
        assert_same(clone(x), before, 1e-5)


def test_copies_do_not_share(packing):
    (model, x), (other, _) = model_and_input(0), model_and_input(1)
    fused = vidgen.fuse(model, x)
    clone = copy.deepcopy(fused)
    with torch.no_grad():
        clone.load_state_dict(other.state_dict())
        assert_same(clone(x), other(x), 1e-5)
        assert_same(fused(x), model(x), 1e-5)
        model[0][0].weight.zero_()
        assert not torch.equal(fused[0][0].weight, model[0][0].weight)
    assert str(vidgen.fusion_report(clone)) == str(vidgen.fusion_report(fused))


def test_packed_weights_are_in_no_state_dict_and_are_used(packing):
    model, x = model_and_input()
    fused = vidgen.fuse(model, x)
    buffers = [name for name, _ in fused.named_buffers() if name not in model.state_dict()]
    # three packed weights, and weight and bias of two chains with normalisation
    assert len(buffers) == 7
    with torch.no_grad():
        fused[0][0].weight.zero_()
        assert_same(fused(x), model(x), 1e-5)
        # after a change in place
        vidgen.prepack(fused)
        model[0][0].weight.zero_()
        assert_same(fused(x), model(x), 1e-5)


def test_moving_repacks(packing):
    model, x = model_and_input()
    fused = vidgen.fuse(model, x)
    with torch.no_grad():
        fused.double()
        assert_same(fused(x.double()), model.double()(x.double()), 1e-12)
        nn.ModuleList([fused]).float()
        assert_same(fused(x), model.float()(x), 1e-5)
        fused[0].double()
        assert_same(fused.double()(x.double()), model.double()(x.double()), 1e-12)


class Masked(nn.Module):
    """Two convolutions of images of which one has a mask, in a part of its own."""

    def __init__(self):
        super().__init__()
        self.part = nn.Module()
        self.part.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.part.register_buffer("mask", keep_mask((4, 4, 3, 3), "B", 1, "interleaved").float())

    def forward(self, x):
        conv = self.part.conv
        return F.conv2d(x, conv.weight * self.part.mask, conv.bias, padding=1).flatten(1)


@pytest.mark.parametrize(
    ("model", "part", "size"),
    [
        (nn.Sequential(nn.Sequential(nn.Conv3d(3, 4, 3), nn.ReLU()), nn.Flatten()), "0", (2, 3, 6, 10, 10)),
        (nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), nn.Flatten()), "0", (2, 3, 10, 10)),
        (Masked(), "part", (2, 4, 10, 10)),
    ],
    ids=["conv", "norm", "masked"],
)
def test_moving_a_part_drops_what_is_packed(model, part, size):
    fused, x = vidgen.fuse(model.eval()), torch.randn(size)
    assert len(vidgen.fusion_report(fused).fused) == 1
    with torch.no_grad():
        # the first is a dtype that a kernel packs, the second one that none does
        for dtype, tolerance in ((torch.bfloat16, 2e-2), (torch.float64, 1e-12), (torch.float32, 1e-5)):
            for net in (fused, model):
                net.get_submodule(part).to(dtype)
            assert_same(fused(x.to(dtype)), model(x.to(dtype)), tolerance)
            assert_same(vidgen.prepack(fused)(x.to(dtype)), model(x.to(dtype)), tolerance)


@pytest.mark.parametrize("dims", [2, 3])
def test_training_is_the_original_s(packing, dims):
    model, x = model_and_input(0, dims)
    fused = vidgen.fuse(model, x)
    model.train()
    assert fused.train() is fused
    assert all(module.training for module in fused.modules())
    assert not [name for name, _ in fused.named_buffers() if name not in model.state_dict()], "nothing stays packed"
    optimisers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (model, fused)]
    for _ in range(3):
        for net, optimiser in zip((model, fused), optimisers, strict=True):
            optimiser.zero_grad()
            net(x).square().mean().backward()
            optimiser.step()
    for one, other in zip(fused.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(one, other), "weights and running statistics, to the bit"
    with torch.no_grad():
        expected = model.eval()(x)
        assert_same(fused.eval()(x), expected, 1e-5)
        assert_same(vidgen.prepack(fused)(x), expected, 1e-5)


def test_training_a_part(packing):
    model, x = model_and_input()
    fused = vidgen.fuse(model, x)
    for net in (model, fused):
        net[1].train()
        net(x).square().mean().backward()
        torch.optim.SGD(net.parameters(), lr=0.1).step()
        net[1].eval()
    assert torch.equal(fused[1][1].running_mean, model[1][1].running_mean)
    with torch.no_grad():
        assert_same(fused(x), model(x), 1e-5)


def test_frozen_normalisation_may_stay_in_eval_mode():
    class Frozen(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[1].eval()
            return self

    torch.manual_seed(0)
    model = Frozen(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4), nn.ReLU()).eval()
    fused, x = vidgen.fuse(model), torch.randn(2, 3, 4, 5, 6)
    assert torch.equal(fused.train()(x), model.train()(x))
    assert not fused[1].training


def test_a_module_in_train_mode_is_fused_as_in_eval_mode():
    model, x = model_and_input()
    expected = model(x)
    fused = vidgen.fuse(model.train())
    assert model.training
    assert not any(module.training for module in fused.modules())
    assert_same(fused(x), expected, 1e-5)


@pytest.mark.parametrize("dims", [2, 3])
def test_gradients_in_eval_mode_reach_input_and_parameters(dims):
    model, x = model_and_input(0, dims)
    fused = vidgen.fuse(model, x)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for net, leaf in zip((fused, model), inputs, strict=True):
        net(leaf).square().sum().backward()
    assert_same(inputs[0].grad, inputs[1].grad, 1e-4)
    for one, other in zip(fused.parameters(), model.parameters(), strict=True):
        assert_same(one.grad, other.grad, 1e-4)


def test_calls_of_one_convolution_share_their_packed_weight(packing):
    model, x = build("two-heads")
    fused = vidgen.fuse(model, x)
    assert len([name for name, _ in fused.named_buffers() if name.endswith("packed")]) == 4
    with torch.no_grad():
        assert_same(fused(x), model(x), 1e-5)


def test_an_exported_one_takes_any_batch():
    model, x = model_and_input()
    fused = vidgen.fuse(model, x)
    with torch.no_grad():
        # by the name that the original's forward has for it
        program = torch.export.export(fused, (x,), dynamic_shapes={"input": {0: torch.export.Dim("batch")}})
        for n in (1, 5):
            clips = torch.randn(n, *x.shape[1:])
            assert_same(program.module()(clips), model(clips), 1e-5)


def test_compiled_ones_follow_the_mode():
    model, x = model_and_input()
    fused = vidgen.fuse(model, x)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    assert_same(compiled(x), model(x), 1e-5)
    fused.train()
    assert_same(compiled(x), model.train()(x), 1e-5)
    assert_same(fused[0][1].running_mean, model[0][1].running_mean, 1e-5)
