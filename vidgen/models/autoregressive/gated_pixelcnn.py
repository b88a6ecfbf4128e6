"""Gated PixelCNN: two stacks that see the whole past together, and multiplicative gates.

Source: van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves and Kavukcuoglu, "Conditional Image Generation with
PixelCNN Decoders" (NeurIPS 2016), section 2 and figure 2. The vertical stack sees the rows up to its own; the
horizontal stack sees the pixels to the left in its row and, through the link, the vertical features of the row above:

    t = n×n conv(v)                                     realised as (n // 2 + 1)×n: its own row and those above
    v ← gate(t + V_v[label])                            gate(f, g) = tanh(f) · σ(g)
    s = 1×n conv(h) + 1×1 conv(t shifted down one row)
    o = gate(s + V_h[label])
    h ← h + 1×1 conv(o);   skips ← skips + 1×1 conv(o)  the first layer: h ← 1×1 conv(o)

The first layer's 1×n convolution has mask A, all others mask B; logits are 2 × (ReLU, 1×1) of the skips. There is no
blind spot: a pixel's distribution depends on all pixels before it, as far as the layers reach.

Channels of the horizontal stack carry a colour, k mod C for channel k, and read, at their own pixel, colours before
(mask A) or up to their own (mask B). The width divides by C, so both halves f and g of a gate are of one colour. The
vertical stack knows no colours: all that it tells is of rows above.
"""

from typing import cast

import torch
from torch import Tensor, nn

from vidgen.models.autoregressive.image_model import SoftmaxImageModel
from vidgen.nn import Dropout, MaskedConv2d, ShiftedConv2d, down_shift

_FIRST_KERNEL = 7


def _gate(x: Tensor) -> Tensor:
    """tanh(f) · σ(g) of the halves f, g of the channels: (N, 2h, H, W) -> (N, h, H, W)."""
    features, gate = x.chunk(2, dim=1)
    return torch.tanh(features) * torch.sigmoid(gate)


class _GatedLayer(nn.Module):
    """One layer of both stacks: v, h -> v, h, skip.

    Args:
        in_channels: of v and h; the image's colours in the first layer, hidden in all others.
        hidden: of what it returns.
        kernel_size: n.
        first: mask A and no residual.
        colors: C. classes: 0 for none. dropout: share of o's values dropped in training, elementwise.
    """

    def __init__(
        self, in_channels: int, hidden: int, kernel_size: int, *, first: bool, colors: int, classes: int, dropout: float
    ):
        super().__init__()
        self.first = first
        self.vertical = ShiftedConv2d(in_channels, 2 * hidden, (kernel_size // 2 + 1, kernel_size), mode="down")
        self.link = nn.Conv2d(2 * hidden, 2 * hidden, 1)
        self.horizontal = MaskedConv2d(
            in_channels, 2 * hidden, (1, kernel_size), mask="A" if first else "B", colors=colors
        )
        self.out = MaskedConv2d(hidden, hidden, 1, mask="B", colors=colors)
        self.skip = MaskedConv2d(hidden, hidden, 1, mask="B", colors=colors)
        self.vertical_label = nn.Embedding(classes, 2 * hidden) if classes else None
        self.horizontal_label = nn.Embedding(classes, 2 * hidden) if classes else None
        self.dropout = Dropout(dropout)
        for table in (self.vertical_label, self.horizontal_label):
            if table is not None:
                # N(0, 1), torch's own choice, would saturate the gates before anything is learnt
                nn.init.normal_(table.weight, std=0.05)

    def forward(self, v: Tensor, h: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        above = self.vertical(v)
        here = self.horizontal(h) + self.link(down_shift(above))
        if self.vertical_label is not None and self.horizontal_label is not None:
            above = above + self.vertical_label(labels)[:, :, None, None]
            here = here + self.horizontal_label(labels)[:, :, None, None]
        out = self.dropout(_gate(here))
        carried = self.out(out)
        return _gate(above), carried if self.first else h + carried, self.skip(out)


class GatedPixelCNN(SoftmaxImageModel):
    """Gated PixelCNN with an n-way softmax for every sub-pixel.

    Args:
        image_shape: (C, H, W). C = 1 is grey; with C channels each is predicted from the ones before it. The network is
            fully convolutional: H and W matter to ``vidgen.generate`` only.
        levels: number of grey levels, at least 2 (256 for 8-bit images).
        hidden: width of both stacks; convolutions before a gate have twice that. Divides by C.
        blocks: number of layers after the first.
        kernel_size: n of the layers after the first, odd; the first has n = 7.
        head_channels: width of the first 1×1 layer of the head; twice hidden if None. Divides by C.
        classes: number of classes of a class-conditional model; 0 for an unconditional one.
        dropout: share of values dropped in training before the 1×1 convolutions of h, elementwise.

    Raises:
        ValueError: a size is not as described.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 8, 8),
        levels: int = 256,
        hidden: int = 64,
        blocks: int = 10,
        kernel_size: int = 3,
        head_channels: int | None = None,
        classes: int = 0,
        dropout: float = 0.0,
    ):
        head_channels = 2 * hidden if head_channels is None else head_channels
        super().__init__(
            image_shape, levels, dropout=dropout, classes=classes, hidden=hidden, head_channels=head_channels
        )
        if blocks < 0:
            raise ValueError(f"blocks: expected at least 0, got {blocks}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: expected a positive odd number, got {kernel_size}")
        self.config = {
            "image_shape": list(self.image_shape),
            "levels": levels,
            "hidden": hidden,
            "blocks": blocks,
            "kernel_size": kernel_size,
            "head_channels": head_channels,
            "classes": classes,
            "dropout": dropout,
        }
        colors = self.image_shape[0]
        self.layers = nn.ModuleList(
            _GatedLayer(
                hidden if number else colors,
                hidden,
                kernel_size if number else _FIRST_KERNEL,
                first=number == 0,
                colors=colors,
                classes=classes,
                dropout=dropout,
            )
            for number in range(blocks + 1)
        )
        self._add_head(hidden, head_channels)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """The logits of every sub-pixel.

        Args:
            x: (N, C, H, W); integers 0 … levels−1, or floating point already scaled to [-1, 1]
                (``vidgen.sampling.scale_levels``), which then decides the dtype of the computation.
            labels: int64 (N,), for a class-conditional model.

        Returns:
            (N, levels, C, H, W): the logits of channel c of pixel (i, j) depend on earlier pixels, on channels before
            c of (i, j), on the label and on nothing else, to the bit. Differentiable in x and the weights, twice.

        Raises:
            ValueError: x does not have the shape (N, C, H, W), or integers are out of range; labels are missing,
                of another shape, out of range, or there without classes.
            TypeError: labels are not int64.
        """
        v = h = self._scaled_rows(x)
        labels = self._checked_labels(x, labels)
        skips: Tensor | None = None
        for layer in self.layers:
            v, h, skip = layer(v, h, labels)
            skips = skip if skips is None else skips + skip
        return self._logits(cast(Tensor, skips))
