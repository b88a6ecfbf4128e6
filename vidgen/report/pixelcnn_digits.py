"""The demonstration: a PixelCNN learns 1,262 real handwritten digits through vidgen's kernel, then draws new ones.

What is claimed of it is measured here: held-out bits/dim beside two baselines on the same split, and the opinion of a
judge (a CNN trained on real digits) on what was drawn, beside its opinion on held-out real digits and on pictures that
are right pixel by pixel only.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import vidgen
from vidgen.data import DIGITS_LEVELS, digits
from vidgen.models import PixelCNN, load_checkpoint
from vidgen.report.demonstration import curve, fresh_folder, trained
from vidgen.report.digits_baselines import histogram_bits, logistic_regression_bits
from vidgen.report.digits_judge import judge_of_digits, mix_pixels, verdict
from vidgen.train import likelihood_task

_SAMPLES = 256


@dataclass(frozen=True)
class Plan:
    """Sizes of the demonstration; chosen on the validation images."""

    hidden: int = 64
    blocks: int = 6
    dropout: float = 0.5
    steps: int = 700
    batch_size: int = 32
    learning_rate: float = 3e-3
    ema: float = 0.985
    judge_epochs: int = 20


QUICK = Plan(hidden=8, blocks=1, steps=20, batch_size=32, judge_epochs=1)
"""Everything runs, nothing is learnt; for tests."""


def run(
    directory: str | Path, *, seed: int = 0, quick: bool = False, progress: bool | None = None, plan: Plan | None = None
) -> dict[str, Any]:
    """Trains, draws and judges.

    Args:
        directory: gets a folder ``pixelcnn-digits`` with the training run and its checkpoints; one from an earlier
            demonstration is replaced.
        seed: decides weights, order of the data, judge and samples.
        quick: a toy size that shows only that everything works.
        progress: True, False, or None (bars on a terminal).
        plan: sizes of your own.

    Returns:
        curve: [{"step", "train_bits_per_dim" (mean since the entry before, dropout on), "validation_bits_per_dim"
            (averaged weights)}].
        bits_per_dim: {"pixelcnn", "histogram", "logistic_regression"} on the test images.
        samples: uint8 (256, 1, 8, 8), 0 … 16; real: uint8 (64, 1, 8, 8), test images.
        classes_found: digits to which at least 1 % of the samples are given with a probability of at least ½.
        confidence: the judge's mean confidence in {"samples", "real" (test images), "mixed_pixels" (the control)}.
        judge: {"test_accuracy", "temperature"}.
        seconds: {"train", "sample"}.
        model: sizes, number of parameters, best step.
    """
    plan = plan or (QUICK if quick else Plan())
    folder = fresh_folder(directory, "pixelcnn-digits")
    parts = {split: digits(split) for split in ("train", "validation", "test")}
    (train_images, _), (validation_images, _), (test_images, test_labels) = parts.values()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PixelCNN((1, 8, 8), DIGITS_LEVELS, plan.hidden, plan.blocks, dropout=plan.dropout)
        task = likelihood_task(
            model, train_images, validation_images, steps=plan.steps, learning_rate=plan.learning_rate
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

    best = vidgen.prepack(load_checkpoint(folder / "best.safetensors"))
    began = time.monotonic()
    samples = vidgen.generate(best, _SAMPLES, seed=seed, progress=progress)  # type: ignore[arg-type]
    sample_seconds = time.monotonic() - began
    with torch.no_grad():
        bits = float(best.bits_per_dim(test_images).double().mean())  # type: ignore[operator]

    judge = judge_of_digits(seed, plan.judge_epochs)
    of_samples = verdict(judge, samples, DIGITS_LEVELS)
    accuracy = (judge.probabilities(test_images, DIGITS_LEVELS).argmax(dim=1) == test_labels).double().mean()
    arrays = train_images.numpy(), validation_images.numpy(), test_images.numpy()
    return {
        "curve": curve(folder, "bits_per_dim"),
        "bits_per_dim": {
            "pixelcnn": bits,
            "histogram": histogram_bits(*arrays, DIGITS_LEVELS),
            "logistic_regression": logistic_regression_bits(*arrays, DIGITS_LEVELS, iterations=5 if quick else 60),
        },
        "samples": samples.numpy(),
        "real": test_images[:64].numpy(),
        "classes_found": of_samples.classes_found,
        "confidence": {
            "samples": of_samples.confidence,
            "real": verdict(judge, test_images, DIGITS_LEVELS).confidence,
            "mixed_pixels": verdict(judge, mix_pixels(test_images, seed=seed), DIGITS_LEVELS).confidence,
        },
        "judge": {"test_accuracy": float(accuracy), "temperature": judge.temperature},
        "seconds": {"train": summary.seconds, "sample": sample_seconds},
        "model": {
            **asdict(plan),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "best_step": summary.best_step,
        },
    }
