"""The task of classifiers: cross entropy, judged by held-out cross entropy and accuracy."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from vidgen.train.one_model import one_model_task
from vidgen.train.task import Modules, Task


def classification_task(
    model: nn.Module,
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor] | None,
    *,
    steps: int,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.01,
    warmup: int = 20,
    max_grad_norm: float = 1.0,
    description: dict[str, Any] | None = None,
) -> Task:
    """AdamW on cross entropy.

    Args:
        model: turns inputs into scores before softmax, (N, classes), and has ``config``, such as ``vidgen.models.C3D``.
        train, validation: inputs (N, ...) and int64 labels (N,). uint8 inputs are given to the model in [0, 1].
        steps: training steps of the whole run, which the learning rate's cosine spans.
        learning_rate: at its highest.
        weight_decay: AdamW's.
        warmup: steps over which the learning rate rises.
        max_grad_norm: gradients are scaled down to this norm.
        description: further values that distinguish the task, such as the data set's name.

    Returns:
        A task that records "accuracy" in training, and on held-out inputs that and "cross_entropy" (nats), whose least
        value is the best; it saves checkpoints for ``vidgen.models.load_checkpoint``.
    """

    def judged(modules: Modules, batch: list[Tensor]) -> dict[str, Tensor]:
        inputs, labels = batch
        scores = modules["model"](_scaled(inputs))  # [N, classes]
        right = scores.argmax(dim=1) == labels
        return {"cross_entropy": F.cross_entropy(scores, labels, reduction="none"), "accuracy": right.float()}

    def loss(modules: Modules, batch: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        means = {name: value.mean() for name, value in judged(modules, batch).items()}
        return means["cross_entropy"], {"accuracy": means["accuracy"]}

    return one_model_task(
        "classification",
        model,
        data=TensorDataset(*train),
        validation=None if validation is None else TensorDataset(*validation),
        loss=loss,
        evaluate=judged,
        monitor="cross_entropy",
        steps=steps,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        warmup=warmup,
        max_grad_norm=max_grad_norm,
        description=description,
    )


@torch.no_grad()
def predictions(model: nn.Module, inputs: Tensor, *, batch_size: int = 64) -> Tensor:
    """The likeliest class of each input, int64 (N,); the model is put in eval mode. Inputs as in training."""
    model.eval()
    return torch.cat([model(_scaled(part)).argmax(dim=1) for part in inputs.split(batch_size)])


def _scaled(inputs: Tensor) -> Tensor:
    return inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs
