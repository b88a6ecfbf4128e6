"""`vidgen.sampling.trace`: the plan by which a causal network draws images without computing anything twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from vidgen.sampling.build import build_program
from vidgen.sampling.graph import ConstantNode
from vidgen.sampling.graphed import GraphedPlan
from vidgen.sampling.native import NativeProgram, compile_program
from vidgen.sampling.persistent import PersistentProgram
from vidgen.sampling.program import Linear, Pointwise, Program
from vidgen.sampling.schedule import Schedule
from vidgen.sampling.sharing import share_buffers
from vidgen.sampling.tracing import Tape, trace_forward


@dataclass(frozen=True)
class Form:
    """A program, and the nodes whose values its constant buffers hold."""

    program: Program
    constants: tuple[tuple[int, ConstantNode], ...]

    def shared(self) -> Form:
        """The same with fewer buffers."""
        program, numbers = share_buffers(self.program)
        return Form(program, tuple((numbers[number], node) for number, node in self.constants))


class Plan:
    """How a network is run pixel by pixel: made by `trace`, printed as a table, run by an executor.

    Attributes:
        program: the program in raster order, each value in a buffer of its own; it is what the table shows.
        wavefront: the program that visits several rows at once, or None where there is none or it would not help.
        best_program: the one to draw with: the wavefront, else `program` with shared buffers.
        dtype, device: those of the network's weights.
        conditions: names of further arguments of the network's forward.
    """

    def __init__(self, raster: Form, wavefront: Form | None, tape: Tape, weights: Tensor):
        best = wavefront or raster.shared()
        self._forms, self._tape = (raster, best), tape
        self.program, self.best_program = raster.program, best.program
        self.wavefront = None if wavefront is None else wavefront.program
        self.dtype, self.device = weights.dtype, weights.device
        self.conditions = tuple(tape.inputs)

    @cached_property
    def native(self) -> NativeProgram:
        """`best_program` for the C++ kernel, with a packed copy of the weights; made when it is first asked for."""
        return compile_program(self.best_program, self.dtype)

    @cached_property
    def native_narrow(self) -> NativeProgram:
        """`native` with weights rounded to bfloat16, for float32 networks."""
        return compile_program(self.best_program, self.dtype, narrow_weights=True)

    @cached_property
    def persistent(self) -> PersistentProgram:
        """`best_program` for the persistent CUDA kernel, with a packed copy of the weights; as `native`."""
        return PersistentProgram(self.best_program, self.dtype, self.device)

    @cached_property
    def graphed(self) -> GraphedPlan:
        """The program that CUDA graphs draw with, and their sessions; made when it is first asked for."""
        return GraphedPlan(self.best_program, self.program, dtype=self.dtype, device=self.device)

    def new_state(self, program: Program, conditions: Mapping[str, Tensor], n: int, device: Any = "cpu") -> Tensor:
        """Memory for a run of n images: zeros, and the constants of each image.

        Args:
            program: `program` or `best_program` of this plan.
            conditions: by name, the first dimension is that of the images.
        """
        form = next(form for form in self._forms if form.program is program)
        offsets, numel = program.offsets(n)
        state = torch.zeros(numel, dtype=self.dtype, device=device)
        for (number, node), values in zip(form.constants, self._constants(form, conditions, n), strict=True):
            buffer = program.buffers[number]
            place = state[offsets[number] : offsets[number] + buffer.numel(n)]
            lines = place.view(buffer.rows, buffer.columns, n, buffer.channels)
            height, width = (1, 1) if (buffer.height, buffer.width) == (1, 1) else node.size
            filled = lines[:height, buffer.left : buffer.left + width]  # [height, width, n, channels]
            filled.copy_(values.expand(n, -1, height, width).permute(2, 3, 0, 1))
        return state

    def _constants(self, form: Form, conditions: Mapping[str, Tensor], n: int) -> list[Tensor]:
        """(n or 1, channels, 1 or height, 1 or width) for each constant, image by image what depends on conditions."""
        tensors = [node.tensor for _, node in form.constants]
        if conditions and n > 0 and tensors:
            # one image at a time, so that an image's constants do not depend on the batch; equal ones only once
            seen: dict[tuple[Any, ...], list[Tensor]] = {}
            images = []
            for image in range(n):
                one = {name: value[image : image + 1] for name, value in conditions.items()}
                key = tuple((name, tuple(value.reshape(-1).tolist())) for name, value in sorted(one.items()))
                if key not in seen:
                    seen[key] = self._tape.replay(one, tensors)
                images.append(seen[key])
            tensors = [torch.cat(column) for column in zip(*images, strict=True)]
        return [
            tensor.reshape(tensor.shape[0], node.channels, *tensor.shape[-2:])
            for (_, node), tensor in zip(form.constants, tensors, strict=True)
        ]

    def state_bytes(self, n: int = 1, program: Program | None = None) -> int:
        """Memory of the values that are kept between pixels, for n images. It grows with the image's width only."""
        return (program or self.program).offsets(n)[1] * self.dtype.itemsize

    @cached_property
    def multiply_adds(self) -> dict[str, int]:
        """Multiply-adds for one image by rate: "row" and "pixel"."""
        total = {"row": 0, "pixel": 0}
        for instruction in self.program.instructions:
            if isinstance(instruction, Linear):
                total[instruction.when.rate] += instruction.weight.numel() * _positions(self.program, instruction)
        return total

    @cached_property
    def weights_per_pixel(self) -> int:
        """Weights that a pixel must read, on average over the image: those of its own rate."""
        pixels = self.program.shape[1] * self.program.shape[2]
        return self.multiply_adds["pixel"] // pixels

    def __str__(self) -> str:
        return "\n".join(_table(self))

    __repr__ = __str__


