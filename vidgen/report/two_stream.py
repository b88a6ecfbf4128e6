"""The demonstration: what a digit is and how it moves, told by two streams before a moving texture.

A class is a digit and its motion, 10 · 4 in all. The spatial stream sees frames, none of which shows the motion; the
temporal stream sees optical flow, which shows little of the digit. Each alone is measured beside both, fused by average
and by a linear SVM, on clips of unseen digits; and the flow that they were given beside the exact one.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from vidgen.data import MOTIONS, MovingDigits
from vidgen.flow_io import flow_to_rgb
from vidgen.models import TwoStream, load_checkpoint
from vidgen.report.demonstration import fresh_folder, trained
from vidgen.report.moving_digits import chance_interval
from vidgen.train import read_metrics
from vidgen.train.two_stream import (
    CLASSES,
    DIGITS,
    classes_of,
    judge,
    two_stream_clips,
    two_stream_model,
    two_stream_task,
)

_POINTS = 5
_METRICS = ("spatial_accuracy", "temporal_accuracy", "accuracy")


@dataclass(frozen=True)
class Plan:
    """Sizes of the demonstration; chosen on the validation clips."""

    frames: int = 16
    size: int = 32
    clips: int = 2048
    width: int = 12
    length: int = 10
    dropout: float = 0.0
    steps: int = 160
    batch_size: int = 32
    learning_rate: float = 2e-3
    warmup: int = 20
    ema: float = 0.95


QUICK = Plan(frames=8, size=24, clips=48, width=3, length=3, steps=2, batch_size=8, warmup=1)
"""Everything runs, nothing is learnt; for tests."""


def run(
    directory: str | Path, *, seed: int = 0, quick: bool = False, progress: bool | None = None, plan: Plan | None = None
) -> dict[str, Any]:
    """Trains both streams and judges them, alone and fused, on clips of unseen digits.

    Args:
        directory: gets a folder ``two-stream`` with the training run and its checkpoints; that from an earlier
            demonstration is replaced.
        seed: decides weights, clips to train on, their order and the frames at which they are seen. The held-out clips
            are the same for all seeds.
        quick: a toy size that shows only that everything works.
        progress: True, False, or None (bars on a terminal).
        plan: sizes of your own.

    Returns:
        curve: [{"step", "spatial_accuracy", "temporal_accuracy", "accuracy" (fused by average)}] of held-out clips.
        right: test clips told right, as ``vidgen.train.two_stream.told_right`` names them, with "average" and "svm";
            test_clips: how many there are.
        chance: {"joint", "digit", "motion"} -> {"low", "high"}: a guess has so many right, in at least 95 of 100 cases.
        flow_error: mean endpoint error in pixels against the exact flow, of the test clips' first stacks: "all" and
            "ink" (the digits' pixels) of the flow that the network saw, "zero" and "zero ink" of no flow at all.
        strip: frames uint8 (K, H, W), exact and found flow uint8 (K, H, W, 3) by the colour wheel, one scale for all,
            of the first test clip; its digit and motion, and what each fusion says of it.
        seconds: {"flow and clips", "train", "test"}.
        model: sizes, numbers of parameters, best step.
    """
    plan = plan or (QUICK if quick else Plan())
    folder = fresh_folder(directory, "two-stream")
    began = time.monotonic()
    parts = two_stream_clips(plan.frames, plan.size, plan.clips, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = two_stream_model(size=plan.size, width=plan.width, dropout=plan.dropout, length=plan.length)
        train, held_out = ((parts[name].video, classes_of(parts[name])) for name in ("train", "validation"))
        task = two_stream_task(
            model,
            train,
            held_out,
            steps=plan.steps,
            learning_rate=plan.learning_rate,
            warmup=plan.warmup,
            seed=seed,
        )
        seconds = {"flow and clips": time.monotonic() - began}
        summary = trained(
            task,
            folder,
            steps=plan.steps,
            batch_size=plan.batch_size,
            seed=seed,
            ema=plan.ema,
            progress=progress,
            points=_POINTS,
        )
    seconds["train"] = summary.seconds
    began = time.monotonic()
    best: Any = load_checkpoint(folder / "best.safetensors")
    test = parts["test"]
    fields = best.displacement_fields(test.video)
    known = cast(TensorDataset, task.data).tensors[1]
    right, scores = judge(best, parts["train"], test, train_fields=known, test_fields=fields)
    seconds["test"] = time.monotonic() - began
    parameters = {name: sum(p.numel() for p in getattr(best, name).parameters()) for name in ("spatial", "temporal")}
    return {
        "curve": _curves(folder),
        "right": right,
        "test_clips": len(test.motion),
        "chance": {
            name: chance_interval(len(test.motion), classes)
            for name, classes in (("joint", CLASSES), ("digit", DIGITS), ("motion", len(MOTIONS)))
        },
        "flow_error": _flow_error(fields[:, 0], test, plan.length),
        "strip": _strip(fields[0, 0], test, plan.length, scores),
        "seconds": seconds,
        "model": asdict(plan)
        | {f"{name} parameters": count for name, count in parameters.items()}
        | {"flow": _named(best), "best step": summary.best_step},
    }


def _curves(folder: Path) -> list[dict[str, float]]:
    return [
        {name: record[name] for name in ("step", *_METRICS)}
        for record in read_metrics(folder / "metrics.jsonl")
        if record["kind"] == "validation"
    ]


def _named(model: TwoStream) -> str:
    numbers = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in model.config["parameters"].items())
    return f"{model.config['method']}, {model.config['preset']}, {numbers}"


def _flow_error(found: Tensor, clips: MovingDigits, length: int) -> dict[str, float]:
    """Mean endpoint errors over all pixels, and over those of the digit. found (N, T−1, 2, H, W)"""
    assert clips.ink is not None
    true, found, ink = clips.flow[:, :length], found[:, :length], clips.ink[:, :length]
    error, zero = (torch.hypot(*field.unbind(2)) for field in (found - true, true))
    means = {"all": error, "ink": error[ink], "zero": zero, "zero ink": zero[ink]}
    return {name: float(values.double().mean()) for name, values in means.items()}


def _strip(found: Tensor, clips: MovingDigits, length: int, scores: dict[str, Tensor]) -> dict[str, Any]:
    true = clips.flow[0, :length]
    longest = float(true.norm(dim=1).max())
    answers = {name: divmod(int(one[0].argmax()), len(MOTIONS)) for name, one in scores.items()}
    return {
        "frames": clips.video[0, 0, :length].tolist(),
        "exact": [flow_to_rgb(one, longest).tolist() for one in true],
        "found": [flow_to_rgb(one, longest).tolist() for one in found[:length]],
        "digit": int(clips.digit[0]),
        "motion": MOTIONS[int(clips.motion[0])],
        "said": {name: f"{digit}, {MOTIONS[motion]}" for name, (digit, motion) in answers.items()},
    }
