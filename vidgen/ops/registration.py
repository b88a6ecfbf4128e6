"""What every op registers in the same way: its selector, its hand-over from C++, autocast, memory formats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vidgen.ops.backends import select, warn_fallback

_library = torch.library.Library("vidgen", "IMPL")


def register_selection(op: str, eager: Callable[..., Tensor], arguments: Callable[..., tuple[Any, ...]]) -> None:
    """Serves `op` on every device without a kernel of its own key (C++ has the CPU's) from the backend table.

    Args:
        op: the op's name in the namespace vidgen; its schema has an argument `impl`.
        eager: the reference, also behind `<op>_reference`, to which C++ hands calls over.
        arguments: takes all of the op's arguments but `impl`; returns those that backends take, the first a tensor.
    """
    names = [argument.name for argument in getattr(torch.ops.vidgen, op).default._schema.arguments]
    impl_index = names.index("impl")

    def selected(*args: Any) -> Tensor:
        passed = arguments(*args[:impl_index], *args[impl_index + 1 :])
        run = select(op, passed[0].device, args[impl_index], passed).run
        assert run is not None, "a row without `run` is served by C++ under its own dispatch key"
        return run(*passed)

    def handed_over(*args: Any) -> Tensor:
        if why := args[-1]:
            warn_fallback(op, why)
        return eager(*args[:-1])

    _library.impl(op, selected, "CompositeExplicitAutograd")
    _library.impl(f"{op}_reference", handed_over, "CompositeExplicitAutograd")


def register_autocast(op: str, cast: Callable[..., tuple[Any, ...]]) -> None:
    """Makes `op` compute in torch.get_autocast_dtype under autocast.

    Args:
        op: the op's name in the namespace vidgen.
        cast: takes the dtype and the op's arguments; returns the arguments to call it with (see `lowered`).
    """
    overload = getattr(torch.ops.vidgen, op).default

    def register(device_type: str, key: str) -> None:
        def under_autocast(*args: Any) -> Tensor:
            args = cast(torch.get_autocast_dtype(device_type), *args)
            with torch.autocast(device_type, enabled=False):
                return overload(*args)

        _library.impl(op, under_autocast, key)

    register("cpu", "AutocastCPU")
    register("cuda", "AutocastCUDA")


def lowered(dtype: torch.dtype, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors in `dtype`, as autocast does it: double and integer tensors stay what they are."""
    return tuple(
        t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors
    )


def memory_format_of(like: Tensor) -> torch.memory_format:
    """channels_last (of images, or of clips) if that is what the strides say and they do not also say contiguous."""
    channels_last = torch.channels_last if like.dim() == 4 else torch.channels_last_3d
    keeps = like.is_contiguous(memory_format=channels_last) and not like.is_contiguous()
    return channels_last if keeps else torch.contiguous_format


def empty_image(like: Tensor, channels: int, size: Sequence[int] | None = None) -> Tensor:
    """An uninitialised (N, channels, *size) of the batch, dtype, device and memory format of `like`.

    Args:
        like: images (N, C, H, W) or clips (N, C, D, H, W).
        size: (H, W) or (D, H, W); None takes that of `like`.
    """
    shape = (like.shape[0], channels, *(like.shape[2:] if size is None else size))
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format_of(like))
