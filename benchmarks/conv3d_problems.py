"""The shapes that bench_conv3d_pool3d measures, and how much arithmetic and traffic they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

Size = tuple[int, int, int]  # depth, height, width

_FIELDS = ("n", "cin", "depth", "height", "width")


@dataclass(frozen=True)
class Layer:
    """One call of the op: 'same' padding, odd kernel, with bias."""

    cout: int
    kernel: Size = (3, 3, 3)
    pool: Size = (1, 1, 1)
    activation: Literal["relu", "identity"] = "relu"
    ceil_mode: bool = False

    @property
    def pools(self) -> bool:
        return self.pool != (1, 1, 1)

    def output_size(self, size: Size) -> Size:
        depth, height, width = (-(-s // k) if self.ceil_mode else s // k for s, k in zip(size, self.pool, strict=True))
        return depth, height, width

    def products(self, cin: int, size: Size, *, in_padding: bool) -> int:
        """Multiply-adds of the direct form for one clip, with or without those whose tap lies in the padding."""
        taps = 1
        for s, k in zip(size, self.kernel, strict=True):
            taps *= s * k if in_padding else sum(max(0, s - abs(tap - k // 2)) for tap in range(k))
        return cin * self.cout * taps

    def describe(self) -> str:
        kernel = "" if self.kernel == (3, 3, 3) else f", {_times(self.kernel)}"
        pool = f", pool {_times(self.pool)}" if self.pools else ""
        return f"{self.cout}{kernel}{pool}"


def _times(size: Size) -> str:
    return "×".join(map(str, size))


@dataclass(frozen=True)
class Problem:
    """A chain of layers, and linear layers behind it where `dense` has their widths, with ReLU between them."""

    label: str
    shape: tuple[int, int, int, int, int]  # (N, C, D, H, W) of the input
    layers: tuple[Layer, ...]
    dense: tuple[int, ...] = ()

    @property
    def title(self) -> str:
        single = f" → {self.layers[0].describe()}" if len(self.layers) == 1 else ""
        return f"{self.label}, {self.shape}{single}"

    @property
    def name(self) -> str:
        return f"{re.sub(r'[^a-z0-9]+', '-', self.label.lower())}-{'x'.join(map(str, self.shape))}"

    def steps(self) -> Iterator[tuple[Layer, int, Size]]:
        """Every layer with the channels and the size of its input."""
        _, cin, *size = self.shape
        here: Size = (size[0], size[1], size[2])
        for layer in self.layers:
            yield layer, cin, here
            cin, here = layer.cout, layer.output_size(here)

    def weight_shapes(self) -> list[tuple[int, ...]]:
        """Of the layers, then of the linear ones."""
        shapes: list[tuple[int, ...]] = [(layer.cout, cin, *layer.kernel) for layer, cin, _ in self.steps()]
        features = self.layers[-1].cout * prod(self.output_size())
        for width in self.dense:
            shapes.append((width, features))
            features = width
        return shapes

    def output_size(self) -> Size:
        """(D, H, W) of what the last layer returns."""
        *_, (layer, _, size) = self.steps()
        return layer.output_size(size)

    def output_shape(self) -> tuple[int, ...]:
        n = self.shape[0]
        return (n, self.dense[-1]) if self.dense else (n, self.layers[-1].cout, *self.output_size())

    def dense_products(self) -> int:
        """Multiply-adds of the linear layers for one clip."""
        return sum(prod(shape) for shape in self.weight_shapes()[len(self.layers) :])

    def multiply_adds(self) -> int:
        """For one clip as papers count them: taps in the padding included."""
        return sum(one.products(cin, size, in_padding=True) for one, cin, size in self.steps()) + self.dense_products()

    def compulsory(self) -> tuple[int, int, int]:
        """Numbers in the input, in weights and biases, and in the output: each must be moved once at least."""
        shapes = self.weight_shapes()
        return prod(self.shape), sum(prod(s) + s[0] for s in shapes), prod(self.output_shape())

    def facts(self) -> dict[str, Any]:
        """For the results file."""
        layers = [
            {"cout": one.cout, "kernel": list(one.kernel), "pool": list(one.pool)}
            | {"activation": one.activation, "ceil_mode": one.ceil_mode}
            for one in self.layers
        ]
        return dict(zip(_FIELDS, self.shape, strict=True)) | {"layers": layers, "dense": list(self.dense)}


_TWO, _FLAT = (2, 2, 2), (1, 2, 2)


def c3d(width: int) -> tuple[Layer, ...]:
    """The convolutions of C3D (Tran et al. 2015), whose first has `width` channels: 64 there.

    The last pooling rounds up, as that of the network's first implementation did.
    """
    return (
        Layer(width, pool=_FLAT),
        Layer(2 * width, pool=_TWO),
        Layer(4 * width),
        Layer(4 * width, pool=_TWO),
        Layer(8 * width),
        Layer(8 * width, pool=_TWO),
        Layer(8 * width),
        Layer(8 * width, pool=_TWO, ceil_mode=True),
    )


_CLIP = (3, 16, 112, 112)
_C3D_NAMES = ("conv1", "conv2", "conv3a", "conv3b", "conv4a", "conv4b", "conv5a", "conv5b")


def trunk(n: int) -> Problem:
    return Problem("C3D, all convolutions", (n, *_CLIP), c3d(64))


def net(n: int) -> Problem:
    return Problem("C3D, whole", (n, *_CLIP), c3d(64), dense=(4096, 4096, 487))


C3D_LAYERS = tuple(
    Problem(f"C3D {name}", (1, cin, *size), (layer,))
    for name, (layer, cin, size) in zip(_C3D_NAMES, trunk(1).steps(), strict=True)
)


def _residual(channels: int, size: Size) -> Problem:
    """The convolution of a basic block of a 3-d ResNet-18; its batch norm is folded, its ReLU follows the addition."""
    return Problem(f"ResNet3D {channels}", (1, channels, *size), (Layer(channels, activation="identity"),))


RESIDUAL = (
    _residual(64, (16, 56, 56)),
    _residual(128, (8, 28, 28)),
    _residual(256, (4, 14, 14)),
    _residual(512, (2, 7, 7)),
)

_ODD_SIZE = (7, 37, 51)
ODD = (
    Problem("odd 3 to 8", (1, 3, *_ODD_SIZE), (Layer(8),)),
    Problem("odd 8 to 24", (1, 8, *_ODD_SIZE), (Layer(24, pool=_TWO, ceil_mode=True),)),
    Problem("odd 24 to 100", (1, 24, *_ODD_SIZE), (Layer(100, pool=_TWO),)),
)


def _inception(cin: int, cout: int, kernel: int, size: Size) -> Problem:
    """A layer of GoogLeNet's widths (Szegedy et al. 2015, table 1), in three dimensions."""
    return Problem(f"Inception {cin} to {cout}", (1, cin, *size), (Layer(cout, (kernel,) * 3),))


