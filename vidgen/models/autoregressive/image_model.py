"""What the autoregressive image models have in common: what images they take, and what their outputs are worth."""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from vidgen.nn import MaskedConv2d
from vidgen.sampling.heads import Categorical, Head, scale_levels


class ImageModel(nn.Module):
    """A network that gives the distribution of every pixel from the pixels before it.

    A subclass has ``forward(x)``, or ``forward(x, labels)`` if it has classes, which returns what its head reads; and
    fills ``config``.

    Args:
        image_shape: (C, H, W).
        levels: number of grey levels, at least 2.
        head: reads the network's output.
        classes: number of classes of a class-conditional model, 0 for an unconditional one.

    Raises:
        ValueError: a size is not as described.
    """

    def __init__(self, image_shape: tuple[int, int, int], levels: int, head: Head, classes: int = 0):
        super().__init__()
        self.image_shape = (image_shape[0], image_shape[1], image_shape[2])
        self.levels = levels
        self.head = head
        self.classes = classes
        self.config: dict[str, Any] = {}

    @property
    def conditional(self) -> bool:
        """Whether forward takes labels."""
        return self.classes > 0

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """log p(x), or log p(x | label), in nats.

        Args:
            x: integer images (N, C, H, W) in 0 … levels−1.
            labels: int64 (N,), for a class-conditional model.

        Returns:
            float32 (N,) (float64 if the weights are); differentiable in the weights.

        Raises:
            TypeError: x is not of an integer dtype.
            ValueError: x has a wrong shape or a value out of range; labels likewise, missing or there needlessly.
        """
        if x.is_floating_point():
            raise TypeError(f"x: expected integer grey levels, got {x.dtype}")
        if not self.conditional and labels is not None:
            raise ValueError(f"labels: {type(self).__name__} has no classes here, expected None")
        return self.head.log_prob(self(x, labels) if self.conditional else self(x), x)

    def bits_per_dim(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """−log₂ p(x) / (C·H·W). Arguments as in ``log_prob`` -> (N,)."""
        return -self.log_prob(x, labels) / (math.log(2.0) * math.prod(x.shape[1:]))

    def _scaled(self, x: Tensor) -> Tensor:
        """The images that the network computes with: checked, and integers scaled to [-1, 1] in the weights' dtype."""
        channels = self.image_shape[0]
        if x.dim() != 4 or x.shape[1] != channels:
            raise ValueError(f"x: expected shape (N, {channels}, H, W), got {tuple(x.shape)}")
        if x.is_floating_point():
            return x
        _check_range("x: expected grey levels", x, self.levels)
        return scale_levels(x, self.levels, next(self.parameters()).dtype)

    def _scaled_rows(self, x: Tensor) -> Tensor:
        """As ``_scaled``, in the contiguous memory format, for networks that contain torch's own convolutions.

        These round differently in another format, so that the bits of an output would depend on the strides of x.
        """
        x = self._scaled(x)
        _, channels, height, width = x.shape
        # asking for .contiguous() is not enough: it leaves the strides of axes of size 1, and an image of one channel
        # can be taken for channels_last by these alone
        rows = (channels * height * width, height * width, width, 1)
        return x if x.stride() == rows else x.clone(memory_format=torch.contiguous_format)

    def _checked_labels(self, x: Tensor, labels: Tensor | None) -> Tensor | None:
        if not self.conditional:
            if labels is not None:
                raise ValueError(f"labels: {type(self).__name__} has no classes here, expected None")
            return None
        if labels is None:
            raise ValueError(f"labels: expected int64 labels of the {self.classes} classes, got None")
        if labels.dtype != torch.int64:
            raise TypeError(f"labels: expected int64, got {labels.dtype}")
        if labels.shape != x.shape[:1]:
            raise ValueError(f"labels: expected shape ({x.shape[0]},), got {tuple(labels.shape)}")
        _check_range("labels: expected", labels, self.classes)
        return labels

    def extra_repr(self) -> str:
        classes = f", classes={self.classes}" if self.conditional else ""
        return f"image_shape={self.image_shape}, levels={self.levels}{classes}"


class SoftmaxImageModel(ImageModel):
    """An image model with an n-way softmax for every sub-pixel, worked out by two masked 1×1 convolutions.

    Channel k of every layer has colour k mod C ("interleaved"), and the last layer's channel v·C + c is the logit of
    level v of colour c, so that the logits (N, levels, C, H, W) are a view of its output.

    Args:
        image_shape, levels, classes: as in ``ImageModel``.
        dropout: the network's, checked here.
        widths: numbers of channels, which must divide by C, by the names of the arguments that gave them.

    Raises:
        ValueError: a size is not as described.
    """

    head_hidden: MaskedConv2d
    head_logits: MaskedConv2d

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        levels: int,
        *,
        dropout: float,
        classes: int = 0,
        **widths: int,
    ):
        check_sizes(image_shape, levels, classes, dropout)
        for name, width in widths.items():
            if width < 1 or width % image_shape[0]:
                raise ValueError(
                    f"{name}: expected a positive multiple of the {image_shape[0]} image channels, got {width}"
                )
        super().__init__(image_shape, levels, Categorical(levels), classes)

    def _add_head(self, features: int, head_channels: int) -> None:
        """Makes the head's layers, which read ``features`` channels; the last thing a subclass's constructor does."""
        channels = self.image_shape[0]
        self.head_hidden = MaskedConv2d(features, head_channels, 1, mask="B", colors=channels)
        self.head_logits = MaskedConv2d(head_channels, self.levels * channels, 1, mask="B", colors=channels)

    def _logits(self, features: Tensor) -> Tensor:
        """(N, features, H, W) -> (N, levels, C, H, W)."""
        y = self.head_logits(torch.relu(self.head_hidden(torch.relu(features))))
        return cast(Tensor, y.contiguous().unflatten(1, (self.levels, self.image_shape[0])))


def check_sizes(image_shape: tuple[int, int, int], levels: int, classes: int, dropout: float) -> None:
    """Refuses sizes that no image model can have, by ValueErrors that name them."""
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"image_shape: expected three positive sizes (C, H, W), got {tuple(image_shape)}")
    if levels < 2:
        raise ValueError(f"levels: expected at least 2, got {levels}")
    if classes < 0:
        raise ValueError(f"classes: expected at least 0, got {classes}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout: expected a number in [0, 1), got {dropout}")


def _check_range(what: str, values: Tensor, end: int) -> None:
    # reading the range of an accelerator's tensor would make the host wait for it
    if values.device.type == "cpu" and values.numel() and not torch.compiler.is_compiling():
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= end:
            raise ValueError(f"{what} 0 … {end - 1}, got {low} … {high}")
