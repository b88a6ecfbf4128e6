"""Executors: ways of drawing from an autoregressive model that all give the same images.

An executor is a row of a table: a name, ``prepare(model, plan, weight_dtype)``, which raises `UnsupportedError` with
the reason why it cannot draw from a model, and ``run(prepared, request)``. All see the same request, noise included, so
they differ in speed alone.

    cpu     the plan's program in C++: a call of an op runs a row, or what a wavefront needs to finish one
    persistent  the plan's program in one CUDA kernel whose blocks stay and meet: a launch runs what a call of cpu does
    graph   the plan's program as CUDA graphs, captured once and replayed for every row and pixel
    eager   the plan's program in plain PyTorch, on any device
    naive   one full forward pass of the network for every step
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vidgen.ops.gate import gate
from vidgen.sampling import graphed, persistent
from vidgen.sampling.interpreter import run_program
from vidgen.sampling.native import NativeProgram, supports
from vidgen.sampling.persistent import PersistentProgram
from vidgen.sampling.plan import Plan, trace
from vidgen.sampling.program import Program
from vidgen.sampling.schedule import NotCausalError
from vidgen.sampling.tracing import UntraceableError


@dataclass(frozen=True)
class Request:
    """One batch to draw: everything that decides the images, checked and on the model's device.

    Attributes:
        noise: float64 (N, C, H, W, 2), uniform in (0, 1), by sub-pixel.
        values: (N, C, H, W) in the model's scaled units; read where ``known`` is True.
        known: bool (N, C, H, W).
        conditions: further arguments of the model's forward pass, such as labels; the first dimension is N.
        temperature: > 0.
        quantize: values are rounded to grey levels before the next step sees them.
        on_row: called after every row with its number and the values so far, (N, C, H, W).
        parameters: (N, P, G, H, W) that takes the parameters of every draw, or None.
    """

    noise: Tensor
    values: Tensor
    known: Tensor
    conditions: dict[str, Tensor]
    temperature: float
    quantize: bool
    on_row: Callable[[int, Tensor], Any] = field(default=lambda row, canvas: None)
    parameters: Tensor | None = None

    def canvas(self) -> Tensor:
        """The known values, and zeros where something is to be drawn."""
        return torch.where(self.known, self.values, torch.zeros_like(self.values)).contiguous()

    def known_rows(self) -> int:
        """How many rows from the top are known in every image."""
        complete = self.known.all(dim=3).all(dim=1).all(dim=0)  # [H]
        return int(complete.int().cumprod(dim=0).sum())


class UnsupportedError(Exception):
    """Why an executor cannot draw from a model."""


@dataclass(frozen=True)
class Executor:
    """A row of the table. ``prepare`` takes the model, its plan if there is one, and the dtype to keep weights in.

    A gated one is taken without being named only where `vidgen.ops.gate` lets it.
    """

    name: str
    prepare: Callable[[Any, Plan | None, torch.dtype | None], Any]
    run: Callable[[Any, Request], Tensor]
    gated: bool = False


def _planned(model: Any, plan: Plan | None) -> Plan:
    if plan is not None:
        return plan
    if not isinstance(model, nn.Module):
        raise UnsupportedError(f"{type(model).__name__} is not an nn.Module")
    try:
        return trace(model)
    except (UntraceableError, NotCausalError, ValueError) as error:
        raise UnsupportedError(str(error)) from error


Run = Callable[[int, int, bool], None]
"""Runs moments from the first to before the last; True: they are rows that are known."""


def _by_rows(
    request: Request,
    plan: Plan,
    start: Callable[[Program, Tensor, Tensor, int], Run],
    program: Program | None = None,
) -> Tensor:
    """Runs a plan's program row by row.

    Args:
        start: takes the program, its state, the canvas, and how many rows from the top are known.
        program: one of the plan's; its best one if not given.
    """
    program = plan.best_program if program is None else program
    height, width = program.shape[1:]
    canvas = request.canvas()
    state = plan.new_state(program, request.conditions, len(canvas), canvas.device)
    # rows that are known from the top need no draws; a wavefront begins below them
    known = (request.known_rows() if program.runs_whole_rows else 0) if program.wave else height
    run = start(program, state, canvas, known if program.wave else 0)
    for row in range(known):
        run(row, row + 1, bool(program.wave))
        request.on_row(row, canvas)
    time = program.wave * known
    for row in range(known, height):
        # a row is done with the time of its last pixel
        done = program.duration if row == height - 1 else program.wave * row + width
        run(time, done, False)
        time = done
        request.on_row(row, canvas)
    return canvas


def _run_eager(prepared: tuple[Any, Plan], request: Request) -> Tensor:
    model, plan = prepared

    def draw(parameters: Tensor, noise: Tensor) -> Tensor:
        drawn: Tensor = model.head.sample(parameters, noise, temperature=request.temperature, quantize=request.quantize)
        return drawn

    def start(program: Program, state: Tensor, canvas: Tensor, top: int) -> Run:
        def run(first: int, last: int, whole_rows: bool) -> None:
            run_program(
                program,
                state,
                canvas,
                request.known,
                request.noise,
                draw,
                first=first,
                last=last,
                whole_rows=whole_rows,
                top=top,
                parameters=request.parameters,
            )

        return run

    return _by_rows(request, plan, start)


def _prepare_cpu(
    model: Any, plan: Plan | None, weight_dtype: torch.dtype | None = None
) -> tuple[Any, Plan, NativeProgram]:
    plan = _planned(model, plan)
    if reason := supports(plan.dtype, plan.device, model.head):
        raise UnsupportedError(reason)
    if weight_dtype in (None, plan.dtype):
        return model, plan, plan.native
    if (plan.dtype, weight_dtype) != (torch.float32, torch.bfloat16):
        raise UnsupportedError(f"it keeps weights in the model's dtype {plan.dtype}, or float32 ones in bfloat16")
    return model, plan, plan.native_narrow


def _prepare_persistent(model: Any, plan: Plan | None, weight_dtype: torch.dtype | None = None) -> tuple[Any, Plan]:
    model, plan = _prepare_eager(model, plan, weight_dtype)
    if reason := persistent.supports(plan.dtype, plan.device, model.head):
        raise UnsupportedError(reason)
    return model, plan


def _prepare_eager(model: Any, plan: Plan | None, weight_dtype: torch.dtype | None = None) -> tuple[Any, Plan]:
    plan = _planned(model, plan)
    if weight_dtype not in (None, plan.dtype):
        raise UnsupportedError(f"it keeps weights in the model's dtype {plan.dtype}")
    return model, plan


def _prepare_graph(model: Any, plan: Plan | None, weight_dtype: torch.dtype | None = None) -> tuple[Any, Plan]:
    model, plan = _prepare_eager(model, plan, weight_dtype)
    if reason := graphed.supports(plan.device, model.head):
        raise UnsupportedError(reason)
    return model, plan


def _run_graph(prepared: tuple[Any, Plan], request: Request) -> Tensor:
    model, plan = prepared
    if len(request.noise) == 0:  # nothing to capture
        return _run_eager(prepared, request)
    with plan.graphed.session(
        len(request.noise),
        model.head,
        temperature=request.temperature,
        quantize=request.quantize,
        record=request.parameters is not None,
    ) as session:

        def start(program: Program, state: Tensor, canvas: Tensor, top: int) -> Run:
            session.begin(state, canvas, request.known, request.noise, top=top)

            def run(first: int, last: int, whole_rows: bool) -> None:
                session.run(first, last, whole_rows=whole_rows)
                canvas.copy_(session.memory.drawn())

            return run

        canvas = _by_rows(request, plan, start, plan.graphed.compiled.program)
        if request.parameters is not None:
            request.parameters.copy_(session.memory.met())
    return canvas


def _prepare_naive(model: Any, plan: Plan | None, weight_dtype: torch.dtype | None = None) -> Any:
    if weight_dtype is not None:
        raise UnsupportedError("it runs the model as it is")
    return model


def _run_native(prepared: tuple[Any, Plan, NativeProgram | PersistentProgram], request: Request) -> Tensor:
    model, plan, native = prepared

    def start(program: Program, state: Tensor, canvas: Tensor, top: int) -> Run:
        known, noise = request.known.contiguous(), request.noise.contiguous()

        def run(first: int, last: int, whole_rows: bool) -> None:
            native.run(
                state,
                canvas,
                known,
                noise,
                model.head,
                first=first,
                last=last,
                whole_rows=whole_rows,
                top=top,
                temperature=request.temperature,
                quantize=request.quantize,
                parameters=request.parameters,
            )

        return run

    return _by_rows(request, plan, start)


def _run_persistent(prepared: tuple[Any, Plan], request: Request) -> Tensor:
    model, plan = prepared
    return _run_native((model, plan, plan.persistent), request)


def _run_naive(model: Any, request: Request) -> Tensor:
    canvas = request.canvas()  # [N, C, H, W]
    _, channels, height, width = canvas.shape
    steps = model.head.steps_per_pixel(channels)
    size = channels // steps
    for row in range(height):
        for column in range(width):
            for step in range(steps):
                group = slice(step * size, (step + 1) * size)
                known = request.known[:, group, row, column]
                if request.parameters is None and bool(known.all()):
                    continue
                output = model(canvas, **request.conditions)  # [N, P, G, H, W], or [N, P, H, W] where G = 1
                parameters = output[..., row, column].reshape(len(canvas), -1, steps)[:, :, step]  # [N, P]
                if request.parameters is not None:
                    request.parameters[:, :, step, row, column] = parameters
                drawn = model.head.sample(
                    parameters,
                    request.noise[:, group, row, column],
                    temperature=request.temperature,
                    quantize=request.quantize,
                )
                canvas[:, group, row, column] = torch.where(
                    known, canvas[:, group, row, column], drawn.to(canvas.dtype)
                )
        request.on_row(row, canvas)
    return canvas


EXECUTORS = (
    Executor("cpu", _prepare_cpu, _run_native),
    Executor("persistent", _prepare_persistent, _run_persistent, gated=True),
    Executor("graph", _prepare_graph, _run_graph, gated=True),
    Executor("eager", _prepare_eager, _run_eager),
    Executor("naive", _prepare_naive, _run_naive),
)
"""In order of preference: ``impl=None`` takes the first that can draw from the model."""


_warned: set[tuple[str, str]] = set()


def choose(
    model: Any, impl: str | None, plan: Plan | None = None, weight_dtype: torch.dtype | None = None
) -> tuple[Executor, Any]:
    """(the executor for a model, what it has prepared).

    Drawing naively, or without what no GPU has tested yet, is one warning per model and reason.

    Raises:
        ValueError: ``impl`` names none, or one that cannot draw from the model.
    """
    names = [executor.name for executor in EXECUTORS]
    if impl is not None and impl not in names:
        raise ValueError(f"impl: expected None or one of {', '.join(map(repr, names))}, got {impl!r}")
    why = ""
    for executor in EXECUTORS:
        if impl not in (None, executor.name):
            continue
        try:
            # a plan that cannot be made for one executor cannot be made for the next
            prepared = executor.prepare(model, plan, weight_dtype)
        except UnsupportedError as reason:
            why = str(reason)
            continue
        if impl is None and executor.gated and (reason_not := gate("sampling", executor.name, _device(model))):
            _warn(model, f"without the executor {executor.name!r}: {reason_not}")
            continue
        if impl is None and executor.name == "naive" and why:
            _warn(model, f"naively, a full forward pass for every step: {why}")
        return executor, prepared
    kept = "" if weight_dtype is None else f" with weights in {weight_dtype}"
    raise ValueError(f"impl: {impl!r} cannot draw from {type(model).__name__}{kept}: {why}")


def _device(model: Any) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _warn(model: Any, how: str) -> None:
    key = (type(model).__name__, how)
    if key not in _warned:
        _warned.add(key)
        warnings.warn(f"{key[0]} is drawn from {how}", stacklevel=4)
