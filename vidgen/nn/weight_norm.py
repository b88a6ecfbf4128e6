"""Weight normalisation with data-dependent initialisation.

    weight = magnitude · direction / ‖direction‖        one magnitude and one norm for each output channel

Salimans and Kingma, "Weight Normalization" (NeurIPS 2016), sections 2 and 3. Gradients move length and direction of a
filter separately; the first pass of real data sets lengths and biases, so that what every layer puts out starts with
mean 0 and a variance that is chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

LayerT = TypeVar("LayerT", bound=nn.Module)

_DIRECTION_DEVIATION = 0.05
_VARIANCE_FLOOR = 1e-10


class WeightNorm(nn.Module):
    """The parametrisation (`torch.nn.utils.parametrize`) that makes a weight of a magnitude and a direction.

    Args:
        dim: the weight's axis of output channels.
        scale: standard deviation that `initialize_from_data` gives the layer's output.

    Shape: magnitude with 1 on every axis but `dim`, direction of the weight's shape -> the weight.
    """

    def __init__(self, dim: int, scale: float = 1.0):
        super().__init__()
        self.dim = dim
        self.scale = scale

    def forward(self, magnitude: Tensor, direction: Tensor) -> Tensor:
        return direction * (magnitude / self._norm(direction))

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Magnitude and direction of a weight: its norms, and itself."""
        return self._norm(weight), weight

    def _norm(self, weight: Tensor) -> Tensor:
        others = [axis for axis in range(weight.dim()) if axis != self.dim]
        norm: Tensor = torch.linalg.vector_norm(weight, dim=others, keepdim=True)
        return norm

    def extra_repr(self) -> str:
        return f"dim={self.dim}, scale={self.scale}"


def weight_norm(layer: LayerT, *, scale: float = 1.0) -> LayerT:
    """Normalises a layer's weight for each output channel, in place; the layer computes what it did before.

    The state dict gets ``parametrizations.weight.original0`` (magnitude) and ``.original1`` (direction) for ``weight``.

    Args:
        layer: a convolution, transposed convolution (whose output channels are the weight's second axis) or linear
            layer, torch's or vidgen's.
        scale: standard deviation that `initialize_from_data` gives the layer's output.

    Returns:
        The same layer.

    Raises:
        TypeError: layer is of another kind. ValueError: it is normalised already, is grouped and transposed, or scale
            is not positive.
    """
    transposed = isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    if not transposed and not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
        raise TypeError(f"layer must be a convolution or a linear layer, got {type(layer).__name__}")
    if transposed and layer.groups != 1:
        raise ValueError(f"layer must have one group if it is a transposed convolution, got {layer.groups}")
    if not scale > 0:
        raise ValueError(f"scale must be positive, got {scale!r}")
    if parametrize.is_parametrized(layer, "weight"):
        raise ValueError("layer must have a weight without parametrisation, got one that has some")
    parametrize.register_parametrization(layer, "weight", WeightNorm(1 if transposed else 0, scale))
    return layer


def fold_weight_norm(module: LayerT) -> LayerT:
    """Makes every weight-normalised weight in `module` an ordinary one again, in place; for models done with training.

    The weight need then not be computed in every call. Outputs stay the same bits; the names of the state dict are
    those of plain layers afterwards.

    Returns:
        The same module.
    """
    for layer in _normalised(module).values():
        # a class of its own: copies of a layer share the one with the property that is deleted now
        cls = type(layer)
        layer.__class__ = type(cls.__name__, cls.__bases__, dict(cls.__dict__))
        parametrize.remove_parametrizations(layer, "weight")
    return module


def initialize_from_data(model: nn.Module, *inputs: Any, **keywords: Any) -> None:
    """Sets every weight-normalised layer by a batch of data, in one forward pass.

    Layer by layer, in the order in which the pass reaches them: directions are drawn from N(0, 0.05²) and, with mean
    and variance of the layer's output t = direction · x / ‖direction‖ over all axes but the channels',

        magnitude = scale / √(variance + 1e-10),        bias = −mean · magnitude,

    and the pass goes on with the normalised output. Other layers are left as they are. Random numbers are torch's
    global ones; dropout drops if the model is in training mode, as in training.

    Args:
        model: has layers treated by `weight_norm`.
        inputs, keywords: what model is called with; enough examples for a mean and a variance of each channel.

    Raises:
        ValueError: no layer of model is weight-normalised, the pass left one out, or there are less than two values of
            a channel.
    """
    layers = _normalised(model)
    if not layers:
        raise ValueError(f"model must have a weight-normalised layer, got {type(model).__name__} without any")
    waiting = dict(layers)
    with torch.no_grad():
        handles = [layer.register_forward_hook(_initializer(name, waiting)) for name, layer in layers.items()]
        try:
            for layer in layers.values():
                weights: Any = layer.parametrizations.weight
                weights.original0.fill_(1.0)
                weights.original1.normal_(0.0, _DIRECTION_DEVIATION)
                if layer.bias is not None:
                    layer.bias.zero_()
            model(*inputs, **keywords)
        finally:
            for handle in handles:
                handle.remove()
    if waiting:
        raise ValueError(
            f"model must use all its weight-normalised layers in a forward pass, not used: {_few(waiting)}"
        )


def _normalised(module: nn.Module) -> dict[str, Any]:
    return {
        name: layer
        for name, layer in module.named_modules()
        if parametrize.is_parametrized(layer, "weight") and isinstance(layer.parametrizations.weight[0], WeightNorm)
    }


def _initializer(name: str, waiting: dict[str, Any]) -> Callable[[Any, Any, Tensor], Tensor | None]:
    """A forward hook that initialises its layer at the first call."""

    def hook(layer: Any, _inputs: Any, output: Tensor) -> Tensor | None:
        if waiting.pop(name, None) is None:
            return None
        channel = output.dim() - 1 if isinstance(layer, nn.Linear) else 1
        others = [axis for axis in range(output.dim()) if axis != channel]
        count = output.numel() // output.shape[channel]
        if count < 2:
            raise ValueError(f"inputs must give at least two values of each channel, got {count} at {name}")
        variance, mean = torch.var_mean(output, dim=others, correction=0, keepdim=True)
        weights = layer.parametrizations.weight
        magnitude = weights[0].scale / torch.sqrt(variance + _VARIANCE_FLOOR)
        weights.original0.copy_(magnitude.reshape(weights.original0.shape))
        if layer.bias is None:
            return output * magnitude
        layer.bias.copy_((-mean * magnitude).flatten())
        return (output - mean) * magnitude

    return hook


def _few(names: dict[str, Any]) -> str:
    shown = list(names)[:5]
    return ", ".join(shown) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
