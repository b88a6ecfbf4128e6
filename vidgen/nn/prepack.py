"""Packing weights ahead of time, for modules that are done with training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from vidgen.ops.backends import TABLE, why_not

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@runtime_checkable
class Packable(Protocol):
    """A layer that can hold its weight in the layout its kernel reads.

    `prepack_` makes that copy; the layer refreshes it when its weight is replaced (load_state_dict, to, half) and drops
    it in `train()`, since an optimiser writes to the weight in place. `PackedWeights` is that life.
    """

    def prepack_(self) -> None: ...


class PackedWeights(nn.Module):
    """The life of what a layer packs; stands before the layer's other base, so that its methods come first.

    A subclass gives `prepack_`, which sets the buffers that `_packed_names` lists. They are None until then, and in no
    state dict.
    """

    _packed_names: tuple[str, ...] = ("packed",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in self._packed_names:
            self.register_buffer(name, None, persistent=False)
        self.register_load_state_dict_post_hook(_refresh)

    def prepack_(self) -> None:
        """Makes the packed copy of the weight (see `vidgen.prepack`); drops it where no kernel here reads one."""
        raise NotImplementedError

    def _has_packed(self) -> bool:
        return any(getattr(self, name) is not None for name in self._packed_names)

    def _drop_packed(self) -> None:
        for name in self._packed_names:
            if getattr(self, name) is not None:
                setattr(self, name, None)

    def _refresh_packed(self) -> None:
        if self._has_packed():
            with torch.no_grad():
                self.prepack_()

    def train(self, mode: bool = True) -> Self:
        if mode:
            self._drop_packed()
        super().train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        had_packed = self._has_packed()
        self._drop_packed()
        super()._apply(fn, recurse)
        if had_packed:
            with torch.no_grad():
                self.prepack_()
        return self


def _refresh(module: nn.Module, _incompatible_keys: Any) -> None:
    assert isinstance(module, PackedWeights)
    module._refresh_packed()


def reads_packed(op: str, weight: Tensor) -> bool:
    """Whether a kernel of this machine reads packed copies of `weight`: the CPU's, for the dtypes it computes.

    Args:
        op: name of the op. weight: stands for its image, too, where a row asks for dtype or device.
    """
    rows = [row for row in TABLE[op] if row.name == "cpu"]
    return any(why_not(op, row, weight.device, (weight, weight), forced=True) is None for row in rows)


def prepack(module: ModuleT) -> ModuleT:
    """Packs the weights of every vidgen layer in `module`, in place, and puts the module into eval mode.

    Without it each call packs its weights anew, which shows where images are few or small. Layers that no packing
    kernel serves (on a GPU, or in a dtype that the CPU kernel does not compute) are left as they are.

    The packed copies follow load_state_dict, `to` and `train()`. They do not see a weight that changes in place
    (`p.data.mul_(…)`, an optimiser's step in eval mode) or that stands in for a call (`torch.func.functional_call`):
    pack again after the one, do not pack before the other.

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
