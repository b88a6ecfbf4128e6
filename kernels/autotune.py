"""Opt-in measurement of tiles: VIDGEN_AUTOTUNE=1.

Without it every launch uses the tile that its module ships, and a sample's bits are the same on every run. With it
the first call of a shape times the candidates on the present GPU and remembers the winner, in the process and in
`$VIDGEN_CACHE_DIR/tiles.json` (default ~/.cache/vidgen). Another tile may add in another order, so bits may then
differ between machines and between caches.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import statistics
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
import triton

T = TypeVar("T", bound=tuple[int, ...])

_lock = threading.Lock()
_chosen: dict[str, list[int]] | None = None


def enabled() -> bool:
    return os.environ.get("VIDGEN_AUTOTUNE", "0") not in ("", "0")


def cache_file() -> Path:
    return Path(os.environ.get("VIDGEN_CACHE_DIR", Path.home() / ".cache" / "vidgen")) / "tiles.json"


def choose(
    key: tuple[Any, ...], default: T, candidates: Iterable[T], launch: Callable[[T], None], rebuild: Callable[..., T]
) -> T:
    """The fastest of `default` and `candidates` for `key` on the present GPU, measured once.

    `rebuild` makes a tile of the numbers that stand in the cache. Inside a CUDA graph capture nothing can be timed;
    there an unknown key gets the default.
    """
    global _chosen
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    name = json.dumps([device, triton.__version__, *key])
    with _lock:
        if _chosen is None:
            _chosen = _read(cache_file())
        if name not in _chosen:
            if not torch.cuda.is_available() or torch.cuda.is_current_stream_capturing():
                return default
            _chosen[name] = list(_fastest(default, candidates, launch))
            _write(cache_file(), _chosen)
        return rebuild(_chosen[name])


def _fastest(default: T, candidates: Iterable[T], launch: Callable[[T], None]) -> T:
    best, best_ms = default, _milliseconds(lambda: launch(default))
    for tile in candidates:
        # a tile may need more shared memory or registers than this GPU has
        with contextlib.suppress(triton.runtime.errors.OutOfResources, triton.runtime.errors.PTXASError):
            ms = _milliseconds(functools.partial(launch, tile))
            if ms < best_ms:
                best, best_ms = tile, ms
    return best


def _milliseconds(run: Callable[[], None]) -> float:
    return float(statistics.median(triton.testing.do_bench(run, warmup=10, rep=40, return_mode="all")))


def _read(path: Path) -> dict[str, list[int]]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def _write(path: Path, chosen: dict[str, list[int]]) -> None:
    with contextlib.suppress(OSError):  # a read-only home only means measuring again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(chosen, file, indent=0)
        os.replace(file.name, path)
