"""What the benchmarks of several ops share: the limits on errors, contenders that have them, and forms of a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .harness import Contender, Outputs, Run
from .machine import tf32

# DESIGN: fp32 may err 5e-6 and 16 times eager in its Winograd forms, twice eager in the direct one; bf16 3 times eager
LIMITS: dict[str, Any] = {
    "float32": {"absolute_limit": 5e-6, "relative_limit": 16.0},
    "tf32": {"absolute_limit": 3e-3, "relative_limit": 3.0},
    "bfloat16": {"absolute_limit": 2e-2, "relative_limit": 3.0},
}


def torch_dtype(dtype: str) -> torch.dtype:
    """The dtype of the tensors of a contender: TF32 is a way to multiply float32."""
    return torch.float32 if dtype == "tf32" else getattr(torch, dtype)


def baseline(name: str, dtype: str, prepare: Any, build: Any, work: Any, **more: Any) -> Contender:
    """A contender that is not ours, with the absolute limit of its dtype."""
    more = {"absolute_limit": LIMITS[dtype]["absolute_limit"]} | more
    return Contender(name, dtype, prepare, build, **work, **more)


def own(name: str, dtype: str, prepare: Any, build: Any, work: Any, against: str | None, **more: Any) -> Contender:
    """A contender of vidgen's, with both limits of its dtype; the relative one is on the error of `against`."""
    return Contender(name, dtype, prepare, build, ours=True, against=against, **work, **(LIMITS[dtype] | more))


def in_bfloat16(eager: Contender, ours: Contender, *, full: bool) -> tuple[list[Contender], dict[str, str]]:
    """Both forms of a convolution in bfloat16, and who is left out with the reason.

    Without bfloat16 in the processor, or AVX-512 to emulate it, PyTorch multiplies number by number: C3D takes it
    minutes. Ours, which widens to float32 and is as fast as there, is then in the full set alone, and held to its
    absolute limit alone.
    """
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return [eager, ours], {}
    if not full:
        return [], dict.fromkeys((eager.name, ours.name), "this processor has no bfloat16 arithmetic")
    reason = "PyTorch's fallback for processors without AVX-512 takes minutes"
    return [replace(ours, against=None, relative_limit=math.inf)], {eager.name: reason}


def forward_run(call: Callable[[], Tensor]) -> Run:
    """The run of a forward pass, in inference_mode."""

    def run() -> Outputs:
        with torch.inference_mode():
            return {"y": call()}

    return run


def frozen(module: nn.Module, **options: Any) -> Any:
    """torch.compile with constant weights, which it packs for its own library: its fastest form for inference."""
    return torch.compile(module.eval(), fullgraph=True, dynamic=False, options={"freezing": True} | options)


def with_tf32(build: Callable[[Any], Run], inputs: Any) -> Run:
    """What `build` builds, built and run with TF32."""
    with tf32():
        inner = build(inputs)

    def run() -> Outputs:
        with tf32():
            return inner()

    return run
