"""Ops that compute nothing: where values lie, and which channels a tensor has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy
from torch import Tensor

from vidgen.sampling.graph import ConstantNode, Value
from vidgen.sampling.handlers.registry import aten, handles, value_of, with_channels

if TYPE_CHECKING:
    from vidgen.sampling.tracing import Tracer


@handles(aten.clone, aten.detach, aten.alias, aten.contiguous, aten.lift_fresh, aten._to_copy, aten.to)
def _same(tracer: Tracer, func: Any, result: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> list[Value]:
    if result.dtype != x.dtype:
        raise tracer.refuse(func, f"it changes the dtype, from {x.dtype} to {result.dtype}")
    return [value_of(tracer, func, x)]


@handles(aten.constant_pad_nd)
def _pad(tracer: Tracer, func: Any, result: Tensor, x: Tensor, pad: Sequence[int], value: float = 0) -> list[Value]:
    if value != 0:
        raise tracer.refuse(func, f"it pads with {value}, not with zeros")
    if len(pad) > 4 and any(pad[4:]):
        raise tracer.refuse(func, "it pads channels or images")
    left, top = pad[0], pad[2] if len(pad) > 2 else 0
    return [tracer.graph.shifted(value_of(tracer, func, x), (top, left), (result.shape[-2], result.shape[-1]))]


@handles(aten.slice)
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
    value = value_of(tracer, func, x)
    dim %= x.dim()
    keep = range(x.shape[dim])[slice(start, end, step)]
    if len(keep) == x.shape[dim] and step == 1:
        return [value]
    if dim == 0:
        raise tracer.refuse(func, "it takes images out of the batch")
    if dim < x.dim() - 2:
        index = (slice(None),) * (dim - 1) + (slice(keep.start, keep.stop, keep.step),)
        return [with_channels(value, value.views[index], value.channels[index])]
    if step != 1:
        raise tracer.refuse(func, "it skips rows or columns; a convolution with a stride can be traced")
    before = (-keep.start, 0) if dim == x.dim() - 2 else (0, -keep.start)
    return [tracer.graph.shifted(value, before, (result.shape[-2], result.shape[-1]))]


@handles(aten.select)
def _select(tracer: Tracer, func: Any, result: Tensor, x: Tensor, dim: int, index: int) -> list[Value]:
    value, dim = value_of(tracer, func, x), dim % x.dim()
    if not 0 < dim < x.dim() - 2:
        raise tracer.refuse(func, "it selects from another dimension than channels")
    take = (slice(None),) * (dim - 1) + (index,)
    return [with_channels(value, value.views[take], value.channels[take])]


@handles(aten.split, aten.split_with_sizes, aten.chunk, aten.unbind)
def _split(tracer: Tracer, func: Any, result: Any, x: Tensor, *args: Any, **kwargs: Any) -> list[Value]:
    value = value_of(tracer, func, x)
    unbinds = func._overloadpacket is aten.unbind
    position = 0 if unbinds else 1
    dim = (args[position] if len(args) > position else kwargs.get("dim", 0)) % x.dim()
    if not 0 < dim < x.dim() - 2:
        raise tracer.refuse(func, "it splits another dimension than channels")
    values, at = [], 0
    for piece in result:
        count = 1 if unbinds else piece.shape[dim]
        index = (slice(None),) * (dim - 1) + (at if unbinds else slice(at, at + count),)
        values.append(with_channels(value, value.views[index], value.channels[index]))
        at += count
    return values


@handles(aten.cat)
def _cat(tracer: Tracer, func: Any, result: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> list[Value]:
    dim %= result.dim()
    if not 0 < dim < result.dim() - 2:
        raise tracer.refuse(func, "it concatenates along another dimension than channels")
    like = next(value for t in tensors if (value := tracer.get(t)) is not None)
    values = [tracer.get(t) or constant(tracer, func, t, t.shape, like) for t in tensors]
    if len({value.stride for value in values}) > 1:
        raise tracer.refuse(func, "it concatenates maps of different resolutions")
    return [
        with_channels(
            like,
            numpy.concatenate([value.views for value in values], axis=dim - 1),
            numpy.concatenate([value.channels for value in values], axis=dim - 1),
        )
    ]


@handles(aten.view, aten._unsafe_view, aten.reshape, aten.unsqueeze, aten.squeeze)
def _reshape(tracer: Tracer, func: Any, result: Tensor, x: Tensor, *args: Any) -> list[Value]:
    value = value_of(tracer, func, x)
    # the one image that is traced stands for a batch: what moves its axis cannot be told from the sizes
    dims: Any = args[0] if args else None
    if (func._overloadpacket is aten.unsqueeze and dims % result.dim() == 0) or (
        func._overloadpacket is aten.squeeze and (dims is None or 0 in _axes(dims, x.dim()))
    ):
        raise tracer.refuse(func, "it adds or removes the axis of images")
    if result.dim() < 3 or result.shape[0] != x.shape[0] or result.shape[-2:] != x.shape[-2:]:
        raise tracer.refuse(func, f"it reshapes more than channels: {tuple(x.shape)} to {tuple(result.shape)}")
    shape = result.shape[1:-2]
    return [with_channels(value, value.views.reshape(shape), value.channels.reshape(shape))]


def _axes(dims: int | Sequence[int], count: int) -> list[int]:
    return [dim % count for dim in ([dims] if isinstance(dims, int) else dims)]


@handles(aten.permute, aten.transpose)
def _permute(tracer: Tracer, func: Any, result: Tensor, x: Tensor, *args: Any) -> list[Value]:
    value = value_of(tracer, func, x)
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
    return [with_channels(value, value.views.transpose(order), value.channels.transpose(order))]


def constant(tracer: Tracer, func: Any, tensor: Tensor, shape: Sequence[int], like: Value) -> Value:
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
    return with_channels(like, made.views.reshape(channels), made.channels.reshape(channels))
