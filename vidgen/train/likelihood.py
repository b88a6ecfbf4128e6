"""The task of models that give an image's likelihood: maximise it, judge by held-out bits/dim."""

import math
from typing import Any

from torch import Tensor, nn
from torch.utils.data import TensorDataset

from vidgen.train.one_model import one_model_task
from vidgen.train.task import Modules, Task


def likelihood_task(
    model: nn.Module,
    train: Tensor | tuple[Tensor, Tensor],
    validation: Tensor | tuple[Tensor, Tensor] | None,
    *,
    steps: int,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    warmup: int = 100,
    max_grad_norm: float = 1.0,
    description: dict[str, Any] | None = None,
) -> Task:
    """AdamW on bits/dim.

    Args:
        model: has ``head`` (``vidgen.sampling.Head``) and ``config``, such as ``vidgen.models.PixelCNN``.
        train, validation: integer images (N, C, H, W); for a class-conditional model (images, int64 labels (N,)).
        steps: training steps of the whole run, which the learning rate's cosine spans.
        learning_rate: at its highest.
        weight_decay: AdamW's.
        warmup: steps over which the learning rate rises.
        max_grad_norm: gradients are scaled down to this norm.
        description: further values that distinguish the task, such as the data set's name.

    Returns:
        A task that records "bits_per_dim" in training and on held-out images, and saves checkpoints for
        ``vidgen.models.load_checkpoint``.
    """
    head: Any = model.head

    def bits_per_dim(modules: Modules, batch: list[Tensor]) -> Tensor:
        # the model is called, not its log_prob: distributed training hooks into the call
        images = batch[0]
        nats = head.log_prob(modules["model"](*batch), images)
        return -nats / (math.log(2.0) * math.prod(images.shape[1:]))

    def loss(modules: Modules, batch: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        bits = bits_per_dim(modules, batch).mean()
        return bits * math.log(2.0), {"bits_per_dim": bits}

    def evaluate(modules: Modules, batch: list[Tensor]) -> dict[str, Tensor]:
        return {"bits_per_dim": bits_per_dim(modules, batch)}

    return one_model_task(
        "likelihood",
        model,
        data=_dataset(train),
        validation=None if validation is None else _dataset(validation),
        loss=loss,
        evaluate=evaluate,
        monitor="bits_per_dim",
        steps=steps,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        warmup=warmup,
        max_grad_norm=max_grad_norm,
        description=description,
    )


def _dataset(examples: Tensor | tuple[Tensor, Tensor]) -> TensorDataset:
    return TensorDataset(*((examples,) if isinstance(examples, Tensor) else examples))
