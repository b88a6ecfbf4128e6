"""What every op does in the same way: its selector, its hand-over from C++, autocast, checks, memory formats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from vidgen.ops.backends import select, warn_fallback

_library = torch.library.Library("vidgen", "IMPL")


def register_selection(op: str, eager: Callable[..., Any], arguments: Callable[..., tuple[Any, ...]]) -> None:
    """Serves `op` on every device without a kernel of its own key (C++ has the CPU's) from the backend table.

    Args:
        op: the op's name in the namespace vidgen; its schema has an argument `impl`.
        eager: the reference, also behind `<op>_reference`, to which C++ hands calls over.
        arguments: takes all of the op's arguments but `impl`; returns those that backends take, the first a tensor or a
            list of tensors.
    """
    names = [argument.name for argument in getattr(torch.ops.vidgen, op).default._schema.arguments]
    impl_index = names.index("impl")

    def selected(*args: Any) -> Any:
        passed = arguments(*args[:impl_index], *args[impl_index + 1 :])
        leading = _leading_tensor(passed)
        run = select(op, leading.device, args[impl_index], passed).run
        if run is None:  # such a row is served by C++ under its own dispatch key, which this tensor has not
            raise RuntimeError(f"{op} takes dense tensors, all on one device; got a {leading.layout} one")
        return _without_autocast(run, passed)

    def handed_over(*args: Any) -> Any:
        if why := args[-1]:
            warn_fallback(op, why)
        return _without_autocast(eager, args[:-1])

    _library.impl(op, selected, "CompositeExplicitAutograd")
    _library.impl(f"{op}_reference", handed_over, "CompositeExplicitAutograd")


def _leading_tensor(args: tuple[Any, ...]) -> Tensor:
    return args[0] if isinstance(args[0], Tensor) else args[0][0]


def _without_autocast(run: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """What was to be cast has been; in a backward under autocast PyTorch would cast what references compute."""
    with torch.autocast(_leading_tensor(args).device.type, enabled=False):
        return run(*args)


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


def cast_convolution(dtype: torch.dtype, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Any, ...]:
    """What autocast makes of the arguments of a convolution, the last of which is its packed weight."""
    x_cast, weight_cast, bias_cast = lowered(dtype, x, weight, bias)
    assert weight_cast is not None
    # bytes packed for one dtype mean nothing in another
    packed = rest[-1] if weight_cast.dtype == weight.dtype else None
    return x_cast, weight_cast, bias_cast, *rest[:-1], packed


def check_tensors(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Complains where the tensors of a convolution do not fit together in dtype, device or bias size.

    TypeError or ValueError; RuntimeError where one carries a forward-mode tangent, which PyTorch would drop silently.
    """
    if not x.is_floating_point():
        raise TypeError(f"x must be a floating-point tensor, got {x.dtype}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    one_dtype = x.dtype == weight.dtype and (bias is None or bias.dtype == weight.dtype)
    if not one_dtype and not torch.is_autocast_enabled(x.device.type):
        got = f"{x.dtype}, {weight.dtype}" + ("" if bias is None else f", {bias.dtype}")
        raise TypeError(f"x, weight and bias must have one dtype outside autocast, got {got}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} must be on the device of x ({x.device}), got {tensor.device}")
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias)):
        if tensor is not None:
            check_no_tangent(name, tensor)


def check_no_tangent(name: str, tensor: Tensor) -> None:
    """Refuses by a RuntimeError a tensor with a forward-mode tangent, which PyTorch would drop silently."""
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None:
        raise RuntimeError(f"{name} must not carry a tangent: the op has no forward-mode derivative")


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic on tensors of a floating dtype: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


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
