"""Ports of PixelCNN that mask their weight on every call become masked_conv2d, where that is the same."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vidgen
from tests.fusion.networks import assert_same
from vidgen.ops.masked_conv2d import keep_mask


def raster_mask(cout, cin, k, kind, colors=1, layout="interleaved"):
    """Written from the definition (van den Oord et al. 2016, section 3.4), tap by tap."""
    mask = torch.zeros(cout, cin, k, k)
    for o in range(cout):
        for c in range(cin):
            reader, source = (o % colors, c % colors) if layout == "interleaved" else (
                o * colors // cout, c * colors // cin)  # fmt: skip
            for tap in range(k * k):
                before = tap < k * k // 2
                centre = tap == k * k // 2 and (source <= reader if kind == "B" else source < reader)
                mask[o, c, tap // k, tap % k] = before or centre
    return mask


class InPlace(nn.Conv2d):
    """The most copied one."""

    def __init__(self, mask, cin, cout, k, **options):
        super().__init__(cin, cout, k, **{"padding": k // 2, **options})
        self.register_buffer("mask", mask)

    def forward(self, x):
        self.weight.data *= self.mask
        return super().forward(x)


class InPlaceMethod(InPlace):
    def forward(self, x):
        self.weight.data.mul_(self.mask)
        return nn.Conv2d.forward(self, x)


class Assigned(InPlace):
    def forward(self, x):
        self.weight.data = self.weight.data * self.mask
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Product(InPlace):
    def forward(self, x):
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding, dilation=self.dilation)


class ConvForward(InPlace):
    forward = nn.Conv2d.forward

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, torch.mul(self.mask, weight), bias)


class MaskedAfterwards(InPlace):
    def forward(self, x):
        y = super(InPlace, self).forward(x)
        self.weight.data *= self.mask
        return y


class ReadUnmasked(InPlace):
    def forward(self, x):
        self.weight.data *= self.mask
        return super(InPlace, self).forward(x) + self.weight.sum()


class Learned(Product):
    def __init__(self, mask, *args):
        super().__init__(mask, *args)
        del self.mask
        self.mask = nn.Parameter(mask)


class LooksAtTheMask(InPlace):
    def forward(self, x):
        return F.conv2d(x, self.weight * self.mask.flip(-1), self.bias, padding=self.padding)


STYLES = [InPlace, InPlaceMethod, Assigned, Product, ConvForward]


def images(cin):
    return torch.randn(2, cin, 9, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", ["A", "B"])
@pytest.mark.parametrize(("colors", "layout"), [(1, "interleaved"), (3, "interleaved"), (3, "blocked")])
def test_the_mask_decides(style, kind, colors, layout):
    torch.manual_seed(0)
    mask = raster_mask(12, 6, 3, kind, colors, layout)
    model = nn.Sequential(style(mask, 6, 12, 3), nn.ReLU(), nn.Conv2d(12, 3, 1)).double().eval()
    fused = vidgen.fuse(model)
    assert not torch.equal(model[0].weight * model[0].mask, model[0].weight), "fusing must not call the original"
    masked, plain = vidgen.fusion_report(fused).fused
    assert masked.op == "masked_conv2d"
    assert masked.call == {"mask": kind, "colors": colors, "color_layout": layout}
    assert plain.op == "conv3d_pool3d"
    x = images(6)
    before = fused[0].weight.clone()
    with torch.no_grad():
        for _ in range(2):
            assert_same(fused(x), model(x), 1e-12)
    assert torch.equal(fused[0].weight, before), "the weight is not masked, only read in part"


def test_a_whole_pixelcnn():
    torch.manual_seed(0)
    layers = [InPlace(raster_mask(8, 1, 7, "A"), 1, 8, 7)]
    for _ in range(2):
        layers += [nn.BatchNorm2d(8), nn.ReLU(), Product(raster_mask(8, 8, 3, "B"), 8, 8, 3)]
    layers += [nn.ReLU(), InPlace(raster_mask(4, 8, 1, "B"), 8, 4, 1), InPlace(raster_mask(4, 4, 3, "B"), 4, 4, 3,
               dilation=2, padding="same", bias=False)]  # fmt: skip
    model = nn.Sequential(*layers).double().eval()
    fused = vidgen.fuse(model)
    assert [chain.op for chain in vidgen.fusion_report(fused).fused] == ["masked_conv2d"] * 5
    x = images(1)
    with torch.no_grad():
        expected = model(x)
        assert_same(fused(x), expected, 1e-12)
        assert_same(torch.compile(fused, fullgraph=True, backend="aot_eager")(x), expected, 1e-12)
        assert_same(torch.export.export(fused, (x,)).module()(x), expected, 1e-12)
        # what masked_conv2d promises: no later pixel changes an earlier output
        later = x.clone()
        later[:, :, 5:] = float("nan")
        assert torch.equal(fused(later)[:, :, :4], fused(x)[:, :, :4])
    assert set(fused.state_dict()) == set(model.state_dict())


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (InPlace(raster_mask(4, 4, 3, "B").flip(-1), 4, 4, 3), "none of the masks"),
        (InPlace(raster_mask(4, 4, 3, "B") * 0.5, 4, 4, 3), "none of the masks"),
        (InPlace(torch.ones(4, 4, 3, 3), 4, 4, 3), "none of the masks"),
        (InPlace(keep_mask((6, 6, 3, 3), "B", 2, "interleaved").float(), 6, 6, 3), "none of the masks"),
        (Product(raster_mask(4, 4, 3, "A"), 4, 4, 3, padding=0), "does not keep the size"),
        (InPlace(raster_mask(4, 4, 3, "A"), 4, 4, 3, stride=2), "stride or groups"),
        (InPlace(raster_mask(4, 4, 3, "A"), 4, 4, 3, padding_mode="reflect"), ""),
        (InPlace(raster_mask(4, 2, 3, "A"), 4, 4, 3, groups=2), "stride or groups"),
        (MaskedAfterwards(raster_mask(4, 4, 3, "A"), 4, 4, 3), "does more with 0.weight"),
        (ReadUnmasked(raster_mask(4, 4, 3, "A"), 4, 4, 3), "does more with 0.weight"),
        (LooksAtTheMask(raster_mask(4, 4, 3, "A"), 4, 4, 3), "computed"),
        (Learned(raster_mask(4, 4, 3, "A"), 4, 4, 3), "no constant mask"),
    ],
)
def test_other_masks_stay(layer, why):
    model = nn.Sequential(layer, nn.ReLU()).double().eval()
    fused = vidgen.fuse(model)
    report = vidgen.fusion_report(fused)
    assert not report.fused, str(report)
    assert re.search(why, report.left["0"]), str(report)
    x = images(layer.in_channels)
    with torch.no_grad():
        for _ in range(2):
            assert_same(fused(x), model(x), 1e-12)


def test_a_state_dict_with_another_mask_is_obeyed():
    torch.manual_seed(0)
    model = nn.Sequential(Product(raster_mask(4, 4, 3, "A"), 4, 4, 3), nn.ReLU()).double().eval()
    other = nn.Sequential(Product(raster_mask(4, 4, 3, "B").flip(-1), 4, 4, 3), nn.ReLU()).double().eval()
    fused, x = vidgen.fuse(model), images(4)
    with torch.no_grad():
        fused.load_state_dict(other.state_dict())
        assert_same(fused(x), other(x), 1e-12)
        fused.load_state_dict(model.state_dict())
        assert_same(fused(x), model(x), 1e-12)


def test_the_packed_weight_follows():
    torch.manual_seed(0)
    build = lambda: nn.Sequential(InPlace(raster_mask(16, 16, 3, "B"), 16, 16, 3)).eval()  # noqa: E731
    model, other = build(), build()
    x = images(16).float()
    fused = vidgen.fuse(model)
    assert any("packed" in name for name, _ in fused.named_buffers()), "float32 has a kernel that packs"
    with torch.no_grad():
        assert_same(fused(x), model(x), 1e-5)
        fused.load_state_dict(other.state_dict())
        assert_same(fused(x), other(x), 1e-5)
        fused[0].load_state_dict(model[0].state_dict())
        assert_same(fused(x), model(x), 1e-5)


def test_training_masks_in_place_again():
    torch.manual_seed(0)
    model = nn.Sequential(InPlace(raster_mask(4, 4, 3, "A"), 4, 4, 3)).double().eval()
    fused = vidgen.fuse(model).train()
    fused(images(4)).sum().backward()
    assert torch.equal(fused[0].weight, model[0].weight * model[0].mask)
    model.train()(images(4)).sum().backward()
    assert torch.equal(fused[0].weight.grad, model[0].weight.grad)


def test_vidgen_s_own_layers_are_taken_as_they_are():
    model = nn.Sequential(vidgen.nn.MaskedConv2d(4, 4, 3, mask="A"), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    fused = vidgen.fuse(model)
    report = vidgen.fusion_report(fused)
    assert [chain.name for chain in report.fused] == ["2"]
    assert not report.left
    assert fused[0].packed is not None
    x = images(4).float()
    assert_same(fused(x), model(x), 1e-5)
