"""CUDA graphs in small, on any device: a step is recorded as the ops that it calls, and replayed with their tensors.

A replay calls the same ops with the same tensors and numbers and puts what they give where it was. Python is not asked
again. Whatever a step decides in Python from values, or keeps in other tensors from call to call, is frozen as it was
when it was recorded; so a step that cannot be captured draws wrong images, and one that asks the host is refused.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# what makes the host wait for values, or a tensor from numbers of the host
FORBIDDEN = {
    "_local_scalar_dense",
    "item",
    "nonzero",
    "masked_select",
    "masked_scatter",
    "is_nonzero",
    "equal",
    "unique",
    "_unique2",
    "bincount",
    "lift_fresh",
    "lift_fresh_copy",
    "scalar_tensor",
    "repeat_interleave",
}


def tensors(arguments: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]


class Recording(TorchDispatchMode):
    """The ops that are called, in order; asserts that each may be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        assert name not in FORBIDDEN, f"{func} asks the host, or makes a tensor of its numbers"
        if name in ("index", "index_put", "index_put_"):
            assert not any(t.dtype == torch.bool for t in tensors(args[1])), f"{func} with a mask"
        output = func(*args, **kwargs)
        assert len({t.device for t in tensors((args, kwargs, output))}) < 2, f"{func} goes to another device"
        self.calls.append((func, args, kwargs, output))
        return output

    def names(self) -> list[tuple[str, tuple[torch.Size, ...]]]:
        return [(str(func), tuple(t.shape for t in tensors((args, kwargs)))) for func, args, kwargs, _ in self.calls]

    def static(self) -> list[int]:
        """Where the memory begins of every tensor that is used and has not been made by an op before."""
        made: set[int] = set()
        found: dict[int, None] = {}
        for _, args, kwargs, output in self.calls:
            used = {memory(t) for t in tensors((args, kwargs))}
            found.update(dict.fromkeys(sorted(used - made)))
            made |= {memory(t) for t in tensors(output)} - used - set(found)
        return list(found)


def memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Replays:
    """Stands for CUDA graphs: what `vidgen.sampling.graphed.capture_for` returns."""

    def __init__(self) -> None:
        self.recordings: list[Recording] = []
        self.replayed = 0

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        with Recording() as recording:
            step()
        self.recordings.append(recording)
        # a graph holds neither its step nor the tensors that it reads
        alive = weakref.ref(step)
        calls = [(func, args, kwargs, tensors(output)) for func, args, kwargs, output in recording.calls]

        def replay() -> None:
            self.replayed += 1
            assert alive() is not None, "a step is gone whose memory its graph reads"
            for func, args, kwargs, before in calls:
                now = func(*args, **kwargs)
                for a, b in zip(before, [now] if isinstance(now, Tensor) else tensors(now), strict=True):
                    if a.data_ptr() != b.data_ptr():
                        a.copy_(b)

        return replay
