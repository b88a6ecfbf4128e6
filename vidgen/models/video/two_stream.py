"""The two-stream network: one CNN-M sees a frame, another how the frames around it move; their scores are fused late.

The spatial stream gets single frames, the temporal stream stacks of 2L displacement fields, computed from the clip when
they are needed (``vidgen.models.video.flow_stacks``). Each gives its probabilities of the same classes, averaged over
frames τ that are evenly spaced over those at which a stack exists. They are fused by

    average    the mean of both streams' probabilities
    svm        a multi-class linear SVM on both streams' probabilities, each scaled to length 1, one after the other

The spatial stream sees pixels less 0.45 and divided by 0.225, photographs' mean and deviation where white is 1; the
temporal stream sees displacements in pixels.

Source: Simonyan and Zisserman, "Two-Stream Convolutional Networks for Action Recognition in Videos" (NIPS 2014),
sections 2, 3 and 5 and figure 1. There each of 25 frames is seen in 10 crops of a larger picture; here whole pictures
are seen, and what crops there are is the caller's choice. The SVM is that of Crammer and Singer (2001), as there.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidgen.extras import require
from vidgen.models.video.cnn_m import CNNM
from vidgen.models.video.flow_stacks import Stacking, displacement_fields, flow_stack, stack_frames
from vidgen.ops.optical_flow import Method, checked_kind

Fusion = Literal["average", "svm"]

#: of photographs' pixels, where white is 1
_MEAN, _DEVIATION = 0.45, 0.225
#: of the SVM's solver, at most; scores that tell nothing would keep it busy for minutes
_ITERATIONS = 1000


class TwoStream(nn.Module):
    """A two-stream network (formula and source: the head of this module).

    Args:
        classes: number of classes; 101 are UCF-101's.
        input_size: (H, W) of the clips.
        in_channels: 1 or 3 channels of a frame.
        width, stride: of both streams, as in ``vidgen.models.CNNM``; 96 and 2 are CNN-M.
        dropout: of the spatial and of the temporal stream's fc6 and fc7.
        length: L, the displacement fields of a stack; even where stacks are bidirectional.
        stacking: "optical_flow", at the same pixel, or "trajectory", along what moves.
        bidirectional: half of the fields from frame τ on, half back from it.
        samples: frames at which a clip is seen, at most.
        fusion: "average", or "svm", which ``fit_svm`` fits.
        method, preset, parameters: of the optical flow, as in ``vidgen.ops.optical_flow``; a preset of None is
            "two_stream" of "tvl1" and any other method's own default. "tvl1" with "two_stream" is what such networks
            were trained with; it is made for small motions, and in small pictures "dis" with
            ``parameters={"patch_size": 4, "finest_scale": 0}`` finds larger ones.

    Attributes:
        spatial, temporal: the streams, ``vidgen.models.CNNM``.

    Raises:
        ValueError, TypeError: an argument is not as above.
    """

    svm_weight: Tensor
    svm_bias: Tensor

    def __init__(
        self,
        classes: int = 101,
        *,
        input_size: tuple[int, int] = (224, 224),
        in_channels: int = 3,
        width: int = 96,
        stride: int = 2,
        dropout: tuple[float, float] = (0.5, 0.9),
        length: int = 10,
        stacking: Stacking = "optical_flow",
        bidirectional: bool = False,
        samples: int = 25,
        fusion: Fusion = "average",
        method: Method = "tvl1",
        preset: str | None = None,
        parameters: dict[str, Any] | None = None,
    ):
        super().__init__()
        if in_channels not in (1, 3):
            raise ValueError(f"in_channels: expected 1 or 3, got {in_channels}")
        if len(dropout) != 2:
            raise ValueError(f"dropout: expected two shares, of the spatial and the temporal stream, got {dropout}")
        if stacking not in get_args(Stacking):
            raise ValueError(f"stacking: expected one of {', '.join(get_args(Stacking))}, got {stacking!r}")
        if samples < 1:
            raise ValueError(f"samples: expected at least 1, got {samples}")
        _check_fusion(fusion)
        kind = checked_kind(method, preset, parameters or {})
        if preset is None:
            preset = "two_stream" if method == "tvl1" else kind.default
        # a clip of one frame more than a stack is the shortest
        stack_frames(length + 1, length, bidirectional=bidirectional)

        self.length, self.stacking, self.bidirectional = length, stacking, bidirectional
        self.samples, self.in_channels = samples, in_channels
        self._flow: dict[str, Any] = {"method": method, "preset": preset, **(parameters or {})}
        self.config: dict[str, Any] = {
            "classes": classes,
            "input_size": list(input_size),
            "in_channels": in_channels,
            "width": width,
            "stride": stride,
            "dropout": list(dropout),
            "length": length,
            "stacking": stacking,
            "bidirectional": bidirectional,
            "samples": samples,
            "fusion": fusion,
            "method": method,
            "preset": preset,
            "parameters": dict(parameters or {}),
        }
        shared: dict[str, Any] = {"input_size": input_size, "width": width, "stride": stride}
        self.spatial = CNNM(classes, in_channels=in_channels, dropout=dropout[0], **shared)
        self.temporal = CNNM(classes, in_channels=2 * length, dropout=dropout[1], second_norm=False, **shared)
        self.register_buffer("svm_weight", torch.zeros(classes, 2 * classes))
        self.register_buffer("svm_bias", torch.zeros(classes))

    @property
    def fusion(self) -> Fusion:
        """How the streams' scores are fused."""
        fusion: Fusion = self.config["fusion"]
        return fusion

    def displacement_fields(self, clips: Tensor) -> Tensor:
        """All displacement fields of the clips, as this network's stacks need them: what is worth keeping of clips that
        are seen again and again. Half precision will do to keep it in.

        Args:
            clips: as in ``forward``.

        Returns:
            (N, 1 or 2, T−1, 2, H, W), as ``vidgen.models.displacement_fields``.
        """
        self._check(clips)
        return displacement_fields(clips, bidirectional=self.bidirectional, **self._flow)

    def frames_at(self, clips: Tensor, frames: Tensor) -> Tensor:
        """What the spatial stream sees: frames (N,) or (N, S) of the clips, normalised, (N, [S,] C, H, W)."""
        self._check(clips)
        which = torch.arange(len(clips), device=clips.device)
        which = which.view(-1, *[1] * (frames.dim() - 1))
        seen = clips.transpose(1, 2)[which, frames]
        wide = seen.to(self.spatial.conv1.weight.dtype)
        return ((wide / 255 if clips.dtype == torch.uint8 else wide) - _MEAN) / _DEVIATION

    def stacks_at(self, fields: Tensor, frames: Tensor) -> Tensor:
        """What the temporal stream sees: the stacks at frames (N,) or (N, S), (N, [S,] 2L, H, W), of fields from
        ``displacement_fields``."""
        stacks = flow_stack(fields, frames, self.length, stacking=self.stacking)
        return stacks.to(self.temporal.conv1.weight.dtype)

    def possible_frames(self, frames: int) -> range:
        """The frames τ of a clip of that many frames at which the network can see it."""
        return stack_frames(frames, self.length, bidirectional=self.bidirectional)

    def stream_probabilities(self, clips: Tensor, fields: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Each stream's probabilities, averaged over the sampled frames.

        Args:
            clips: as in ``forward``.
            fields: their ``displacement_fields``, if they are there already.

        Returns:
            Of the spatial and of the temporal stream, each (N, classes).

        Raises:
            ValueError: as ``forward``.
        """
        self._check(clips, fields)
        possible = self.possible_frames(clips.shape[2])
        count = min(self.samples, len(possible))
        at = torch.linspace(possible.start, possible.stop - 1, count, device=clips.device).round().long()
        at = at.expand(len(clips), count)
        fields = self.displacement_fields(clips) if fields is None else fields
        answers = []
        for stream, seen in ((self.spatial, self.frames_at(clips, at)), (self.temporal, self.stacks_at(fields, at))):
            scores = stream(seen.flatten(0, 1)).unflatten(0, (len(clips), count))  # [N, S, classes]
            answers.append(scores.softmax(-1).mean(1))
        return answers[0], answers[1]

    def fuse(self, spatial: Tensor, temporal: Tensor, fusion: Fusion | None = None) -> Tensor:
        """Scores from both streams' probabilities.

        Args:
            spatial, temporal: (N, classes), probabilities.
            fusion: how; None takes the network's own.

        Returns:
            (N, classes): logarithms of probabilities ("average"), or what the SVM says, the largest of which counts.

        Raises:
            ValueError: there is no such fusion.
            RuntimeError: there is no SVM, as ``fit_svm`` has not been called.
        """
        fusion = self.fusion if fusion is None else fusion
        _check_fusion(fusion)
        if fusion == "average":
            return ((spatial + temporal) / 2).log()
        if not bool(self.svm_weight.any()):
            raise RuntimeError("fusion='svm' needs fit_svm to be called first")
        return F.linear(_features(spatial, temporal), self.svm_weight, self.svm_bias)

    @torch.no_grad()
    def fit_svm(self, spatial: Tensor, temporal: Tensor, labels: Tensor, *, C: float = 1.0) -> TwoStream:
        """Fits the SVM to both streams' probabilities of some clips; from then on the network fuses by it.

        Args:
            spatial, temporal: (N, classes), from ``stream_probabilities``.
            labels: int64 (N,), each below ``classes``. A class that does not occur will never be named.
            C: the SVM's, what an error costs.

        Returns:
            self.

        Raises:
            ValueError: an argument is not as above, or fewer than two classes occur; the network stays as it was.
            ModuleNotFoundError: scikit-learn is not installed (``pip install 'vidgen[data]'``).
        """
        self._check_labelled(spatial, temporal, labels)
        if len(labels.unique()) < 2:
            raise ValueError(f"labels: expected at least two classes, got {labels.unique().tolist()}")
        kind = require("sklearn.svm", extra="data").LinearSVC
        svm = kind(multi_class="crammer_singer", C=C, random_state=0, max_iter=_ITERATIONS)
        svm.fit(_features(spatial, temporal).cpu().double().numpy(), labels.cpu().numpy())
        weight, bias = torch.from_numpy(svm.coef_), torch.from_numpy(svm.intercept_)
        if len(weight) == 1:
            # of two classes scikit-learn gives the second one's lead over the first
            weight, bias = torch.cat([0 * weight, weight]), torch.cat([0 * bias, bias])
        present = torch.from_numpy(svm.classes_)
        self.svm_weight.zero_()[present] = weight.to(self.svm_weight)
        self.svm_bias.fill_(-torch.inf)[present] = bias.to(self.svm_bias)
        self.config["fusion"] = "svm"
        return self

    def forward(self, clips: Tensor, fields: Tensor | None = None) -> Tensor:
        """Scores of the classes, the largest of which counts.

        Args:
            clips: (N, C, T, H, W), uint8, or floating point in [0, 1]; T more than the stack's length.
            fields: their ``displacement_fields``, if they are there already.

        Returns:
            (N, classes): logarithms of the fused probabilities, or what the SVM says.

        Raises:
            ValueError: clips or fields have another shape, or clips too few frames.
            RuntimeError: there is no SVM yet; or as ``vidgen.ops.optical_flow``.
        """
        return self.fuse(*self.stream_probabilities(clips, fields))

    def _check(self, clips: Tensor, fields: Tensor | None = None) -> None:
        height, width = self.spatial.input_size
        if clips.dim() != 5 or clips.shape[1] != self.in_channels or tuple(clips.shape[3:]) != (height, width):
            expected = f"(N, {self.in_channels}, T, {height}, {width})"
            raise ValueError(f"clips: expected shape {expected}, got {tuple(clips.shape)}")
        frames = clips.shape[2]
        if frames <= self.length:
            raise ValueError(f"clips: expected more frames than the stack's length {self.length}, got {frames}")
        ways = 2 if self.bidirectional else 1
        if fields is not None and fields.shape != (len(clips), ways, frames - 1, 2, height, width):
            expected = f"{(len(clips), ways, frames - 1, 2, height, width)}, those of the clips"
            raise ValueError(f"fields: expected shape {expected}, got {tuple(fields.shape)}")

    def _check_labelled(self, spatial: Tensor, temporal: Tensor, labels: Tensor) -> None:
        if labels.dtype != torch.int64 or labels.dim() != 1:
            raise ValueError(f"labels: expected int64 of shape (N,), got {labels.dtype} of {tuple(labels.shape)}")
        classes = len(self.svm_bias)
        for name, scores in (("spatial", spatial), ("temporal", temporal)):
            if scores.shape != (len(labels), classes):
                raise ValueError(f"{name}: expected shape {(len(labels), classes)}, got {tuple(scores.shape)}")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            span = f"{int(labels.min())} to {int(labels.max())}"
            raise ValueError(f"labels: expected classes from 0 to {classes - 1}, got {span}")

    def extra_repr(self) -> str:
        return f"length={self.length}, stacking={self.stacking!r}, bidirectional={self.bidirectional}"


def _check_fusion(fusion: str) -> None:
    if fusion not in get_args(Fusion):
        raise ValueError(f"fusion: expected one of {', '.join(get_args(Fusion))}, got {fusion!r}")


def _features(spatial: Tensor, temporal: Tensor) -> Tensor:
    return torch.cat([F.normalize(spatial, dim=1), F.normalize(temporal, dim=1)], dim=1)
