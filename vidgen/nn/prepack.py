"""Packing weights ahead of time, for modules that are done with training."""

from __future__ import annotations

from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@runtime_checkable
class Packable(Protocol):
    """A layer that can hold its weight in the layout its kernel reads.

    `prepack_` makes that copy; the layer refreshes it when its weight is replaced (load_state_dict, to, half) and drops
    it in `train()`, since an optimiser writes to the weight in place.
    """

    def prepack_(self) -> None: ...


def prepack(module: ModuleT) -> ModuleT:
    """Packs the weights of every vidgen layer in `module`, in place, and puts the module into eval mode.

    Without it each call packs its weights anew, which shows where images are few or small. Weights that change in place
    after this call (`p.data.mul_(…)`) need another one. Layers that no packing kernel serves (on a GPU, or in a dtype
    that the CPU kernel does not compute) are left as they are.

    Args:
        module: any module; layers that are not vidgen's are untouched.

    Returns:
        The same module.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    module.eval()
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, Packable):
                layer.prepack_()
    return module