def _factorised(cin: int, cout: int, kernel: Size, size: Size) -> Problem:
    """Half of a 3×3×3 convolution of R(2+1)D-18 (Tran et al. 2018)."""
    return Problem(f"R(2+1)D {cin} to {cout}", (1, cin, *size), (Layer(cout, kernel),))


INCEPTION = (
    _inception(192, 64, 1, (8, 28, 28)),
    _inception(64, 256, 1, (8, 28, 28)),
    _inception(480, 192, 1, (8, 14, 14)),
    _inception(512, 24, 1, (8, 14, 14)),
    _inception(832, 384, 1, (4, 7, 7)),
    _inception(16, 48, 5, (8, 28, 28)),
    _inception(32, 96, 5, (8, 14, 14)),
    _inception(48, 128, 5, (4, 7, 7)),
    _inception(160, 320, 3, (4, 7, 7)),
)
FACTORISED = (
    _factorised(64, 144, (1, 3, 3), (8, 56, 56)),
    _factorised(144, 64, (3, 1, 1), (8, 56, 56)),
    _factorised(256, 576, (1, 3, 3), (4, 14, 14)),
    _factorised(576, 256, (3, 1, 1), (4, 14, 14)),
    _factorised(512, 1152, (1, 3, 3), (2, 7, 7)),
    _factorised(1152, 512, (3, 1, 1), (2, 7, 7)),
)

# a frame is a clip of depth 1
VGG = (
    Problem("VGG 64", (1, 64, 1, 224, 224), (Layer(64, (1, 3, 3), _FLAT),)),
    Problem("VGG 256", (1, 256, 1, 56, 56), (Layer(256, (1, 3, 3)),)),
    Problem("VGG 512", (1, 512, 1, 14, 14), (Layer(512, (1, 3, 3), _FLAT),)),
)

TOY = (
    Problem("toy 3D CNN", (1, 3, 20, 64, 64), (Layer(12, pool=(4, 4, 4)), Layer(24))),
    Problem("toy late fusion", (1, 3, 20, 64, 64), (Layer(12, (1, 3, 3), (1, 4, 4)), Layer(24, (1, 3, 3)))),
)

SMALL_C3D = Problem("small C3D", (16, 3, 16, 32, 32), c3d(16))

# of C3D's layers the quick set has the first, the one with the most arithmetic and the last
QUICK = (trunk(1), *(C3D_LAYERS[i] for i in (0, 3, 7)), RESIDUAL[0], ODD[1], VGG[1], TOY[0])
FULL = (
    *QUICK,
    *(C3D_LAYERS[i] for i in (1, 2, 4, 5, 6)),
    *RESIDUAL[1:],
    *INCEPTION,
    *FACTORISED,
    ODD[0],
    ODD[2],
    VGG[0],
    VGG[2],
    TOY[1],
    net(1),
    trunk(8),
    net(8),
)
CUDA = (trunk(8), *C3D_LAYERS)
