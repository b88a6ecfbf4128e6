"""Four small networks that differ in where frames come together: after all else, late, early, or slowly.

    layer          single frame, late   early                3-d CNN (slow fusion)
    convolution    1×3×3, C -> 12       3×3, C·T -> 12       3×3×3, C -> 12
    max-pooling    1×4×4                4×4                  4×4×4
    convolution    1×3×3, 12 -> 24      3×3, 12 -> 24        3×3×3, 12 -> 24
    average over   H, W (and T: late)   H, W                 T, H, W

A linear layer turns the averages into scores of the classes. The small table with which these are taught has no
activations: read to the letter, it pools and convolves linear maps. Here ReLU follows every convolution, as in the
networks that the table stands for; ``activation="identity"`` is the letter.

``vidgen.layer_report`` gives their sizes and receptive fields. Source of the four ideas: Karpathy, Toderici, Shetty,
Leung, Sukthankar and Fei-Fei, "Large-scale Video Classification with Convolutional Neural Networks" (CVPR 2014),
section 3.1 and figure 1; of slow fusion by 3-d convolution also Ji et al., "3D Convolutional Neural Networks for Human
Action Recognition" (2013).
"""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor, nn

from vidgen.nn import ConvPool3d
from vidgen.ops.conv3d_pool3d import Activation

_Size = tuple[int, int, int]


class _TwoConvs(nn.Module):
    """What the four share: a convolution with pooling, a convolution, and a record of the arguments."""

    def __init__(self, channels: int, kernel_size: _Size, pool: _Size, config: dict[str, Any]):
        super().__init__()
        widths = config["widths"] = list(config["widths"])
        for name in ("classes", "in_channels"):
            if config[name] is not None and config[name] < 1:
                raise ValueError(f"{name}: expected at least 1, got {config[name]}")
        if len(widths) != 2 or min(widths) < 1:
            raise ValueError(f"widths: expected two positive numbers of channels, got {tuple(widths)}")
        self.in_channels: int = config["in_channels"]
        self.config = config
        activation: Activation = config["activation"]
        self.conv1 = ConvPool3d(channels, widths[0], kernel_size, pool=pool, activation=activation)
        self.conv2 = ConvPool3d(widths[0], widths[1], kernel_size, activation=activation)

    def _maps(self, clips: Tensor) -> Tensor:
        return self.conv2(self.conv1(clips))

    def _check(self, clips: Tensor, frames: int | None = None) -> None:
        t = "T" if frames is None else frames
        right = clips.dim() == 5 and clips.shape[1] == self.in_channels and frames in (None, clips.shape[2])
        if not right:
            raise ValueError(f"clips: expected shape (N, {self.in_channels}, {t}, H, W), got {tuple(clips.shape)}")


def _classifier(features: int, classes: int | None) -> nn.Module:
    return nn.Identity() if classes is None else nn.Linear(features, classes)


class SingleFrame(_TwoConvs):
    """A 2-d network that looks at every frame alone; the frames' probabilities are averaged. A strong baseline.

    Args:
        classes: number of classes.
        in_channels: C, channels of a frame.
        widths: channels after the first and the second convolution.
        activation: after each convolution; "relu" or "identity".

    Raises:
        ValueError: an argument is not as above.
    """

    def __init__(
        self,
        classes: int,
        *,
        in_channels: int = 3,
        widths: tuple[int, int] = (12, 24),
        activation: Activation = "relu",
    ):
        config = {"classes": classes, "in_channels": in_channels, "widths": widths, "activation": activation}
        super().__init__(in_channels, (1, 3, 3), (1, 4, 4), config)
        self.pool = nn.AdaptiveAvgPool3d((None, 1, 1))
        self.classifier = nn.Linear(widths[1], classes)

    def frame_logits(self, clips: Tensor) -> Tensor:
        """Scores of every frame before softmax, (N, C, T, H, W) -> (N, T, classes); what training compares with the
        clip's class."""
        self._check(clips)
        frames = self.pool(self._maps(clips)).flatten(2)  # [N, C, T]
        scores: Tensor = self.classifier(frames.transpose(1, 2))
        return scores

    def forward(self, clips: Tensor) -> Tensor:
        """Logarithms of the averaged probabilities: scores whose softmax is the mean over frames of their softmax.

        Args:
            clips: (N, C, T, H, W) floating point, any T, H, W of at least one pooling window.

        Returns:
            (N, classes).
        """
        log_p = self.frame_logits(clips).log_softmax(-1)  # [N, T, classes]
        return log_p.logsumexp(1) - math.log(log_p.shape[1])


