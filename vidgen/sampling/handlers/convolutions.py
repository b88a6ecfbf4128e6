"""Convolutions, transposed and masked ones among them, as linear nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidgen.ops.masked_conv2d import colors_of, keep_mask
from vidgen.sampling.graph import LinearNode, Part, Value
from vidgen.sampling.handlers.registry import aten, handles, value_of, with_channels
from vidgen.sampling.program import Index

if TYPE_CHECKING:
    from vidgen.sampling.tracing import Tracer


def _flat(tracer: Tracer, func: Any, tensor: Any) -> Value:
    value = value_of(tracer, func, tensor)
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
        picked = with_channels(x, x.views[wanted], x.channels[wanted])
        for group, [(view, start)] in tracer.graph.runs(picked):
            part.reads.append(tracer.graph.read(view, start, len(group), row, column, (phases[0], phases[1])))
            part.weights.append(_rows(matrix, group))
    return part


def _rows(matrix: Tensor, group: NDArray[numpy.int64]) -> Tensor:
    first, count = int(group[0]), len(group)
    if (group == numpy.arange(first, first + count)).all():
        return matrix[first : first + count]
    return matrix[torch.from_numpy(group).to(matrix.device)]


@handles(aten.convolution)
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
    # (kh, kw, in, out), a copy: matrices of taps are then parts of it
    matrices = weight.permute(2, 3, 0, 1) if transposed else weight.permute(2, 3, 1, 0)
    matrices = matrices.clone(memory_format=torch.contiguous_format)
    size = (result.shape[2], result.shape[3])
    kernel = matrices.shape[:2]
    everything = slice(None)

    def taps(rows: list[tuple[int, Index]], columns: list[tuple[int, Index]]) -> list[Any]:
        return [(matrices[p, q], everything, row, column) for p, row in rows for q, column in columns]

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


@handles(torch.ops.vidgen.masked_conv2d)
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
    return [with_channels(value, views, channels)]
