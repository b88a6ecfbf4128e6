"""Published networks, a few channels wide, written in the three ways in which people write networks.

C3D: Tran et al. 2015, figure 3 (pool5 pads, as in the authors' model). VGG-11: Simonyan and Zisserman 2015, table 1,
column A. 3-d ResNet: Hara et al. 2018, figure 3 (basic block). Inception: Carreira and Zisserman 2017, figure 3.
DenseNet: Huang et al. 2017, section 3 (bottleneck layers), in 3-d. Two heads on a shared convolution: Ren et al. 2015,
figure 3.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

# channels, and after some layers a pooling (window, padding)
C3D = [4, ((1, 2, 2), 0), 6, (2, 0), 8, 8, (2, 0), 12, 12, (2, 0), 12, 12, (2, (0, 1, 1))]
VGG11 = [4, (2, 0), 6, (2, 0), 8, 8, (2, 0), 12, 12, (2, 0), 12, 12, (2, 0)]


def sequential(plan, dims):
    """Modules only; batch normalisation after each convolution, ReLU in place."""
    conv, norm, pool = ((nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d), (nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d))[dims - 2]
    layers, channels = [], 3
    for step in plan:
        if isinstance(step, int):
            layers += [conv(channels, step, 3, padding=1), norm(step), nn.ReLU(inplace=True)]
            channels = step
        else:
            layers.append(pool(step[0], step[0], padding=step[1]))
    return nn.Sequential(nn.Sequential(*layers), nn.Flatten(), nn.LazyLinear(5))


class Functional(nn.Module):
    """Parameters of its own, functions of torch.nn.functional."""

    def __init__(self, plan, dims):
        super().__init__()
        self.plan, self.dims = plan, dims
        widths = [3] + [step for step in plan if isinstance(step, int)]
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(o, i, *[3] * dims) / (i * 3**dims) ** 0.5) for i, o in pairwise(widths)
        )
        self.biases = nn.ParameterList(nn.Parameter(torch.randn(o)) for o in widths[1:])

    def forward(self, x):
        convolve, pool = ((F.conv2d, F.max_pool2d), (F.conv3d, F.max_pool3d))[self.dims - 2]
        layer = 0
        for step in self.plan:
            if isinstance(step, int):
                x = F.relu(convolve(x, self.weights[layer], self.biases[layer], padding=1), inplace=layer % 2 == 0)
                layer += 1
            else:
                x = pool(x, step[0], padding=step[1])
        return x.flatten(1)


class Methods(nn.Module):
    """Layers by name, methods of tensors; pooling before ReLU where both follow."""

    def __init__(self, plan, dims):
        super().__init__()
        self.plan, self.dims = plan, dims
        conv, pool = ((nn.Conv2d, nn.MaxPool2d), (nn.Conv3d, nn.MaxPool3d))[dims - 2]
        channels = 3
        for i, step in enumerate(plan):
            if isinstance(step, int):
                setattr(self, f"conv{i}", conv(channels, step, 3, padding="same", bias=i > 0))
                channels = step
            else:
                setattr(self, f"pool{i}", pool(step[0], padding=step[1]))

    def forward(self, x):
        for i, step in enumerate(self.plan):
            if isinstance(step, int):
                x = getattr(self, f"conv{i}")(x)
                if isinstance(self.plan[i + 1], int):
                    x = x.relu_()
            else:
                x = getattr(self, f"pool{i}")(x).relu()
        return x.mean(tuple(range(2, 2 + self.dims)))


class BasicBlock(nn.Module):
    def __init__(self, cin, cout, stride=1):
        super().__init__()
        self.conv1 = nn.Conv3d(cin, cout, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm3d(cout)
        self.conv2 = nn.Conv3d(cout, cout, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(cout)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = None
        if stride != 1 or cin != cout:
            self.shortcut = nn.Sequential(nn.Conv3d(cin, cout, 1, stride, bias=False), nn.BatchNorm3d(cout))

    def forward(self, x):
        identity = x if self.shortcut is None else self.shortcut(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += identity
        return self.relu(y)


class ResNet18(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv3d(3, 4, 7, stride=(1, 2, 2), padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(4)
        widths = [4, 4, 6, 8, 10]
        self.layers = nn.ModuleList(
            nn.Sequential(BasicBlock(i, o, 1 if n == 0 else 2), BasicBlock(o, o))
            for n, (i, o) in enumerate(pairwise(widths))
        )
        self.fc = nn.Linear(10, 5)

    def forward(self, x):
        x = F.max_pool3d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for layer in self.layers:
            x = layer(x)
        return self.fc(x.mean((2, 3, 4)))


def unit(cin, cout, k):
    return nn.Sequential(nn.Conv3d(cin, cout, k, padding=k // 2, bias=False), nn.BatchNorm3d(cout, 1e-3), nn.ReLU())


class Inception(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = unit(3, 8, 3)
        self.b0 = unit(8, 4, 1)
        self.b1 = nn.Sequential(unit(8, 4, 1), unit(4, 6, 3))
        self.b2 = nn.Sequential(unit(8, 2, 1), unit(2, 4, 3))
        self.b3 = nn.Sequential(nn.MaxPool3d(3, 1, 1), unit(8, 4, 1))

    def forward(self, x):
        x = self.stem(x)
        return torch.cat([self.b0(x), self.b1(x), self.b2(x), self.b3(x)], dim=1)


class DenseLayer(nn.Module):
    def __init__(self, cin, growth):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm3d(cin), nn.Conv3d(cin, 2 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm3d(2 * growth), nn.Conv3d(2 * growth, growth, 3, padding=1, bias=False)
        self.drop = nn.Dropout3d(0.2)

    def forward(self, features):
        x = torch.cat(features, 1)
        y = self.conv1(torch.relu(self.norm1(x)))
        return self.drop(self.conv2(self.norm2(y).relu()))


class DenseNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv3d(3, 6, 3, padding=1, bias=False)
        self.block = nn.ModuleList(DenseLayer(6 + 4 * i, 4) for i in range(3))
        self.norm = nn.BatchNorm3d(18)
        self.reduce = nn.Conv3d(18, 8, 1, bias=False)

    def forward(self, x):
        features = [self.stem(x)]
        for layer in self.block:
            features.append(layer(features))
        return F.avg_pool3d(self.reduce(F.relu(self.norm(torch.cat(features, 1)))), 2)


class TwoHeads(nn.Module):
    """A head of one shared and two own convolutions, on a map and on its half."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(3, 6, 5, padding=2)
        self.shared = nn.Conv2d(6, 8, 3, padding=1)
        self.objectness, self.boxes = nn.Conv2d(8, 3, 1), nn.Conv2d(8, 12, 1)

    def forward(self, x):
        fine = F.relu(self.backbone(x))
        out = {}
        for name, level in (("fine", fine), ("coarse", F.max_pool2d(fine, 2))):
            h = F.relu(self.shared(level), inplace=True)
            out[name] = (self.objectness(h), self.boxes(h))
        return out


