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
                got = _as_tuple(run(*args))
                want = _as_tuple(reference(*map(_in_double, args)))
                for g, w in zip(got, want, strict=True):
                    error = float((g.double() - w).norm() / w.norm())
                    if not error <= bound:  # NaN too
                        return f"{dtype} is off by {error:.1e} of its size, {bound:.0e} is allowed"
        return None

    return check


def _in_double(argument: Any) -> Any:
    if isinstance(argument, list):
        return [_in_double(each) for each in argument]
    return argument.double() if isinstance(argument, Tensor) and argument.is_floating_point() else argument


def _as_tuple(output: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (output,) if isinstance(output, Tensor) else output


def _normal(dtype: torch.dtype, device: torch.device, channels_last: bool) -> Callable[..., Tensor]:
    """Draws tensors; images and clips with their channels side by side if so."""
    generator = torch.Generator().manual_seed(0)
    order = {4: torch.channels_last, 5: torch.channels_last_3d} if channels_last else {}

    def draw(*size: int) -> Tensor:
        values = torch.randn(size, generator=generator).to(dtype).to(device)
        return values.contiguous(memory_format=order.get(len(size), torch.contiguous_format))

    return draw


def _masked_conv2d(op: str, cin: int) -> Callable[[torch.dtype, torch.device], list[tuple[Any, ...]]]:
    def problems(dtype: torch.dtype, device: torch.device) -> list[tuple[Any, ...]]:
        normal = _normal(dtype, device, cin > 4)
        x, weight, grad = normal(2, cin, 9, 10), normal(48, cin, 7, 7), normal(2, 48, 9, 10)
        rule = ("A", 3, "interleaved", 1)
        if op == "masked_conv2d":
            return [(x, weight, normal(48), *rule)]
        return [(grad, weight, *rule)] if op.endswith("input") else [(grad, x, [7, 7], *rule)]

    return problems


def _conv3d_pool3d(op: str, cin: int) -> Callable[[torch.dtype, torch.device], list[tuple[Any, ...]]]:
    def problems(dtype: torch.dtype, device: torch.device) -> list[tuple[Any, ...]]:
        normal, size, padding = _normal(dtype, device, cin > 4), (3, 9, 11), [1, 1, 0, 2, 1, 1]
        x, weight, bias, grad = normal(2, cin, *size), normal(48, cin, 3, 3, 3), normal(48), normal(2, 48, *size)
        if op.endswith("input"):
            return [(grad, weight, padding)]
        if op.endswith("weight"):
            return [(grad, x, [3, 3, 3], padding)]
        rules = [(padding, "relu", [1, 2, 2], True), (padding, "identity", [3, 2, 1], False)]
        if op == "conv3d_pool3d":
            return [(x, weight, bias, *rule) for rule in rules]
        # where maxima lie is seen alike by every rounding of whole numbers
        x, weight, bias = x.round(), weight.round(), bias.round()
        return [(grad[:, :, :1, :4, :5], x, weight, bias, padding, "relu", [3, 2, 2], False)]

    return problems


def _discretized_logistic_mixture(op: str) -> Callable[[torch.dtype, torch.device], list[tuple[Any, ...]]]:
    def problems(dtype: torch.dtype, device: torch.device) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = []
        for channels, params_of_one, levels, mode in ((3, 10, 256, "exact"), (2, 6, 16, "openai"), (1, 3, 2, "exact")):
            params = _normal(dtype, device, channels_last=channels == 3)(2, 3 * params_of_one, 9, 17)
            level = torch.arange(2 * channels * 9 * 17, device=device).view(2, channels, 9, 17) * 37 % levels
            args = (params, level * 2.0 / (levels - 1) - 1, levels, mode)
            found.append((torch.ones(2, device=device), *args) if op.endswith("grad_params") else args)
        return found

    return problems


def _warp(op: str) -> Callable[[torch.dtype, torch.device], list[tuple[Any, ...]]]:
    def problems(dtype: torch.dtype, device: torch.device) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = []
        for channels, padding in ((3, "zeros"), (21, "border")):
            normal = _normal(dtype, device, channels_last=channels == 21)
            x, grad = normal(2, channels, 9, 17), normal(2, channels, 9, 17)
            flow = 2 * _normal(torch.float32, device, channels_last=False)(2, 2, 9, 17)
            images = {"warp": (x,), "warp_grad_x": (grad,), "warp_grad_flow": (grad, x)}[op]
            found.append((*images, flow, padding))
        return found

    return problems


def _optical_flow_tvl1(rule: tuple[Any, ...]) -> Callable[[torch.dtype, torch.device], list[tuple[Any, ...]]]:
    """Waves that move by a pixel and a half, from a start near that; the ops take no images in bfloat16."""

    def problems(dtype: torch.dtype, device: torch.device) -> list[tuple[Any, ...]]:
        if dtype == torch.bfloat16:
            return []
        y, x = torch.meshgrid(torch.arange(70.0), torch.arange(83.0), indexing="ij")
        images = [0.5 + 0.2 * (0.31 * (x + at) + 0.12 * y).sin() + 0.2 * (0.29 * y - 0.17 * x).cos() for at in (1.5, 0)]
        prev, next = (image.expand(2, 1, -1, -1).to(device) for image in images)
        init = torch.tensor([1.4, 0.1], device=device)[:, None, None].expand(2, 2, 70, 83)
        return [(prev, next, init, *rule)]

    return problems


def _corr_lookup(dtype: torch.dtype, device: torch.device) -> list[tuple[Any, ...]]:
    normal = _normal(dtype, device, channels_last=True)
    coords = normal(2, 2, 5, 9).float() * 6
    return [
        ([normal(2, 5, 9, 12, 17), normal(2, 5, 9, 6, 8)], coords, 3, None),
        ([normal(2, 40, 12, 17), normal(2, 40, 6, 8)], coords, 3, normal(2, 40, 5, 9)),
    ]


def _optical_flow_dis(dtype: torch.dtype, device: torch.device) -> list[tuple[Any, ...]]:
    y, x = torch.arange(42.0)[:, None], torch.arange(57.0)
    waves = torch.sin(x / 2 + y / 7) + torch.sin(x / 3 - y / 2.5) + torch.sin(x / 5 + y / 3.5)
    # grey levels that are the same in every dtype, though a kernel widens them first
    image = (waves / 8 + 0.5).mul(64).round().div(64).to(dtype).float().expand(2, 1, 42, 57).to(device)
    prev, next = image[..., 1:, 1:], image[..., :-1, :-1]
    return [(prev, next, None, 0, patch, stride, 25, 3, 20.0, 5.0, 10.0) for patch, stride in ((4, 3), (8, 3), (16, 9))]


for _op in ("masked_conv2d", "masked_conv2d_grad_input", "masked_conv2d_grad_weight"):
    register_self_check(_op, "triton", compare(_op, "triton", _masked_conv2d(_op, 18)))
register_self_check("masked_conv2d", "cuda", compare("masked_conv2d", "cuda", _masked_conv2d("masked_conv2d", 3)))

for _op in (
    "conv3d_pool3d", "conv3d_pool3d_grad_preactivation", "conv3d_pool3d_grad_input", "conv3d_pool3d_grad_weight",
):  # fmt: skip
    register_self_check(_op, "triton", compare(_op, "triton", _conv3d_pool3d(_op, 18)))
register_self_check("conv3d_pool3d", "cuda", compare("conv3d_pool3d", "cuda", _conv3d_pool3d("conv3d_pool3d", 3)))

for _op in ("discretized_logistic_mixture", "discretized_logistic_mixture_grad_params"):
    register_self_check(_op, "triton", compare(_op, "triton", _discretized_logistic_mixture(_op)))

for _op in ("warp", "warp_grad_x", "warp_grad_flow"):
    register_self_check(_op, "triton", compare(_op, "triton", _warp(_op)))

_rule = (0.25, 0.2, 0.3, 2, 0.7, 2, 1, 12, 5, 0.0)
register_self_check("optical_flow_tvl1", "cuda", compare("optical_flow_tvl1", "cuda", _optical_flow_tvl1(_rule)))

register_self_check("corr_lookup", "triton", compare("corr_lookup", "triton", _corr_lookup))

register_self_check("optical_flow_dis", "cuda", compare("optical_flow_dis", "cuda", _optical_flow_dis))
