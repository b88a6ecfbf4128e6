"""Networks of others at their published widths, in plain PyTorch, for bench_fusion.

C3D: Tran et al. 2015, figure 3. 3-d ResNet-18: Hara et al. 2018, figure 3, stem as in table 1 there. R(2+1)D-18: Tran
et al. 2018, section 3.5. I3D: Carreira and Zisserman 2017, figure 3, with the widths of GoogLeNet (Szegedy et al.
2015, table 1). VGG-16: Simonyan and Zisserman 2015, table 1, column D.
3-d DenseNet-121: Huang et al. 2017, table 1, inflated. All without their classifiers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

Kernel = int | tuple[int, int, int]


def _unit(cin: int, cout: int, kernel: Kernel, stride: Kernel = 1) -> nn.Sequential:
    """Convolution that keeps the size (at stride 1), batch normalisation, ReLU."""
    taps = (kernel,) * 3 if isinstance(kernel, int) else kernel
    around = (taps[0] // 2, taps[1] // 2, taps[2] // 2)
    return nn.Sequential(
        nn.Conv3d(cin, cout, taps, stride, padding=around, bias=False), nn.BatchNorm3d(cout), nn.ReLU(inplace=True)
    )


def _plain(plan: Sequence[Any], dims: int) -> nn.Sequential:
    """3×3(×3) convolutions of so many channels with ReLU; a tuple is a pooling window."""
    conv: Any = (nn.Conv2d, nn.Conv3d)[dims - 2]
    pool: Any = (nn.MaxPool2d, nn.MaxPool3d)[dims - 2]
    layers: list[nn.Module] = []
    channels = 3
    for step in plan:
        if isinstance(step, tuple):
            layers.append(pool(step))
        else:
            layers += [conv(channels, step, 3, padding=1), nn.ReLU(inplace=True)]
            channels = step
    return nn.Sequential(*layers)


def c3d() -> nn.Module:
    two = (2, 2, 2)
    return _plain([64, (1, 2, 2), 128, two, 256, 256, two, 512, 512, two, 512, 512, two], 3)


def vgg16() -> nn.Module:
    two = (2, 2)
    return _plain([64, 64, two, 128, 128, two, *[256] * 3, two, *[512] * 3, two, *[512] * 3, two], 2)


class _Residual(nn.Module):
    """A basic block; `convolve` makes its two convolutions, the second without a ReLU."""

    def __init__(self, cin: int, cout: int, stride: int, convolve: Callable[..., nn.Sequential]) -> None:
        super().__init__()
        self.first, self.second = convolve(cin, cout, stride), convolve(cout, cout, 1)[:-1]
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or cin != cout:
            self.shortcut = nn.Sequential(nn.Conv3d(cin, cout, 1, stride, bias=False), nn.BatchNorm3d(cout))

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.second(self.first(x)) + self.shortcut(x))


def _residual(stem: Sequence[nn.Module], convolve: Callable[..., nn.Sequential]) -> nn.Module:
    layers = list(stem)
    for cin, cout in pairwise([64, 64, 128, 256, 512]):
        stride = 1 if cin == cout else 2
        layers += [_Residual(cin, cout, stride, convolve), _Residual(cout, cout, 1, convolve)]
    return nn.Sequential(*layers)


def _factorised(cin: int, cout: int, stride: int) -> nn.Sequential:
    """In space, then in time, with as many parameters as 3×3×3 has."""
    between = 27 * cin * cout // (9 * cin + 3 * cout)
    return nn.Sequential(
        *_unit(cin, between, (1, 3, 3), (1, stride, stride)), *_unit(between, cout, (3, 1, 1), (stride, 1, 1))
    )


def resnet18() -> nn.Module:
    return _residual([_unit(3, 64, 7, (1, 2, 2)), nn.MaxPool3d(3, 2, 1)], lambda i, o, s: _unit(i, o, 3, s))


def r2plus1d18() -> nn.Module:
    return _residual([_unit(3, 45, (1, 7, 7), (1, 2, 2)), _unit(45, 64, (3, 1, 1))], _factorised)


class _Inception(nn.Module):
    def __init__(self, cin: int, one: int, three: tuple[int, int], five: tuple[int, int], pooled: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                _unit(cin, one, 1),
                nn.Sequential(_unit(cin, three[0], 1), _unit(*three, 3)),
                nn.Sequential(_unit(cin, five[0], 1), _unit(*five, 3)),
                nn.Sequential(nn.MaxPool3d(3, 1, 1), _unit(cin, pooled, 1)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def i3d() -> nn.Module:
    return nn.Sequential(
        _unit(3, 64, 7, 2),
        nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        _unit(64, 64, 1),
        _unit(64, 192, 3),
        nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        _Inception(192, 64, (96, 128), (16, 32), 32),
        _Inception(256, 128, (128, 192), (32, 96), 64),
        nn.MaxPool3d(3, 2, 1),
        _Inception(480, 192, (96, 208), (16, 48), 64),
        _Inception(512, 160, (112, 224), (24, 64), 64),
        _Inception(512, 128, (128, 256), (24, 64), 64),
        _Inception(512, 112, (144, 288), (32, 64), 64),
        _Inception(528, 256, (160, 320), (32, 128), 128),
        nn.MaxPool3d(2),
        _Inception(832, 256, (160, 320), (32, 128), 128),
        _Inception(832, 384, (192, 384), (48, 128), 128),
    )


class _DenseLayer(nn.Module):
    def __init__(self, cin: int, growth: int) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.BatchNorm3d(cin), nn.ReLU())
        self.narrow, self.grow = _unit(cin, 4 * growth, 1), nn.Conv3d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.grow(self.narrow(self.before(x)))], 1)


def densenet121() -> nn.Module:
    channels, growth, blocks = 64, 32, (6, 12, 24, 16)
    layers: list[nn.Module] = [_unit(3, channels, 7, (1, 2, 2)), nn.MaxPool3d(3, 2, 1)]
    for i, count in enumerate(blocks):
        for _ in range(count):
            layers.append(_DenseLayer(channels, growth))
            channels += growth
        layers += [nn.BatchNorm3d(channels), nn.ReLU()]
        if i + 1 < len(blocks):
            layers += [nn.Conv3d(channels, channels // 2, 1, bias=False), nn.AvgPool3d(2)]
            channels //= 2
    return nn.Sequential(*layers)


_CLIP, _IMAGE = (1, 3, 16, 112, 112), (1, 3, 224, 224)

#: name -> (title, constructor, input shape)
NETWORKS: dict[str, tuple[str, Callable[[], nn.Module], tuple[int, ...]]] = {
    "c3d": ("C3D", c3d, _CLIP),
    "resnet18-3d": ("3-d ResNet-18", resnet18, _CLIP),
    "r2plus1d18": ("R(2+1)D-18", r2plus1d18, _CLIP),
    "i3d": ("I3D", i3d, _CLIP),
    "densenet121-3d": ("3-d DenseNet-121", densenet121, _CLIP),
    "vgg16": ("VGG-16", vgg16, _IMAGE),
}


def prepared(name: str) -> nn.Module:
    """The network in eval mode, its statistics as after training, no layer's output growing or shrinking much."""
    generator = torch.Generator().manual_seed(0)
    network = NETWORKS[name][1]()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, std=(2 / fan_in) ** 0.5, generator=generator)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1, generator=generator)
        elif isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2, generator=generator)
            nn.init.normal_(module.get_buffer("running_mean"), std=0.1, generator=generator)
    return network.eval()
