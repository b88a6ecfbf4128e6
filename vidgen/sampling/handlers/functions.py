"""Elementwise functions of values, constants and numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy
from torch import Tensor

from vidgen.sampling.graph import PointwiseNode, Value
from vidgen.sampling.handlers.channels import constant
from vidgen.sampling.handlers.registry import HANDLERS, Handler, aten, handles, value_of, with_channels
from vidgen.sampling.program import Index

if TYPE_CHECKING:
    from vidgen.sampling.tracing import Tracer


def _pointwise(tracer: Tracer, func: Any, function: str, values: list[Value], constants: Sequence[float] = ()) -> Value:
    """A node for every group of channels that come from the same nodes."""
    first = values[0]
    if any(v.stride != first.stride or v.size != first.size or v.views.shape != first.views.shape for v in values):
        raise tracer.refuse(func, "it combines maps of different sizes")
    shape = first.views.shape
    views, channels = numpy.empty(first.views.size, numpy.int64), numpy.empty(first.views.size, numpy.int64)
    phases = ((first.size[0], 1, 0), (first.size[1], 1, 0))
    groups = list(tracer.graph.runs(*values))
    for number, (group, sources) in enumerate(groups):
        reads = [tracer.graph.read(view, start, len(group), Index(), Index(), phases) for view, start in sources]
        name = f"{tracer.module}.{function}".lstrip(".") + (f"[{number}]" if len(groups) > 1 else "")
        node = PointwiseNode(name, len(group), first.size, first.stride, function, reads, tuple(constants))
        made = tracer.graph.value([tracer.graph.add_once(node)])
        views[group], channels[group] = made.views, made.channels
    return with_channels(first, views.reshape(shape), channels.reshape(shape))


def _unary(name: str, constants: Callable[..., Sequence[float]] = lambda: ()) -> Handler:
    def handler(tracer: Tracer, func: Any, result: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> list[Value]:
        if any(isinstance(argument, Tensor) for argument in (*args, *kwargs.values())):
            raise tracer.refuse(func, "its bounds are tensors")
        return [_pointwise(tracer, func, name, [value_of(tracer, func, x)], constants(*args, **kwargs))]

    return handler


def _leaky(slope: float = 0.01) -> Sequence[float]:
    return (slope,)


def _between(low: float | None = None, high: float | None = None) -> Sequence[float]:
    return (-float("inf") if low is None else low, float("inf") if high is None else high)


for _packet, _name in (
    (aten.neg, "neg"),
    (aten.relu, "relu"),
    (aten.tanh, "tanh"),
    (aten.sigmoid, "sigmoid"),
    (aten.silu, "silu"),
    (aten.exp, "exp"),
    (aten.abs, "abs"),
):
    HANDLERS[_packet] = _unary(_name)
HANDLERS[aten.leaky_relu] = _unary("leaky_relu", _leaky)
HANDLERS[aten.clamp] = _unary("clamp", _between)
# arguments that have their default value do not reach a dispatch mode
HANDLERS[aten.hardtanh] = _unary("clamp", lambda low=-1.0, high=1.0: _between(low, high))
HANDLERS[aten.clamp_min] = _unary("clamp", lambda low: _between(low))


@handles(aten.elu)
def _elu(
    tracer: Tracer, func: Any, result: Tensor, x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1
) -> list[Value]:
    if (scale, input_scale) != (1, 1):
        raise tracer.refuse(func, "it scales its input or output")
    return [_pointwise(tracer, func, "elu", [value_of(tracer, func, x)], (float(alpha),))]


@handles(aten.glu)
def _glu(tracer: Tracer, func: Any, result: Tensor, x: Tensor, dim: int = -1) -> list[Value]:
    value = value_of(tracer, func, x)
    if dim % x.dim() != 1:
        raise tracer.refuse(func, "it gates another dimension than channels")
    half = value.views.shape[0] // 2
    a, b = (with_channels(value, value.views[part], value.channels[part]) for part in (slice(half), slice(half, None)))
    return [_pointwise(tracer, func, "mul", [a, _pointwise(tracer, func, "sigmoid", [b])])]


def _binary(name: str) -> Handler:
    def handler(
        tracer: Tracer, func: Any, result: Tensor, a: Any, b: Any, *args: Any, alpha: float = 1, **kwargs: Any
    ) -> list[Value]:
        if args or kwargs:
            raise tracer.refuse(func, "it has further arguments")
        numbers = [None if isinstance(t, Tensor) else float(t) for t in (a, b)]
        # a tensor of one number that is no label's is a number
        for i, t in enumerate((a, b)):
            known = isinstance(t, Tensor) and tracer.get(t) is None and not tracer.depends_on_labels(t)
            if known and t.numel() == 1:
                numbers[i] = float(t.reshape(()).item())
        if numbers[0] is not None or numbers[1] is not None:
            return [_with_number(tracer, func, name, a, b, numbers, alpha)]
        like = tracer.get(a) or tracer.get(b)
        assert like is not None
        values = [tracer.get(t) or constant(tracer, func, t, result.shape, like) for t in (a, b)]
        if alpha != 1:
            values[1] = _pointwise(tracer, func, "scale", [values[1]], (float(alpha), 0.0))
        return [_pointwise(tracer, func, name, values)]

    return handler


def _with_number(
    tracer: Tracer, func: Any, name: str, a: Any, b: Any, numbers: list[float | None], alpha: float
) -> Value:
    """A value and a number: x·scale + shift, or a bound."""
    left, right = numbers
    x = value_of(tracer, func, b if left is not None else a)
    if name == "add" and left is not None:
        constants = (float(alpha), left)
    elif name == "add":
        constants = (1.0, float(right or 0.0) * alpha)
    elif name == "sub":
        constants = (-float(alpha), left) if left is not None else (1.0, -float(right or 0.0) * alpha)
    elif name == "mul":
        constants = (float(left if left is not None else right or 0.0), 0.0)
    elif name == "div" and right:
        constants = (1.0 / right, 0.0)
    elif name == "maximum":
        return _pointwise(tracer, func, "clamp", [x], (float(left if left is not None else right or 0.0), float("inf")))
    elif name == "minimum":
        number = float(left if left is not None else right or 0.0)
        return _pointwise(tracer, func, "clamp", [x], (-float("inf"), number))
    else:
        raise tracer.refuse(func, "a number is divided by a value, or a value by zero")
    return _pointwise(tracer, func, "scale", [x], constants)


for _packet, _name in (
    (aten.add, "add"),
    (aten.sub, "sub"),
    (aten.mul, "mul"),
    (aten.div, "div"),
    (aten.maximum, "maximum"),
    (aten.minimum, "minimum"),
):
    HANDLERS[_packet] = _binary(_name)


@handles(aten.rsub)
def _rsub(tracer: Tracer, func: Any, result: Tensor, a: Any, b: Any, alpha: float = 1) -> list[Value]:
    return HANDLERS[aten.sub](tracer, func, result, b, a, alpha=alpha)
