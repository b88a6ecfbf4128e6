"""Weights that others have saved: reading state dicts and files, whatever is wrapped around them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidgen.extras import require

_WRAPPERS = ("state_dict", "model_state_dict")
_SHOWN = 5


def read_weights(source: Mapping[str, Any] | str | Path) -> dict[str, Tensor]:
    """The tensors of a state dict or file by name, without ``state_dict`` around them or ``module.`` before them.

    Raises:
        FileNotFoundError: there is no such file. ValueError: it holds no state dict.
    """
    held = source if isinstance(source, Mapping) else _read_file(Path(source))
    for wrapper in _WRAPPERS:
        if isinstance(held, Mapping) and isinstance(held.get(wrapper), Mapping):
            held = held[wrapper]
    if not isinstance(held, Mapping) or not held or not all(isinstance(value, Tensor) for value in held.values()):
        raise ValueError(f"source: expected a state dict of tensors, got {_described(held)}")
    if all(name.startswith("module.") for name in held):
        held = {name.removeprefix("module."): tensor for name, tensor in held.items()}
    return dict(held)


def _described(held: Any) -> str:
    if not isinstance(held, Mapping) or not held:
        return "an empty one" if isinstance(held, Mapping) else type(held).__name__
    name, value = next((name, value) for name, value in held.items() if not isinstance(value, Tensor))
    return f"{type(value).__name__} under {name!r}"


def _read_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"source: there is no file {path}")
    if path.suffix == ".safetensors":
        safetensors = require("safetensors.torch", extra="train")
        try:
            return safetensors.load_file(path)
        except require("safetensors", extra="train").SafetensorError as error:
            raise ValueError(f"source: {path} is not a safetensors file: {error}") from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a file that is no checkpoint raises depends on its first bytes
        raise ValueError(
            f"source: {path} is not a file of tensors that torch.load(weights_only=True) reads ({type(error).__name__})"
        ) from None


def listed(names: Iterable[str]) -> str:
    """The first of some names, for a message."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
