"""Causal networks that no model of vidgen contains: what tracing must understand, in small."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidgen.nn import MaskedConv2d
from vidgen.sampling import Categorical


def down(x: Tensor) -> Tensor:
    """One row down, zeros above."""
    return F.pad(x, (0, 0, 1, 0))[:, :, :-1]


def right(x: Tensor) -> Tensor:
    return F.pad(x, (1, 0))[..., :-1]


class Causal(nn.Module):
    """An autoregressive model around a network of its subclass."""

    def __init__(self, image_shape: tuple[int, int, int], levels: int = 4):
        super().__init__()
        self.image_shape, self.levels, self.head = image_shape, levels, Categorical(levels)


class Streams(Causal):
    """A stream of rows and one of pixels with strides, transposed convolutions, skips and labels, as in PixelCNN++."""

    conditional = True

    def __init__(self, image_shape=(1, 8, 8), levels=4, width=5):
        super().__init__(image_shape, levels)
        f = width
        self.rows = nn.Conv2d(2, f, (2, 3))
        self.pixels_above, self.pixels_left = nn.Conv2d(2, f, (1, 3)), nn.Conv2d(2, f, (2, 1))
        self.rows_conv, self.pixels_conv = nn.Conv2d(2 * f, f, (2, 3)), nn.Conv2d(2 * f, 2 * f, (2, 2))
        self.link = nn.Conv2d(2 * f, 2 * f, 1)
        self.labels = nn.Embedding(10, 2 * f)
        self.rows_down, self.pixels_down = nn.Conv2d(f, f, (2, 3), stride=2), nn.Conv2d(f, f, (2, 2), stride=2)
        self.rows_up = nn.ConvTranspose2d(f, f, (2, 3), stride=2)
        self.pixels_up = nn.ConvTranspose2d(f, f, (2, 2), stride=2)
        self.last = nn.Conv2d(2 * f, 2 * f, (2, 2))
        self.out = nn.Conv2d(2 * f, levels, 1)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        height, width = x.shape[-2:]

        def of_rows(t: Tensor, kernel=(2, 3)) -> Tensor:
            return F.pad(t, (kernel[1] // 2, kernel[1] // 2, kernel[0] - 1, 0))

        def of_pixels(t: Tensor, kernel=(2, 2)) -> Tensor:
            return F.pad(t, (kernel[1] - 1, 0, kernel[0] - 1, 0))

        def both_signs(t: Tensor) -> Tensor:
            return F.elu(torch.cat([t, -t], dim=1))

        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        u = down(self.rows(of_rows(x)))
        v = down(self.pixels_above(of_rows(x, (1, 3)))) + right(self.pixels_left(of_pixels(x, (2, 1))))
        u = u + self.rows_conv(of_rows(both_signs(u)))
        label = self.labels(labels)[:, :, None, None]
        a, b = (self.pixels_conv(of_pixels(both_signs(v))) + self.link(both_signs(u)) + label).chunk(2, dim=1)
        v = v + a * torch.sigmoid(b)
        skip = v
        u, v = self.rows_down(of_rows(u)), self.pixels_down(of_pixels(v))
        u = self.rows_up(F.elu(u))[:, :, :height, 1 : width + 1]
        v = self.pixels_up(torch.tanh(v))[:, :, :height, :width]
        v = v + skip + 0.5 * u + 1
        return self.out(self.last(of_pixels(both_signs(v)))).unsqueeze(2)


class Masked(Causal):
    """Masked convolutions of every kind: colours, dilation, a blocked layout, gates between them."""

    def __init__(self, image_shape=(3, 6, 7), levels=4, layout="interleaved"):
        super().__init__(image_shape, levels)
        c = image_shape[0]
        self.first = MaskedConv2d(c, 4 * c, (3, 5), mask="A", colors=c, color_layout=layout)
        self.dilated = MaskedConv2d(4 * c, 2 * c, 3, mask="B", colors=c, dilation=2, color_layout=layout)
        self.row = MaskedConv2d(2 * c, 2 * c, (1, 3), mask="B", colors=c, bias=False, color_layout=layout)
        self.out = MaskedConv2d(2 * c, levels * c, 1, mask="B", colors=c, color_layout=layout)
        self.layout = layout

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.first(x), 0.2)
        z = F.hardtanh(8 * self.dilated(y), -2, 1).clamp(-0.5)
        z = torch.maximum(z, self.row(F.silu(z)))
        out = self.out(2 - z / 3)
        c = self.image_shape[0]
        if self.layout == "blocked":
            return out.unflatten(1, (c, self.levels)).transpose(1, 2)
        return out.unflatten(1, (self.levels, c))


class Cropped(Causal):
    """A map is cropped and padded again: zeros where values had been. Depthwise convolutions, glu, two output heads."""

    def __init__(self, image_shape=(1, 5, 6), levels=4):
        super().__init__(image_shape, levels)
        self.first = MaskedConv2d(1, 6, 3, mask="A")
        self.depthwise = nn.Conv2d(6, 6, (2, 3), groups=6, bias=False)
        self.heads = nn.ModuleList(MaskedConv2d(3, levels // 2, 1, mask="B") for _ in range(2))
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 6).reshape(1, 6, 1, 1))
        self.place = nn.Parameter(
            torch.linspace(-1, 1, image_shape[1] * image_shape[2]).reshape(1, 1, *image_shape[1:])
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x) * self.scale + self.place
        inner = F.pad(y[:, :, 1:-1, 2:-1], (2, 1, 1, 1))
        y = self.depthwise(F.pad(inner, (2, 0, 1, 0))) + F.hardtanh(8 * y, -2, 1)
        y = y.unsqueeze(1).squeeze(1).abs()
        y = F.glu(y, dim=1)
        return torch.cat([head(y) for head in self.heads], dim=1).unsqueeze(2)


class Strided(Causal):
    """Strides that differ between rows and columns, a transposed convolution with a smaller kernel than its stride."""

    def __init__(self, image_shape=(1, 7, 8), levels=3):
        super().__init__(image_shape, levels)
        self.first = nn.Conv2d(1, 4, (1, 3))
        self.down = nn.Conv2d(4, 5, (1, 3), stride=(1, 3))
        self.up = nn.ConvTranspose2d(5, 4, (1, 2), stride=(1, 3))
        self.rows = nn.Conv2d(4, 4, (3, 1), stride=(2, 1), dilation=(1, 1))
        self.rows_up = nn.ConvTranspose2d(4, 4, (3, 1), stride=(2, 1))
        self.out = nn.Conv2d(8, levels, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        y = torch.relu(self.first(F.pad(x, (3, 0))[..., :-1]))
        coarse = self.down(F.pad(y, (2, 0)))
        fine = self.up(torch.tanh(coarse))[..., :width]
        # the transposed kernel may leave the last columns empty
        fine = F.pad(fine, (0, width - fine.shape[-1]))
        above = self.rows(F.pad(down(y), (0, 0, 2, 0)))
        above = self.rows_up(above)[:, :, :height]
        return self.out(torch.cat([fine + y, above], dim=1)).unsqueeze(2)


class Plain(Causal):
    """A stack that has a wavefront of the least slope, 2."""

    def __init__(self, image_shape=(1, 9, 13), levels=4, depth=3):
        super().__init__(image_shape, levels)
        self.first = MaskedConv2d(1, 6, 3, mask="A")
        self.layers = nn.ModuleList(MaskedConv2d(6, 6, 3, mask="B") for _ in range(depth))
        self.out = MaskedConv2d(6, levels, 1, mask="B")

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = x + layer(torch.relu(x))
        return self.out(x).unsqueeze(2)
