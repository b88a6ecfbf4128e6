"""Forwards that torch.fx would write down wrongly, and forwards that it cannot write down at all."""

# ruff: noqa: NPY002 - numpy's shared generator is one of those that are watched
from __future__ import annotations

import random
from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vidgen
from tests.fusion.networks import assert_same, randomise_norms


def block(cin=4, cout=4):
    return nn.Sequential(nn.Conv3d(cin, cout, 3, padding=1), nn.BatchNorm3d(cout), nn.ReLU(), nn.MaxPool3d((1, 2, 2)))


class Net(nn.Module):
    """A block, a loose convolution, and a forward that the test gives."""

    def __init__(self, rule=None):
        super().__init__()
        self.block, self.conv, self.rule = block(), nn.Conv3d(4, 4, 1), rule
        self.calls, self.seen, self.last = 0, [], None
        self.plain = torch.randn(4, 1, 1, 1)
        self.register_buffer("count", torch.zeros(()))
        randomise_norms(self)

    def forward(self, x):
        return self.rule(self, x)


def clip(seed=1):
    return torch.randn(2, 4, 3, 8, 9, generator=torch.Generator().manual_seed(seed))


def depends_on_values(net, x):
    y = net.block(x)
    return net.conv(y).relu() if y.sum() > 0 else -y


def counts_its_calls(net, x):
    net.calls += 1
    return net.conv(net.block(x)) * net.calls


def keeps_its_features(net, x):
    net.last = net.block(x)
    return net.conv(net.last)


def appends_to_a_list(net, x):
    net.seen.append(x)
    return net.conv(net.block(x)) + len(net.seen)


def asks_for_the_type(net, x):
    return net.block(x) if isinstance(x, torch.Tensor) else x[0]


def asks_for_the_type_later(net, x):
    y = net.block(x)
    return net.conv(y if isinstance(y, torch.Tensor) else y[0])


def draws_noise(net, x):
    return net.conv(net.block(x)) * torch.rand(())


def draws_a_path(net, x):
    return net.block(x) if random.random() < 0.5 else net.conv(x)


