"""CNN-M: a medium network for images, of which both streams of a two-stream network are made.

    conv1 96 7×7/2 N P · conv2 256 5×5/2 N P · conv3 512 3×3 · conv4 512 3×3 · conv5 512 3×3 P · fc6 4096 · fc7 2048
    · fc8

/2 is a stride of 2. P is max-pooling over 3×3 pixels with stride 2, which at the far ends takes what is left (rounds
up, as Caffe does). conv1 is not padded; the others are by 1. ReLU follows every layer but the last, dropout fc6 and
fc7. N is local response normalisation over 5 neighbouring channels,

    y_c = x_c / (2 + 10⁻⁴ Σ_{|j − c| ≤ 2} x_j²)^¾,

as published for inputs of 0 … 255; where inputs are of the order of 1 it is nearly the constant factor 2^−¾.

Of 3 colours, 224×224 pixels and 101 classes: 90,627,813 parameters, maps of 109, 54, 26, 13 and 6 pixels.

Sources: Chatfield, Simonyan, Vedaldi and Zisserman, "Return of the Devil in the Details" (BMVC 2014), table 1, "CNN-M"
with the 2048 units of section 2.3; its normalisation is that of Krizhevsky, Sutskever and Hinton (2012), section 3.3.
Simonyan and Zisserman, "Two-Stream Convolutional Networks for Action Recognition in Videos" (NIPS 2014), figure 1.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: channels of the paper's conv1
_WIDTH = 96
_NEIGHBOURS = 5


class CNNM(nn.Module):
    """CNN-M (formula and sources: the head of this module).

    Args:
        classes: number of classes.
        in_channels: channels of the input; 3 colours, or 2·L of a stack of L displacement fields.
        input_size: (H, W) of the input, on which fc6's number of inputs depends.
        width: channels of conv1, a multiple of 3; 96 is CNN-M. All other widths keep their proportion to it.
        stride: of conv1 and conv2; 2 is CNN-M. 1 is for inputs much smaller than 224×224, of which strides of 2 would
            leave nothing.
        second_norm: whether conv2 is normalised, too. The temporal stream does without, "to reduce memory consumption".
        dropout: share of fc6's and fc7's units dropped in training.

    Raises:
        ValueError: an argument is not as above, or nothing is left of such an input before pool5.

    Weights begin as He et al. (2015) draw them, 2^¾ times that behind a normalisation, and biases at zero, so that a
    small signal keeps its size. Convolutions are ``nn.Conv2d``, by the names of the layers, so that published weights
    load; ``vidgen.fuse`` makes those of 3×3 pixels vidgen's.
    """

    def __init__(
        self,
        classes: int,
        *,
        in_channels: int = 3,
        input_size: tuple[int, int] = (224, 224),
        width: int = _WIDTH,
        stride: int = 2,
        second_norm: bool = True,
        dropout: float = 0.5,
    ):
        super().__init__()
        for name, value in (("classes", classes), ("in_channels", in_channels)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if width < 3 or width % 3:
            raise ValueError(f"width: expected a positive multiple of 3, got {width}")
        if stride not in (1, 2):
            raise ValueError(f"stride: expected 1 or 2, got {stride}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: expected a number in [0, 1), got {dropout}")
        if len(input_size) != 2:
            raise ValueError(f"input_size: expected two sizes (H, W), got {tuple(input_size)}")
        sides = [_side(side, stride) for side in input_size]
        if min(sides) < 1:
            least = next(side for side in range(1, 100) if _side(side, stride) >= 1)
            raise ValueError(
                f"input_size: expected at least {least}×{least} for stride={stride}, got {tuple(input_size)}"
            )

        self.in_channels = in_channels
        self.input_size = (input_size[0], input_size[1])
        middle, wide, fc6, fc7 = (width * units // _WIDTH for units in (256, 512, 4096, 2048))
        self.conv1 = nn.Conv2d(in_channels, width, 7, stride=stride)
        self.norm1 = _normalisation()
        self.conv2 = nn.Conv2d(width, middle, 5, stride=stride, padding=1)
        self.norm2 = _normalisation() if second_norm else nn.Identity()
        self.conv3 = nn.Conv2d(middle, wide, 3, padding=1)
        self.conv4 = nn.Conv2d(wide, wide, 3, padding=1)
        self.conv5 = nn.Conv2d(wide, wide, 3, padding=1)
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.fc6 = nn.Linear(wide * math.prod(sides), fc6)
        self.fc7 = nn.Linear(fc6, fc7)
        self.fc8 = nn.Linear(fc7, classes)
        self.dropout = nn.Dropout(dropout)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(cast(Tensor, module.bias))
        with torch.no_grad():
            for layer in (self.conv2, self.conv3)[: 2 if second_norm else 1]:
                layer.weight.mul_(2.0**0.75)

    def forward(self, images: Tensor) -> Tensor:
        """Scores of the classes before softmax.

        Args:
            images: (N, in_channels, H, W) floating point, of the network's ``input_size``.

        Returns:
            (N, classes).

        Raises:
            ValueError: images have another shape.
        """
        if images.dim() != 4 or tuple(images.shape[1:]) != (self.in_channels, *self.input_size):
            expected = ", ".join(map(str, (self.in_channels, *self.input_size)))
            raise ValueError(f"images: expected shape (N, {expected}), got {tuple(images.shape)}")
        x = self.pool(self.norm1(torch.relu(self.conv1(images))))
        x = self.pool(self.norm2(torch.relu(self.conv2(x))))
        x = torch.relu(self.conv3(x))
        x = torch.relu(self.conv4(x))
        x = self.pool(torch.relu(self.conv5(x))).flatten(1)
        x = self.dropout(torch.relu(self.fc6(x)))
        x = self.dropout(torch.relu(self.fc7(x)))
        return cast(Tensor, self.fc8(x))


class _Normalisation(nn.LocalResponseNorm):
    """torch's local response normalisation with β = ¾, on CPUs several times as fast."""

    def forward(self, x: Tensor) -> Tensor:
        # neighbouring channels are pooled as rows of a picture one pixel wide whose channels are the pixels of a map:
        # they lie side by side in memory, and so are added up by whole vectors
        squares = x.square().flatten(2).unsqueeze(2).permute(0, 3, 1, 2)  # [N, H·W, C, 1]
        means = F.avg_pool2d(squares, (self.size, 1), 1, (self.size // 2, 0))
        means = means.permute(0, 2, 3, 1).reshape(x.shape)
        root = (self.k + self.alpha * means).rsqrt()
        return x * root * root.sqrt()


def _normalisation() -> nn.LocalResponseNorm:
    # torch divides alpha by the number of neighbours
    return _Normalisation(_NEIGHBOURS, alpha=1e-4 * _NEIGHBOURS, beta=0.75, k=2.0)


def _side(side: int, stride: int) -> int:
    """What three poolings leave of a side; below 1 if a layer has no input."""
    side = _pooled((side - 7) // stride + 1)
    side = _pooled((side + 2 - 5) // stride + 1)
    return _pooled(side)


def _pooled(side: int) -> int:
    # rounded up: as many windows as begin inside
    return -(-(side - 3) // 2) + 1
