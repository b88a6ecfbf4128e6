"""Watching one forward pass of a causal network, to learn what every value at every position is made of.

The network runs once on one image of zeros, in eval mode. A dispatch mode sees each ATen op and keeps, beside the
tensor, what the tensor means: for every channel the node that made it, and where that node lies relative to the tensor.
Convolutions and elementwise functions are nodes. Shifting (padding, cropping), concatenating, splitting and reshaping
channels are not: they only change where later nodes read. What depends on weights alone is computed on the way and is a
constant; what depends on labels is a constant per image, and the ops that make it are kept on a tape. (A forward pass
may look at a label's value to check it. One that takes another way for another label would be misunderstood.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vidgen.sampling.graph import Graph, InputNode, Value
from vidgen.sampling.handlers import HANDLERS, VALUE_FREE


class UntraceableError(ValueError):
    """A network has an op that has no incremental form here; the message names module, op and reason."""


@dataclass
class Tape:
    """The ops between labels and the constants that depend on them."""

    inputs: dict[str, Tensor]
    calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = field(default_factory=list)

    def replay(self, inputs: Mapping[str, Tensor], wanted: list[Tensor]) -> list[Tensor]:
        """The tensors in `wanted` as they would be for other inputs, of the shapes and dtypes of the first.

        What the inputs have no part in is returned as it is.
        """
        values = {id(old): inputs[name] for name, old in self.inputs.items()}

        def current(argument: Any) -> Any:
            if isinstance(argument, Tensor):
                return values.get(id(argument), argument)
            if isinstance(argument, list | tuple):
                return type(argument)(current(a) for a in argument)
            return argument

        for func, args, kwargs, result in self.calls:
            fresh = func(*current(args), **{name: current(value) for name, value in kwargs.items()})
            for old, new in zip(_tensors(result), _tensors(fresh), strict=True):
                values[id(old)] = new
        return [values.get(id(tensor), tensor) for tensor in wanted]


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from _tensors(item)
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from _tensors(item)


class Tracer(TorchDispatchMode):
    """Keeps the meaning of tensors while a forward pass runs."""

    def __init__(self, model: nn.Module, conditions: Mapping[str, Tensor]):
        super().__init__()
        self.graph = Graph()
        self.tape = Tape(dict(conditions))
        self.module = ""
        self._names = {id(module): name for name, module in model.named_modules()}
        self._values: dict[int, Value] = {}
        self._on_tape = {id(tensor) for tensor in conditions.values()}
        # a tensor that is gone would lend its id to another
        self._alive: list[Any] = []

    def set(self, tensor: Tensor, value: Value) -> None:
        self._values[id(tensor)] = value
        self._alive.append(tensor)

    def get(self, tensor: Any) -> Value | None:
        return self._values.get(id(tensor)) if isinstance(tensor, Tensor) else None

    def refuse(self, func: Any, reason: str) -> UntraceableError:
        where = f"in {self.module!r}" if self.module else "in the network's own forward"
        return UntraceableError(f"{func} {where} has no incremental form: {reason}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        arguments = list(_tensors([args, kwargs]))
        self._alive.append((arguments, result))
        packet = func._overloadpacket
        if any(id(t) in self._values for t in arguments) and packet not in VALUE_FREE:
            handler = HANDLERS.get(packet)
            if handler is None:
                raise self.refuse(func, "vidgen.sampling does not know the op")
            meaning = handler(self, func, result, *args, **kwargs)
            for tensor, value in zip(_tensors(result), meaning, strict=True):
                self._values[id(tensor)] = value
        elif any(id(t) in self._on_tape for t in arguments):
            self.tape.calls.append((func, args, kwargs, result))
            self._on_tape |= {id(t) for t in _tensors(result)}
        return result

    def depends_on_labels(self, tensor: Tensor) -> bool:
        return id(tensor) in self._on_tape

    def watch(self, run: Callable[[], Tensor]) -> Tensor:
        """Runs a forward pass under the mode, knowing in which module it is."""
        stack: list[str] = []

        def enter(module: nn.Module, _args: Any) -> None:
            stack.append(self.module)
            self.module = self._names.get(id(module), self.module)

        def leave(_module: nn.Module, _args: Any, _result: Any) -> None:
            self.module = stack.pop()

        hooks = nn.modules.module
        handles = [
            hooks.register_module_forward_pre_hook(enter),
            hooks.register_module_forward_hook(leave, always_call=True),
        ]
        try:
            with torch.no_grad(), self:
                return run()
        finally:
            for handle in handles:
                handle.remove()


def trace_forward(
    model: Any, shape: tuple[int, int, int], steps: int, conditions: Mapping[str, Tensor]
) -> tuple[Graph, Tape]:
    """The graph of a model's forward pass.

    Args:
        model: an nn.Module in eval mode, called with images (1, C, H, W) in [-1, 1] and the conditions.
        shape: (C, H, W).
        steps: G, draws per pixel; divides C.
        conditions: further arguments of forward, for one image; what depends on them goes on the tape.

    Raises:
        UntraceableError: an op has no incremental form.
    """
    # of inference_mode's tensors a dispatch mode would see composite ops before they are taken apart
    with torch.inference_mode(False):
        return _traced(model, shape, steps, {name: value.clone() for name, value in conditions.items()})


def _traced(model: Any, shape: tuple[int, int, int], steps: int, conditions: dict[str, Tensor]) -> tuple[Graph, Tape]:
    channels, height, width = shape
    tracer = Tracer(model, conditions)
    graph = tracer.graph
    anchor = next(model.parameters())
    x = torch.zeros(1, channels, height, width, dtype=anchor.dtype, device=anchor.device)
    each = channels // steps
    inputs = [
        graph.add(InputNode("x" if steps == 1 else f"x[{step}]", each, (height, width), (1, 1), step))
        for step in range(steps)
    ]
    tracer.set(x, graph.value(inputs))
    output = tracer.watch(lambda: model(x, **conditions))
    graph.output = tracer.get(output)
    if graph.output is None:
        raise UntraceableError(f"the output of {type(model).__name__} does not depend on its input")
    return graph, tracer.tape
