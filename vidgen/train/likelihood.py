"""The task of models that give an image's likelihood: maximise it, judge by held-out bits/dim."""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from vidgen.train.one_model import exponential, one_model_task
from vidgen.train.task import Modules, Task


def likelihood_task(
    model: nn.Module,
    train: Tensor | tuple[Tensor, ...],
    validation: Tensor | tuple[Tensor, ...] | None,
    *,
    steps: int,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    warmup: int = 100,
    max_grad_norm: float = 1.0,
    description: dict[str, Any] | None = None,
    recipe: Literal["cosine", "pixelcnn++"] = "cosine",
) -> Task:
    """Gradient descent on bits/dim.

    Args:
        model: has ``head`` (``vidgen.sampling.Head``) and ``config``, such as ``vidgen.models.PixelCNN``.
        train, validation: integer images (N, C, H, W); for a class-conditional model (images, int64 labels (N,)).
        steps: training steps of the whole run, which the learning rate's cosine spans.
        learning_rate: at its highest.
        weight_decay: AdamW's.
        warmup: steps over which the learning rate rises.
        max_grad_norm: gradients are scaled down to this norm.
        description: further values that distinguish the task, such as the data set's name.
        recipe: "cosine" is AdamW with a warmup and a half cosine; "pixelcnn++" is what PixelCNN++ was trained with
            (Salimans et al. 2017 and its code): Adam with betas 0.95 and 0.9995, its learning rate times 0.999995 in
            every step, weight_decay and warmup left out.

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

    if recipe not in ("cosine", "pixelcnn++"):
        raise ValueError(f"recipe: expected 'cosine' or 'pixelcnn++', got {recipe!r}")
    published: dict[str, Any] = {}
    if recipe == "pixelcnn++":
        weight_decay, warmup = 0.0, 0
        published = {
            "optimizer": lambda parameters: torch.optim.Adam(parameters, lr=learning_rate, betas=(0.95, 0.9995)),
            "schedule": exponential(0.999995),
        }
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
        description={"recipe": recipe, **(description or {})},
        **published,
    )


def _dataset(examples: Tensor | tuple[Tensor, ...]) -> TensorDataset:
    return TensorDataset(*((examples,) if isinstance(examples, Tensor) else examples))
