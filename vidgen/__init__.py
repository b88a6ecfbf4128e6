"""Kernels for video understanding and generative image and video models on PyTorch.

`vidgen.ops` holds the ops, `vidgen.nn` drop-in layers, `vidgen.models` systems built from them. `vidgen.fuse` makes
networks that others wrote use the ops. `vidgen.explain` tells which backend serves a call; `vidgen info` on the command
line tells what this machine can run.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import vidgen._extension  # noqa: F401  (registers the ops, which everything below defines kernels for)
from vidgen import nn, ops
from vidgen.explain import explain
from vidgen.nn import prepack

if TYPE_CHECKING:
    from vidgen import data, flow_io, fusion, models, sampling, train
    from vidgen.fusion import fuse, fusion_report
    from vidgen.models import layer_report
    from vidgen.sampling.generate import generate

try:
    __version__ = version("vidgen")
except PackageNotFoundError:
    __version__ = "0+unknown"

__all__ = [
    "data",
    "explain",
    "flow_io",
    "fuse",
    "fusion",
    "fusion_report",
    "generate",
    "layer_report",
    "models",
    "nn",
    "ops",
    "prepack",
    "sampling",
    "train",
]

#: Loaded at first use: they need time, or libraries that the ops do not.
_LAZY = {
    "data": "vidgen.data",
    "flow_io": "vidgen.flow_io",
    "fusion": "vidgen.fusion",
    "models": "vidgen.models",
    "sampling": "vidgen.sampling",
    "train": "vidgen.train",
}
_LAZY_FUNCTIONS = {
    "fuse": "vidgen.fusion",
    "fusion_report": "vidgen.fusion",
    "generate": "vidgen.sampling",
    "layer_report": "vidgen.models",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(_LAZY[name])
    if name in _LAZY_FUNCTIONS:
        return getattr(importlib.import_module(_LAZY_FUNCTIONS[name]), name)
    raise AttributeError(f"module 'vidgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