def autocasts_inside(net, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net.conv(x)
    return net.block(y.float())


def switches_gradients_off(net, x):
    with torch.no_grad():
        y = net.block(x)
    return net.conv(y)


def returns_an_ordered_dict(net, x):
    return OrderedDict(features=net.block(x), out=net.conv(x))


def makes_a_tensor(net, x):
    return net.block(x + torch.arange(4.0).view(4, 1, 1, 1))


def asks_whether_it_is_a_tensor(net, x):
    return net.conv(net.block(x) if torch.is_tensor(x) else x[0])


def asks_for_the_type_of_a_size(net, x):
    return net.conv(net.block(x)) * (2 if isinstance(x.shape, tuple) else 1)


def draws_from_numpy(net, x):
    return net.block(x) if np.random.rand() < 0.5 else net.conv(x)


def catching(ask):
    """A forward that answers what a stand-in refuses to."""

    def rule(net, x):
        try:
            answer = ask(net, x)
        except Exception:
            answer = 7
        return net.conv(net.block(x)) * answer

    rule.__name__ = f"catches_{ask.__name__}"
    return rule


@catching
def an_int(_net, x):
    return int(x.shape[2])


@catching
def a_float(_net, x):
    return float(x.ndim)


@catching
def a_range(_net, x):
    return sum(1 for _ in range(x.shape[2]))


@catching
def a_length(_net, x):
    return len(x)


@catching
def an_array(_net, x):
    return int(np.asarray(x.shape).sum())


@catching
def a_decision(_net, x):
    return 2 if x.shape[2] == 3 else 3


@catching
def a_type(_net, x):
    return 2 if isinstance(x, torch.Tensor) else 3


@catching
def a_loop(_net, x):
    return sum(1 for _ in x)


def loops_over_frames(net, x):
    return torch.stack([net.block(x[:, :, t : t + 1]) for t in range(x.shape[2])])


# those whose own forward stays Python; the block is fused in each
UNTRACED = [
    depends_on_values, counts_its_calls, keeps_its_features, appends_to_a_list, asks_for_the_type,
    asks_for_the_type_later, draws_noise, draws_a_path, autocasts_inside, switches_gradients_off,
    returns_an_ordered_dict, makes_a_tensor, loops_over_frames, asks_whether_it_is_a_tensor,
    asks_for_the_type_of_a_size, draws_from_numpy, an_int, a_float, a_range, a_length, an_array, a_decision, a_type,
    a_loop,
]  # fmt: skip


@pytest.mark.parametrize("rule", UNTRACED, ids=lambda rule: rule.__name__)
def test_such_a_forward_stays_python_and_its_parts_are_fused(rule):
    model = Net(rule).eval()
    state = dict(vars(model))
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    drawn = torch.get_rng_state(), random.getstate(), np.random.get_state()[1:3]
    fused = vidgen.fuse(model)
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert random.getstate() == drawn[1]
    assert np.array_equal(np.random.get_state()[1], drawn[2][0])
    assert np.random.get_state()[2] == drawn[2][1]
    assert vars(model) == state
    assert (fused.calls, fused.seen, fused.last) == (0, [], None)
    report = vidgen.fusion_report(fused)
    assert "" in report.untraced
    assert {chain.name: len(chain.layers) for chain in report.fused} == {"block.0": 4, "conv": 1}
    # the sum of the second is negative
    for x in (clip(), -clip(2)):
        outputs = []
        for net in (fused, model):
            torch.manual_seed(5)
            random.seed(5)
            np.random.seed(5)
            outputs.append(net(x))
        assert type(outputs[0]) is type(outputs[1])
        assert_same(outputs[0], outputs[1], 1e-5)
        assert outputs[0].requires_grad == outputs[1].requires_grad if isinstance(outputs[0], torch.Tensor) else True
    assert (fused.calls, len(fused.seen)) == (model.calls, len(model.seen))


Pair = namedtuple("Pair", "one other")


def returns_a_named_tuple(net, x):
    return Pair(net.block(x), net.conv(x))


def adds_a_plain_tensor(net, x):
    return net.conv(net.block(x + net.plain))


def counts_in_a_buffer(net, x):
    net.count += 1
    return net.conv(net.block(x)) * net.count


def slices_and_reshapes(net, x):
    n, c = x.shape[:2]
    return net.block(x.reshape(n, c, 3, 8, 9))[:, :, ::2].flatten(2).transpose(1, 2)


@pytest.mark.parametrize(
    "rule", [returns_a_named_tuple, adds_a_plain_tensor, counts_in_a_buffer, slices_and_reshapes],
    ids=lambda rule: rule.__name__,
)  # fmt: skip
def test_forwards_that_are_graphs(rule):
    model = Net(rule).eval()
    fused = vidgen.fuse(model, clip())
    for _ in range(2):
        got, expected = fused(clip()), model(clip())
        assert type(got) is type(expected)
        assert_same(got, expected, 1e-5)
    # an assignment to self makes the forward Python; the others are traced
    assert bool(vidgen.fusion_report(fused).untraced) == (rule is counts_in_a_buffer)


class Optional(nn.Module):
    """With an argument whose presence changes what is computed."""

    def __init__(self):
        super().__init__()
        self.block = block()

    def forward(self, x, mask=None, *, scale=1.0):
        if mask is not None:
            x = x * mask
        return self.block(x) * scale


def test_optional_arguments_count():
    model, x, mask = Optional().eval(), clip(), clip(2)
    fused = vidgen.fuse(model)
    assert not vidgen.fusion_report(fused).untraced
    for args, kwargs in [((x,), {}), ((), {"x": x}), ((x, mask), {}), ((x,), {"mask": mask}), ((x,), {"scale": 2.0})]:
        assert_same(fused(*args, **kwargs), model(*args, **kwargs), 1e-5)
    with pytest.raises(TypeError, match="unexpected keyword"):
        fused(x, masks=mask)
    with pytest.raises(TypeError, match="missing"):
        fused()


class Required(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = block()

    def forward(self, x, mask):
        return self.block(x if mask is None else x * mask)


def test_none_for_a_required_argument():
    model, x = Required().eval(), clip()
    fused = vidgen.fuse(model)
    assert_same(fused(x, clip(2)), model(x, clip(2)), 1e-5)
    assert_same(fused(x, None), model(x, None), 1e-5)


class Listing(nn.Module):
    """Clips at two rates, in a list."""

    def __init__(self):
        super().__init__()
        self.slow, self.fast = block(), block()

    def forward(self, clips):
        return self.slow(clips[0]), self.fast(clips[1])


def test_inputs_in_a_list():
    model, clips = Listing().eval(), [clip(), clip(2)]
    fused = vidgen.fuse(model, (clips,))
    report = vidgen.fusion_report(fused)
    assert len(report.fused) == 2
    assert not report.untraced
    assert report.fused[0].input_size == (3, 8, 9)
    assert_same(fused(clips), model(clips), 1e-5)


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = block()

    def forward(self, x):
        return self.inner(x) if x.mean() > 100 else self.inner(-x)


def test_only_what_cannot_be_traced_stays_python():
    model = nn.Sequential(block(), Untraceable(), nn.Conv3d(4, 4, 1), nn.ReLU()).eval()
    randomise_norms(model)
    fused = vidgen.fuse(model)
    report = vidgen.fusion_report(fused)
    assert list(report.untraced) == ["1"]
    assert "depends on the values" in report.untraced["1"]
    assert {chain.name: len(chain.layers) for chain in report.fused} == {"0.0": 4, "1.inner.0": 4, "2": 2}
    assert_same(fused(clip()), model(clip()), 1e-5)


def test_what_goes_wrong_counts_where_it_went_wrong():
    class Catching(nn.Module):
        """Around a part whose own forward cannot be traced, nor that of its only part."""

        def __init__(self):
            super().__init__()
            self.inner = Untraceable()

        def forward(self, x):
            try:
                with torch.no_grad():
                    return self.inner(x)
            except Exception:
                return x

    model = nn.Sequential(block(), Catching(), nn.Conv3d(4, 4, 1)).eval()
    randomise_norms(model)
    fused = vidgen.fuse(model)
    report = vidgen.fusion_report(fused)
    assert report.untraced == {
        "1": "it switches gradients or autocast on or off",
        "1.inner": "its control flow depends on the values of tensors",
    }
    assert {chain.name: len(chain.layers) for chain in report.fused} == {"0.0": 4, "1.inner.inner.0": 4, "2": 1}
    for x in (clip(), clip() + 200):
        assert_same(fused(x), model(x), 1e-5)


def test_one_module_in_two_places():
    shared = block()

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other, self.mixed = shared, shared, Untraceable()
            self.mixed.inner = shared

        def forward(self, x):
            return self.mixed(self.other(self.one(x)))

    model, x = Twice().eval(), torch.randn(1, 4, 2, 16, 16)
    randomise_norms(model)
    fused = vidgen.fuse(model, x)
    assert fused.one is fused.other
    assert fused.one is fused.mixed.inner
    assert_same(fused(x), model(x), 1e-5)
    other = Twice().eval()
    fused.load_state_dict(other.state_dict())
    with torch.no_grad():
        assert_same(fused(x), other(x), 1e-5)


def doubled(kind):
    class Doubled(kind):
        def __call__(self, x):
            return super().__call__(x) * 2

    return Doubled


class Switch(nn.Module):
    def forward(self, x):
        return x if x.mean() > 100 else -x


@pytest.mark.parametrize(
    ("layer", "fused"),
    [
        (doubled(nn.Conv3d)(4, 4, 1), ["0.0", "1"]),
        (doubled(nn.ReLU)(), ["0.0"]),
        (doubled(nn.Linear)(9, 9), ["0.0"]),
        # these are no layers: one is traced through its __call__, the other is not traced at all
        (doubled(nn.Sequential)(nn.Conv3d(4, 4, 1), nn.ReLU()), ["0.0", "1.0"]),
        (doubled(Switch)(), ["0.0"]),
    ],
    ids=["conv", "relu", "linear", "sequential", "untraceable"],
)
@pytest.mark.parametrize("deep", [False, True])
def test_a_call_of_its_own_is_done_once(layer, fused, deep):
    model = nn.Sequential(nn.Sequential(nn.Conv3d(4, 4, 1), nn.BatchNorm3d(4)), layer).eval()
    randomise_norms(model)
    if deep:
        model = nn.Sequential(nn.Conv3d(4, 4, 1), model, nn.Conv3d(4, 4, 1)).eval()
        fused = ["0", *(f"1.{name}" for name in fused), "2"]
    got = vidgen.fuse(model)
    assert_same(got(clip()), model(clip()), 1e-5)
    report = vidgen.fusion_report(got)
    assert sorted(chain.name for chain in report.fused) == fused
    if not isinstance(layer, nn.Sequential):
        assert report.untraced["1" if deep else ""] == "1 (Doubled) has a __call__ of its own"


def test_a_scripted_part_is_left():
    model = nn.Sequential(torch.jit.script(nn.Sequential(nn.Conv3d(4, 4, 1)).eval()), nn.Conv3d(4, 4, 1)).eval()
    fused = vidgen.fuse(model)
    assert [chain.name for chain in vidgen.fusion_report(fused).fused] == ["1"]
    assert_same(fused(clip()), model(clip()), 1e-5)


def test_methods_and_attributes_stay():
    class Classifier(nn.Module):
        threshold = 0.5

        def __init__(self):
            super().__init__()
            self.features = block()

        def forward(self, x):
            return self.features(x).mean((2, 3, 4))

        def predict(self, x):
            return self(x).argmax(1)

    model = Classifier().eval()
    fused = vidgen.fuse(model)
    assert isinstance(fused, Classifier)
    assert fused.threshold == 0.5
    assert isinstance(fused.features[0], nn.Conv3d)
    assert torch.equal(fused.predict(clip()), model.predict(clip()))


def test_models_that_fuse_nothing():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    fused = vidgen.fuse(model)
    x = torch.randn(2, 4)
    assert torch.equal(fused(x), model(x))
    assert str(vidgen.fusion_report(fused)).endswith("0 fused, 0 left as they are")


def test_messages():
    with pytest.raises(TypeError, match=r"module must be a torch\.nn\.Module, got int"):
        vidgen.fuse(3)
    with pytest.raises(TypeError, match=r"fused must be a module that vidgen\.fuse returned, got Sequential"):
        vidgen.fusion_report(block())
    with pytest.raises(ValueError, match="algorithm must be 'auto' or 'direct', got 'fast'"):
        vidgen.fuse(block(), algorithm="fast")
    with pytest.raises(ValueError, match=r"impl must be one of \['cpu', .*\] or None, got 'nope'"):
        vidgen.fuse(block(), impl="nope")
    with pytest.raises(ValueError, match="not fused yet"):
        vidgen.fuse(vidgen.fuse(block()))


def test_the_report_prints_a_table():
    model = nn.Sequential(block(), nn.Conv3d(4, 4, 3, stride=2)).eval()
    report = vidgen.fusion_report(vidgen.fuse(model, clip()))
    lines = str(report).splitlines()
    row = "0.0 conv3d_pool3d + 0.1 (BatchNorm3d) + 0.2 (ReLU) + 0.3 (MaxPool3d) followed by 1 (Conv3d)"
    assert " ".join(lines[1].split()) == row
    assert lines[2].split() == ["1", "left", "stride", "is", "(2,", "2,", "2)"]
    assert lines[3] == "1 fused, 1 left as they are"
    assert report.as_dict()["fused"][0]["call"]["pool"] == (1, 2, 2)
    assert report.as_dict()["left"] == {"1": "stride is (2, 2, 2)"}


def test_functions_of_torch_and_of_functional_are_one():
    class Functions(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4, 3, 3, 3))

        def forward(self, x):
            y = torch.max_pool3d(torch.relu(torch.conv3d(x, self.weight)), (1, 2, 2))
            return F.relu_(F.conv3d(y, self.weight, padding=2))

    model = Functions().eval()
    fused = vidgen.fuse(model)
    assert [len(chain.layers) for chain in vidgen.fusion_report(fused).fused] == [3, 2]
    assert_same(fused(clip()), model(clip()), 1e-5)
