"""Random networks of awkward layers: the outputs stay, and nothing is fused that the op does not compute."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vidgen
from tests.fusion.networks import assert_same, randomise_norms


def awkward_layer(rng, channels, dims):
    """(layer, whether a chain may take it whatever came before)."""
    conv, norm, pool = (
        (nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d) if dims == 3 else (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d)
    )
    kind = rng.choice("CCCNNRRPPXXI")
    if kind == "C":
        kernel = tuple(rng.choice((1, 2, 3, 4)) for _ in range(dims))
        padding = rng.choice(["same", "valid", 0, 1, tuple(rng.randint(0, k // 2) for k in kernel)])
        if padding == 1 and min(kernel) == 1 and rng.random() < 0.7:
            padding = 0
        options = {"padding": padding, "bias": rng.random() < 0.7}
        odd = rng.random()
        if odd < 0.1 and padding != "same":
            options["stride"] = rng.choice((1, 2))
        elif odd < 0.2:
            options["dilation"] = rng.choice((1, 2))
        elif odd < 0.3:
            options["groups"] = rng.choice((1, 2))
        elif odd < 0.4:
            options["padding_mode"] = rng.choice(("zeros", "replicate"))
        return conv(channels, channels, kernel, **options)
    if kind == "N":
        layer = norm(
            channels, affine=rng.random() < 0.7, track_running_stats=rng.random() < 0.8, eps=10 ** -rng.randint(2, 5)
        )
        return layer.train(rng.random() < 0.1)
    if kind == "R":
        return rng.choice([nn.ReLU(), nn.ReLU(inplace=True)])
    if kind == "P":
        window = rng.choice([2, 1, 3, (2, 1, 2)[:dims], (1, 2, 3)[-dims:]])
        stride = rng.choice([None, None, None, window, 1, 2])
        smallest = window if isinstance(window, int) else min(window)
        padding = rng.choice([0, 0, 0, smallest // 2])
        return pool(window, stride, padding=padding, ceil_mode=rng.random() < 0.4)
    if kind == "X":
        return rng.choice([nn.Tanh(), nn.LeakyReLU(), nn.Dropout(), nn.ELU(inplace=True), nn.Hardtanh()])
    return nn.Identity()


def may_be_fused(layer):
    """The op's contract, read anew."""
    if isinstance(layer, nn.modules.conv._ConvNd):
        ones = (1,) * len(layer.kernel_size)
        plain = layer.stride == ones and layer.dilation == ones and layer.groups == 1 and layer.padding_mode == "zeros"
        small = isinstance(layer.padding, str) or all(
            p < k for p, k in zip(layer.padding, layer.kernel_size, strict=True)
        )
        return plain and small
    if isinstance(layer, nn.modules.batchnorm._NormBase):
        return layer.track_running_stats and not layer.training
    if isinstance(layer, (nn.MaxPool2d, nn.MaxPool3d)):
        dims = 3 if isinstance(layer, nn.MaxPool3d) else 2
        triple = [v if isinstance(v, tuple) else (v,) * dims for v in (layer.kernel_size, layer.stride, layer.padding)]
        return triple[0] == triple[1] and not any(triple[2])
    return isinstance(layer, (nn.ReLU, nn.Identity, nn.Dropout))


KINDS = {
    "N": nn.modules.batchnorm._NormBase,
    "R": nn.ReLU,
    "P": (nn.MaxPool2d, nn.MaxPool3d),
    "-": (nn.Identity, nn.Dropout),
}


def expected_chains(layers):
    """Greedy: at each convolution that may, as many of the following as keep the order conv, norm, {ReLU, pool}."""
    chains, left, i = [], 0, 0
    while i < len(layers):
        if not isinstance(layers[i], nn.modules.conv._ConvNd):
            i += 1
            continue
        if not may_be_fused(layers[i]):
            left, i = left + 1, i + 1
            continue
        chain, seen = [i], set()
        i += 1
        while i < len(layers) and may_be_fused(layers[i]) and not isinstance(layers[i], nn.modules.conv._ConvNd):
            layer = layers[i]
            kind = next(kind for kind, types in KINDS.items() if isinstance(layer, types))
            if kind in seen or (kind == "N" and seen & {"R", "P"}):
                break
            seen |= {kind} - {"-"}
            chain.append(i)
            i += 1
        chains.append(chain)
    return chains, left


