"""C3D: 3-d convolutions of 3×3×3 taps throughout, over clips of 16 frames.

Source: Tran, Bourdev, Fergus, Torresani and Paluri, "Learning Spatiotemporal Features with 3D Convolutional Networks"
(ICCV 2015), sections 3.2 and 3.3, figure 3:

    conv1 64 P(1,2,2) · conv2 128 P2 · conv3a,b 256 P2 · conv4a,b 512 P2 · conv5a,b 512 P2 · fc6 4096 · fc7 4096 · fc8

P is max-pooling, its windows disjoint; ReLU follows every layer but the last, dropout fc6 and fc7. With 487 classes
79.99 million parameters, and for a clip of 16×112×112 38.50 G multiply-accumulates in the convolutions, 0.05 G in the
fully connected layers. (The "39.5 GFLOP" in circulation are multiply-accumulates, and more than these layers have.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidgen.models.video.c3d_weights import translated
from vidgen.models.weights import read_weights
from vidgen.nn import ConvPool3d
from vidgen.ops import conv3d_pool3d

Pool5 = Literal["caffe", "port"]

# name, width, its max-pooling; pool5 stands apart
_CONVS: tuple[tuple[str, int, tuple[int, int, int] | None], ...] = (
    ("conv1", 1, (1, 2, 2)),
    ("conv2", 2, (2, 2, 2)),
    ("conv3a", 4, None),
    ("conv3b", 4, (2, 2, 2)),
    ("conv4a", 8, None),
    ("conv4b", 8, (2, 2, 2)),
    ("conv5a", 8, None),
    ("conv5b", 8, None),
)
_FULLY_CONNECTED = ("fc6", "fc7", "fc8")
_POOLS = {"pool1": "conv1", "pool2": "conv2", "pool3": "conv3b", "pool4": "conv4b", "pool5": "conv5b"}

#: Mean of Sports-1M's pixels, of 0 … 255, in the order blue, green, red.
SPORTS1M_MEAN_BGR = (90.25, 97.66, 101.41)


class C3D(nn.Module):
    """C3D (formula and source: the head of this module).

    Args:
        classes: number of classes; 487 are Sports-1M's.
        pool5: the last pooling. Its input is 7 pixels high and wide. "caffe" does as the authors' network: windows
            begin at pixel 0 and the last one is cut short (``MaxPool3d(2, 2, ceil_mode=True)``). "port" does as the
            common ports to PyTorch: windows begin one pixel before the map (``MaxPool3d(2, 2, padding=(0, 1, 1))``).
            Both give 4×4, of windows shifted by one: weights must be run with the pooling that they were trained with.
        width: channels of conv1; 64 is C3D. All other widths are multiples of it: 128, 256, 512 channels, 4096 units.
        dropout: share of fc6's and fc7's units dropped in training.
        input_size: (T, H, W) of the clips, on which fc6's number of inputs depends. At least 8×16×16, or 16×16×16
            where pool5 is "port".
        in_channels: channels of a frame.

    Raises:
        ValueError: an argument is not as above.

    Weights begin as He et al. (2015) draw them, normal with variance 2 / (number of inputs), and biases at zero, so
    that a signal keeps its size through eleven layers without normalisation. The convolutions are
    ``vidgen.nn.ConvPool3d``: ``vidgen.prepack(model)`` packs their weights for inference.
    """

    def __init__(
        self,
        classes: int = 487,
        *,
        pool5: Pool5 = "caffe",
        width: int = 64,
        dropout: float = 0.5,
        input_size: tuple[int, int, int] = (16, 112, 112),
        in_channels: int = 3,
    ):
        super().__init__()
        for name, value in (("classes", classes), ("width", width), ("in_channels", in_channels)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if pool5 not in ("caffe", "port"):
            raise ValueError(f"pool5: expected 'caffe' or 'port', got {pool5!r}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: expected a number in [0, 1), got {dropout}")
        *sizes, last_size = _map_sizes(input_size, pool5)

        self.input_size = (input_size[0], input_size[1], input_size[2])
        self.in_channels = in_channels
        self.config: dict[str, Any] = {
            "classes": classes,
            "pool5": pool5,
            "width": width,
            "dropout": dropout,
            "input_size": list(self.input_size),
            "in_channels": in_channels,
        }
        channels = in_channels
        for (name, multiple, pool), size in zip(_CONVS, sizes, strict=True):
            fused: dict[str, Any] = {"pool": pool}
            if name == "conv5b" and pool5 == "caffe":
                fused = {"pool": (2, 2, 2), "ceil_mode": True}
            setattr(self, name, ConvPool3d(channels, multiple * width, 3, padding=1, input_size=size, **fused))
            channels = multiple * width
        # The fused op's windows begin at pixel 0. Those of "port" begin one pixel before the map, where nothing is, not
        # even a convolution over padding; so the map, of 2×7×7 pixels, is pooled apart.
        self.pool5 = nn.MaxPool3d(2, 2, padding=(0, 1, 1)) if pool5 == "port" else nn.Identity()
        self.fc6 = nn.Linear(channels * math.prod(last_size), 64 * width)
        self.fc7 = nn.Linear(64 * width, 64 * width)
        self.fc8 = nn.Linear(64 * width, classes)
        self.dropout = nn.Dropout(dropout)
        for module in self.modules():
            if isinstance(module, (nn.Conv3d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(cast(Tensor, module.bias))

    def forward(self, clips: Tensor) -> Tensor:
        """Scores of the classes before softmax.

        Args:
            clips: (N, C, T, H, W) floating point, of the model's ``input_size``; for published weights what
                ``preprocess`` returns.

        Returns:
            (N, classes).

        Raises:
            ValueError: clips have another shape.
        """
        return self._run(clips, "fc8")

    def features(self, clips: Tensor, layer: str = "fc6", *, normalize: bool = True) -> Tensor:
        """Activations of a layer, after its ReLU and before dropout.

        The paper's descriptor of a video is the mean of the clips' fc6 activations, scaled to length 1: average with
        ``normalize=False``, then normalise.

        Args:
            clips: as in ``forward``.
            layer: conv1, conv2, conv3a, … conv5b (before pooling), pool1 … pool5, fc6, fc7 or fc8 (which has no ReLU).
            normalize: divide each clip's activations by their L2 norm, over all of a map's values. Activations that are
                all zero stay zero.

        Returns:
            (N, C, T', H', W') for convolutions and pools, (N, units) for fully connected layers. Differentiable.

        Raises:
            ValueError: there is no such layer, or clips have a wrong shape.
        """
        names = [*(name for name, _, _ in _CONVS), *_POOLS, *_FULLY_CONNECTED]
        if layer not in names:
            raise ValueError(f"layer: expected one of {', '.join(names)}, got {layer!r}")
        found = self._run(clips, layer)
        return F.normalize(found.flatten(1), dim=1).view_as(found) if normalize else found

    def _run(self, clips: Tensor, until: str) -> Tensor:
        if clips.dim() != 5 or tuple(clips.shape[1:]) != (self.in_channels, *self.input_size):
            expected = ", ".join(map(str, (self.in_channels, *self.input_size)))
            raise ValueError(f"clips: expected shape (N, {expected}), got {tuple(clips.shape)}")
        last = _POOLS.get(until, until)
        x = clips
        for name, _, _ in _CONVS:
            conv = cast(ConvPool3d, getattr(self, name))
            if name == until:
                return _unpooled(conv, x)
            x = conv(x)
            if name == last and name != "conv5b":
                return x
        x = self.pool5(x)
        if last == "conv5b":
            return x
        # channels outermost, as in Caffe  [N, C·T·H·W]
        x = x.flatten(1)
        for name in _FULLY_CONNECTED[:-1]:
            x = torch.relu(getattr(self, name)(x))
            if name == until:
                return x
            x = self.dropout(x)
        return cast(Tensor, self.fc8(x))

    @staticmethod
    def preprocess(
        frames: Tensor,
        *,
        channel_order: Literal["bgr", "rgb"] = "bgr",
        resize: tuple[int, int] = (128, 171),
        crop: tuple[int, int] = (112, 112),
    ) -> Tensor:
        """Frames as C3D saw them on Sports-1M: resized, cropped in the middle, less the data set's mean.

        Values stay on the scale 0 … 255. Resizing is bilinear with pixel centres at ½ and without antialiasing, as
        OpenCV's, but is not rounded to whole grey levels. The mean is one number per channel, as in the common ports;
        the authors' code subtracts a mean clip, which is close to it.

        Args:
            frames: uint8 (T, H, W, 3) or (N, T, H, W, 3), red first, as decoders give them.
            channel_order: of the result: "bgr" for weights that come from Caffe, "rgb" for those trained on red first.
            resize: (H, W) before the crop.
            crop: (H, W) after it; (128 − 112) / 2 = 8 rows and ⌊(171 − 112) / 2⌋ = 29 columns are cut at the front.

        Returns:
            float32 (3, T, H, W) or (N, 3, T, H, W).

        Raises:
            TypeError: frames are not uint8. ValueError: a shape or size is not as above.
        """
        if frames.dtype != torch.uint8:
            raise TypeError(f"frames: expected uint8, got {frames.dtype}")
        if frames.dim() not in (4, 5) or frames.shape[-1] != 3:
            raise ValueError(f"frames: expected shape (T, H, W, 3) or (N, T, H, W, 3), got {tuple(frames.shape)}")
        if channel_order not in ("bgr", "rgb"):
            raise ValueError(f"channel_order: expected 'bgr' or 'rgb', got {channel_order!r}")
        if any(c < 1 or c > r for c, r in zip(crop, resize, strict=True)):
            raise ValueError(f"crop: expected 1 to {resize[0]} rows and 1 to {resize[1]} columns, got {crop}")
        images = frames.flatten(0, -4).movedim(-1, 1).float()  # [N·T, 3, H, W]
        images = F.interpolate(images, size=resize, mode="bilinear", align_corners=False)
        top, left = (resize[0] - crop[0]) // 2, (resize[1] - crop[1]) // 2
        images = images[..., top : top + crop[0], left : left + crop[1]]
        mean = images.new_tensor(SPORTS1M_MEAN_BGR).view(3, 1, 1)
        images = images.flip(1) - mean if channel_order == "bgr" else images - mean.flip(0)
        return images.unflatten(0, frames.shape[:-3]).movedim(-3, -4).contiguous()

    def load_checkpoint(self, source: Mapping[str, Any] | str | Path, *, new_classifier: bool = False) -> C3D:
        """Loads C3D weights in vidgen's naming or that of a common port; weights only, no code is run.

        Known are, each also below ``module.`` or inside an entry ``state_dict``:

        - ``conv1 conv2 conv3a … fc8``, which is vidgen's own, too;
        - ``features.{0,3,6,8,11,13,16,18}`` and ``classifier.{0,3}``, with fc8 as ``classifier.6`` where it is there;
        - ``backbone.conv1a.conv … backbone.fc7`` and ``cls_head.fc_cls``; also without ``backbone.``.

        Such weights were trained with one ``pool5`` and one channel order, and no file says which.

        Args:
            source: a state dict, or a file: .safetensors, or what ``torch.load(weights_only=True)`` reads.
            new_classifier: keep fc8 as it is, whatever the source holds: for other classes than those trained on.

        Returns:
            self.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: no such naming, or names or shapes do not fit; the message lists the first of them. The model is
                unchanged then.
        """
        own = self.state_dict()
        weights = translated(read_weights(source), own, kept=("fc8.",) if new_classifier else ())
        self.load_state_dict({**own, **weights})
        return self

    @classmethod
    def from_state_dict(cls, source: Mapping[str, Any] | str | Path, **arguments: Any) -> C3D:
        """A model with ``C3D(**arguments)`` and the weights of ``source``, in eval mode; see ``load_checkpoint``."""
        # initial weights are drawn and thrown away; the caller's random numbers are none of that business
        with torch.random.fork_rng(devices=[]):
            model = cls(**arguments)
        return model.load_checkpoint(source).eval()

    def extra_repr(self) -> str:
        return f"input_size={self.input_size}, pool5={self.config['pool5']!r}"


def _map_sizes(input_size: tuple[int, int, int], pool5: str) -> list[tuple[int, ...]]:
    """(T, H, W) of each convolution's input, and last that of pool5's output."""
    if len(input_size) != 3:
        raise ValueError(f"input_size: expected three sizes (T, H, W), got {tuple(input_size)}")
    sizes: list[tuple[int, ...]] = [tuple(input_size)]
    for _, _, window in _CONVS:
        sizes.append(tuple(s // k for s, k in zip(sizes[-1], window or (1, 1, 1), strict=True)))
    before = sizes.pop()
    # a window more where the map is padded by one on both sides
    t, h, w = before
    after = (-(-t // 2), -(-h // 2), -(-w // 2)) if pool5 == "caffe" else (t // 2, h // 2 + 1, w // 2 + 1)
    if min(*before, *after) < 1:
        least = "8×16×16" if pool5 == "caffe" else "16×16×16"
        raise ValueError(f"input_size: expected at least {least} for pool5={pool5!r}, got {tuple(input_size)}")
    return [*sizes, after]


def _unpooled(layer: ConvPool3d, x: Tensor) -> Tensor:
    """The layer without its pooling."""
    return conv3d_pool3d(
        x,
        layer.weight,
        layer.bias,
        padding=1,
        activation=layer.activation,
        algorithm=layer.algorithm,
        impl=layer.impl,
    )
