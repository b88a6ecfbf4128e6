"""Executors: ways of drawing from an autoregressive model that all give the same images.

An executor is a row of a table: a name, ``supports(model)`` (None, or why not) and ``run(model, request)``. All see the
same request, noise included, so they differ in speed alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Request:
    """One batch to draw: everything that decides the images, checked and on the model's device.

    Attributes:
        noise: float64 (N, C, H, W, 2), uniform in (0, 1), by sub-pixel.
        values: (N, C, H, W) in the model's scaled units; read where ``known`` is True.
        known: bool (N, C, H, W).
        conditions: further arguments of the model's forward pass, such as labels.
        temperature: > 0.
        quantize: values are rounded to grey levels before the next step sees them.
        round_values: scaled values -> the nearest scaled grey levels.
        on_step: called after every sub-pixel step with the number of channel values it set per image.
        on_row: called after every row with its number and the values so far, (N, C, H, W).
    """

    noise: Tensor
    values: Tensor
    known: Tensor
    conditions: dict[str, Tensor]
    temperature: float
    quantize: bool
    round_values: Callable[[Tensor], Tensor]
    on_step: Callable[[int], Any] = field(default=lambda count: None)
    on_row: Callable[[int, Tensor], Any] = field(default=lambda row, canvas: None)


@dataclass(frozen=True)
class Executor:
    """A row of the table."""

    name: str
    supports: Callable[[Any], str | None]
    run: Callable[[Any, Request], Tensor]


def _naive(model: Any, request: Request) -> Tensor:
    """One full forward pass of the network for every step: the oracle for every other executor."""
    canvas = torch.where(request.known, request.values, torch.zeros_like(request.values))  # [N, C, H, W]
    _, channels, height, width = canvas.shape
    steps = model.head.steps_per_pixel(channels)
    size = channels // steps
    for row in range(height):
        for column in range(width):
            for step in range(steps):
                group = slice(step * size, (step + 1) * size)
                known = request.known[:, group, row, column]
                if not bool(known.all()):
                    parameters = model(canvas, **request.conditions)[..., row, column]  # [N, P] or [N, P, G]
                    parameters = parameters if parameters.dim() == 2 else parameters[:, :, step]
                    noise = request.noise[:, group, row, column]
                    drawn = model.head.sample(
                        parameters, noise, temperature=request.temperature, quantize=request.quantize
                    )
                    if request.quantize:
                        drawn = request.round_values(drawn)
                    canvas[:, group, row, column] = torch.where(
                        known, canvas[:, group, row, column], drawn.to(canvas.dtype)
                    )
                request.on_step(size)
        request.on_row(row, canvas)
    return canvas


EXECUTORS = (Executor("naive", lambda model: None, _naive),)
"""In order of preference: ``impl=None`` takes the first that supports the model."""


def choose(model: Any, impl: str | None) -> Executor:
    """The executor for a model.

    Raises:
        ValueError: ``impl`` names none, or one that does not support the model.
    """
    reasons = []
    for executor in EXECUTORS:
        if impl not in (None, executor.name):
            continue
        reason = executor.supports(model)
        if reason is None:
            return executor
        reasons.append(f"{executor.name}: {reason}")
    if reasons:
        raise ValueError(f"impl: no executor runs {type(model).__name__} ({'; '.join(reasons)})")
    names = ", ".join(repr(executor.name) for executor in EXECUTORS)
    raise ValueError(f"impl: expected None or one of {names}, got {impl!r}")
