"""The gated residual block of PixelCNN++ (Salimans et al. 2017, section 2.3 to 2.5 and the code published with it)."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidgen.nn.dropout import Dropout
from vidgen.nn.shifted_conv2d import Mode, ShiftedConv2d
from vidgen.nn.weight_norm import weight_norm

_GATE_SCALE = 0.1
_LABEL_DEVIATION = 0.05


def concat_elu(x: Tensor) -> Tensor:
    """elu of x and of −x, one after the other: (N, C, H, W) -> (N, 2C, H, W).

    The concatenated ReLU of Shang et al. (2016) with ELU: neither sign of a feature is lost.
    """
    return F.elu(torch.cat([x, -x], dim=1))


class GatedResnet(nn.Module):
    """A residual block with a gate, dropout, a second input and a class.

        t = conv(f(x)) + W₁ₓ₁ f(aux),   f = concat_elu
        a, b = conv(dropout(f(t))) + V[label]
        y = x + a · σ(b)

    The convolutions are `ShiftedConv2d` of one mode, so the block is as causal as its inputs. All weights but V are
    weight-normalised; `initialize_from_data` starts the gate's convolution at a tenth of unit scale, so that a block
    starts near the identity.

    Args:
        channels: C of x and y.
        kernel_size: an int or (height, width); of odd width in mode "down".
        mode: "down" or "down_right".
        aux_channels: channels of the second input; 0 for none.
        classes: number of classes; 0 for none. V has no bias besides.
        dropout: share of values dropped in training, each value by itself.

    Shape: x (N, C, H, W), aux (N, aux_channels, H, W), labels int64 (N,) -> (N, C, H, W).

    Raises:
        ValueError: an argument is not as described, or aux or labels are missing or there in spite of it.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | tuple[int, int],
        *,
        mode: Mode,
        aux_channels: int = 0,
        classes: int = 0,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        for name, value in (("aux_channels", aux_channels), ("classes", classes)):
            if value < 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.conv = weight_norm(ShiftedConv2d(2 * channels, channels, kernel_size, mode=mode))
        self.aux = weight_norm(nn.Conv2d(2 * aux_channels, channels, 1)) if aux_channels else None
        # nn.Dropout2d, of which some ports make use here, drops whole channels and learns something else
        self.dropout = Dropout(dropout)
        self.gate = weight_norm(ShiftedConv2d(2 * channels, 2 * channels, kernel_size, mode=mode), scale=_GATE_SCALE)
        self.label = nn.Embedding(classes, 2 * channels) if classes else None
        if self.label is not None:
            nn.init.normal_(self.label.weight, std=_LABEL_DEVIATION)

    def forward(self, x: Tensor, aux: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        for name, layer, value in (("aux", self.aux, aux), ("labels", self.label, labels)):
            if (layer is None) != (value is None):
                raise ValueError(f"{name} must be {'None' if layer is None else 'given'} for this block")
        y = self.conv(concat_elu(x))
        if self.aux is not None:
            y = y + self.aux(concat_elu(cast(Tensor, aux)))
        y = self.gate(self.dropout(concat_elu(y)))
        if self.label is not None:
            y = y + self.label(labels)[:, :, None, None]
        features, gate = y.chunk(2, dim=1)
        return x + features * torch.sigmoid(gate)
