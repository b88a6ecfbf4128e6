"""The self-checks of the GPU backends: a tiny problem, the backend and the reference, seconds at most.

They catch a card, driver or compiler on which a tested kernel goes wrong. What a kernel promises is tested elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vidgen.ops.backends import TABLE
from vidgen.ops.gate import SelfCheck, register_self_check

# relative rms against float64; float32 products may be tf32
_BOUND = {torch.float32: 2e-3, torch.bfloat16: 1e-2}


def compare(op: str, backend: str, problems: Callable[[torch.dtype, torch.device], list[tuple[Any, ...]]]) -> SelfCheck:
    """A check that runs `backend` of `op` on `problems` and compares with the reference in float64."""

    def check(device: torch.device) -> str | None:
        rows = {row.name: row.run for row in TABLE[op]}
        run, reference = rows[backend], rows["reference"]
        assert run is not None
        assert reference is not None
        for dtype, bound in _BOUND.items():
            for args in problems(dtype, device):
                got = run(*args).double()
                want = reference(*(a.double() if isinstance(a, Tensor) else a for a in args))
                error = float((got - want).norm() / want.norm())
                if not error <= bound:  # NaN too
                    return f"{dtype} is off by {error:.1e} of its size, {bound:.0e} is allowed"
        return None

    return check


def _masked_conv2d(op: str, cin: int) -> Callable[[torch.dtype, torch.device], list[tuple[Any, ...]]]:
    def problems(dtype: torch.dtype, device: torch.device) -> list[tuple[Any, ...]]:
        generator = torch.Generator().manual_seed(0)

        def normal(*size: int) -> Tensor:
            values = torch.randn(size, generator=generator).to(dtype).to(device)
            return values.contiguous(memory_format=torch.channels_last) if len(size) == 4 and cin > 4 else values

        x, weight, grad = normal(2, cin, 9, 10), normal(48, cin, 7, 7), normal(2, 48, 9, 10)
        rule = ("A", 3, "interleaved", 1)
        if op == "masked_conv2d":
            return [(x, weight, normal(48), *rule)]
        return [(grad, weight, *rule)] if op.endswith("input") else [(grad, x, [7, 7], *rule)]

    return problems


for _op in ("masked_conv2d", "masked_conv2d_grad_input", "masked_conv2d_grad_weight"):
    register_self_check(_op, "triton", compare(_op, "triton", _masked_conv2d(_op, 18)))
register_self_check("masked_conv2d", "cuda", compare("masked_conv2d", "cuda", _masked_conv2d("masked_conv2d", 3)))
