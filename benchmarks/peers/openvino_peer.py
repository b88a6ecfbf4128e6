"""OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import first_missing

NAME = "OpenVINO"
DISTRIBUTION = "openvino"

_PRECISION = {"float32": "f32", "bfloat16": "bf16"}


def missing(dtype: str = "float32") -> str | None:
    # asking the library itself would load it, and start its threads, wherever cases are listed
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if dtype == "bfloat16" and not any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16")):
        return "torch sees no bfloat16 arithmetic in this processor"
    return first_missing("openvino")


def convert(module: nn.Module, x: Tensor) -> Any:
    """The module as an openvino.Model for inputs of x's shape."""
    import openvino

    return openvino.convert_model(module.eval(), example_input=x, input=list(x.shape))


def load(model: Any, *, threads: int, dtype: str = "float32") -> Callable[[Tensor], Tensor]:
    """A compiled model's inference, on `threads` threads, as a function of the one input.

    With dtype "bfloat16" it computes in bfloat16 inside; input and output stay float32. The next call writes its result
    where the one before lies.

    Raises:
        ValueError: another dtype. RuntimeError: this processor does not compute in it.
    """
    import openvino

    if dtype not in _PRECISION:
        raise ValueError(f"dtype must be one of {sorted(_PRECISION)}, got {dtype!r}")
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        # without this hint it computes in bfloat16 wherever the processor can
        "INFERENCE_PRECISION_HINT": _PRECISION[dtype],
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads),
        # a core that the system shows is one to use, as it is for everybody else
        "ENABLE_HYPER_THREADING": "YES",
        # pinned threads would stay where they are when the next contender's come
        "ENABLE_CPU_PINNING": "NO",
    }
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    chosen = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if chosen != _PRECISION[dtype]:
        raise RuntimeError(f"OpenVINO computes in {chosen} on this processor, not in {_PRECISION[dtype]}")

    def run(x: Tensor) -> Tensor:
        # [...] -> [...]; neither direction copies
        return torch.from_numpy(compiled(x.numpy(), share_inputs=True, share_outputs=True)[0])

    return run
