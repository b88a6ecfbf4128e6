"""Networks of others compute what they did, in fewer calls."""

from __future__ import annotations

import copy

import pytest
import torch

import vidgen
from tests.fusion.networks import NETWORKS, assert_same, build, tensors

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def in_format(x, channels_last):
    if not channels_last:
        return x
    return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_outputs_are_the_original_s(name, dtype):
    model, x = build(name, dtype)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        expected = model(x)
        for impl in (None, "reference"):
            fused = vidgen.fuse(model, x, algorithm="direct", impl=impl)
            assert not fused.training
            for channels_last in (False, True):
                assert_same(fused(in_format(x, channels_last)), expected, TOLERANCE[dtype])
        assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_chain_is_found(name):
    model, _ = build(name)
    _, _, chains, pooled, left = NETWORKS[name]
    report = vidgen.fusion_report(vidgen.fuse(model))
    assert len(report.fused) == chains, str(report)
    assert sum(chain.call["pool"] is not None for chain in report.fused) == pooled, str(report)
    assert len(report.left) == left, str(report)
    assert not report.untraced


def test_the_calls_are_the_op_s():
    """The original's operations are gone from the graph, not only from the report."""
    model, x = build("c3d-sequential")
    fused = vidgen.fuse(model)
    with torch.no_grad():
        program = torch.export.export(fused, (x,))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert sum("vidgen.conv3d_pool3d" in name for name in called) == 8
    assert not [name for name in called if "conv3d.default" in name or "batch_norm" in name]
    # the pooling that pads
    assert sum("max_pool3d" in name for name in called) == 1


@pytest.mark.parametrize("name", ["vgg11-functional", "inception-3d", "two-heads"])
def test_compiles_and_exports(name):
    model, x = build(name)
    fused = vidgen.fuse(model, x, algorithm="direct")
    with torch.no_grad():
        expected = model(x)
        assert_same(torch.compile(fused, fullgraph=True, backend="aot_eager")(x), expected, 1e-5)
        assert_same(torch.export.export(fused, (x,)).module()(x), expected, 1e-5)


def test_images_stay_channels_last_without_copies():
    conv = torch.nn.Conv2d(3, 4, 3).eval()
    fused = vidgen.fuse(torch.nn.Sequential(conv, torch.nn.MaxPool2d(2)))
    for memory_format in (torch.contiguous_format, torch.channels_last):
        y = fused(torch.randn(2, 3, 9, 8).contiguous(memory_format=memory_format))
        assert y.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("shape", [(3, 9, 8), (0, 3, 9, 8)])
def test_no_batch_and_an_empty_one(shape):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2)).eval()
    x = torch.randn(shape)
    assert_same(vidgen.fuse(model)(x), model(x), 1e-5)


def test_example_input_tells_each_call_its_size():
    model, x = build("c3d-methods")
    report = vidgen.fusion_report(vidgen.fuse(model, x))
    sizes = [chain.input_size for chain in report.fused]
    assert sizes[:3] == [(16, 16, 16), (16, 8, 8), (8, 4, 4)]
    assert all(chain.input_size is None for chain in vidgen.fusion_report(vidgen.fuse(model)).fused)
    model, x = build("two-heads")
    sizes = {chain.name: chain.input_size for chain in vidgen.fusion_report(vidgen.fuse(model, (x,))).fused}
    assert sizes == {"backbone": (1, 10, 12), "shared": None, "objectness": None, "boxes": None}


def test_autocast_computes_in_its_dtype():
    model, x = build("vgg11-sequential")
    fused = vidgen.fuse(model, x)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        got = fused[0](x)
        whole = fused(x)
    assert got.dtype == whole.dtype == torch.bfloat16
    # 8 layers in bfloat16, whose unit roundoff is 2^-8
    assert_same(whole.float(), model(x), 8 * 2**-8)


def test_half_networks_keep_their_dtype():
    model, x = build("inception-3d")
    fused = vidgen.fuse(model.to(torch.bfloat16), x.bfloat16())
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(x.double())
        got = fused(x.bfloat16())
    assert all(t.dtype == torch.bfloat16 for t in tensors(got))
    assert_same(got.double(), expected, 4 * 2**-8)
