"""PixelCNN: an image's likelihood, one sub-pixel at a time.

    p(x) = Π p(x[c, i, j] | every pixel before (i, j) in raster order, channels before c of pixel (i, j))

A stack of masked convolutions gives all factors in one pass; each is an n-way softmax over the grey levels.

Source: van den Oord, Kalchbrenner and Kavukcuoglu, "Pixel Recurrent Neural Networks" (ICML 2016), sections 3.3 to 3.5,
figure 5 (left) and table 1:

    7×7 mask A -> blocks × [x + (ReLU, 1×1 2h→h, ReLU, 3×3 mask B h→h, ReLU, 1×1 h→2h)] -> 2 × (ReLU, 1×1) -> softmax

Channels carry a colour. In every layer channel k has colour k mod C ("interleaved"), and a layer's outputs of colour c
read, at their own pixel, the inputs of colours before c (first layer, mask A) or up to c (all others, mask B, the 1×1
ones included). Widths must therefore divide by the number of colours. The last layer's channel v·C + c is the logit of
level v of colour c, so the logits (N, levels, C, H, W) are a view of its output.

As published, the 3×3 stack has a blind spot to the right above a pixel; the gated PixelCNN (2016) closes it.
"""

from typing import cast

import torch
from torch import Tensor, nn

from vidgen.models.autoregressive.image_model import SoftmaxImageModel
from vidgen.nn import Dropout, MaskedConv2d


class _ResidualBlock(nn.Module):
    """x + f(x) on 2h channels, f through h channels; (N, 2h, H, W) -> (N, 2h, H, W)."""

    def __init__(self, hidden: int, colors: int, dropout: float):
        super().__init__()
        self.reduce = MaskedConv2d(2 * hidden, hidden, 1, mask="B", colors=colors)
        self.conv = MaskedConv2d(hidden, hidden, 3, mask="B", colors=colors)
        self.expand = MaskedConv2d(hidden, 2 * hidden, 1, mask="B", colors=colors)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        y = self.reduce(torch.relu(x))
        y = self.conv(torch.relu(y))
        y = self.expand(self.dropout(torch.relu(y)))
        return cast(Tensor, x + y)


class PixelCNN(SoftmaxImageModel):
    """PixelCNN with an n-way softmax for every sub-pixel.

    Args:
        image_shape: (C, H, W). C = 1 is grey; with C channels each is predicted from the ones before it. The network is
            fully convolutional: H and W matter to ``vidgen.generate`` only.
        levels: number of grey levels, at least 2 (256 for 8-bit images).
        hidden: h, the width inside the residual blocks; the features between them have 2h channels. Divides by C.
        blocks: number of residual blocks.
        head_channels: width of the first 1×1 layer of the head; 2h if None. Divides by C.
        dropout: share of values dropped in training before each block's last layer, elementwise.

    Raises:
        ValueError: a size is not as described.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 8, 8),
        levels: int = 256,
        hidden: int = 64,
        blocks: int = 15,
        head_channels: int | None = None,
        dropout: float = 0.0,
    ):
        head_channels = 2 * hidden if head_channels is None else head_channels
        super().__init__(image_shape, levels, dropout=dropout, hidden=hidden, head_channels=head_channels)
        if blocks < 0:
            raise ValueError(f"blocks: expected at least 0, got {blocks}")
        self.config = {
            "image_shape": list(self.image_shape),
            "levels": levels,
            "hidden": hidden,
            "blocks": blocks,
            "head_channels": head_channels,
            "dropout": dropout,
        }
        channels = self.image_shape[0]
        self.input = MaskedConv2d(channels, 2 * hidden, 7, mask="A", colors=channels)
        self.blocks = nn.ModuleList(_ResidualBlock(hidden, channels, dropout) for _ in range(blocks))
        self._add_head(2 * hidden, head_channels)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of every sub-pixel.

        Args:
            x: (N, C, H, W); integers 0 … levels−1, or floating point already scaled to [-1, 1]
                (``vidgen.sampling.scale_levels``), which then decides the dtype of the computation.

        Returns:
            (N, levels, C, H, W): the logits of channel c of pixel (i, j) depend on earlier pixels, on channels before
            c of (i, j) and on nothing else, to the bit. Differentiable in x and the weights, twice.

        Raises:
            ValueError: x does not have four dimensions and C channels, or integers are out of range.
        """
        y = self.input(self._scaled(x))
        for block in self.blocks:
            y = block(y)
        return self._logits(y)
