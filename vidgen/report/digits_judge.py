"""A judge of drawn digits: a small CNN that has learnt the ten classes from real ones.

A network that has seen nothing but digits is nearly as sure of noise: pictures whose every pixel comes from another
real digit got a mean confidence of 0.85 and "contained" all ten classes, so that judge could praise anything. This one
also sees such pictures in training, with all ten classes equally likely as the answer (outlier exposure; Hendrycks,
Mazeika and Dietterich, "Deep Anomaly Detection with Outlier Exposure", 2019).

Its confidence is calibrated: the logits are divided by the temperature at which held-out digits and held-out mixed
pictures are answered best (Guo et al., "On Calibration of Modern Neural Networks", 2017).
"""

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidgen.data import DIGITS_LEVELS, digits
from vidgen.train.order import epoch_order

CLASSES = 10
_TEMPERATURES = torch.logspace(math.log10(0.25), math.log10(4.0), 81, dtype=torch.float64)


class Judge(nn.Module):
    """Two 3×3 convolutions, a 2×2 max-pool and two linear layers; images scaled to [0, 1], (N, 1, 8, 8) -> (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 24, 3, padding=1)
        self.conv2 = nn.Conv2d(24, 48, 3, padding=1)
        self.hidden = nn.Linear(48 * 4 * 4, 96)
        self.logits = nn.Linear(96, CLASSES)
        self.temperature = 1.0

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.conv2(torch.relu(self.conv1(x)))), 2).flatten(1)
        x = torch.relu(self.hidden(F.dropout(x, 0.3, self.training)))
        logits: Tensor = self.logits(x)
        return logits

    @torch.no_grad()
    def raw(self, images: Tensor, levels: int) -> Tensor:
        """Logits before calibration. integer images (N, 1, 8, 8) -> float64 (N, 10)"""
        return self.eval()(_scaled(images, levels)).double()

    def probabilities(self, images: Tensor, levels: int) -> Tensor:
        """Calibrated class probabilities. integer images (N, 1, 8, 8) -> float64 (N, 10)"""
        return torch.softmax(self.raw(images, levels) / self.temperature, dim=1)


@dataclass(frozen=True)
class Verdict:
    """What the judge says of a set of images.

    Attributes:
        confidence: mean probability of the likeliest class.
        classes_found: classes to which at least 1 % of the images are given with a probability of at least ½.
    """

    confidence: float
    classes_found: int


@functools.cache
def judge_of_digits(seed: int, epochs: int) -> Judge:
    """The judge that demonstrations of one seed share: `train_judge` on scikit-learn's digits."""
    return train_judge(digits("train"), digits("validation"), DIGITS_LEVELS, seed=seed, epochs=epochs)


def train_judge(
    train: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor], levels: int, *, seed: int = 0, epochs: int = 20
) -> Judge:
    """A judge trained on one part of the real digits and calibrated on another.

    Args:
        train, validation: integer images (N, 1, 8, 8) and int64 labels (N,).
        levels: number of grey levels.
        seed: decides weights, order and dropout; the caller's random state is left alone.
        epochs: passes over the training images.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Judge().train()
        images, labels = train
        size = 64
        optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3, weight_decay=0.01)
        updates = epochs * (len(images) // size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=updates)
        for epoch in range(epochs):
            order = torch.from_numpy(epoch_order(seed, epoch, len(images)).copy())
            mixed = mix_pixels(images, seed=seed, epoch=epoch)
            for rows in order.split(size)[: len(images) // size]:
                loss = _loss(judge(_scaled(images[rows], levels)), labels[rows], judge(_scaled(mixed[rows], levels)))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    real, mixed = (judge.raw(pictures, levels) for pictures in (validation[0], mix_pixels(validation[0], seed=seed)))
    losses = [_loss(real / temperature, validation[1], mixed / temperature) for temperature in _TEMPERATURES]
    judge.temperature = float(_TEMPERATURES[torch.stack(losses).argmin()])
    return judge


def mix_pixels(images: Tensor, *, seed: int, epoch: int = 0) -> Tensor:
    """Pictures that are right pixel by pixel and wrong as a whole: each pixel is that of another image.

    integer images (N, 1, H, W) -> the same shape; every pixel's values are permuted over the images.
    """
    n, pixels = len(images), images[0].numel()
    order = epoch_order(seed, 2**31 + epoch, n * pixels).reshape(n, pixels)
    flat = images.reshape(n, pixels)
    return flat.gather(0, torch.from_numpy(order.argsort(axis=0))).reshape(images.shape)


def _scaled(images: Tensor, levels: int) -> Tensor:
    return images.float() / (levels - 1)


def _loss(real: Tensor, labels: Tensor, mixed: Tensor) -> Tensor:
    """Cross-entropy with the labels for digits and with all classes alike for mixed pictures."""
    return F.cross_entropy(real, labels) - 0.5 * torch.log_softmax(mixed, dim=1).mean()


def verdict(judge: Judge, images: Tensor, levels: int) -> Verdict:
    """The judge's opinion of integer images (N, 1, 8, 8)."""
    confidence, label = judge.probabilities(images, levels).max(dim=1)
    sure = torch.bincount(label[confidence >= 0.5], minlength=CLASSES)
    return Verdict(float(confidence.mean()), int((sure >= 0.01 * len(images)).sum()))
