"""What is trained: modules, the phases of a step, and how the result is judged. How it is trained is the loop's matter.

A likelihood model has one module and one phase. A GAN has two modules and two phases:

    Phase("discriminator", trains=("discriminator",), optimizer=…, loss=…, updates=5)
    Phase("generator", trains=("generator",), optimizer=…, loss=…)
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from vidgen.train.order import Examples

Modules = Mapping[str, nn.Module]
Loss = Callable[[Modules, Any], tuple[Tensor, dict[str, Tensor]]]


def constant(step: int) -> float:
    """The learning rate stays as the optimiser was given it."""
    return 1.0


@dataclass(frozen=True)
class Phase:
    """One optimiser's share of a training step.

    Attributes:
        name: distinguishes the phase's metrics where there are several phases.
        trains: names of the modules whose weights it moves; those of all others stand still and get no gradient.
        optimizer: parameters -> optimiser.
        loss: (modules, batch) -> (scalar, the mean over the batch; {name: scalar} to be recorded). Modules in
            ``trains`` must be used by calling them (not a method of theirs), else distributed training would not see
            them.
        updates: optimiser steps in each training step, each on a batch of its own.
        schedule: steps done so far -> factor of the optimiser's learning rate.
        max_grad_norm: gradients are scaled down to this norm.
    """

    name: str
    trains: tuple[str, ...]
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    loss: Loss
    updates: int = 1
    schedule: Callable[[int], float] = constant
    max_grad_norm: float | None = None


@dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
        modules: by name.
        phases: run in this order in every training step.
        data: the training examples.
        validation: held-out examples, or None.
        evaluate: (modules, batch) -> {name: one value per example, (n,)}; their means are recorded.
        monitor: the metric of ``evaluate`` whose least value marks the best checkpoint.
        averaged: modules whose weights are averaged (the loop's ``ema``), validated and saved with the average.
        save: (path, metadata) writes a checkpoint of the modules as they are; called with the average in place.
        augment: (batch, positions in the stream of examples) -> batch, a function of nothing else.
        description: JSON values that make the task what it is (sizes, data set, learning rate). A run refuses to resume
            where they differ.
    """

    modules: dict[str, nn.Module]
    phases: Sequence[Phase]
    data: Examples
    validation: Examples | None = None
    evaluate: Callable[[Modules, Any], dict[str, Tensor]] | None = None
    monitor: str | None = None
    averaged: tuple[str, ...] = ()
    save: Callable[[Path, dict[str, Any]], Any] | None = None
    augment: Callable[[Any, NDArray[numpy.int64]], Any] | None = None
    description: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for phase in self.phases:
            for name in phase.trains:
                if name not in self.modules:
                    raise ValueError(f"phases: {phase.name} trains {name!r}, expected one of {', '.join(self.modules)}")
        for name in self.averaged:
            if name not in self.modules:
                raise ValueError(f"averaged: expected one of {', '.join(self.modules)}, got {name!r}")
        if (self.validation is None) != (self.evaluate is None):
            raise ValueError("evaluate: expected together with validation, or neither")
