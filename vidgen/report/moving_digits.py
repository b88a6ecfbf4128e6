"""The demonstration: C3D learns motions that no single frame shows, beside a network that sees single frames only.

The clips (``vidgen.data.moving_digits``) are made so that the order of frames alone tells the class. The control is
exact: what the single-frame network says of a clip does not depend on its class, so the number of clips that it gets
right is binomial, with a probability of one in the number of classes.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vidgen.data import MOTIONS, MovingDigits, moving_digits
from vidgen.extras import require
from vidgen.models import load_checkpoint
from vidgen.report.demonstration import curve, fresh_folder, trained
from vidgen.train import classification_task, predictions
from vidgen.train.moving_digits import motion_clips, motion_model

_NAMES: tuple[Literal["c3d", "single-frame"], ...] = ("c3d", "single-frame")
_SHOWN_PER_CLASS = 3
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Plan:
    """Sizes of the demonstration; chosen on the validation clips."""

    frames: int = 16
    size: int = 32
    clips: int = 4096
    width: int = 8
    dropout: float = 0.5
    steps: int = 100
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup: int = 20
    ema: float = 0.95


QUICK = Plan(frames=8, size=16, clips=64, width=2, steps=4, batch_size=8, warmup=1)
"""Everything runs, nothing is learnt; for tests."""


def run(
    directory: str | Path, *, seed: int = 0, quick: bool = False, progress: bool | None = None, plan: Plan | None = None
) -> dict[str, Any]:
    """Trains both networks on the same clips and judges them on clips of unseen digits.

    Args:
        directory: gets folders ``motion-c3d`` and ``motion-single-frame`` with the training runs and their checkpoints;
            those from an earlier demonstration are replaced.
        seed: decides weights, clips to train on and their order. The held-out clips are the same for all seeds.
        quick: a toy size that shows only that everything works.
        progress: True, False, or None (bars on a terminal).
        plan: sizes of your own.

    Returns:
        motions: names of the classes.
        curve: {"c3d", "single-frame"} -> [{"step", "train_accuracy" (mean since the entry before, dropout on),
            "validation_accuracy" (averaged weights)}].
        right: {"c3d", "single-frame"} -> test clips whose motion was told right; test_clips: how many there are.
        chance: {"low", "high"}: a guess has so many right, in at least 95 of 100 cases (exact binomial interval).
        clips: uint8 (3 per class, T, H, W), the first test clips of each class; motion: their classes; predicted:
            {"c3d", "single-frame"} -> classes.
        orders: uint8 (classes, T, H, W): one digit on one path in every class, the same frames in another order.
        seconds: {"c3d", "single-frame", "test"}.
        model: sizes, numbers of parameters, best steps.
    """
    plan = plan or (QUICK if quick else Plan())
    folders = {name: fresh_folder(directory, f"motion-{name}") for name in _NAMES}
    parts = motion_clips(plan.frames, plan.size, plan.clips, seed)
    test = parts["test"]
    curves, predicted, seconds = {}, {}, {"test": 0.0}
    facts: dict[str, Any] = asdict(plan)
    for name, folder in folders.items():
        task = _task(name, parts, plan, seed)
        with torch.random.fork_rng(devices=[]):
            summary = trained(
                task,
                folder,
                steps=plan.steps,
                batch_size=plan.batch_size,
                seed=seed,
                ema=plan.ema,
                progress=progress,
            )
        began = time.monotonic()
        predicted[name] = predictions(load_checkpoint(folder / "best.safetensors"), test.video)
        seconds["test"] += time.monotonic() - began
        seconds[name] = summary.seconds
        curves[name] = curve(folder, "accuracy")
        parameters = sum(parameter.numel() for parameter in task.modules["model"].parameters())
        facts |= {f"{name} parameters": parameters, f"{name} best step": summary.best_step}
    shown = torch.cat([(test.motion == label).nonzero()[:_SHOWN_PER_CLASS, 0] for label in range(len(MOTIONS))])
    return {
        "motions": list(MOTIONS),
        "curve": curves,
        "right": {name: int((answers == test.motion).sum()) for name, answers in predicted.items()},
        "test_clips": len(test.motion),
        "chance": chance_interval(len(test.motion), len(MOTIONS)),
        "clips": test.video[shown, 0].numpy(),
        "motion": test.motion[shown].tolist(),
        "predicted": {name: answers[shown].tolist() for name, answers in predicted.items()},
        "orders": _orders(plan).numpy(),
        "seconds": seconds,
        "model": facts,
    }


def chance_interval(n: int, classes: int) -> dict[str, int]:
    """How many of n clips a guess gets right: the central interval with a probability of at least 95 %."""
    low, high = require("scipy.stats", extra="data").binom.interval(_CONFIDENCE, n, 1 / classes)
    return {"low": int(low), "high": int(high)}


def _task(name: Literal["c3d", "single-frame"], parts: dict[Any, MovingDigits], plan: Plan, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = motion_model(name, frames=plan.frames, size=plan.size, width=plan.width, dropout=plan.dropout)
    train, held_out = ((parts[split].video, parts[split].motion) for split in ("train", "validation"))
    return classification_task(
        model, train, held_out, steps=plan.steps, learning_rate=plan.learning_rate, warmup=plan.warmup
    )


def _orders(plan: Plan) -> Tensor:
    """The first test clip, in every class."""
    size: Any = {"frames": plan.frames, "height": plan.size, "width": plan.size}
    return torch.cat([moving_digits("test", n=1, motion=motion, seed=0, **size).video[:, 0] for motion in MOTIONS])
