"""The tools that a user would otherwise pick, one adapter each; never needed to run vidgen.

An adapter is a module with

- `NAME`, for tables, and `DISTRIBUTION`, whose version is recorded with the results;
- `missing(dtype)`: None where it can compute in that dtype here, else the reason in words;
- `convert(module, x)`: the model in the peer's own form, done once and not measured: a user deploys a converted file;
- `load(model, threads=..., dtype=...)`: the call to be measured, from a contiguous float32 CPU tensor to one.

One for optical flow has, in place of the last two, a function for each method, which returns the call to be measured.

Its name is not its library's, so that neither hides the other.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterable
from types import ModuleType


def first_missing(*libraries: str) -> str | None:
    """The sentence about the first of these libraries that is not installed; None if all are."""
    for library in libraries:
        if importlib.util.find_spec(library) is None:
            return f"{library} is not installed: pip install 'vidgen[peers]'"
    return None


def installed() -> Iterable[ModuleType]:
    """The adapters that can be used here."""
    from . import opencv_flow, openvino_peer, ort, skimage_flow

    return [peer for peer in (ort, openvino_peer, opencv_flow, skimage_flow) if peer.missing() is None]


def versions() -> dict[str, str]:
    """Versions of the peers that are installed, by the name of their distribution."""
    return {peer.DISTRIBUTION: importlib.metadata.version(peer.DISTRIBUTION) for peer in installed()}
