"""discretized_logistic_mixture against eager PyTorch and torch.compile.

Eager is the loss as PyTorch users write it, without its waste: the parameters stay in the channel order of the network
and are read through views, nothing is permuted or expanded, and a colour's logistics are computed in one tensor for all
mixtures. In mode "openai" it is the published formula; its difference of two σ cancels in float32, so its gradients err
more than anything else here and have a wide limit. In mode "exact" it is the sum of logarithms.

forward+backward asks for the gradient of the parameters. Its floor is memory: parameters read and gradients written
once, whatever a contender does in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .contenders import baseline, forward_run, own, torch_dtype
from .harness import Case, Outputs, Run

OP = "discretized_logistic_mixture"

_GRADIENTS = ("y", "grad_params")


@dataclass(frozen=True)
class Problem:
    """RGB images of 256 levels."""

    n: int
    mixtures: int
    height: int
    width: int
    mode: Literal["exact", "openai"]

    @property
    def title(self) -> str:
        return f"({self.n}, {10 * self.mixtures}, {self.height}, {self.width}), {self.mode}"

    @property
    def name(self) -> str:
        return f"{self.n}x{10 * self.mixtures}x{self.height}x{self.width}-{self.mode}"


def cases(*, device: str, full: bool) -> list[Case]:
    """The cases of a device. Building the list makes no inputs."""
    sizes = [(16, 10, 32, 32), *([(1, 10, 32, 32), (64, 10, 32, 32), (4, 5, 127, 65)] if full else [])]
    modes: tuple[Literal["exact", "openai"], ...] = ("exact", "openai") if full else ("exact",)
    problems = [Problem(*size, mode) for size in sizes for mode in modes]
    return [_case(p, kind, device, full) for p in problems for kind in ("forward", "forward+backward")]


def _values(problem: Problem) -> dict[str, Tensor]:
    """The inputs in float32 on the CPU, of a network in training: means near the pixel, scales of some grey levels."""
    generator = torch.Generator().manual_seed(0)
    n, k, size = problem.n, problem.mixtures, (problem.height, problem.width)
    x = torch.randint(0, 256, (n, 3, *size), generator=generator).float() / 127.5 - 1
    params = torch.randn(n, 10 * k, *size, generator=generator)
    blocks = params[:, k:].view(n, 3, 3, k, *size)
    blocks[:, :, 0] = x[:, :, None] + 0.1 * blocks[:, :, 0]
    blocks[:, :, 1] -= 3
    blocks[:, :, 2] *= 0.1
    return {"params": params, "x": x, "grad": torch.rand(n, generator=generator) + 0.5}


def _inputs(
    problem: Problem, *, dtype: torch.dtype, memory_format: torch.memory_format, device: str, grad: bool
) -> dict[str, Tensor]:
    values = {name: value.to(device) for name, value in _values(problem).items()}
    values["params"] = values["params"].to(dtype).contiguous(memory_format=memory_format).requires_grad_(grad)
    return values


def eager(params: Tensor, x: Tensor, mode: str) -> Tensor:
    """The log-likelihood; params (N, 10K, H, W), x (N, 3, H, W) -> (N,)."""
    n, channels, height, width = params.shape
    k = channels // 10
    blocks = params[:, k:].reshape(n, 3, 3, k, height, width)
    means, log_scales, coefficients = blocks[:, :, 0], blocks[:, :, 1].clamp(min=-7), torch.tanh(blocks[:, :, 2])
    red, green = x[:, 0, None], x[:, 1, None]
    means = torch.stack(
        [
            means[:, 0],
            means[:, 1] + coefficients[:, 0] * red,
            means[:, 2] + coefficients[:, 1] * red + coefficients[:, 2] * green,
        ],
        dim=1,
    )
    pixels = x[:, :, None]  # [N, 3, 1, H, W]
    centered, inverse = pixels - means, torch.exp(-log_scales)
    plus, minus = inverse * (centered + 1 / 255), inverse * (centered - 1 / 255)
    if mode == "exact":
        below, above = F.logsigmoid(plus), F.logsigmoid(-minus)
        inside = below + above + torch.log(-torch.expm1(inverse * (-2 / 255)))
    else:
        below, above = plus - F.softplus(plus), -F.softplus(minus)
        delta, middle = torch.sigmoid(plus) - torch.sigmoid(minus), inverse * centered
        density = middle - log_scales - 2 * F.softplus(middle) - math.log(127.5)
        inside = torch.where(delta > 1e-5, torch.log(delta.clamp(min=1e-12)), density)
    log_mass = torch.where(pixels < -0.999, below, torch.where(pixels > 0.999, above, inside))
    return torch.logsumexp(log_mass.sum(1) + torch.log_softmax(params[:, :k], 1), 1).sum((1, 2))


def _ours(params: Tensor, x: Tensor, mode: str) -> Tensor:
    from vidgen.ops import discretized_logistic_mixture

    return discretized_logistic_mixture(params, x, mode=mode)  # type: ignore[arg-type]


def _truth(problem: Problem, grad: bool, dtype: str) -> Outputs:
    """Float64, from the parameters as rounded to `dtype`, by the reference: eager's σ cancel even there."""
    from vidgen.ops.discretized_logistic_mixture import reference

    values = _values(problem)
    params = values["params"].to(torch_dtype(dtype)).double().requires_grad_(grad)
    y = reference(params, values["x"].double(), 256, problem.mode)
    if not grad:
        return {"y": y}
    return {"y": y.detach(), "grad_params": torch.autograd.grad(y, params, values["grad"].double())[0]}


