"""The demonstration: two networks without a blind spot learn the digits class by class, and draw what is asked for.

Gated PixelCNN and PixelCNN++ are trained on the same split as the first demonstration's PixelCNN. What is claimed is
measured: held-out bits/dim given the class, and how many of the drawings the judge, a CNN trained on real digits, takes
for the class that was asked for, beside how many real held-out digits it names right. A picture is completed, too: the
upper half of real held-out digits is kept and the rest drawn, by the network that was told their class.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import vidgen
from vidgen.data import DIGITS_LEVELS, digits
from vidgen.models import GatedPixelCNN, PixelCNNPP, load_checkpoint
from vidgen.nn import initialize_from_data
from vidgen.report.demonstration import curve, fresh_folder, trained
from vidgen.report.digits_judge import CLASSES, judge_of_digits
from vidgen.train import likelihood_task

NAMES: tuple[Literal["gated-pixelcnn", "pixelcnnpp"], ...] = ("gated-pixelcnn", "pixelcnnpp")
_SHOWN = 12


@dataclass(frozen=True)
class Plan:
    """Sizes of the demonstration; chosen on the validation images."""

    gated_hidden: int = 64
    gated_blocks: int = 4
    pp_resnets: int = 1
    pp_filters: int = 24
    pp_mixtures: int = 5
    dropout: float = 0.5
    steps: int = 300
    batch_size: int = 64
    learning_rate: float = 4e-3
    ema: float = 0.985
    samples_per_class: int = 50
    judge_epochs: int = 20


QUICK = Plan(4, 1, 1, 4, 2, steps=4, batch_size=16, samples_per_class=12, judge_epochs=1)
"""Everything runs, nothing is learnt; for tests."""


def run(
    directory: str | Path, *, seed: int = 0, quick: bool = False, progress: bool | None = None, plan: Plan | None = None
) -> dict[str, Any]:
    """Trains both networks, draws every class, completes halves, and has the drawings named.

    Args:
        directory: gets folders ``digits-gated-pixelcnn`` and ``digits-pixelcnnpp`` with the training runs and their
            checkpoints; those from an earlier demonstration are replaced.
        seed: decides weights, order of the data, judge and samples.
        quick: a toy size that shows only that everything works.
        progress: True, False, or None (bars on a terminal).
        plan: sizes of your own.

    Returns:
        curve, bits_per_dim, recognised, train_seconds, sample_seconds, parameters: by the network's name; "recognised"
            is how many of the drawings the judge takes for the class asked for, "sample_seconds" for all of them.
        samples: by name uint8 (10 · 12, 1, 8, 8), twelve of each class, the first drawn.
        drawings: how many were drawn by each network.
        halves: {"real", "completed"}: uint8 (12, 1, 8, 8), the first held-out digits, and what the PixelCNN++ made of
            their upper halves.
        judge: share of real held-out digits that the judge names right.
        model: sizes.
    """
    plan = plan or (QUICK if quick else Plan())
    parts = {split: digits(split) for split in ("train", "validation", "test")}
    judge = judge_of_digits(seed, plan.judge_epochs)
    test_images, test_labels = parts["test"]

    def named(images: Tensor, labels: Tensor) -> int:
        return int((judge.probabilities(images, DIGITS_LEVELS).argmax(dim=1) == labels).sum())

    labels = torch.arange(CLASSES).repeat_interleave(plan.samples_per_class)
    shown = torch.cat([torch.arange(_SHOWN) + c * plan.samples_per_class for c in range(CLASSES)])
    answer: dict[str, Any] = {
        "curve": {},
        "bits_per_dim": {},
        "recognised": {},
        "train_seconds": {},
        "sample_seconds": {},
        "parameters": {},
        "samples": {},
        "drawings": len(labels),
        "judge": named(test_images, test_labels) / len(test_labels),
        "model": asdict(plan),
    }
    for name in NAMES:
        folder = fresh_folder(directory, f"digits-{name}")
        best: Any = _trained(name, plan, parts, folder, seed, progress, answer)
        plan_of_drawing = vidgen.sampling.trace(best)
        began = time.monotonic()
        drawn = vidgen.generate(best, len(labels), labels=labels, seed=seed, plan=plan_of_drawing, progress=progress)
        answer["sample_seconds"][name] = time.monotonic() - began
        with torch.no_grad():
            answer["bits_per_dim"][name] = float(best.bits_per_dim(test_images, test_labels).double().mean())
        answer["recognised"][name] = named(drawn, labels)
        answer["samples"][name] = drawn[shown].tolist()
    given, given_labels = test_images[:_SHOWN], test_labels[:_SHOWN]
    upper = (torch.arange(8) < 4)[:, None].expand(8, 8)
    completed = vidgen.generate(best, _SHOWN, labels=given_labels, known=(given, upper), seed=seed, progress=progress)
    answer["halves"] = {"real": given.tolist(), "completed": completed.tolist()}
    return answer


def _trained(
    name: Literal["gated-pixelcnn", "pixelcnnpp"],
    plan: Plan,
    parts: dict[str, tuple[Tensor, Tensor]],
    folder: Path,
    seed: int,
    progress: bool | None,
    answer: dict[str, Any],
) -> Any:
    """The best of a training run, ready to draw; what the run tells goes into the answer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: GatedPixelCNN | PixelCNNPP
        if name == "gated-pixelcnn":
            model = GatedPixelCNN(
                (1, 8, 8), DIGITS_LEVELS, plan.gated_hidden, plan.gated_blocks, classes=CLASSES, dropout=plan.dropout
            )
        else:
            sizes = (plan.pp_resnets, plan.pp_filters, plan.pp_mixtures)
            model = PixelCNNPP((1, 8, 8), *sizes, CLASSES, plan.dropout, DIGITS_LEVELS)
            images, labels = parts["train"]
            initialize_from_data(model.train(), images[:256], labels[:256])
        task = likelihood_task(
            model, parts["train"], parts["validation"], steps=plan.steps, learning_rate=plan.learning_rate
        )
        summary = trained(
            task,
            folder,
            steps=plan.steps,
            batch_size=plan.batch_size,
            seed=seed,
            ema=plan.ema,
            progress=progress,
        )
    answer["curve"][name] = curve(folder, "bits_per_dim")
    answer["train_seconds"][name] = summary.seconds
    answer["parameters"][name] = sum(parameter.numel() for parameter in model.parameters())
    return vidgen.prepack(load_checkpoint(folder / "best.safetensors"))
