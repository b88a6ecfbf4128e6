"""PixelCNN++: a U-shaped causal network of shifted convolutions, and a mixture of discretised logistics per pixel.

Source: Salimans, Karpathy, Chen and Kingma, "PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture
Likelihood and Other Modifications" (ICLR 2017), sections 2.2 to 2.5, and the code published with it. Two streams of F
filters run through gated residual blocks (``vidgen.nn.GatedResnet``): u sees the rows above a pixel, ul also what is to
its left.

    x, 1        the image in [-1, 1] and a channel of ones, by which zeros beyond the border differ from grey
    u, ul       ↓ 2×3 conv;   ↓ 1×3 conv + → 2×1 conv                 ↓ → shift the result by a row, a column
    up          blocks, 2×2 stride, blocks, 2×2 stride, blocks        ul's blocks take u
    down        blocks, 2×2 grow, blocks + 1, 2×2 grow, blocks + 1    u's take u's skip, ul's take u and ul's skip
    parameters  1×1 conv of elu(ul)

Kernels are 2×3 in u and 2×2 in ul. Every feature of the way up, those of first and strided layers included, is a skip
that the way down takes from last to first. All weights but those of labels are weight-normalised
(``vidgen.nn.initialize_from_data`` starts them).

An image of odd sides has ⌈side / 2⌉ features on the next scale; growing gives one too many, which is cropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidgen.models.autoregressive.image_model import ImageModel, check_sizes
from vidgen.models.autoregressive.pixelcnnpp_port import port_config, port_weights
from vidgen.models.weights import read_weights
from vidgen.nn import GatedResnet, ShiftedConv2d, ShiftedConvTranspose2d, down_shift, right_shift, weight_norm
from vidgen.ops.discretized_logistic_mixture import Mode
from vidgen.sampling.heads import LogisticMixture

SCALES = 3
_U, _UL = (2, 3), (2, 2)


class _Streams(nn.Module):
    """The parts of u and ul that belong together: blocks of one scale, or a change of scale."""

    def __init__(self, u: nn.Module, ul: nn.Module):
        super().__init__()
        self.u = u
        self.ul = ul


def _blocks(count: int, filters: int, *, u_aux: int, ul_aux: int, classes: int, dropout: float) -> _Streams:
    """``count`` blocks of each stream, with so many channels of second input."""

    def stack(mode: Any, kernel: tuple[int, int], aux: int) -> nn.ModuleList:
        return nn.ModuleList(
            GatedResnet(filters, kernel, mode=mode, aux_channels=aux, classes=classes, dropout=dropout)
            for _ in range(count)
        )

    return _Streams(stack("down", _U, u_aux), stack("down_right", _UL, ul_aux))


def _rescaling(kind: type[ShiftedConv2d] | type[ShiftedConvTranspose2d], filters: int) -> _Streams:
    return _Streams(
        weight_norm(kind(filters, filters, _U, 2, mode="down")),
        weight_norm(kind(filters, filters, _UL, 2, mode="down_right")),
    )


class PixelCNNPP(ImageModel):
    """PixelCNN++.

    Args:
        image_shape: (C, H, W), C = 1 or 3; H and W matter to ``vidgen.generate`` only.
        resnets: blocks of each stream and scale.
        filters: F, the width of both streams.
        mixtures: K, logistics in the mixture of a pixel.
        classes: number of classes of a class-conditional model; 0 for an unconditional one.
        dropout: share of values dropped in training in each block, elementwise.
        levels: number of grey levels, at least 2.
        likelihood: "exact", or "openai", the approximation that was published.

    Raises:
        ValueError: an argument is not as described.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        resnets: int = 5,
        filters: int = 160,
        mixtures: int = 10,
        classes: int = 0,
        dropout: float = 0.5,
        levels: int = 256,
        likelihood: Mode = "exact",
    ):
        check_sizes(image_shape, levels, classes, dropout)
        channels = image_shape[0]
        if channels not in (1, 3):
            raise ValueError(f"image_shape: expected 1 or 3 channels, got {channels}")
        for name, value in (("resnets", resnets), ("filters", filters), ("mixtures", mixtures)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if likelihood not in get_args(Mode):
            raise ValueError(f"likelihood: expected one of {', '.join(get_args(Mode))}, got {likelihood!r}")
        head = LogisticMixture(mixtures, channels, levels, likelihood)
        super().__init__(image_shape, levels, head, classes)
        self.config = {
            "image_shape": list(self.image_shape),
            "resnets": resnets,
            "filters": filters,
            "mixtures": mixtures,
            "classes": classes,
            "dropout": dropout,
            "levels": levels,
            "likelihood": likelihood,
        }
        seen = channels + 1
        self.above = weight_norm(ShiftedConv2d(seen, filters, (2, 3), mode="down"))
        self.row_above = weight_norm(ShiftedConv2d(seen, filters, (1, 3), mode="down"))
        self.left = weight_norm(ShiftedConv2d(seen, filters, (2, 1), mode="down_right"))
        rest: dict[str, Any] = {"classes": classes, "dropout": dropout}
        self.up = nn.ModuleList(_blocks(resnets, filters, u_aux=0, ul_aux=filters, **rest) for _ in range(SCALES))
        self.shrink = nn.ModuleList(_rescaling(ShiftedConv2d, filters) for _ in range(SCALES - 1))
        self.down = nn.ModuleList(
            _blocks(resnets + (number > 0), filters, u_aux=filters, ul_aux=2 * filters, **rest)
            for number in range(SCALES)
        )
        self.grow = nn.ModuleList(_rescaling(ShiftedConvTranspose2d, filters) for _ in range(SCALES - 1))
        self.parameters_of_pixel = weight_norm(nn.Conv2d(filters, head.parameters_per_pixel, 1))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """The parameters of every pixel's distribution.

        Args:
            x: (N, C, H, W); floating point in [-1, 1], or integers 0 … levels−1, which are scaled to that
                (``vidgen.sampling.scale_levels``).
            labels: int64 (N,), for a class-conditional model.

        Returns:
            (N, 10K, H, W), for one colour (N, 3K, H, W): K logits of the mixture; then for each colour K means, K
            log-scales and, with three colours, K coefficients. What is at pixel (i, j) depends on earlier pixels, on
            the label and on nothing else, to the bit. Differentiable in x and the weights, twice.

        Raises:
            ValueError: x does not have the shape (N, C, H, W), or integers are out of range; labels are missing,
                of another shape, out of range, or there without classes.
            TypeError: labels are not int64.
        """
        x = self._scaled_rows(x)
        labels = self._checked_labels(x, labels)
        n, _, height, width = x.shape
        image = torch.cat([x, torch.ones(n, 1, height, width, dtype=x.dtype, device=x.device)], dim=1)
        us = [down_shift(self.above(image))]
        uls = [down_shift(self.row_above(image)) + right_shift(self.left(image))]
        for number, blocks in enumerate(self.up):
            if number:
                strided = cast(_Streams, self.shrink[number - 1])
                us.append(strided.u(us[-1]))
                uls.append(strided.ul(uls[-1]))
            for u_block, ul_block in _pairs(blocks):
                us.append(u_block(us[-1], None, labels))
                uls.append(ul_block(uls[-1], us[-1], labels))
        u, ul = us.pop(), uls.pop()
        for number, blocks in enumerate(self.down):
            if number:
                grown = cast(_Streams, self.grow[number - 1])
                u, ul = _cropped(grown.u(u), us[-1]), _cropped(grown.ul(ul), uls[-1])
            for u_block, ul_block in _pairs(blocks):
                u = u_block(u, us.pop(), labels)
                ul = ul_block(ul, torch.cat([u, uls.pop()], dim=1), labels)
        return cast(Tensor, self.parameters_of_pixel(F.elu(ul)))

    @classmethod
    def from_port(
        cls,
        source: Mapping[str, Any] | str | Path,
        *,
        image_size: tuple[int, int] = (32, 32),
        dropout: float = 0.5,
        likelihood: Mode = "exact",
    ) -> PixelCNNPP:
        """The model that the common PyTorch port's checkpoint describes, in eval mode, unconditional, with 256 levels.

        Everything but the arguments here is read from names and shapes. Parameters keep their dtype.

        Args:
            source: a state dict (with ``module.`` before its names or not), or a file of one.
            image_size: (H, W) of images to draw; weights do not tell it.
            dropout: for further training. The port drops whole channels; here values are dropped one by one.
            likelihood: "openai" is the port's.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds no such state dict; the first names that are missing, unexpected or of another shape
                are listed.
        """
        weights = read_weights(source)
        config = port_config(weights)
        model = cls((config.pop("channels"), *image_size), **config, dropout=dropout, likelihood=likelihood)
        translated = port_weights(weights, model.state_dict())
        model.to(next(iter(translated.values())).dtype).load_state_dict(translated)
        return model.eval()


def _pairs(blocks: nn.Module) -> zip[tuple[nn.Module, nn.Module]]:
    streams = cast(_Streams, blocks)
    return zip(cast(nn.ModuleList, streams.u), cast(nn.ModuleList, streams.ul), strict=True)


def _cropped(x: Tensor, like: Tensor) -> Tensor:
    height, width = like.shape[2:]
    return x if x.shape == like.shape else x[:, :, :height, :width]
