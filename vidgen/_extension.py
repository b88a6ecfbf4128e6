"""Loads the native libraries: `_C` (schemas and CPU kernels, required) and `_C_cuda` (CUDA kernels, optional)."""

import ctypes
import importlib
from pathlib import Path

import torch

_HERE = Path(__file__).parent


def _load_core() -> None:
    library = _HERE / "_C.so"
    if not library.is_file():
        raise ImportError(
            f"vidgen's compiled library {library} is missing: run `pip install --no-build-isolation -e .` in vidgen's "
            "source folder (or `pip install --no-build-isolation .` and import it from another folder)"
        )
    try:
        torch.ops.load_library(library)
    except OSError as error:
        raise ImportError(
            f"vidgen's compiled library cannot be loaded beside torch {torch.__version__} (vidgen needs torch >= 2.11; "
            f"a rebuild with `pip install --no-build-isolation --force-reinstall --no-deps .` may help): {error}"
        ) from error


def _load_cuda() -> str | None:
    """Loads `_C_cuda`; returns None, or why it is not loaded."""
    library = _HERE / "_C_cuda.so"
    if not library.is_file():
        return "not built: there was no nvcc when vidgen was compiled"
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) is built without CUDA"
    built_with = importlib.import_module("vidgen._host").build_flags()["cuda"].split(".")[0]
    running = torch.version.cuda.split(".")[0]
    if built_with != running:
        return f"built with CUDA {built_with}, but torch runs CUDA {running}"
    try:
        # torch.ops.load_library would do, but says less about a missing symbol
        ctypes.CDLL(str(library))
    except OSError as error:
        return f"cannot be loaded: {error}"
    return None


_load_core()
#: None when the CUDA kernels are loaded, else the reason in words.
cuda_library_missing: str | None = _load_cuda()
