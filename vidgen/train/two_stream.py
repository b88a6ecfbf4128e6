"""Two-stream networks on moving digits before textures: a class is a digit and its motion, 10 · 4 in all.

No frame shows how a digit moves, and a displacement field little of which digit it is. So of 40 classes the spatial
stream alone can name one in four, the temporal stream hardly more than one in ten, and both together all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from vidgen.data import MOTIONS, MovingDigits, moving_digits
from vidgen.data.digits import Split
from vidgen.models import TwoStream, save_checkpoint
from vidgen.models.video.flow_stacks import Stacking
from vidgen.sampling.philox import check_seed, philox4x32
from vidgen.train.one_model import cosine
from vidgen.train.task import Modules, Phase, Task

DIGITS = 10
CLASSES = DIGITS * len(MOTIONS)
VALIDATION_CLIPS, TEST_CLIPS = 128, 1000
#: clips to whose scores the SVM is fitted, at most
SVM_CLIPS = 512
#: the spatial stream's updates in a step: what a digit is takes longer to learn than how it moves
SPATIAL_UPDATES = 3

#: patches of 4 pixels on the full picture: those of 8 on its half, as presets have it, are as large as the digits
_FLOW: dict[str, Any] = {"patch_size": 4, "patch_stride": 2, "finest_scale": 0}


def two_stream_clips(frames: int, size: int, clips: int, seed: int) -> dict[Split, MovingDigits]:
    """Clips of size×size pixels before panning textures: ``clips`` to train on, and held-out ones of unseen digits.

    The held-out ones are the same whatever ``seed`` is.

    Raises:
        TypeError, ValueError: ``seed`` is not an int from 0 on, or another argument is not as in
            ``vidgen.data.moving_digits``.
    """

    def part(split: Split, n: int, seed: int) -> MovingDigits:
        return moving_digits(
            split,
            n=n,
            frames=frames,
            height=size,
            width=size,
            digit_size=size * 5 // 8,
            background="panning texture",
            seed=seed,
        )

    check_seed(seed)
    # seeds 0 and 1 are kept for the held-out splits, so that no path or texture of theirs is trained on
    return {
        "train": part("train", clips, seed + 2),
        "validation": part("validation", VALIDATION_CLIPS, 1),
        "test": part("test", TEST_CLIPS, 0),
    }


def classes_of(clips: MovingDigits) -> Tensor:
    """digit · 4 + motion, int64 (N,)."""
    return clips.digit * len(MOTIONS) + clips.motion


def two_stream_model(
    *,
    size: int,
    width: int,
    dropout: float = 0.0,
    length: int = 10,
    stacking: Stacking = "optical_flow",
    bidirectional: bool = False,
) -> TwoStream:
    """A network for such clips, the arguments as ``TwoStream`` has them; its flow is that of small pictures."""
    return TwoStream(
        CLASSES,
        input_size=(size, size),
        in_channels=1,
        width=width,
        stride=1,
        dropout=(dropout, dropout),
        length=length,
        stacking=stacking,
        bidirectional=bidirectional,
        samples=3,
        method="dis",
        preset="medium",
        parameters=_FLOW,
    )


def two_stream_task(
    model: TwoStream,
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor] | None,
    *,
    steps: int,
    learning_rate: float = 2e-3,
    weight_decay: float = 0.01,
    warmup: int = 20,
    max_grad_norm: float = 1.0,
    seed: int = 0,
    description: dict[str, Any] | None = None,
) -> Task:
    """Both streams' cross entropy, each by an AdamW of its own and on batches of its own.

    The clips' displacement fields are computed once, here, and kept in half precision, to within 0.1 %.

    Args:
        model: whose streams are trained.
        train, validation: clips (N, C, T, H, W), uint8, and their classes, int64 (N,).
        steps: training steps of the whole run, which the learning rate's cosine spans. In each the temporal stream is
            updated once and the spatial stream ``SPATIAL_UPDATES`` times.
        learning_rate, weight_decay, warmup, max_grad_norm: as in ``classification_task``, for each stream.
        seed: decides at which frame a clip is seen.
        description: further values that distinguish the task, such as the data set's name.

    Returns:
        A task that records both streams' loss and accuracy in training, and on held-out clips "cross_entropy" (nats) of
        the averaged probabilities, whose least value is the best, and "accuracy", "spatial_accuracy",
        "temporal_accuracy"; it saves checkpoints for ``vidgen.models.load_checkpoint``.
    """
    possible = model.possible_frames(train[0].shape[2])

    def data(part: tuple[Tensor, Tensor]) -> TensorDataset:
        return TensorDataset(part[0], model.displacement_fields(part[0]).half(), part[1])

    def at_frames(batch: list[Tensor], positions: NDArray[numpy.int64]) -> list[Tensor]:
        # the last word keeps these numbers apart from those of images, of the order and of moving digits
        words = philox4x32((positions & 0xFFFFFFFF, positions >> 32, 0, 3), seed)[:, 0].astype(numpy.uint64)
        drawn = (words * numpy.uint64(len(possible)) >> numpy.uint64(32)).astype(numpy.int64)
        return [*batch, torch.from_numpy(drawn + possible.start)]

    def stream_loss(stream: nn.Module, seen: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        scores = stream(seen)
        return F.cross_entropy(scores, labels), {"accuracy": (scores.argmax(1) == labels).float().mean()}

    def spatial_loss(modules: Modules, batch: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        clips, _, labels, at = batch
        return stream_loss(modules["spatial"], model.frames_at(clips, at), labels)

    def temporal_loss(modules: Modules, batch: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        _, fields, labels, at = batch
        return stream_loss(modules["temporal"], model.stacks_at(fields, at), labels)

    def judged(modules: Modules, batch: list[Tensor]) -> dict[str, Tensor]:
        clips, fields, labels = batch
        spatial, temporal = model.stream_probabilities(clips, fields)
        fused = model.fuse(spatial, temporal, "average")
        told = {"accuracy": fused, "spatial_accuracy": spatial, "temporal_accuracy": temporal}
        right = {name: (scores.argmax(1) == labels).float() for name, scores in told.items()}
        return {"cross_entropy": F.nll_loss(fused, labels, reduction="none"), **right}

    def save(path: Path, metadata: dict[str, Any]) -> None:
        save_checkpoint(model, path, **metadata, **(description or {}))

    def phase(name: str, loss: Any, updates: int) -> Phase:
        return Phase(
            name,
            trains=(name,),
            optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay),
            loss=loss,
            updates=updates,
            schedule=cosine(steps, warmup),
            max_grad_norm=max_grad_norm,
        )

    optimization = {
        "steps": steps,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "warmup": warmup,
        "max_grad_norm": max_grad_norm,
    }
    return Task(
        modules={"spatial": model.spatial, "temporal": model.temporal},
        phases=(phase("spatial", spatial_loss, SPATIAL_UPDATES), phase("temporal", temporal_loss, 1)),
        data=data(train),
        validation=None if validation is None else data(validation),
        evaluate=None if validation is None else judged,
        monitor=None if validation is None else "cross_entropy",
        averaged=("spatial", "temporal"),
        save=save,
        augment=at_frames,
        description={"model": model.config, **optimization, **(description or {})},
    )


@torch.no_grad()
def stream_probabilities(
    model: TwoStream, clips: Tensor, fields: Tensor | None = None, *, batch_size: int = 64
) -> tuple[Tensor, Tensor]:
    """``model.stream_probabilities`` of any number of clips, batch by batch; the model is put in eval mode."""
    model.eval()
    parts = clips.split(batch_size)
    given = [None] * len(parts) if fields is None else fields.split(batch_size)
    answers = [model.stream_probabilities(*part) for part in zip(parts, given, strict=True)]
    spatial, temporal = zip(*answers, strict=True)
    return torch.cat(spatial), torch.cat(temporal)


def told_right(spatial: Tensor, temporal: Tensor, fused: dict[str, Tensor], clips: MovingDigits) -> dict[str, int]:
    """How many clips are told right, of probabilities (N, 40) and further scores.

    Returns:
        "spatial", "temporal" and the names in ``fused``: digit and motion both right; "spatial digit", "spatial
        motion", "temporal digit" and "temporal motion": the likeliest after summing over the other.
    """
    counts = {}
    for name, scores in {"spatial": spatial, "temporal": temporal, **fused}.items():
        counts[name] = int((scores.argmax(1) == classes_of(clips)).sum())
    for name, scores in (("spatial", spatial), ("temporal", temporal)):
        joint = scores.unflatten(1, (DIGITS, len(MOTIONS)))
        counts[f"{name} digit"] = int((joint.sum(2).argmax(1) == clips.digit).sum())
        counts[f"{name} motion"] = int((joint.sum(1).argmax(1) == clips.motion).sum())
    return counts


def judge(
    model: TwoStream,
    train: MovingDigits,
    test: MovingDigits,
    *,
    train_fields: Tensor | None = None,
    test_fields: Tensor | None = None,
) -> tuple[dict[str, int], dict[str, Tensor]]:
    """Fits the model's SVM to clips that were trained on, then counts what of the test clips is told right.

    Args:
        model: trained.
        train, test: clips.
        train_fields, test_fields: their displacement fields, where they are there already.

    Returns:
        ``told_right`` of "average" and "svm"; scores by "average" and "svm", (N, 40).
    """
    some = slice(min(SVM_CLIPS, len(train.motion)))
    fields = None if train_fields is None else train_fields[some]
    model.fit_svm(*stream_probabilities(model, train.video[some], fields), classes_of(train)[some])
    spatial, temporal = stream_probabilities(model, test.video, test_fields)
    fused = {"average": model.fuse(spatial, temporal, "average"), "svm": model.fuse(spatial, temporal, "svm")}
    return told_right(spatial, temporal, fused, test), fused
