"""warp against torch.nn.functional.grid_sample and torch.compile.

grid_sample wants normalised positions (N, H, W, 2), which a user of flows makes from pixels at every call. It runs
twice: with that and, as "grid given", with a grid made beforehand, which no user of a new flow has; its gradient is
then that of the grid. torch.compile gets the whole, in the full set.

The floor is memory: the image and the flow read once, the output written once; for the gradients both read again with
the gradient of the output, and both gradients written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .contenders import baseline, forward_run, own, torch_dtype
from .harness import Case, Outputs, Run

OP = "warp"


@dataclass(frozen=True)
class Problem:
    n: int
    channels: int
    height: int
    width: int

    @property
    def title(self) -> str:
        return f"({self.n}, {self.channels}, {self.height}, {self.width})"

    @property
    def name(self) -> str:
        return f"{self.n}x{self.channels}x{self.height}x{self.width}"


def cases(*, device: str, full: bool) -> list[Case]:
    """The cases of a device: a colour image of Sintel's size, features at a quarter of it. Makes no inputs."""
    sizes = [(1, 3, 436, 1024), (2, 64, 109, 256)]
    if device == "cuda":  # one image leaves most of a GPU idle
        sizes += [(16, 3, 436, 1024), (8, 64, 109, 256)]
    if full:
        sizes += [(8, 1, 240, 320), (1, 128, 55, 128), (1, 3, 1080, 1920)]
    # in the quick set of a CPU the gradients are those of one size
    both = sizes if full or device == "cuda" else sizes[:1]
    kinds = {size: ("forward", "forward+backward") if size in both else ("forward",) for size in sizes}
    return [_case(Problem(*size), kind, device, full) for size in sizes for kind in kinds[size]]


def _values(problem: Problem) -> dict[str, Tensor]:
    """In float32 on the CPU: noise as the image, a smooth flow of some pixels with parts that leave the image."""
    generator = torch.Generator().manual_seed(0)
    size = (problem.height, problem.width)
    coarse = torch.randn(problem.n, 2, 6, 8, generator=generator) * 6
    return {
        "x": torch.randn(problem.n, problem.channels, *size, generator=generator),
        "flow": F.interpolate(coarse, size, mode="bilinear", align_corners=True),
        "grad": torch.randn(problem.n, problem.channels, *size, generator=generator),
    }


def _inputs(
    problem: Problem, *, dtype: torch.dtype, memory_format: torch.memory_format, device: str, grad: bool
) -> dict[str, Tensor]:
    values = {name: value.to(device) for name, value in _values(problem).items()}
    for name in ("x", "grad"):
        values[name] = values[name].to(dtype).contiguous(memory_format=memory_format)
    for name in ("x", "flow"):
        values[name].requires_grad_(grad)
    values["grid"] = grid_of(values["flow"].detach()).requires_grad_(grad)
    return values


def grid_of(flow: Tensor) -> Tensor:
    """grid_sample's positions (N, H, W, 2)."""
    height, width = flow.shape[2:]
    column = torch.arange(width, dtype=flow.dtype, device=flow.device) + flow[:, 0]
    row = torch.arange(height, dtype=flow.dtype, device=flow.device)[:, None] + flow[:, 1]
    return torch.stack([column * (2 / (width - 1)) - 1, row * (2 / (height - 1)) - 1], dim=-1)


def eager(inputs: Mapping[str, Tensor]) -> Tensor:
    return F.grid_sample(inputs["x"], grid_of(inputs["flow"]).to(inputs["x"].dtype), align_corners=True)


def _grid_given(inputs: Mapping[str, Tensor]) -> Tensor:
    return F.grid_sample(inputs["x"], inputs["grid"], align_corners=True)


def _ours(inputs: Mapping[str, Tensor]) -> Tensor:
    from vidgen.ops import warp

    return warp(inputs["x"], inputs["flow"])


