"""Checkpoints of the common PyTorch port of PixelCNN++, in vidgen's names.

Layers of the port, scale by scale (i), block by block (j); a weight-normalised weight is ``weight_v`` and ``weight_g``:

    u_init.conv, ul_init.0.conv, ul_init.1.conv                        first convolutions
    up_layers.i.{u,ul}_stream.j, down_layers.i.{u,ul}_stream.j         .conv_input.conv  .nin_skip.lin_a  .conv_out.conv
    downsize_{u,ul}_stream.i.conv, upsize_{u,ul}_stream.i.deconv       strided and transposed ones
    nin_out.lin_a                                                      the last layer

1×1 convolutions are linear layers there. Norms are over all axes but the first, which for a transposed convolution is
that of input channels; such a weight is multiplied out and normalised over its output channels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from vidgen.models.weights import listed
from vidgen.nn import WeightNorm

_MAGNITUDE, _DIRECTION = "parametrizations.weight.original0", "parametrizations.weight.original1"
_BLOCK = {"conv": "conv_input.conv", "aux": "nin_skip.lin_a", "gate": "conv_out.conv"}
_FIRST = {"above": "u_init.conv", "row_above": "ul_init.0.conv", "left": "ul_init.1.conv"}


def port_config(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """``channels``, ``resnets``, ``filters`` and ``mixtures`` of a checkpoint, from its names and shapes.

    Raises:
        ValueError: the tensors that tell them are not there.
    """
    first, last = weights.get("u_init.conv.weight_v"), weights.get("nin_out.lin_a.weight_v")
    blocks = [re.match(r"up_layers\.0\.u_stream\.(\d+)\.", name) for name in weights]
    numbers = {int(match.group(1)) for match in blocks if match}
    if first is None or last is None or first.dim() != 4 or last.dim() != 2 or not numbers:
        raise ValueError(
            "source: expected PixelCNN++ as the PyTorch port saves it, with u_init.conv.weight_v, "
            f"nin_out.lin_a.weight_v and up_layers.0.u_stream.0; got {listed(weights)}"
        )
    channels = first.shape[1] - 1
    per_mixture = 10 if channels == 3 else 3
    if channels not in (1, 3) or last.shape[0] % per_mixture:
        raise ValueError(
            f"source: expected an image of 1 or 3 channels and 3 or 10 parameters per mixture, got {channels} channels "
            f"and {last.shape[0]} parameters"
        )
    return {
        "channels": channels,
        "resnets": max(numbers) + 1,
        "filters": first.shape[0],
        "mixtures": last.shape[0] // per_mixture,
    }


def port_weights(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors under vidgen's names.

    Args:
        weights: the port's state dict, without ``module.``.
        own: state dict of the model to be filled; names and shapes are read.

    Raises:
        ValueError: names are missing, unexpected or of another shape.
    """
    layers = {name.removesuffix(f".{_DIRECTION}") for name in own if name.endswith(_DIRECTION)}
    names = {layer: _theirs(layer) for layer in layers}
    expected = {name: shape for layer in layers for name, shape in _shapes(layer, names[layer], own)}
    wrong = {
        "missing": [name for name in expected if name not in weights],
        "unexpected": [name for name in weights if name not in expected],
        "wrong shape": [
            f"{name} (expected {shape}, got {tuple(weights[name].shape)})"
            for name, shape in expected.items()
            if name in weights and tuple(weights[name].shape) != shape
        ],
    }
    if any(wrong.values()):
        found = "; ".join(f"{what}: {listed(sorted(those))}" for what, those in wrong.items() if those)
        raise ValueError(f"source: does not fit PixelCNN++ of the sizes that its first and last layers have: {found}")
    translated: dict[str, Tensor] = {}
    for layer, theirs in names.items():
        magnitude, direction = (weights[f"{theirs}.weight_{kind}"] for kind in "gv")
        if layer.startswith("grow."):
            weight = WeightNorm(0)(magnitude, direction)
            magnitude, direction = WeightNorm(1).right_inverse(weight)
        translated[f"{layer}.{_MAGNITUDE}"] = magnitude.reshape(own[f"{layer}.{_MAGNITUDE}"].shape)
        translated[f"{layer}.{_DIRECTION}"] = direction.reshape(own[f"{layer}.{_DIRECTION}"].shape)
        translated[f"{layer}.bias"] = weights[f"{theirs}.bias"]
    return translated


def _theirs(layer: str) -> str:
    """The port's name of one of vidgen's weight-normalised layers."""
    part, *rest = layer.split(".")
    if part == "parameters_of_pixel":
        return "nin_out.lin_a"
    if part in _FIRST:
        return _FIRST[part]
    scale, stream = rest[:2]
    if part == "shrink":
        return f"downsize_{stream}_stream.{scale}.conv"
    if part == "grow":
        return f"upsize_{stream}_stream.{scale}.deconv"
    return f"{part}_layers.{scale}.{stream}_stream.{rest[2]}.{_BLOCK[rest[3]]}"


def _shapes(layer: str, theirs: str, own: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the port's three tensors of a layer."""
    shape = tuple(own[f"{layer}.{_DIRECTION}"].shape)
    if theirs.endswith("lin_a"):
        shape = shape[:2]
    yield f"{theirs}.weight_v", shape
    yield f"{theirs}.weight_g", (shape[0], *[1] * (len(shape) - 1))
    yield f"{theirs}.bias", tuple(own[f"{layer}.bias"].shape)
