"""A network's layers as a table: output sizes, receptive fields, parameters, arithmetic.

What is counted: multiply-accumulates (MAC) of convolutions and linear layers, one for every tap of every output, those
on zero padding included and biases, activations, normalisation and pooling not. FLOP are 2·MAC. Published "FLOP" of
networks are mostly MAC: AlexNet's 0.7 G, VGG-16's 13.6 G (15.47 G by its layers) and C3D's 39.5 G (38.55 G) are.

A receptive field is cut at the input's border, beyond which there is only padding.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vidgen.models.receptive_field import Field, FieldTracker
from vidgen.nn import ConvPool3d, MaskedConv2d
from vidgen.ops.conv3d_geometry import resolve_padding
from vidgen.ops.masked_conv2d import keep_mask

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_AVERAGE_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_ADAPTIVE_POOLS = (
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
)
_FOLLOWED = (*_CONVS, *_MAX_POOLS, *_AVERAGE_POOLS, *_ADAPTIVE_POOLS, nn.Linear)
# parameters, but no multiply-accumulates that anybody counts
_FREE = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.Embedding,
    nn.PReLU,
)


@dataclass(frozen=True)
class Layer:
    """A line of the table.

    Attributes:
        name: the module's place in the model, such as "features.0".
        kind: its class and what distinguishes it.
        output_size: without the batch: (C, T, H, W), (C, H, W), …, (units,).
        receptive_field: along each of the input's axes after the channels, (T, H, W) for clips; None if unknown.
        parameters: weights and biases; those used before count at their first use.
        macs: multiply-accumulates for one example; None if the layer's kind is not known.
        convolves: whether those are a convolution's.
    """

    name: str
    kind: str
    output_size: tuple[int, ...]
    receptive_field: tuple[int, ...] | None
    parameters: int
    macs: int | None
    convolves: bool = False

    @property
    def flops(self) -> int | None:
        return None if self.macs is None else 2 * self.macs


@dataclass(frozen=True)
class LayerReport:
    """What ``layer_report`` found. ``str()`` is a text table; ``markdown()`` and ``json()`` say the same.

    Attributes:
        model: the class.
        input_size: (C, axes …), without the batch.
        layers: in the order in which they ran.
        parameters: of the whole model.
        notes: what the table does not know.
    """

    model: str
    input_size: tuple[int, ...]
    layers: tuple[Layer, ...]
    parameters: int
    notes: tuple[str, ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all layers whose kind is known."""
        return sum(layer.macs or 0 for layer in self.layers)

    @property
    def conv_macs(self) -> int:
        """The convolutions' share of them."""
        return sum(layer.macs or 0 for layer in self.layers if layer.convolves)

    @property
    def flops(self) -> int:
        return 2 * self.macs

    def __str__(self) -> str:
        head, *lines = self._cells()
        widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
        # text to the left, numbers to the right
        rows = [
            "  ".join(
                cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in (head, *lines)
        ]
        rule = "-" * len(rows[0])
        return "\n".join(
            [self._title(), rows[0].rstrip(), rule, *(row.rstrip() for row in rows[1:]), rule, *self._foot()]
        )

    def markdown(self) -> str:
        """The table in Markdown."""
        head, *lines = (f"| {' | '.join(line)} |" for line in self._cells())
        rule = "| :-- | :-- | --: | --: | --: | --: | --: |"
        return "\n".join([f"**{self._title()}**", "", head, rule, *lines, "", *("- " + line for line in self._foot())])

    def json(self) -> str:
        """The table as a JSON object, numbers in full."""
        layers = [{**asdict(layer), "flops": layer.flops} for layer in self.layers]
        totals = {"parameters": self.parameters, "macs": self.macs, "conv_macs": self.conv_macs, "flops": self.flops}
        return json.dumps(
            {"model": self.model, "input_size": self.input_size, "layers": layers, **totals, "notes": self.notes},
            indent=2,
            ensure_ascii=False,
        )

    def _title(self) -> str:
        return f"{self.model}, input {_times(self.input_size)}"

    def _cells(self) -> list[tuple[str, ...]]:
        axes = ("", "W", "H×W", "T×H×W")[len(self.input_size) - 1] if len(self.input_size) <= 4 else "axes"
        head = ("layer", "kind", "output", f"receptive field {axes}".rstrip(), "parameters", "MAC", "FLOP")
        lines: list[tuple[str, ...]] = [
            (
                layer.name,
                layer.kind,
                _times(layer.output_size),
                "unknown" if layer.receptive_field is None else _times(layer.receptive_field) or "–",
                f"{layer.parameters:,}",
                "unknown" if layer.macs is None else _short(layer.macs),
                "unknown" if layer.flops is None else _short(layer.flops),
            )
            for layer in self.layers
        ]
        return [head, *lines]

    def _foot(self) -> list[str]:
        rest = self.macs - self.conv_macs
        return [
            f"{self.parameters:,} parameters; {_short(self.macs)} MAC = {_short(self.flops)} FLOP "
            f"(convolutions {_short(self.conv_macs)} MAC, linear layers {_short(rest)} MAC)",
            "MAC: taps of convolutions and linear layers, on padding too; FLOP: 2·MAC; published counts are mostly MAC",
            *self.notes,
        ]


def layer_report(model: nn.Module, input_size: Sequence[int], *, dtype: torch.dtype | None = None) -> LayerReport:
    """Runs a model on tensors without memory and lists its layers; neither weights nor time are spent.

    Layers are modules without children that have parameters or change the size, in the order in which they run;
    `ConvPool3d` takes a line for the convolution and one for the pooling. Receptive fields are followed through
    convolutions, pools, linear layers, elementwise functions, additions, concatenations of channels, reshapes,
    permutations and means (``vidgen.models.receptive_field``); where branches meet the widest counts, and after
    anything else the field is "unknown", and the notes say after what.

    Args:
        model: any module that maps one tensor (N, C, …) to anything; it runs in eval mode and is left as it is.
        input_size: (C, T, H, W), (C, H, W), (C, L) or (features,), without the batch.
        dtype: of the input; that of the model's first floating-point parameter if None.

    Returns:
        The report.

    Raises:
        TypeError: model is not a module. ValueError: input_size is not a sequence of positive sizes.
        Whatever the model raises, if it does not take such an input or looks at values, which tensors without memory
        do not have.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    size = tuple(input_size)
    if not size or not all(isinstance(s, int) and s > 0 for s in size):
        raise ValueError(f"input_size: expected positive sizes (C, …) without the batch, got {size}")
    if dtype is None:
        floating = (p.dtype for p in model.parameters() if p.is_floating_point())
        dtype = next(floating, torch.get_default_dtype())
    run = _Run(axes=size[1:])
    handles = run.watch(model)
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    nothing = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    training = [(module, module.training) for module in model.modules()]
    x = torch.empty((1, *size), dtype=dtype, device="meta")
    run.tracker.found[x] = Field.of_input(x.shape)._without_ones()
    try:
        # not `model.eval()`: some layers drop what they hold when their mode is set
        for module, _ in training:
            module.training = False
        with torch.no_grad(), run.tracker:
            functional_call(model, nothing, (x,))
    finally:
        for module, mode in training:
            module.training = mode
        for handle in handles:
            handle.remove()
    parameters = sum(p.numel() for p in model.parameters())
    return LayerReport(type(model).__name__, size, tuple(run.layers), parameters, run.notes(parameters))


class _Run:
    """Hooks that turn the layers of one run into lines."""

    def __init__(self, axes: tuple[int, ...]):
        self.axes = axes
        self.tracker = FieldTracker()
        self.layers: list[Layer] = []
        self._counted: set[int] = set()
        self._parameters: dict[nn.Module, list[tuple[int, int]]] = {}

    def watch(self, module: nn.Module, name: str = "") -> list[Any]:
        """Puts hooks on all layers; returns their handles."""
        children = [(f"{name}.{key}".lstrip("."), child) for key, child in module.named_children()]
        if children and not isinstance(module, _FOLLOWED):
            return [handle for key, child in children for handle in self.watch(child, key)]
        if module in self._parameters:  # it stands in several places, and is watched in the first
            return []
        self._parameters[module] = [(id(p), p.numel()) for p in module.parameters()]
        label = name or type(module).__name__

        def before(_module: nn.Module, _inputs: Any) -> None:
            self.tracker.pause()

        def after(layer: nn.Module, inputs: Any, named: dict[str, Any], output: Any) -> None:
            if isinstance(layer, _FOLLOWED):
                self.tracker.resume()
            self._record(label, layer, (*inputs, *named.values()), output)

        handles = [module.register_forward_hook(after, with_kwargs=True)]
        if isinstance(module, _FOLLOWED):
            handles.append(module.register_forward_pre_hook(before))
        return handles

    def notes(self, parameters: int) -> tuple[str, ...]:
        notes = []
        if outside := parameters - sum(layer.parameters for layer in self.layers):
            notes.append(f"{outside:,} parameters are in no layer above")
        if strange := sorted({layer.kind for layer in self.layers if layer.macs is None}):
            notes.append(f"MAC of {', '.join(strange)} are not known and not in the sum")
        if any(layer.receptive_field is None for layer in self.layers):
            after = ", ".join(dict.fromkeys(self.tracker.unknown))
            notes.append(f"receptive fields are unknown after: {after}")
        return tuple(notes)

    def _record(self, name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        x = next((one for one in inputs if isinstance(one, Tensor)), None)
        y = output[0] if isinstance(output, tuple) and output else output
        if x is None or not isinstance(y, Tensor):
            return
        field = self.tracker.found.get(x)
        pool = _tuple(layer.pool or 1, 3) if isinstance(layer, ConvPool3d) else (1, 1, 1)
        if isinstance(layer, ConvPool3d) and math.prod(pool) > 1:
            # the convolution's output, which the fused op never stores
            around = resolve_padding(layer.padding, layer.kernel_size)  # type: ignore[arg-type]
            inner = [
                s + around[2 * i] + around[2 * i + 1] - layer.kernel_size[i] + 1 for i, s in enumerate(x.shape[-3:])
            ]
            shape = (*y.shape[:-3], *inner)
            field = _after(layer, field, x, shape)
            self._add(name, layer, _kind(layer), shape, field, _macs(layer, x, math.prod(shape)))
            field = field and field.windowed(pool, pool, (1, 1, 1), y.shape[-3:])
            self._add(f"{name} (pool)", layer, f"MaxPool3d {_times(pool)}", y.shape, field, 0)
        elif isinstance(layer, _FOLLOWED):
            field = _after(layer, field, x, y.shape)
            self._add(name, layer, _kind(layer), y.shape, field, _macs(layer, x, y.numel()))
        elif self._parameters[layer] or x.shape != y.shape:
            self._add(name, layer, type(layer).__name__, y.shape, self.tracker.found.get(y), _macs(layer, x, y.numel()))
        if isinstance(layer, _FOLLOWED):
            if field is None and self.tracker.found.get(x) is not None:
                self.tracker.unknown.append(name)
            self.tracker.found[y] = field

    def _add(
        self, name: str, layer: nn.Module, kind: str, shape: Sequence[int], field: Field | None, macs: int | None
    ) -> None:
        own = {key: size for key, size in self._parameters[layer] if key not in self._counted}
        self._counted |= set(own)
        seen = None
        if field is not None:
            seen = tuple(min(f, s) for f, s in zip(field.along(len(self.axes)), self.axes, strict=True))
        convolves = isinstance(layer, _CONVS) and bool(macs)
        self.layers.append(Layer(name, kind, _size(shape, field), seen, sum(own.values()), macs, convolves))


def _size(shape: Sequence[int], field: Field | None) -> tuple[int, ...]:
    """Without the batch; frames that run as a batch stand behind the channels."""
    frames = [factor.size for factor in field.dims[0] if factor.axis is not None] if field and len(shape) > 1 else []
    return (shape[1], *frames, *shape[2:]) if frames else tuple(shape[1:])


def _tuple(value: Any, rank: int) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * rank


def _rank(layer: nn.Module) -> int:
    """1, 2 or 3: a layer's spatial axes."""
    kinds = (*_CONVS, *_MAX_POOLS, *_AVERAGE_POOLS, *_ADAPTIVE_POOLS)
    return next(i % 3 + 1 for i, kind in enumerate(kinds) if isinstance(layer, kind))


def _after(layer: nn.Module, field: Field | None, x: Tensor, shape: Sequence[int]) -> Field | None:
    """The receptive field after a layer whose output has that shape."""
    if field is None:
        return None
    if isinstance(layer, nn.Linear):
        return field.contracted(-1, layer.out_features)
    rank = _rank(layer)
    ones, size = (1,) * rank, shape[-rank:]
    if isinstance(layer, _CONVS):
        channels = field.dims[-rank - 1]
        # frames that are channels, of which each group sees some
        if layer.groups > 1 and any(factor.axis is not None for factor in channels):
            return None
        field = field.contracted(-rank - 1, layer.out_channels)
        kernel = layer.kernel_size
        if isinstance(layer, MaskedConv2d):
            # the box around the taps that are read: rows down to its own, and there columns up to its own
            rows, columns = kernel[0] // 2 + 1, kernel[1] if kernel[0] > 1 else kernel[1] // 2 + 1
            kernel = (rows, columns)
        return field.windowed(kernel, layer.stride, layer.dilation, size)
    if isinstance(layer, _ADAPTIVE_POOLS):
        before = x.shape[-rank:]
        if any(n % m for n, m in zip(before, size, strict=True)):
            return None
        window = tuple(n // m for n, m in zip(before, size, strict=True))
        return field.windowed(window, window, ones, size)
    assert isinstance(layer, (*_MAX_POOLS, *_AVERAGE_POOLS))
    dilation = _tuple(layer.dilation, rank) if isinstance(layer, _MAX_POOLS) else ones
    return field.windowed(_tuple(layer.kernel_size, rank), _tuple(layer.stride, rank), dilation, size)


def _macs(layer: nn.Module, x: Tensor, outputs: int) -> int | None:
    """Multiply-accumulates of a layer with that many output values; None if its kind is not known."""
    if isinstance(layer, MaskedConv2d):
        kept = keep_mask(tuple(layer.weight.shape), layer.mask, layer.colors, layer.color_layout)
        return outputs // layer.out_channels * int(kept.sum())
    if isinstance(layer, _CONVS):
        return outputs * layer.in_channels // layer.groups * math.prod(layer.kernel_size)
    if isinstance(layer, _TRANSPOSED):
        return x.numel() * layer.out_channels // layer.groups * math.prod(layer.kernel_size)
    if isinstance(layer, nn.Linear):
        return outputs * layer.in_features
    known = isinstance(layer, _FREE) or not list(layer.parameters())
    return 0 if known else None


def _kind(layer: nn.Module) -> str:
    """Such as "Conv2d 11×11, 3 → 96, stride 4"."""
    name = type(layer).__name__
    if isinstance(layer, nn.Linear):
        return f"{name} {layer.in_features} → {layer.out_features}"
    if isinstance(layer, _ADAPTIVE_POOLS):
        return name
    rank = _rank(layer)
    kernel = _tuple(layer.kernel_size, rank)
    words = [f"{name} {_times(kernel)}"]
    usual: dict[str, tuple[Any, ...]] = {"stride": kernel, "dilation": (1,) * rank}
    if isinstance(layer, _CONVS):
        words.append(f"{layer.in_channels} → {layer.out_channels}")
        usual["stride"] = (1,) * rank
    for option, default in usual.items():
        value = _tuple(getattr(layer, option, default), rank)
        if value != default:
            words.append(f"{option} {value[0] if len(set(value)) == 1 else _times(value)}")
    if getattr(layer, "groups", 1) != 1:
        words.append(f"{layer.groups} groups")
    return ", ".join(words)


def _times(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes))


def _short(count: int) -> str:
    """Such as 0, 512, 16.78 M, 38.50 G."""
    for unit, scale in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return str(count)
