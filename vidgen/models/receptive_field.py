"""Receptive fields, followed through a network while it runs: how much of the input a value depends on.

Along one axis of the input the values of a layer see windows of `field` inputs, `jump` inputs apart. A window of k
taps, stride s and dilation d makes of them

    field' = field + (k − 1)·d·jump        jump' = jump·s

(Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019). Axes need not
stay where they began: where frames become channels (a reshape), the next convolution sums over them, and sees all of
them; where they become a batch, each is seen alone. So every dimension of a tensor is kept as the product of its
factors, each of which is an axis of the input or none.

Where branches meet, the field is that of the widest. What is not understood is unknown from there on, not guessed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary


@dataclass(frozen=True)
class Factor:
    """A part of a dimension: `axis` counts the input's axes after the channels, and is None for batch and channels."""

    size: int
    axis: int | None = None
    jump: int = 1
    field: int = 1

    @property
    def whole(self) -> int:
        """What all of the factor's values together see."""
        return self.field + (self.size - 1) * self.jump


Dims = tuple[tuple[Factor, ...], ...]


@dataclass(frozen=True)
class Field:
    """What a tensor's values see: the factors of its dimensions, and the field along axes that are gone."""

    dims: Dims
    seen: Mapping[int, int]

    @staticmethod
    def of_input(shape: Sequence[int]) -> Field:
        """That of the network's input (N, C, axes …)."""
        return Field(tuple((Factor(size, axis if axis >= 0 else None),) for axis, size in enumerate(shape, -2)), {})

    def along(self, axes: int) -> tuple[int, ...]:
        """The field along each of the input's axes."""
        fields = [self.seen.get(axis, 1) for axis in range(axes)]
        for factor in (factor for dim in self.dims for factor in dim):
            if factor.axis is not None:
                fields[factor.axis] = max(fields[factor.axis], factor.field)
        return tuple(fields)

    def contracted(self, dim: int, size: int) -> Field:
        """After a sum over a dimension, whose place `size` values without an axis take."""
        dims, seen = list(self.dims), dict(self.seen)
        for factor in dims[dim]:
            if factor.axis is not None:
                seen[factor.axis] = max(seen.get(factor.axis, 1), factor.whole)
        dims[dim] = (Factor(size),)
        return Field(tuple(dims), seen)._without_ones()

    def windowed(
        self, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], size: Sequence[int]
    ) -> Field | None:
        """After windows over the last dimensions, which then have `size` values; None if that is not understood."""
        dims = list(self.dims)
        first = len(dims) - len(kernel)
        for i, (k, s, d, n) in enumerate(zip(kernel, stride, dilation, size, strict=True), first):
            # a dimension of one value, which may have an axis behind it: windows reach only padding beside it
            if not dims[i] and n == 1:
                continue
            if len(dims[i]) != 1 or dims[i][0].axis is None:
                return None
            old = dims[i][0]
            dims[i] = (replace(old, size=n, jump=old.jump * s, field=old.field + (k - 1) * d * old.jump),)
        return Field(tuple(dims), self.seen)._without_ones()

    def reshaped(self, shape: Sequence[int]) -> Field | None:
        """After a reshape, if it keeps factors whole."""
        factors = [factor for dim in self.dims for factor in dim]
        dims: list[tuple[Factor, ...]] = []
        for size in shape:
            taken: list[Factor] = []
            while math.prod(factor.size for factor in taken) < size and factors:
                taken.append(factors.pop(0))
            if math.prod(factor.size for factor in taken) != size:
                return None
            dims.append(tuple(taken))
        return Field(tuple(dims), self.seen)

    def _without_ones(self) -> Field:
        """A factor of one value is an axis that is gone."""
        seen = dict(self.seen)
        for factor in (factor for dim in self.dims for factor in dim):
            if factor.axis is not None and factor.size == 1:
                seen[factor.axis] = max(seen.get(factor.axis, 1), factor.field)
        dims = tuple(tuple(factor for factor in dim if factor.size > 1) for dim in self.dims)
        return Field(dims, seen)