def trace(
    model: Any, shape: tuple[int, int, int] | None = None, *, conditions: Mapping[str, Tensor] | None = None
) -> Plan:
    """Derives from one forward pass how a causal network can be run pixel by pixel.

    Args:
        model: an autoregressive model as `vidgen.generate` takes it (`vidgen.sampling.generate`), in eval mode.
        shape: (C, H, W); the model's `image_shape` if not given.
        conditions: further arguments of forward for one image; ``{"labels": 0}`` if the model is `conditional`.

    Returns:
        The plan. `print(plan)` shows each value's rate, grid, place in time, and memory.

    Raises:
        vidgen.sampling.UntraceableError: an op of the forward pass has no incremental form.
        vidgen.sampling.NotCausalError: an output depends on what is not drawn before it.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    network: Any = model
    shape = network.image_shape if shape is None else shape
    anchor = next(model.parameters(), None)
    if anchor is None:
        raise ValueError("model: expected a network with parameters, got one without any")
    steps = network.head.steps_per_pixel(shape[0])
    if conditions is None:
        labelled = getattr(model, "conditional", False)
        conditions = {"labels": torch.zeros(1, dtype=torch.int64, device=anchor.device)} if labelled else {}
    graph, tape = trace_forward(model, shape, steps, conditions)
    schedule = Schedule(graph, shape, steps)
    assert graph.output is not None
    parameters = graph.output.views.shape[0]
    program, constants = build_program(schedule, schedule.tasks, 0, parameters=parameters)
    wave = schedule.wavefront()
    wavefront = None
    if wave is not None:
        wave_program, wave_constants = build_program(schedule, wave[1], wave[0], parameters=parameters)
        wavefront = Form(wave_program, tuple(wave_constants)).shared()
    return Plan(Form(program, tuple(constants)), wavefront, tape, anchor)


def _positions(program: Program, instruction: Linear | Pointwise) -> int:
    """How many positions of an image an instruction computes."""
    buffer, when = program.buffers[instruction.destination], instruction.when
    rows = len(range(when.phase[0], buffer.height, when.period[0]))
    return rows * len(range(when.phase[1], buffer.width, when.period[1]))


def _table(plan: Plan) -> Iterable[str]:
    program = plan.program
    channels, height, width = program.shape
    yield f"{channels}×{height}×{width} image, {program.steps} step{'s' if program.steps > 1 else ''} per pixel"
    rows = [("value", "rate", "grid", "after", "channels", "kept", "KiB", "kMAC")]
    constants, inputs = 0, set(program.inputs)
    made: dict[int, list[Linear | Pointwise]] = {}
    for instruction in program.instructions:
        made.setdefault(instruction.destination, []).append(instruction)
    for number, buffer in enumerate(program.buffers):
        if buffer.constant:
            constants += buffer.numel(1)
            continue
        rates = sorted({i.when.rate for i in made.get(number, [])}, reverse=True)
        first = made[number][0] if number in made else None
        rate = "drawn" if number in inputs else "+".join(rates)
        stride = (1, 1) if first is None else first.when.stride
        after = "" if first is None else _after(first, program.steps)
        weights = sum(i.weight.numel() for i in made.get(number, []) if isinstance(i, Linear)) / 1000
        memory = buffer.numel(1) * plan.dtype.itemsize / 1024
        rows.append(
            (
                buffer.name,
                rate,
                f"1/{stride[0]}" if stride[0] == stride[1] else f"1/{stride[0]}×1/{stride[1]}",
                after,
                str(buffer.channels),
                f"{buffer.rows} × {buffer.columns}",
                f"{memory:.1f}",
                f"{weights:.1f}" if weights else "",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(w) if i < 4 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        yield "  ".join(cells).rstrip()
    work = plan.multiply_adds
    yield (
        f"per image: {work['row'] / 1e6:.1f} M multiply-adds line by line, {work['pixel'] / 1e6:.1f} M pixel by pixel; "
        f"{plan.state_bytes() / 1024:.0f} KiB kept, of which constants {constants * plan.dtype.itemsize / 1024:.0f}"
    )
    if plan.wavefront is not None:
        yield (
            f"wavefront: pixel (r, c) at time c + {plan.wavefront.wave}·r, {plan.wavefront.duration} times in place of "
            f"{height * width} pixels, {plan.state_bytes(1, plan.wavefront) / 1024:.0f} KiB kept"
        )


def _after(instruction: Linear | Pointwise, steps: int) -> str:
    """When a value is computed, relative to the pixel at which it stands."""
    rows, columns = instruction.when.lag
    row = f"row {rows:+d}" if rows else "row"
    if instruction.when.rate == "row":
        return row
    column = f"column {columns:+d}" if columns else "column"
    step = f", step {instruction.when.step}" if steps > 1 else ""
    return (f"{row}, " if rows else "") + column + step
