"""The layer over `vidgen.ops.conv3d_pool3d`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vidgen.nn.prepack import PackedWeights, reads_packed
from vidgen.ops import conv3d_pool3d, conv3d_pool3d_pack
from vidgen.ops.conv3d_geometry import resolve_padding, resolve_pool, triple
from vidgen.ops.conv3d_pool3d import Activation, Algorithm

_Size = int | tuple[int, int, int]


class ConvPool3d(PackedWeights, nn.Conv3d):
    """`torch.nn.Conv3d`, an activation and max-pooling in one pass (Tran et al. 2015 for the networks it is made for).

    The constructor is that of `torch.nn.Conv3d` plus what follows `dtype`, and so are parameters and state dict: a
    checkpoint of an nn.Conv3d loads as it is. Unlike there the default padding is "same".

    Args:
        in_channels, out_channels: at least 1.
        kernel_size: 1 to 7 taps per axis; an int or (depth, height, width).
        stride, dilation, groups, padding_mode: only 1, 1, 1 and "zeros".
        padding: "same", "valid", or zeros around the clip, an int or one per axis, each less than the kernel.
        bias, device, dtype: as in nn.Conv3d.
        activation: "relu" or "identity".
        pool: window of the max-pooling, 1 to 4 per axis and also its stride; an int, three ints, or None for none.
        ceil_mode: pool what remains at the far ends, too.
        input_size: (D, H, W) of the clips to come, by which `vidgen.prepack` chooses the form of the packed weight;
            None where they vary or are not known. Clips of every size are served. May be set later.
        algorithm, impl: passed to the op.

    Shape: (N, in_channels, D, H, W) -> (N, out_channels, D', H', W'); channels_last_3d stays channels_last_3d.
    """

    packed: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Size,
        stride: _Size = 1,
        padding: str | _Size = "same",
        dilation: _Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: Activation = "relu",
        pool: _Size | None = None,
        ceil_mode: bool = False,
        input_size: Sequence[int] | None = None,
        algorithm: Algorithm = "auto",
        impl: str | None = None,
    ) -> None:
        kernel = triple("kernel_size", kernel_size)
        if not all(1 <= k <= 7 for k in kernel):
            raise ValueError(f"kernel_size must be 1 to 7 taps per axis, got {kernel_size!r}")
        for name, value in (("stride", stride), ("dilation", dilation)):
            if triple(name, value) != (1, 1, 1):
                raise ValueError(f"{name} must be 1, got {value!r}")
        if groups != 1:
            raise ValueError(f"groups must be 1, got {groups!r}")
        if padding_mode != "zeros":
            raise ValueError(f"padding_mode must be 'zeros', got {padding_mode!r}")
        if activation not in ("relu", "identity"):
            raise ValueError(f"activation must be 'relu' or 'identity', got {activation!r}")
        if algorithm not in ("auto", "direct"):
            raise ValueError(f"algorithm must be 'auto' or 'direct', got {algorithm!r}")
        if min(in_channels, out_channels) < 1:
            raise ValueError(f"in_channels and out_channels must be at least 1, got {in_channels} and {out_channels}")
        resolve_pool(pool)
        around: Any = padding if isinstance(padding, str) else triple("padding", padding)
        resolve_padding(around, kernel)
        super().__init__(in_channels, out_channels, kernel, 1, around, 1, 1, bias, "zeros", device, dtype)
        self.activation: Activation = activation
        self.pool = None if pool is None else triple("pool", pool)
        self.ceil_mode = ceil_mode
        self.input_size = None if input_size is None else triple("input_size", input_size)
        self.algorithm: Algorithm = algorithm
        self.impl = impl

    def forward(self, input: Tensor) -> Tensor:
        return conv3d_pool3d(
            input,
            self.weight,
            self.bias,
            padding=self.padding,  # type: ignore[arg-type]
            activation=self.activation,
            pool=self.pool,
            ceil_mode=self.ceil_mode,
            algorithm=self.algorithm,
            impl=self.impl,
            packed=self.packed,
        )

    def prepack_(self) -> None:
        self.packed = None
        if reads_packed("conv3d_pool3d", self.weight):
            self.packed = conv3d_pool3d_pack(
                self.weight,
                input_size=self.input_size,
                padding=self.padding,  # type: ignore[arg-type]
                pool=self.pool,
                algorithm=self.algorithm,
            )

    def extra_repr(self) -> str:
        text = super().extra_repr() + f", activation={self.activation!r}"
        if self.pool is not None:
            text += f", pool={self.pool}"
        if self.ceil_mode:
            text += ", ceil_mode=True"
        if self.algorithm != "auto":
            text += f", algorithm={self.algorithm!r}"
        if self.impl is not None:
            text += f", impl={self.impl!r}"
        return text