def joined(fields: Sequence[Field], *, along: int | None = None, size: int = 0) -> Field | None:
    """Where branches meet, elementwise with broadcasting, or concatenated `along` a dimension to `size` values."""
    rank = max(len(field.dims) for field in fields)
    seen = {axis: max(f.seen.get(axis, 1) for f in fields) for f in fields for axis in f.seen}
    dims = []
    for i in range(-rank, 0):
        present = [field.dims[i] for field in fields if len(field.dims) >= -i and field.dims[i]]
        if along is not None and i == along:
            if any(factor.axis is not None for dim in present for factor in dim):
                return None
            dims.append((Factor(size),))
            continue
        if len({tuple((factor.size, factor.axis, factor.jump) for factor in dim) for dim in present}) > 1:
            return None
        widest = [replace(same[0], field=max(f.field for f in same)) for same in zip(*present, strict=True)]
        dims.append(tuple(widest))
    return Field(tuple(dims), seen)


_ACTIVATIONS = (
    *("relu", "relu_", "relu6", "leaky_relu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus"),
    *("sigmoid", "tanh", "hardsigmoid", "hardswish", "hardtanh"),
)
_ARITHMETIC = (
    *("add", "add_", "__add__", "__radd__", "__iadd__", "sub", "sub_", "__sub__", "__rsub__", "__isub__"),
    *("mul", "mul_", "__mul__", "__rmul__", "__imul__", "div", "div_", "__truediv__", "pow", "__pow__", "square"),
    *("neg", "abs", "exp", "log", "sqrt", "clamp", "clamp_", "maximum", "minimum", "where"),
)
_ELEMENTWISE = frozenset(
    (
        *_ACTIVATIONS,
        *_ARITHMETIC,
        *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "batch_norm", "local_response_norm"),
        *("contiguous", "clone", "detach", "to", "float", "double", "half", "bfloat16", "type_as"),
    )
)
_RESHAPES = frozenset(("reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze"))
_PERMUTATIONS = frozenset(("permute", "transpose", "movedim", "swapaxes"))
_CONCATENATIONS = frozenset(("cat", "concat", "concatenate"))
_REDUCTIONS = frozenset(("mean", "sum", "amax"))


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


class FieldTracker(TorchFunctionMode):
    """While active, follows the fields of the tensors that come of a network's input through torch's functions.

    Layers are the caller's: between `pause` and `resume` nothing is followed; `found[output] = field` says what came.

    Attributes:
        found: tensor -> its field, None where it is unknown; tensors that do not depend on the input are missing.
        unknown: names of the functions at which fields became unknown.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Any = WeakTensorKeyDictionary()
        self.unknown: list[str] = []
        self._paused = 0

    def pause(self) -> None:
        self._paused += 1

    def resume(self) -> None:
        self._paused -= 1

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        inputs = [] if self._paused else [t for t in _tensors((list(args), kwargs)) if t in self.found]
        # an operation in place gives its input's tensor back, so fields are read before it runs
        fields = [self.found[t] for t in inputs]
        result = func(*args, **kwargs)
        outputs = list(_tensors(result)) if fields else []
        if outputs:
            field = None
            if not any(one is None for one in fields):
                name = getattr(func, "__name__", str(func))
                field = self._followed(name, func, fields, args, kwargs, outputs)
                if field is None:
                    self.unknown.append(name)
            for output in outputs:
                self.found[output] = field
        return result

    @staticmethod
    def _followed(
        name: str,
        func: Callable[..., Any],
        fields: list[Field],
        args: Sequence[Any],
        kwargs: dict[str, Any],
        outputs: list[Tensor],
    ) -> Field | None:
        if len(outputs) != 1:
            return None
        shape = outputs[0].shape
        if name in _ELEMENTWISE:
            return joined(fields)
        if name in _CONCATENATIONS:
            dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
            dim -= len(shape) if dim >= 0 else 0
            return joined(fields, along=dim, size=shape[dim])
        if len(fields) != 1:
            return None
        field = fields[0]
        if name in _RESHAPES:
            return field.reshaped(shape)
        if name in _PERMUTATIONS:
            # sizes that differ show where each dimension has gone
            probe = torch.empty(*range(2, 2 + len(field.dims)), device="meta")
            order = [size - 2 for size in func(probe, *args[1:], **kwargs).shape]
            return Field(tuple(field.dims[i] for i in order), field.seen)
        if name in _REDUCTIONS:
            dims = kwargs.get("dim", args[1] if len(args) > 1 else range(len(field.dims)))
            for dim in [dims] if isinstance(dims, int) else dims:
                field = field.contracted(dim, 1)
            return field.reshaped(shape)
        return None
