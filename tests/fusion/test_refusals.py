"""What the op does not compute stays what it is, and the report says why."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

import vidgen
from tests.fusion.networks import assert_same, randomise_norms


def check(model, x, tolerance=1e-12):
    """Fuses, compares outputs, returns the report."""
    model, x = model.double().eval(), x.double()
    fused = vidgen.fuse(model)
    with torch.no_grad():
        # twice each: what is written to in place shows at the second call
        for _ in range(2):
            assert_same(fused(x.clone()), model(x.clone()), tolerance)
    return vidgen.fusion_report(fused)


def clip():
    torch.manual_seed(1)
    return torch.randn(2, 4, 5, 8, 9)


def conv(**options):
    return nn.Conv3d(4, 4, **{"kernel_size": 3, "padding": 1, **options})


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (conv(stride=2), r"stride is \(2, 2, 2\)"),
        (conv(stride=(1, 2, 1)), r"stride is \(1, 2, 1\)"),
        (conv(dilation=2, padding=2), r"dilation is \(2, 2, 2\)"),
        (conv(groups=2), "groups is 2"),
        (conv(kernel_size=(1, 1, 9), padding=(0, 0, 4)), "more than 7 taps"),
        (conv(kernel_size=1), "padding .* not smaller than the kernel"),
        (conv(padding=(1, 3, 1)), "padding .* not smaller than the kernel"),
        (conv(padding_mode="reflect"), "padding_mode is 'reflect'"),
        (conv(padding_mode="circular", padding="same"), "padding_mode is 'circular'"),
        (nn.ConvTranspose3d(4, 4, 3), "neither a Conv2d nor a Conv3d"),
        (weight_norm(conv()), "it has hooks"),
        (spectral_norm(conv()), "it has hooks"),
        (parametrizations.weight_norm(conv()), "its weight is parametrized"),
        (parametrizations.spectral_norm(conv()), "its weight is parametrized"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_convolutions_the_op_does_not_compute(layer, why):
    report = check(nn.Sequential(layer, nn.BatchNorm3d(4), nn.ReLU()), clip())
    assert not report.fused
    assert list(report.left) == ["0"]
    assert re.search(why, report.left["0"])


def with_hook(layer, register):
    getattr(layer, register)(lambda *args: None)
    return layer


@pytest.mark.parametrize(
    ("layers", "fused", "ends"),
    [
        ([nn.MaxPool3d(2)], ["MaxPool3d"], "returned"),
        ([nn.MaxPool3d(2, 1)], [], r"has stride 1"),
        ([nn.MaxPool3d(2, (2, 2, 1))], [], r"has stride \(2, 2, 1\)"),
        ([nn.MaxPool3d(2, 2, padding=1)], [], "has padding"),
        ([nn.MaxPool3d(2, 2, dilation=2)], [], "has dilation"),
        ([nn.MaxPool3d((1, 5, 1))], [], "more than 4"),
        ([nn.MaxPool3d(2, return_indices=True)], [], "returns indices"),
        ([nn.AvgPool3d(2)], [], "followed by 1"),
        ([nn.MaxPool3d((2, 3, 4), ceil_mode=True)], ["MaxPool3d"], "returned"),
        ([nn.MaxPool3d((1, 2, 1)), nn.ReLU()], ["MaxPool3d", "ReLU"], "returned"),
        ([nn.MaxPool3d((1, 2, 1)), nn.MaxPool3d((2, 1, 1))], ["MaxPool3d"], "second"),
        ([nn.MaxPool3d(2), nn.BatchNorm3d(4)], ["MaxPool3d"], "comes after"),
        ([nn.ReLU(), nn.BatchNorm3d(4)], ["ReLU"], "comes after"),
        ([nn.BatchNorm3d(4), nn.BatchNorm3d(4)], ["BatchNorm3d"], "comes after"),
        ([nn.BatchNorm3d(4, eps=0), nn.ReLU()], ["BatchNorm3d", "ReLU"], "returned"),
        ([nn.BatchNorm3d(4, affine=False), nn.ReLU()], ["BatchNorm3d", "ReLU"], "returned"),
        ([nn.BatchNorm3d(4, track_running_stats=False), nn.ReLU()], [], "statistics of the batch"),
        ([nn.BatchNorm3d(4), nn.ReLU(), nn.ReLU()], ["BatchNorm3d", "ReLU"], "second"),
        ([nn.InstanceNorm3d(4), nn.ReLU()], [], "InstanceNorm3d"),
        ([nn.LeakyReLU(), nn.MaxPool3d(2)], [], "LeakyReLU"),
        ([nn.ReLU6(), nn.MaxPool3d(2)], [], "ReLU6"),
        ([nn.Dropout3d(), nn.ReLU(), nn.Identity(), nn.MaxPool3d(2)], ["Dropout3d", "ReLU", "Identity", "MaxPool3d"],
         "returned"),
        ([vidgen.nn.Dropout(), nn.ReLU()], ["Dropout", "ReLU"], "returned"),
        ([nn.Softmax(1), nn.ReLU()], [], "Softmax"),
        ([with_hook(nn.ReLU(), "register_forward_hook")], [], "hooks"),
        ([with_hook(nn.BatchNorm3d(4), "register_forward_pre_hook"), nn.ReLU()], [], "hooks"),
        ([nn.ReLU(), with_hook(nn.MaxPool3d(2), "register_full_backward_hook")], ["ReLU"], "hooks"),
    ],
)  # fmt: skip
def test_how_far_a_chain_goes(layers, fused, ends):
    model = nn.Sequential(conv(), *layers)
    randomise_norms(model)
    if isinstance(layers[0], nn.MaxPool3d) and layers[0].return_indices:
        x = clip().double()
        expected, got = model.double().eval()(x), vidgen.fuse(model)(x)
        assert_same(got[0], expected[0], 1e-12)
        assert torch.equal(got[1], expected[1])
        report = vidgen.fusion_report(vidgen.fuse(model))
    else:
        report = check(model, clip())
    (chain,) = report.fused
    assert [layer.split("(")[1][:-1] for layer in chain.layers[1:]] == fused
    assert re.search(ends, chain.ends)


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_convolution_with_hooks_is_left_and_they_run(register):
    model = nn.Sequential(conv(), nn.ReLU()).eval()
    calls = []
    getattr(model[0], register)(lambda *args: calls.append(1))
    fused = vidgen.fuse(model)
    assert vidgen.fusion_report(fused).left == {"0": "it has hooks"}
    fused(clip())
    assert calls == [1]


def test_a_hook_of_a_block_runs_and_the_block_is_fused_inside():
    model = nn.Sequential(nn.Sequential(conv(), nn.ReLU()), nn.MaxPool3d(2)).eval()
    model[0].register_forward_hook(lambda module, args, output: output + 1)
    report = check(model, clip())
    assert [chain.layers for chain in report.fused] == [["0.0 (Conv3d)", "0.1 (ReLU)"]]
    assert report.untraced == {"0": "it has hooks"}


class Net(nn.Module):
    """Two convolutions, a normalisation and a pooling, in a forward that the test gives."""

    def __init__(self, rule):
        super().__init__()
        self.a, self.b, self.norm, self.pool = conv(), conv(), nn.BatchNorm3d(4), nn.MaxPool3d(2)
        self.relu = nn.ReLU(inplace=True)
        self.rule = rule
        randomise_norms(self)

    def forward(self, x):
        return self.rule(self, x)


def used_before_and_after_relu(net, x):
    y = net.a(x)
    z = net.relu(y)
    return y + z


def in_place_relu_of_a_view(net, x):
    y = net.a(x)
    view = y[:, :2]
    view.relu_()
    return net.pool(y)


def relu_result_thrown_away(net, x):
    y = net.a(x)
    F.relu(y, inplace=True)
    return net.pool(y)


def in_place_on_the_input_between(net, x):
    y = net.a(x)
    x.mul_(2)
    return net.pool(net.relu(y)), x + 1


def in_place_addition(net, x):
    y = net.norm(net.a(x))
    y += x
    return net.relu(y)


def residual(net, x):
    y = net.norm(net.a(x))
    return net.relu(net.b(net.relu(y)) + y)


def sum_of_itself(net, x):
    y = net.a(x)
    return F.relu(y + y)


def pool_twice(net, x):
    y = F.relu(net.a(x))
    return torch.cat([net.pool(y), F.max_pool3d(y, 2)], 1)


def shared_convolution(net, x):
    return net.pool(net.relu(net.a(F.relu(net.a(x)))))


def shared_norm(net, x):
    return net.norm(net.b(net.norm(net.a(x)).relu()))


def a_scalar_between(net, x):
    return net.pool(net.a(x) * 0.5)


def weight_changed_on_the_way(net, x):
    y = F.conv3d(x, net.a.weight * 0.5, net.a.bias, padding=1)
    return F.relu(net.a(y))


def weight_written_to(net, x):
    net.a.weight.data.clamp_(-0.05, 0.05)
    return F.relu(net.a(x))


def conv_as_filter(net, x):
    return F.relu(F.conv3d(x, net.b.weight, None, 1, 1)) + F.conv3d(x, net.b.weight, padding=1).relu()


def kernel_from_the_input(net, x):
    return F.conv3d(x, x[:1, :, :3, :3, :3], padding=1).relu()


def pool_with_computed_window(net, x):
    return F.max_pool3d(net.a(x), x.shape[2] - 3)


def functional_dropout(net, x):
    return F.relu(F.dropout(net.a(x), 0.5, net.training))


def functional_norm(net, x):
    n = net.norm
    return F.relu(F.batch_norm(net.a(x), n.running_mean, n.running_var, n.weight, n.bias, eps=n.eps))


def functional_norm_of_the_batch(net, x):
    return F.relu(F.batch_norm(net.a(x), None, None, training=True))


def keyword_calls(net, x):
    return F.max_pool3d(input=F.relu(input=F.conv3d(input=x, weight=net.a.weight, bias=net.a.bias)), kernel_size=2)


def strided_pool_function(net, x):
    return F.max_pool3d(net.a(x), 2, stride=1).relu()


# rule -> the layers of its chains, and how many convolutions are left
RULES = {
    used_before_and_after_relu: (["a"], 0),
    in_place_relu_of_a_view: (["a"], 0),
    relu_result_thrown_away: (["a"], 0),
    in_place_on_the_input_between: (["a+relu+pool"], 0),
    in_place_addition: (["a+norm"], 0),
    residual: (["a+norm", "b"], 0),
    sum_of_itself: (["a"], 0),
    pool_twice: (["a+relu"], 0),
    shared_convolution: (["a+relu", "a+relu+pool"], 0),
    shared_norm: (["a+norm+relu", "b+norm"], 0),
    a_scalar_between: (["a"], 0),
    weight_changed_on_the_way: ([], 2),
    weight_written_to: ([], 1),
    conv_as_filter: (["b+relu", "b+relu"], 0),
    kernel_from_the_input: ([], 1),
    pool_with_computed_window: (["a"], 0),
    functional_dropout: (["a"], 0),
    functional_norm: (["a+batch_norm+relu"], 0),
    functional_norm_of_the_batch: (["a"], 0),
    keyword_calls: (["a+relu+max_pool3d"], 0),
    strided_pool_function: (["a"], 0),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_data_flow(rule):
    model = Net(rule)
    report = check(model, clip())
    chains, left = RULES[rule]
    assert ["+".join(layer.split(" ")[0] for layer in chain.layers) for chain in report.fused] == chains, str(report)
    unused = [why for why in report.left.values() if why == "no forward that is traced calls it"]
    assert len(report.left) - len(unused) == left, str(report)


def test_a_norm_in_train_mode_is_left_and_still_learns():
    model = nn.Sequential(conv(), nn.BatchNorm3d(4), nn.ReLU(), conv(), nn.BatchNorm3d(4), nn.ReLU()).eval()
    randomise_norms(model)
    model[1].train()
    x = clip()
    before = model[1].running_mean.clone()
    fused = vidgen.fuse(model, x)
    assert torch.equal(fused[1].running_mean, before), "the example must not count"
    report = vidgen.fusion_report(fused)
    assert [len(chain.layers) for chain in report.fused] == [1, 3]
    assert "train mode" in report.fused[0].ends
    assert_same(fused(x), model(x), 1e-5)
    assert_same(fused[1].running_mean, model[1].running_mean, 1e-5)
    assert not torch.equal(fused[1].running_mean, before)
    # once it is in eval mode what was traced is no longer so
    assert_same(fused.eval()(x), model.eval()(x), 1e-5)


def test_mixed_dimensions_do_not_match():
    x = torch.randn(2, 4, 8, 9)

    class Lifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.pool = nn.Conv2d(4, 4, 3), nn.MaxPool3d((1, 2, 2))

        def forward(self, x):
            return self.pool(self.conv(x))

    # (N, C, H, W) taken as an unbatched clip: pools H and W all the same, but is another layer
    report = check(Lifted(), x)
    assert report.fused[0].layers == ["conv (Conv2d)"]
    assert "pools 3 axes" in report.fused[0].ends


def test_nan_and_infinity_come_through():
    x = clip().double()
    x[0, 0, 2, 3, 3], x[1, 1, 0, 0, 0] = float("nan"), float("inf")
    model = nn.Sequential(conv(), nn.BatchNorm3d(4), nn.ReLU(), nn.MaxPool3d(2)).double().eval()
    randomise_norms(model)
    assert_same(vidgen.fuse(model)(x), model(x), 1e-12)


@pytest.mark.parametrize(
    "name",
    ["_fused_0_packed", "_inputs", "_packs", "_modes", "_packed_names", "_masks_hold", "_graph_forward",
     "_drop_packed"],
)  # fmt: skip
def test_attributes_of_the_user_keep_their_names(name):
    class Named(nn.Sequential):
        def forward(self, x):
            return super().forward(x) * getattr(self, name, 1.0)

    model = Named(nn.Sequential(conv(), nn.ReLU()))
    model.register_buffer(name, torch.full((), 3.0))
    # inside another module's graph nothing is added to it
    for around in (model, nn.Sequential(model)):
        report = check(around, clip())
        assert [len(chain.layers) for chain in report.fused] == [2]
        assert list(report.untraced) == ([""] if around is model else [])
        assert all(f"an attribute {name!r}" in why for why in report.untraced.values())
        assert name in vidgen.fuse(model).state_dict()


def test_methods_of_the_user_keep_their_names():
    class Loading(nn.Sequential):
        def _loaded(self):
            return 7

    fused = vidgen.fuse(Loading(nn.Sequential(conv(), nn.ReLU())))
    assert fused._loaded() == 7
    assert "'_loaded'" in vidgen.fusion_report(fused).untraced[""]
    assert len(vidgen.fusion_report(fused).fused) == 1
