"""Exponential moving average of weights: what is validated, saved and drawn from."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class WeightAverage:
    """The moving average of the parameters of some modules.

        average ← d·average + (1 − d)·parameter,   d = min(decay, (1 + t) / (10 + t)) at the t-th update, t = 1, 2, …

    The ramp keeps a short run from averaging in its random start. Buffers are not averaged. ``decay=0`` follows the
    parameters.

    Args:
        modules: by name; the average starts at their present weights.
        decay: in [0, 1).
    """

    def __init__(self, modules: Mapping[str, nn.Module], decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"ema: expected a number in [0, 1), got {decay}")
        self.decay = decay
        self.updates = 0
        self._parameters = {
            f"{name}.{path}": parameter
            for name, module in modules.items()
            for path, parameter in module.named_parameters()
        }
        self.average: dict[str, Tensor] = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the present weights; to be called after every training step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        parameters = [parameter.detach() for parameter in self._parameters.values()]
        torch._foreach_lerp_(list(self.average.values()), parameters, 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The modules have the averaged weights inside, and their own, to the bit, afterwards."""
        with torch.no_grad():
            kept = {name: parameter.clone() for name, parameter in self._parameters.items()}
            self._write(self.average)
        try:
            yield
        finally:
            with torch.no_grad():
                self._write(kept)

    def _write(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(weights[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The averages, by module and parameter name."""
        return dict(self.average)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Continues from saved averages after ``updates`` updates."""
        for name, tensor in self.average.items():
            tensor.copy_(state[name])
        self.updates = updates
