"""ONNX Runtime on the CPU."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from . import first_missing

NAME = "ONNX Runtime"
DISTRIBUTION = "onnxruntime"


def missing(dtype: str = "float32") -> str | None:
    if dtype != "float32":
        return f"its CPU kernels do not compute convolutions in {dtype}"
    # onnx and onnxscript are what torch.onnx.export writes with
    return first_missing("onnxruntime", "onnx", "onnxscript")


def convert(module: nn.Module, x: Tensor) -> bytes:
    """The module as a serialised ONNX model for inputs of x's shape."""
    import onnxruntime  # noqa: F401 the library is no memory of the model's

    with _quiet():
        program = torch.onnx.export(module.eval(), (x,), dynamo=True, verbose=False)
    assert program is not None
    return program.model_proto.SerializeToString()


def load(model: bytes, *, threads: int, dtype: str = "float32") -> Callable[[Tensor], Tensor]:
    """A session's run, on `threads` threads, as a function of the one input; float32 only.

    Raises:
        ValueError: another dtype. Its CPU kernels compute convolutions in float32 alone.
    """
    import onnxruntime

    if dtype != "float32":
        raise ValueError(f"dtype must be 'float32', got {dtype!r}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # its threads wait for work by spinning; within a run that is their right, after it they would slow the next one
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session: Any = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (name,) = (one.name for one in session.get_inputs())

    def run(x: Tensor) -> Tensor:
        # [...] -> [...]; neither direction copies
        return torch.from_numpy(session.run(None, {name: x.numpy()})[0])

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on libraries that it could also have exported."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
