"""What tasks of one model and one loss have in common: AdamW, a cosine schedule, the averaged weights as checkpoint."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vidgen.models import save_checkpoint
from vidgen.train.order import Examples
from vidgen.train.task import Loss, Modules, Phase, Task


def cosine(steps: int, warmup: int) -> Callable[[int], float]:
    """A schedule: up linearly over ``warmup`` steps, then down a half cosine to 0 at ``steps``."""

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / (warmup + 1))
        share = (step - warmup) / max(steps - warmup, 1)
        return rise * 0.5 * (1.0 + math.cos(math.pi * min(max(share, 0.0), 1.0)))

    return factor


def exponential(decay: float) -> Callable[[int], float]:
    """A schedule: ``decay`` to the power of the step."""
    return lambda step: decay**step


def one_model_task(
    name: str,
    model: nn.Module,
    *,
    data: Examples,
    validation: Examples | None,
    loss: Loss,
    evaluate: Callable[[Modules, Any], dict[str, Tensor]],
    monitor: str,
    steps: int,
    learning_rate: float,
    weight_decay: float,
    warmup: int,
    max_grad_norm: float,
    description: dict[str, Any] | None,
    optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
    schedule: Callable[[int], float] | None = None,
) -> Task:
    """A task whose one phase trains ``modules["model"]``.

    Args:
        name: of the phase.
        model: has ``config`` and is one of ``vidgen.models.MODELS``.
        data, validation, loss, evaluate, monitor: as in ``Phase`` and ``Task``.
        steps: training steps of the whole run, which the learning rate's cosine spans.
        learning_rate: AdamW's, at its highest.
        weight_decay: AdamW's.
        warmup: steps over which the learning rate rises.
        max_grad_norm: gradients are scaled down to this norm.
        description: further values that distinguish the task, such as the data set's name.
        optimizer, schedule: in place of AdamW and the cosine.
    """

    def save(path: Path, metadata: dict[str, Any]) -> None:
        save_checkpoint(model, path, **metadata, **(description or {}))

    optimization = {
        "steps": steps,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "warmup": warmup,
        "max_grad_norm": max_grad_norm,
    }
    phase = Phase(
        name,
        trains=("model",),
        optimizer=optimizer
        or (lambda parameters: torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)),
        loss=loss,
        schedule=schedule or cosine(steps, warmup),
        max_grad_norm=max_grad_norm,
    )
    return Task(
        modules={"model": model},
        phases=(phase,),
        data=data,
        validation=validation,
        evaluate=None if validation is None else evaluate,
        monitor=None if validation is None else monitor,
        averaged=("model",),
        save=save,
        description={"model": model.config, **optimization, **(description or {})},
    )
