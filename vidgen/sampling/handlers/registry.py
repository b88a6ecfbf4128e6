"""The table of handlers, and what all of them need."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from vidgen.sampling.graph import Value

if TYPE_CHECKING:
    from vidgen.sampling.tracing import Tracer


aten = torch.ops.aten
Handler = Callable[..., list[Value]]

#: ops whose result does not depend on the values of their arguments
VALUE_FREE = {
    aten.ones_like,
    aten.zeros_like,
    aten.full_like,
    aten.empty_like,
    aten.new_ones,
    aten.new_zeros,
    aten.new_full,
    aten.new_empty,
    aten.sym_size,
}

HANDLERS: dict[Any, Handler] = {}


def handles(*packets: Any) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(packets, handler))
        return handler

    return register


def value_of(tracer: Tracer, func: Any, tensor: Any) -> Value:
    value = tracer.get(tensor)
    if value is None:
        raise tracer.refuse(func, "a tensor made from the image is expected here")
    return value


def with_channels(value: Value, views: Any, channels: Any) -> Value:
    return type(value)(views, channels, value.size, value.stride)