class LateFusion(_TwoConvs):
    """A 2-d network per frame; its maps come together at the end.

    Args:
        classes: number of classes. None, with fusion "pool": no classifier, the averages come out.
        fusion: "pool" averages over T, H and W, and does not know the order of frames. "fc" feeds every value of every
            frame to a hidden layer with ReLU, then to the classifier.
        input_size: (T, H, W) of the clips; matters to "fc" only.
        hidden: units of the hidden layer of "fc".
        in_channels, widths, activation: as in ``SingleFrame``.

    Raises:
        ValueError: an argument is not as above.
    """

    def __init__(
        self,
        classes: int | None = None,
        *,
        fusion: Literal["pool", "fc"] = "pool",
        input_size: tuple[int, int, int] = (20, 64, 64),
        hidden: int = 128,
        in_channels: int = 3,
        widths: tuple[int, int] = (12, 24),
        activation: Activation = "relu",
    ):
        if fusion not in ("pool", "fc"):
            raise ValueError(f"fusion: expected 'pool' or 'fc', got {fusion!r}")
        if fusion == "fc" and classes is None:
            raise ValueError("classes: expected a number for fusion='fc', got None")
        if hidden < 1:
            raise ValueError(f"hidden: expected at least 1, got {hidden}")
        if len(input_size) != 3 or input_size[0] < 1 or min(input_size[1:]) < 4:
            raise ValueError(f"input_size: expected (T, H, W) of at least (1, 4, 4), got {tuple(input_size)}")
        config = {
            "classes": classes,
            "fusion": fusion,
            "input_size": list(input_size),
            "hidden": hidden,
            "in_channels": in_channels,
            "widths": widths,
            "activation": activation,
        }
        super().__init__(in_channels, (1, 3, 3), (1, 4, 4), config)
        if fusion == "pool":
            self.fusion: nn.Module = nn.AdaptiveAvgPool3d(1)
            self.classifier = _classifier(widths[1], classes)
        else:
            values = widths[1] * input_size[0] * (input_size[1] // 4) * (input_size[2] // 4)
            self.fusion = nn.Sequential(nn.Flatten(), nn.Linear(values, hidden), nn.ReLU())
            self.classifier = _classifier(hidden, classes)

    def forward(self, clips: Tensor) -> Tensor:
        """(N, C, T, H, W) -> scores before softmax (N, classes), or averages (N, widths[1]) without classes."""
        self._check(clips)
        if self.config["fusion"] == "fc" and list(clips.shape[2:]) != self.config["input_size"]:
            expected = tuple(self.config["input_size"])
            raise ValueError(f"clips: expected frames, height and width {expected}, got {tuple(clips.shape[2:])}")
        scores: Tensor = self.classifier(self.fusion(self._maps(clips)).flatten(1))
        return scores


class EarlyFusion(_TwoConvs):
    """A 2-d network to whose first layer the frames are channels: time is gone after it.

    Frame t's channel c is channel c·T + t of the first convolution, as a plain reshape has it.

    Args:
        classes: number of classes; None: no classifier, the averages come out.
        frames: T, the frames of every clip.
        in_channels, widths, activation: as in ``SingleFrame``.

    Raises:
        ValueError: an argument is not as above.
    """

    def __init__(
        self,
        classes: int | None = None,
        *,
        frames: int = 20,
        in_channels: int = 3,
        widths: tuple[int, int] = (12, 24),
        activation: Activation = "relu",
    ):
        if frames < 1:
            raise ValueError(f"frames: expected at least 1, got {frames}")
        config = {
            "classes": classes,
            "frames": frames,
            "in_channels": in_channels,
            "widths": widths,
            "activation": activation,
        }
        super().__init__(in_channels * frames, (1, 3, 3), (1, 4, 4), config)
        self.frames = frames
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.classifier = _classifier(widths[1], classes)

    def forward(self, clips: Tensor) -> Tensor:
        """(N, C, T, H, W) -> scores before softmax (N, classes), or averages (N, widths[1]) without classes."""
        self._check(clips, self.frames)
        # a clip of one frame with C·T channels  [N, C·T, 1, H, W]
        maps = self._maps(clips.flatten(1, 2).unsqueeze(2))
        scores: Tensor = self.classifier(self.pool(maps).flatten(1))
        return scores


class CNN3d(_TwoConvs):
    """A 3-d network: frames come together slowly, layer by layer ("slow fusion"), as rows and columns do.

    Args:
        classes: number of classes; None: no classifier, the averages come out.
        in_channels, widths, activation: as in ``SingleFrame``.

    Raises:
        ValueError: an argument is not as above.
    """

    def __init__(
        self,
        classes: int | None = None,
        *,
        in_channels: int = 3,
        widths: tuple[int, int] = (12, 24),
        activation: Activation = "relu",
    ):
        config = {"classes": classes, "in_channels": in_channels, "widths": widths, "activation": activation}
        super().__init__(in_channels, (3, 3, 3), (4, 4, 4), config)
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.classifier = _classifier(widths[1], classes)

    def forward(self, clips: Tensor) -> Tensor:
        """(N, C, T, H, W), T, H, W at least 4 -> scores before softmax (N, classes), or averages (N, widths[1])."""
        self._check(clips)
        scores: Tensor = self.classifier(self.pool(self._maps(clips)).flatten(1))
        return scores