def _build(
    call: Callable[[Tensor, Tensor, str], Tensor], problem: Problem, grad: bool, inputs: Mapping[str, Tensor]
) -> Run:
    if not grad:
        return forward_run(lambda: call(inputs["params"], inputs["x"], problem.mode))

    def run() -> Outputs:
        y = call(inputs["params"], inputs["x"], problem.mode)
        (gradient,) = torch.autograd.grad(y, inputs["params"], inputs["grad"])
        return dict(zip(_GRADIENTS, (y.detach(), gradient), strict=True))

    return run


def _build_compiled(problem: Problem, grad: bool, inputs: Mapping[str, Tensor]) -> Run:
    return _build(torch.compile(eager, fullgraph=True, dynamic=False), problem, grad, inputs)


def _work(problem: Problem, dtype: str, grad: bool) -> dict[str, float]:
    """Compulsory bytes: parameters and pixels read, gradients written."""
    pixels = problem.n * problem.height * problem.width
    size = torch_dtype(dtype).itemsize
    return {"bytes_moved": float(pixels * (10 * problem.mixtures * size * (2 if grad else 1) + 3 * 4))}


def _case(problem: Problem, kind: str, device: str, full: bool) -> Case:
    grad = kind != "forward"
    prepare = partial(_inputs, problem, device=device, grad=grad)
    nchw = partial(prepare, dtype=torch.float32, memory_format=torch.contiguous_format)
    nhwc = partial(prepare, dtype=torch.float32, memory_format=torch.channels_last)
    nchw_bf16 = partial(prepare, dtype=torch.bfloat16, memory_format=torch.contiguous_format)
    work, work_bf16 = (_work(problem, dtype, grad) for dtype in ("float32", "bfloat16"))
    plain, ours = (partial(_build, call, problem, grad) for call in (eager, _ours))
    compiled = partial(_build_compiled, problem, grad)
    wide = {"absolute_limit": 1e-2}
    contenders = [
        baseline("eager contiguous", "float32", nchw, plain, work, **wide),
        baseline("eager channels_last", "float32", nhwc, plain, work, **wide),
        own("vidgen NCHW", "float32", nchw, ours, work, "eager contiguous"),
        own("vidgen NHWC", "float32", nhwc, ours, work, "eager channels_last"),
        # computed in float32: only the gradient is rounded to bfloat16
        own("vidgen NCHW bf16", "bfloat16", nchw_bf16, ours, work_bf16, None, relative_limit=math.inf),
    ]
    if full or not grad or device == "cuda":  # CPUs compile the backward pass for seconds
        contenders.insert(2, baseline("torch.compile", "float32", nchw, compiled, work, compiled=True, **wide))
    return Case(
        op=OP,
        name=f"{kind}-{problem.name}",
        title=f"{problem.title}, {kind}",
        kind=kind,
        device=device,
        shape={"n": problem.n, "mixtures": problem.mixtures, "height": problem.height, "width": problem.width}
        | {"mode": problem.mode},
        contenders=contenders,
        truth=partial(_truth, problem, grad),
    )
