"""What the ops of a forward pass mean to `vidgen.sampling.tracing`: one function per ATen op.

A handler takes the tracer, the op, its real result and its arguments, and returns the meaning of each tensor that came
out. Tensors here are (1, *channels, H, W): all but the first and the last two dimensions are channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor

from vidgen.ops.masked_conv2d import colors_of, keep_mask
from vidgen.sampling.graph import ConstantNode, LinearNode, Part, PointwiseNode, Value
from vidgen.sampling.program import Index

if TYPE_CHECKING:
    from vidgen.sampling.tracing import Tracer

aten = torch.ops.aten
Handler = Callable[..., list[Value]]

#: ops whose result does not depend on the values of their arguments
VALUE_FREE = {
    aten.ones_like,
    aten.zeros_like,
    aten.full_like,
    aten.empty_like,
    aten.new_ones,
    aten.new_zeros,
    aten.new_full,
    aten.new_empty,
    aten.sym_size,
}

HANDLERS: dict[Any, Handler] = {}


def _handles(*packets: Any) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(packets, handler))
        return handler

    return register


# Where values lie: shifts, crops, channels.


def _value(tracer: Tracer, func: Any, tensor: Any) -> Value:
    value = tracer.get(tensor)
    if value is None:
        raise tracer.refuse(func, "a tensor made from the image is expected here")
    return value


def _with(value: Value, views: Any, channels: Any) -> Value:
    return type(value)(views, channels, value.size, value.stride)


@_handles(aten.clone, aten.detach, aten.alias, aten.contiguous, aten.lift_fresh, aten._to_copy, aten.to)
def _same(tracer: Tracer, func: Any, result: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> list[Value]:
    if result.dtype != x.dtype:
        raise tracer.refuse(func, f"it changes the dtype, from {x.dtype} to {result.dtype}")
    return [_value(tracer, func, x)]


@_handles(aten.constant_pad_nd)
def _pad(tracer: Tracer, func: Any, result: Tensor, x: Tensor, pad: Sequence[int], value: float = 0) -> list[Value]:
    if value != 0:
        raise tracer.refuse(func, f"it pads with {value}, not with zeros")
    if len(pad) > 4 and any(pad[4:]):
        raise tracer.refuse(func, "it pads channels or images")
    left, top = pad[0], pad[2] if len(pad) > 2 else 0
    return [tracer.graph.shifted(_value(tracer, func, x), (top, left), (result.shape[-2], result.shape[-1]))]


@_handles(aten.slice)
def _slice(
    tracer: Tracer,
    func: Any,
    result: Tensor,
    x: Tensor,
    dim: int = 0,
    start: Any = None,
    end: Any = None,
    step: int = 1,
) -> list[Value]:
    value = _value(tracer, func, x)
    dim %= x.dim()
    keep = range(x.shape[dim])[slice(start, end, step)]
    if len(keep) == x.shape[dim] and step == 1:
        return [value]
    if dim == 0:
        raise tracer.refuse(func, "it takes images out of the batch")
    if dim < x.dim() - 2:
        index = (slice(None),) * (dim - 1) + (slice(keep.start, keep.stop, keep.step),)
        return [_with(value, value.views[index], value.channels[index])]
    if step != 1:
        raise tracer.refuse(func, "it skips rows or columns; a convolution with a stride can be traced")
    before = (-keep.start, 0) if dim == x.dim() - 2 else (0, -keep.start)
    return [tracer.graph.shifted(value, before, (result.shape[-2], result.shape[-1]))]


@_handles(aten.select)
def _select(tracer: Tracer, func: Any, result: Tensor, x: Tensor, dim: int, index: int) -> list[Value]:
    value, dim = _value(tracer, func, x), dim % x.dim()
    if not 0 < dim < x.dim() - 2:
        raise tracer.refuse(func, "it selects from another dimension than channels")
    take = (slice(None),) * (dim - 1) + (index,)
    return [_with(value, value.views[take], value.channels[take])]


@_handles(aten.split, aten.split_with_sizes, aten.chunk, aten.unbind)
def _split(tracer: Tracer, func: Any, result: Any, x: Tensor, *args: Any, **kwargs: Any) -> list[Value]:
    value = _value(tracer, func, x)
    unbinds = func._overloadpacket is aten.unbind
    position = 0 if unbinds else 1
    dim = (args[position] if len(args) > position else kwargs.get("dim", 0)) % x.dim()
    if not 0 < dim < x.dim() - 2:
        raise tracer.refuse(func, "it splits another dimension than channels")
    values, at = [], 0
    for piece in result:
        count = 1 if unbinds else piece.shape[dim]
        index = (slice(None),) * (dim - 1) + (at if unbinds else slice(at, at + count),)
        values.append(_with(value, value.views[index], value.channels[index]))
        at += count
    return values


@_handles(aten.cat)
def _cat(tracer: Tracer, func: Any, result: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> list[Value]:
    dim %= result.dim()
    if not 0 < dim < result.dim() - 2:
        raise tracer.refuse(func, "it concatenates along another dimension than channels")
    like = next(value for t in tensors if (value := tracer.get(t)) is not None)
    values = [tracer.get(t) or _constant(tracer, func, t, t.shape, like) for t in tensors]
    if len({value.stride for value in values}) > 1:
        raise tracer.refuse(func, "it concatenates maps of different resolutions")
    return [
        _with(
            like,
            numpy.concatenate([value.views for value in values], axis=dim - 1),
            numpy.concatenate([value.channels for value in values], axis=dim - 1),
        )
    ]


@_handles(aten.view, aten._unsafe_view, aten.reshape, aten.unsqueeze, aten.squeeze)
def _reshape(tracer: Tracer, func: Any, result: Tensor, x: Tensor, *args: Any) -> list[Value]:
    value = _value(tracer, func, x)
    if result.dim() < 3 or result.shape[0] != x.shape[0] or result.shape[-2:] != x.shape[-2:]:
        raise tracer.refuse(func, f"it reshapes more than channels: {tuple(x.shape)} to {tuple(result.shape)}")
    shape = result.shape[1:-2]
    return [_with(value, value.views.reshape(shape), value.channels.reshape(shape))]


@_handles(aten.permute, aten.transpose)
def _permute(tracer: Tracer, func: Any, result: Tensor, x: Tensor, *args: Any) -> list[Value]:
    value = _value(tracer, func, x)
    dims = list(range(x.dim()))
    if func._overloadpacket is aten.permute:
        dims = [dim % x.dim() for dim in args[0]]
    else:
        a, b = (dim % x.dim() for dim in args)
        dims[a], dims[b] = b, a
    last = x.dim() - 2
    if dims[0] != 0 or dims[last:] != [last, last + 1]:
        raise tracer.refuse(func, "it permutes more than channels")
    order = [dim - 1 for dim in dims[1:last]]
    return [_with(value, value.views.transpose(order), value.channels.transpose(order))]


# Convolutions.


def _flat(tracer: Tracer, func: Any, tensor: Any) -> Value:
    value = _value(tracer, func, tensor)
    if value.views.ndim != 1:
        raise tracer.refuse(func, "images have one dimension of channels here")
    return value


def _part(
    tracer: Tracer,
    x: Value,
    taps: Sequence[tuple[Tensor, Any, Index, Index]],
    size: tuple[int, int],
    period: tuple[int, int] = (1, 1),
    phase: tuple[int, int] = (0, 0),
) -> Part:
    """A part of a linear node from taps: (matrix (in, out), the input channels that it reads, row, column)."""
    part = Part([], [], period, phase)
    phases = tuple(zip(size, period, phase, strict=True))
    for matrix, wanted, row, column in taps:
        picked = _with(x, x.views[wanted], x.channels[wanted])
        for group, [(view, start)] in tracer.graph.runs(picked):
            part.reads.append(tracer.graph.read(view, start, len(group), row, column, (phases[0], phases[1])))
            part.weights.append(matrix[torch.from_numpy(group).to(matrix.device)])
    return part


@_handles(aten.convolution)
def _convolution(
    tracer: Tracer,
    func: Any,
    result: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> list[Value]:
    value = _flat(tracer, func, x)
    if weight.dim() != 4:
        raise tracer.refuse(func, f"it is {weight.dim() - 2}-dimensional")
    if tracer.get(weight) is not None or tracer.depends_on_labels(weight):
        raise tracer.refuse(func, "its weight depends on the image or on labels")
    if groups > 1:
        weight = _dense(weight, groups, transposed)
    matrices = weight if transposed else weight.transpose(0, 1)  # (in, out, kh, kw)
    size = (result.shape[2], result.shape[3])
    kernel = matrices.shape[2:]
    everything = slice(None)

    def taps(rows: list[tuple[int, Index]], columns: list[tuple[int, Index]]) -> list[Any]:
        return [(matrices[:, :, p, q], everything, row, column) for p, row in rows for q, column in columns]

    if not transposed:
        axes = [[(k, Index(stride[a], k * dilation[a] - padding[a])) for k in range(kernel[a])] for a in range(2)]
        parts = [_part(tracer, value, taps(*axes), size)]
        grid = (value.stride[0] * stride[0], value.stride[1] * stride[1])
    else:
        grid = (value.stride[0] // stride[0], value.stride[1] // stride[1])
        if (grid[0] * stride[0], grid[1] * stride[1]) != value.stride:
            raise tracer.refuse(func, "it goes to a finer grid than the image's")

        def meeting(axis: int, phase: int) -> list[tuple[int, Index]]:
            """The taps by which positions of a phase read, and where."""
            offsets = [(k, padding[axis] - k * dilation[axis]) for k in range(kernel[axis])]
            return [(k, Index(1, at, stride[axis])) for k, at in offsets if (phase + at) % stride[axis] == 0]

        parts = [
            _part(tracer, value, taps(meeting(0, p), meeting(1, q)), size, (stride[0], stride[1]), (p, q))
            for p in range(stride[0])
            for q in range(stride[1])
        ]
    node = LinearNode(tracer.module or "convolution", result.shape[1], size, grid, parts, bias)
    return [tracer.graph.value([tracer.graph.add(node)])]


def _dense(weight: Tensor, groups: int, transposed: bool) -> Tensor:
    """The weight of a grouped convolution with its zeros written out."""
    pieces = weight.chunk(groups)
    if transposed:  # (in, out / groups, ...)
        rows, columns = weight.shape[0], weight.shape[1] * groups
    else:  # (out, in / groups, ...)
        rows, columns = weight.shape[0], weight.shape[1] * groups
    dense = weight.new_zeros(rows, columns, *weight.shape[2:])
    for g, piece in enumerate(pieces):
        height, width = piece.shape[:2]
        dense[g * height : (g + 1) * height, g * width : (g + 1) * width] = piece
    return dense


@_handles(torch.ops.vidgen.masked_conv2d)
def _masked_conv2d(
    tracer: Tracer,
    func: Any,
    result: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: str,
    colors: int,
    color_layout: str,
    dilation: int,
    *_rest: Any,
) -> list[Value]:
    value = _flat(tracer, func, x)
    kh, kw = weight.shape[2:]
    keep = keep_mask(tuple(weight.shape), mask, colors, color_layout).numpy()
    colour = colors_of(weight.shape[0], colors, color_layout).numpy()
    size = (result.shape[2], result.shape[3])
    views, channels = numpy.empty(weight.shape[0], numpy.int64), numpy.empty(weight.shape[0], numpy.int64)
    for c in range(colors):
        # the outputs of one colour see the same inputs at every tap
        out = numpy.flatnonzero(colour == c)
        rows = torch.from_numpy(out).to(weight.device)
        taps: list[tuple[Tensor, Any, Index, Index]] = []
        for p, q in numpy.argwhere(keep[out[0]].any(axis=0)):
            wanted = numpy.flatnonzero(keep[out[0], :, p, q])
            matrix = weight[rows][:, torch.from_numpy(wanted).to(weight.device), p, q].T
            row, column = (Index(offset=dilation * (int(k) - n // 2)) for k, n in ((p, kh), (q, kw)))
            taps.append((matrix, wanted, row, column))
        name = (tracer.module or "masked_conv2d") + (f"[{c}]" if colors > 1 else "")
        part = _part(tracer, value, taps, size)
        node = LinearNode(name, len(out), size, value.stride, [part], None if bias is None else bias[rows])
        made = tracer.graph.value([tracer.graph.add(node)])
        views[out], channels[out] = made.views, made.channels
    return [_with(value, views, channels)]


# Elementwise functions.


def _constant(tracer: Tracer, func: Any, tensor: Tensor, shape: Sequence[int], like: Value) -> Value:
    """A constant tensor broadcast to the channels of `shape`, (1, *channels, H, W), as a value."""
    channels = tuple(shape[1:-2])
    if not tracer.depends_on_labels(tensor):
        tensor = tensor.reshape((1,) * (len(shape) - tensor.dim()) + tuple(tensor.shape))
        tensor = tensor.expand(-1, *channels, -1, -1).reshape(tensor.shape[0], -1, *tensor.shape[-2:])
    elif tensor.dim() != len(shape) or tuple(tensor.shape[1:-2]) != channels:
        raise tracer.refuse(func, f"what depends on labels, {tuple(tensor.shape)}, has other channels than {channels}")
    if tensor.shape[0] != 1:
        raise tracer.refuse(func, "a constant differs between images")
    name = f"{tracer.module}.constant".lstrip(".")
    size = (shape[-2], shape[-1])
    node = tracer.graph.add(ConstantNode(name, math.prod(channels), size, like.stride, tensor))
    made = tracer.graph.value([node])
    return _with(like, made.views.reshape(channels), made.channels.reshape(channels))


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
    return _with(first, views.reshape(shape), channels.reshape(shape))


def _unary(name: str, constants: Callable[..., Sequence[float]] = lambda: ()) -> Handler:
    def handler(tracer: Tracer, func: Any, result: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> list[Value]:
        return [_pointwise(tracer, func, name, [_value(tracer, func, x)], constants(*args, **kwargs))]

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
HANDLERS[aten.clamp] = HANDLERS[aten.hardtanh] = _unary("clamp", _between)
HANDLERS[aten.clamp_min] = _unary("clamp", lambda low: _between(low))


@_handles(aten.elu)
def _elu(
    tracer: Tracer, func: Any, result: Tensor, x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1
) -> list[Value]:
    if (scale, input_scale) != (1, 1):
        raise tracer.refuse(func, "it scales its input or output")
    return [_pointwise(tracer, func, "elu", [_value(tracer, func, x)], (float(alpha),))]


@_handles(aten.glu)
def _glu(tracer: Tracer, func: Any, result: Tensor, x: Tensor, dim: int = -1) -> list[Value]:
    value = _value(tracer, func, x)
    if dim % x.dim() != 1:
        raise tracer.refuse(func, "it gates another dimension than channels")
    half = value.views.shape[0] // 2
    a, b = (_with(value, value.views[part], value.channels[part]) for part in (slice(half), slice(half, None)))
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
        values = [tracer.get(t) or _constant(tracer, func, t, result.shape, like) for t in (a, b)]
        if alpha != 1:
            values[1] = _pointwise(tracer, func, "scale", [values[1]], (float(alpha), 0.0))
        return [_pointwise(tracer, func, name, values)]

    return handler


def _with_number(
    tracer: Tracer, func: Any, name: str, a: Any, b: Any, numbers: list[float | None], alpha: float
) -> Value:
    """A value and a number: x·scale + shift, or a bound."""
    left, right = numbers
    x = _value(tracer, func, b if left is not None else a)
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


@_handles(aten.rsub)
def _rsub(tracer: Tracer, func: Any, result: Tensor, a: Any, b: Any, alpha: float = 1) -> list[Value]:
    return HANDLERS[aten.sub](tracer, func, result, b, a, alpha=alpha)