def runs(layers, x):
    """The longest prefix that runs on x, for random geometries need not fit."""
    x = x.clone()
    for i, layer in enumerate(layers):
        try:
            with torch.no_grad():
                state = {k: v.clone() for k, v in layer.state_dict().items()}
                x = layer(x)
                layer.load_state_dict(state)
        except (RuntimeError, ValueError):
            return layers[:i]
    return layers


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("block", range(5))
def test_random_sequences(dims, block):
    for seed in range(8 * block, 8 * block + 8):
        rng = random.Random(1000 * dims + seed)
        torch.manual_seed(seed)
        layers = [awkward_layer(rng, 4, dims) for _ in range(rng.randint(3, 9))]
        x = torch.randn(2, 4, *[rng.randint(6, 12) for _ in range(dims)], dtype=torch.float64)
        layers = runs([layer.double().train(isinstance(layer, nn.modules.batchnorm._NormBase) and layer.training)
                       for layer in layers], x)  # fmt: skip
        model = nn.Sequential(*layers)
        model.training = False
        randomise_norms(model, seed)
        fused = vidgen.fuse(model)
        report = vidgen.fusion_report(fused)
        chains, left = expected_chains(layers)
        got = [[int(layer.split(" ")[0]) for layer in chain.layers] for chain in report.fused]
        assert (got, len(report.left)) == (chains, left), f"{model}\n{report}"
        with torch.no_grad():
            assert_same(fused(x.clone()), model(x.clone()), 1e-11)


class Program(nn.Module):
    """A random straight-line program over functions, methods, sums and concatenations, in place or not."""

    def __init__(self, rng, dims, length):
        super().__init__()
        conv, norm = (nn.Conv3d, nn.BatchNorm3d) if dims == 3 else (nn.Conv2d, nn.BatchNorm2d)
        self.dims = dims
        self.convs = nn.ModuleList(conv(3, 3, rng.choice((1, 3)), padding="same") for _ in range(3))
        self.norms = nn.ModuleList(norm(3) for _ in range(2))
        # (operation, where its inputs stand among the results so far, choice)
        self.steps = [(rng.choice("CCCFNRrMmQS+*="), rng.random(), rng.random(), rng.random()) for _ in range(length)]

    def forward(self, x):
        results = [x]
        for operation, first, second, choice in self.steps:
            # mostly the latest, so that chains come about
            a = results[-1 if first < 0.7 else int(second * len(results))]
            b = results[int(second * len(results))]
            conv, norm = self.convs[int(choice * 3)], self.norms[int(choice * 2)]
            if operation == "C":
                y = conv(a)
            elif operation == "F":
                y = (F.conv3d if self.dims == 3 else F.conv2d)(a, conv.weight, conv.bias, 1, "same")
            elif operation == "N":
                y = norm(a)
            elif operation in "Rr":
                y = F.relu(a) if operation == "R" else a.relu()
            elif operation == "M":
                y = a.relu_() if choice < 0.5 else F.relu(a, inplace=True)
            elif operation == "m":
                y = a.mul_(0.9)
            elif operation == "Q":
                pooled = (F.max_pool3d if self.dims == 3 else F.max_pool2d)(a, 2)
                # back to the size, for the sums
                y = F.interpolate(pooled, scale_factor=2.0)
            elif operation == "S":
                y = a[:, :, ::1]
            elif operation == "+":
                y = a + b
            elif operation == "*":
                y = torch.cat([a, b], 1)[:, 1:4]
            else:
                y = a.view_as(b)
            results.append(y)
        return results[-1], sum(results[1:])


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("block", range(4))
def test_random_programs(dims, block):
    fused_chains = 0
    for seed in range(8 * block, 8 * block + 8):
        rng = random.Random(seed + 77 * dims)
        torch.manual_seed(seed)
        model = Program(rng, dims, rng.randint(3, 12)).double().eval()
        randomise_norms(model, seed)
        x = torch.randn(2, 3, *(4, 4, 6)[-dims:], dtype=torch.float64)
        fused = vidgen.fuse(model)
        fused_chains += len(vidgen.fusion_report(fused).fused)
        with torch.no_grad():
            got, expected = fused(x.clone()), model(x.clone())
        assert_same(got, expected, 1e-11)
    assert fused_chains > 4, "the programs must be of a kind that fuses"