def _truth(problem: Problem, grad: bool, dtype: str) -> Outputs:
    """Float64, of the image as rounded to `dtype`."""
    from vidgen.ops.warp import reference

    values = _values(problem)
    x = values["x"].to(torch_dtype(dtype)).double().requires_grad_(grad)
    flow = values["flow"].double().requires_grad_(grad)
    y = reference(x, flow, "zeros")
    if not grad:
        return {"y": y}
    grad_output = values["grad"].to(torch_dtype(dtype)).double()
    grads = torch.autograd.grad(y, (x, flow), grad_output)
    return {"y": y.detach(), "grad_x": grads[0], "grad_flow": grads[1]}


def _build(call: Callable[[Mapping[str, Tensor]], Tensor], by: str, grad: bool, inputs: Mapping[str, Tensor]) -> Run:
    if not grad:
        return forward_run(lambda: call(inputs))
    height, width = inputs["flow"].shape[2:]

    def run() -> Outputs:
        y = call(inputs)
        grad_x, grad_by = torch.autograd.grad(y, (inputs["x"], inputs[by]), inputs["grad"])
        if by == "grid":  # a view and a scale, so that the answer can be compared
            grad_by = (
                grad_by.permute(0, 3, 1, 2) * grad_by.new_tensor([2 / (width - 1), 2 / (height - 1)])[:, None, None]
            )
        return {"y": y.detach(), "grad_x": grad_x, "grad_flow": grad_by}

    return run


def _build_compiled(grad: bool, inputs: Mapping[str, Tensor]) -> Run:
    return _build(torch.compile(eager, fullgraph=True, dynamic=False), "flow", grad, inputs)


def _work(problem: Problem, dtype: str, grad: bool) -> dict[str, float]:
    """Compulsory bytes. Forward: x, flow, output. Backward: grad, x, flow; both gradients."""
    pixels, size = problem.n * problem.height * problem.width, torch_dtype(dtype).itemsize
    image, flow = pixels * problem.channels * size, pixels * 2 * 4
    return {"bytes_moved": float(2 * image + flow + (3 * image + 2 * flow if grad else 0))}


def _case(problem: Problem, kind: str, device: str, full: bool) -> Case:
    grad = kind != "forward"
    prepare = partial(_inputs, problem, device=device, grad=grad)
    nchw = partial(prepare, dtype=torch.float32, memory_format=torch.contiguous_format)
    nhwc = partial(prepare, dtype=torch.float32, memory_format=torch.channels_last)
    nchw_bf16 = partial(prepare, dtype=torch.bfloat16, memory_format=torch.contiguous_format)
    work, work_bf16 = (_work(problem, dtype, grad) for dtype in ("float32", "bfloat16"))
    plain, given, ours = (
        partial(_build, call, by, grad) for call, by in ((eager, "flow"), (_grid_given, "grid"), (_ours, "flow"))
    )
    # grid_sample rounds positions to some 1e-5 of a pixel, and where one falls on the other side of a whole pixel the
    # slope is another
    wide = {"absolute_limit": 2e-2}
    contenders = [
        baseline("grid_sample", "float32", nchw, plain, work, **wide),
        baseline("grid_sample channels_last", "float32", nhwc, plain, work, **wide),
        baseline("grid_sample, grid given", "float32", nchw, given, work, **wide),
        own("vidgen NCHW", "float32", nchw, ours, work, "grid_sample"),
        own("vidgen NHWC", "float32", nhwc, ours, work, "grid_sample channels_last"),
        # against the float64 of rounded images: grid_sample's positions in bfloat16 are whole pixels
        own("vidgen NCHW bf16", "bfloat16", nchw_bf16, ours, work_bf16, None, relative_limit=float("inf")),
    ]
    if full:  # compiling takes longer than all the rest, and is slower than grid_sample
        build = partial(_build_compiled, grad)
        contenders.insert(3, baseline("torch.compile", "float32", nchw, build, work, compiled=True, **wide))
    return Case(
        op=OP,
        weighed=grad,  # the output alone, but for the gradients
        name=f"{kind}-{problem.name}",
        title=f"{problem.title}, {kind}",
        kind=kind,
        device=device,
        shape={"n": problem.n, "channels": problem.channels, "height": problem.height, "width": problem.width},
        contenders=contenders,
        truth=partial(_truth, problem, grad),
    )