CLIP, IMAGE = (2, 3, 16, 16, 16), (2, 3, 32, 32)

#: name -> (constructor, input shape, chains fused, of which with pooling, convolutions left)
NETWORKS = {
    "c3d-sequential": (lambda: sequential(C3D, 3), CLIP, 8, 4, 0),
    "c3d-functional": (lambda: Functional(C3D, 3), CLIP, 8, 4, 0),
    "c3d-methods": (lambda: Methods(C3D, 3), CLIP, 8, 4, 0),
    "vgg11-sequential": (lambda: sequential(VGG11, 2), IMAGE, 8, 5, 0),
    "vgg11-functional": (lambda: Functional(VGG11, 2), IMAGE, 8, 5, 0),
    "vgg11-methods": (lambda: Methods(VGG11, 2), IMAGE, 8, 5, 0),
    "resnet18-3d": (ResNet18, (1, 3, 4, 14, 12), 13, 0, 7),
    "inception-3d": (Inception, (2, 3, 4, 9, 8), 7, 0, 0),
    "densenet-3d": (DenseNet, (2, 3, 4, 6, 7), 8, 0, 0),
    "two-heads": (TwoHeads, (2, 3, 10, 12), 7, 0, 0),
}


def randomise_norms(model, seed=0):
    """Statistics and affine parameters as after training, of either sign."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats:
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.3, 2, generator=generator)
            if module.affine:
                nn.init.normal_(module.weight, generator=generator)
                nn.init.normal_(module.bias, generator=generator)


def build(name, dtype=torch.float32):
    """(network in eval mode, input)."""
    torch.manual_seed(0)
    constructor, shape, *_ = NETWORKS[name]
    model, x = constructor().to(dtype), torch.randn(shape, dtype=dtype)
    with torch.no_grad():
        # lazy layers learn their size
        model.eval()(x)
    randomise_norms(model)
    return model, x


def tensors(output):
    """The tensors of an output of tuples and dicts, in order."""
    if isinstance(output, torch.Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output
    return [t for value in values for t in tensors(value)]


def assert_same(got, expected, tolerance):
    """Equal up to `tolerance`, relative to each tensor's root mean square."""
    got, expected = tensors(got), tensors(expected)
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        assert torch.equal(one.isnan(), other.isnan())
        error = (one - other).nan_to_num().double().norm()
        assert error <= tolerance * other.nan_to_num().double().norm(), float(error)
