"""masked_conv2d against eager PyTorch and torch.compile.

The baselines get every advantage that a user could give them: the weight is masked beforehand (in training too, where
a real one would mask it in every step), the memory format is tried both ways, and the forward runs in inference_mode.
Ours is shown from channels_last and from contiguous inputs, with the weight packed once and packed in every call.
forward+backward asks for the gradients of x, weight and bias, and packs in every call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .contenders import baseline, forward_run, frozen, in_bfloat16, own, torch_dtype, with_tf32
from .harness import Case, Contender, Outputs, Run

OP = "masked_conv2d"


@dataclass(frozen=True)
class Problem:
    """One masked convolution, 'same' padding, with bias."""

    n: int
    cin: int
    height: int
    width: int
    cout: int
    kernel: tuple[int, int]
    mask: Literal["A", "B"]
    colors: int = 1

    @property
    def title(self) -> str:
        kernel = f"{self.kernel[0]}×{self.kernel[1]}"
        colors = f", {self.colors} colours" if self.colors > 1 else ""
        return f"({self.n}, {self.cin}, {self.height}, {self.width}) → {self.cout}, {kernel} {self.mask}{colors}"

    @property
    def name(self) -> str:
        size = f"{self.n}x{self.cin}x{self.height}x{self.width}-{self.cout}"
        colors = f"-colors{self.colors}" if self.colors > 1 else ""
        return f"{size}-k{self.kernel[0]}x{self.kernel[1]}{self.mask}{colors}"

    def keep(self) -> Tensor:
        """The kept taps, bool (Cout, Cin, kh, kw), written down apart from the op's own so that it can be an oracle."""
        kh, kw = self.kernel
        row, column = torch.arange(kh).view(kh, 1), torch.arange(kw)
        past = (row < kh // 2) | ((row == kh // 2) & (column < kw // 2))
        centre = (row == kh // 2) & (column == kw // 2)
        reads = torch.arange(self.cout).view(-1, 1) % self.colors
        source = torch.arange(self.cin) % self.colors
        seen = source <= reads if self.mask == "B" else source < reads
        return past | (centre & seen[:, :, None, None])


_MAIN = ((16, 128, 32, 32, 128), (16, 64, 28, 28, 64), (4, 256, 64, 64, 256), (1, 128, 32, 32, 128))
_SMALL = (
    Problem(1, 1, 28, 28, 64, (7, 7), "A"),
    # output channels must divide by the colours: 126 is the largest that does below 128
    Problem(16, 3, 32, 32, 126, (7, 7), "A", colors=3),
    Problem(16, 64, 8, 8, 64, (3, 3), "B"),
    Problem(1, 16, 1, 100, 16, (1, 3), "B"),
    Problem(1, 16, 1, 100, 16, (3, 3), "B"),
)


def _main(kernels: tuple[int, ...], shapes: tuple[tuple[int, ...], ...] = _MAIN) -> Iterator[Problem]:
    for n, cin, height, width, cout in shapes:
        for k in kernels:
            yield Problem(n, cin, height, width, cout, (k, k), "B")


def cases(*, device: str, full: bool) -> list[Case]:
    """The cases of a device. Building the list makes no inputs."""
    if device == "cuda":
        shape = ((64, 128, 32, 32, 128),)
        return [_cuda_case(p, dtype) for p in _main((3, 5, 7), shape) for dtype in ("tf32", "bfloat16")]
    if full:
        forward = [*_main((3, 5, 7)), *_SMALL]
        backward = [*_main((3, 5, 7)), *_SMALL]
    else:
        forward = [*_main((3,)), *_main((5, 7), _MAIN[:1]), *_SMALL]
        backward = [*_main((3,), _MAIN[:2])]
    return [*(_cpu_case(p, full) for p in forward), *(_cpu_backward_case(p, full) for p in backward)]


def _values(problem: Problem) -> dict[str, Tensor]:
    """The float32 inputs on the CPU: the same for every contender. Outputs have a standard deviation near 1."""
    generator = torch.Generator().manual_seed(0)
    keep = problem.keep()
    reads = max(1.0, keep.sum().item() / problem.cout)
    return {
        "x": torch.randn(problem.n, problem.cin, problem.height, problem.width, generator=generator),
        "weight": torch.randn(keep.shape, generator=generator) * keep / reads**0.5,
        "bias": torch.randn(problem.cout, generator=generator),
        "grad": torch.randn(problem.n, problem.cout, problem.height, problem.width, generator=generator),
    }


def _inputs(
    problem: Problem, *, dtype: torch.dtype, memory_format: torch.memory_format, device: str, grad: bool
) -> dict[str, Tensor]:
    values = _values(problem)
    inputs = {"bias": values["bias"].to(device, dtype)}
    for name in ("x", "weight", "grad") if grad else ("x", "weight"):
        inputs[name] = values[name].to(device, dtype).contiguous(memory_format=memory_format)
    if grad:
        for name in ("x", "weight", "bias"):
            inputs[name].requires_grad_()
    return inputs


def _truth(problem: Problem, grad: bool, dtype: str) -> Outputs:
    """Float64, from the inputs as rounded to `dtype`."""
    values = {name: value.to(torch_dtype(dtype)).double() for name, value in _values(problem).items()}
    if not grad:
        return {"y": _conv(problem, values)}
    leaves = [values[name].requires_grad_() for name in ("x", "weight", "bias")]
    y = _conv(problem, values)
    return dict(zip(_GRADIENTS, (y.detach(), *torch.autograd.grad(y, leaves, values["grad"])), strict=True))


_GRADIENTS = ("y", "grad_x", "grad_weight", "grad_bias")


def _compare(problem: Problem, name: str, value: Tensor) -> Tensor:
    # eager computes gradients of masked taps too; a user would mask them away
    return value * problem.keep().to(value.device) if name == "grad_weight" else value


def _conv(problem: Problem, inputs: Mapping[str, Tensor]) -> Tensor:
    padding = (problem.kernel[0] // 2, problem.kernel[1] // 2)
    return F.conv2d(inputs["x"], inputs["weight"], inputs["bias"], padding=padding)


def _ours(problem: Problem, inputs: Mapping[str, Tensor], packed: Tensor | None = None) -> Tensor:
    from vidgen.ops import masked_conv2d

    return masked_conv2d(
        inputs["x"], inputs["weight"], inputs["bias"], mask=problem.mask, colors=problem.colors, packed=packed
    )


def _build_eager(problem: Problem, inputs: Mapping[str, Tensor]) -> Run:
    return forward_run(partial(_conv, problem, inputs))


def _compiled(problem: Problem) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    padding = (problem.kernel[0] // 2, problem.kernel[1] // 2)

    def conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias, padding=padding)

    return torch.compile(conv, fullgraph=True, dynamic=False)


def _build_compiled(problem: Problem, inputs: Mapping[str, Tensor]) -> Run:
    conv = _compiled(problem)
    return forward_run(lambda: conv(inputs["x"], inputs["weight"], inputs["bias"]))


class _Layer(torch.nn.Module):
    def __init__(self, problem: Problem, inputs: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.problem = problem
        self.weight = torch.nn.Parameter(inputs["weight"], requires_grad=False)
        self.bias = torch.nn.Parameter(inputs["bias"], requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return _conv(self.problem, {"x": x, "weight": self.weight, "bias": self.bias})


def _build_frozen(problem: Problem, inputs: Mapping[str, Tensor]) -> Run:
    layer = frozen(_Layer(problem, inputs))
    return forward_run(lambda: layer(inputs["x"]))


def _build_packed(problem: Problem, inputs: Mapping[str, Tensor]) -> Run:
    packed = torch.ops.vidgen.masked_conv2d_pack(
        inputs["weight"], problem.mask, problem.colors, "interleaved", 1, "auto"
    )
    return forward_run(partial(_ours, problem, inputs, packed))


def _build_unpacked(problem: Problem, inputs: Mapping[str, Tensor]) -> Run:
    return forward_run(partial(_ours, problem, inputs))


def _build_backward(call: Callable[..., Tensor], problem: Problem, inputs: Mapping[str, Tensor]) -> Run:
    leaves = [inputs[name] for name in ("x", "weight", "bias")]

    def run() -> Outputs:
        y = call(problem, inputs)
        return dict(zip(_GRADIENTS, (y.detach(), *torch.autograd.grad(y, leaves, inputs["grad"])), strict=True))

    return run


def _build_compiled_backward(problem: Problem, inputs: Mapping[str, Tensor]) -> Run:
    conv = _compiled(problem)
    return _build_backward(lambda _, i: conv(i["x"], i["weight"], i["bias"]), problem, inputs)


def _work(problem: Problem, dtype: str, *, passes: int, every_tap: bool) -> dict[str, float]:
    """FLOPs (a multiply-add counts as two) and compulsory bytes of `passes` convolutions' worth of work.

    A tap that lies in the padding is no work: PyTorch's kernels skip it.
    """
    kh, kw = problem.kernel
    pixels = problem.n * problem.height * problem.width
    pairs = problem.cin * problem.cout * kh * kw if every_tap else int(problem.keep().sum())
    rows = [max(0, problem.height - abs(p - kh // 2)) for p in range(kh)]
    columns = [max(0, problem.width - abs(q - kw // 2)) for q in range(kw)]
    inside = torch.tensor(rows)[:, None] * torch.tensor(columns)
    taps = torch.ones(problem.cout, problem.cin, kh, kw) if every_tap else problem.keep()
    products = problem.n * int((taps * inside).sum(dtype=torch.float64))
    size = 2 if dtype == "bfloat16" else 4
    tensors = pixels * (problem.cin + problem.cout) + pairs
    return {"flops": 2.0 * products * passes, "bytes_moved": float(size * tensors * passes)}


def _own_work(problem: Problem, dtype: str) -> dict[str, float]:
    """The forward's work in the form that the op's plan chooses; the kept taps where it has none."""
    work = _work(problem, dtype, passes=1, every_tap=False)
    with contextlib.suppress(RuntimeError):  # a dtype that the CPU kernel does not compute
        work["flops"] = problem.n * _plan(problem, getattr(torch, dtype))[1]
    return work


def _plan(problem: Problem, dtype: torch.dtype) -> tuple[str, float]:
    """The CPU kernel's plan in words, and its FLOPs for one image (the plan does not depend on the batch)."""
    x = torch.empty(1, problem.cin, problem.height, problem.width, dtype=dtype)
    weight = torch.empty(problem.cout, problem.cin, *problem.kernel, dtype=dtype)
    rule = (problem.mask, problem.colors, "interleaved", 1, "auto")
    return torch.ops.vidgen.masked_conv2d_cpu_plan(x, weight, *rule)


def _cpu_case(problem: Problem, full: bool) -> Case:
    prepare = partial(_inputs, problem, device="cpu", grad=False)
    nchw = partial(prepare, dtype=torch.float32, memory_format=torch.contiguous_format)
    nhwc = partial(prepare, dtype=torch.float32, memory_format=torch.channels_last)
    nhwc_bf16 = partial(prepare, dtype=torch.bfloat16, memory_format=torch.channels_last)
    every, every_bf16 = (_work(problem, d, passes=1, every_tap=True) for d in ("float32", "bfloat16"))
    kept, kept_bf16 = (_own_work(problem, d) for d in ("float32", "bfloat16"))
    eager, packed, unpacked = (partial(build, problem) for build in (_build_eager, _build_packed, _build_unpacked))
    contenders = [
        baseline("eager contiguous", "float32", nchw, eager, every),
        baseline("eager channels_last", "float32", nhwc, eager, every),
        baseline("torch.compile", "float32", nhwc, partial(_build_compiled, problem), every, compiled=True),
        own("vidgen NHWC", "float32", nhwc, packed, kept, "eager channels_last"),
        own("vidgen NCHW", "float32", nchw, packed, kept, "eager contiguous"),
        own("vidgen NHWC, packing", "float32", nhwc, unpacked, kept, "eager channels_last"),
        own("vidgen NCHW, packing", "float32", nchw, unpacked, kept, "eager contiguous"),
    ]
    in_16_bits, left_out = in_bfloat16(
        baseline("eager bf16", "bfloat16", nhwc_bf16, eager, every_bf16),
        own("vidgen NHWC bf16", "bfloat16", nhwc_bf16, packed, kept_bf16, "eager bf16"),
        full=full,
    )
    contenders += in_16_bits
    if full:
        build = partial(_build_frozen, problem)
        contenders.insert(3, baseline("torch.compile, frozen", "float32", nhwc, build, every, compiled=True))
    return _case(problem, "forward", "cpu", contenders, left_out=left_out)


def _cpu_backward_case(problem: Problem, full: bool) -> Case:
    prepare = partial(_inputs, problem, device="cpu", grad=True, dtype=torch.float32)
    nchw = partial(prepare, memory_format=torch.contiguous_format)
    nhwc = partial(prepare, memory_format=torch.channels_last)
    every = _work(problem, "float32", passes=3, every_tap=True)
    forward, direct = _own_work(problem, "float32"), _work(problem, "float32", passes=1, every_tap=False)
    # the gradient of x is the forward's algorithm mirrored; that of the weight is always direct
    kept = {name: 2 * forward[name] + direct[name] for name in forward}
    eager, ours = (partial(_build_backward, call, problem) for call in (_conv, _ours))
    compiled = partial(_build_compiled_backward, problem)
    contenders = [
        baseline("eager contiguous", "float32", nchw, eager, every),
        baseline("eager channels_last", "float32", nhwc, eager, every),
        own("vidgen NHWC, packing", "float32", nhwc, ours, kept, "eager channels_last"),
        own("vidgen NCHW, packing", "float32", nchw, ours, kept, "eager contiguous"),
    ]
    if full:
        contenders.insert(2, baseline("torch.compile", "float32", nhwc, compiled, every, compiled=True))
    return _case(problem, "forward+backward", "cpu", contenders)


def _cuda_case(problem: Problem, dtype: str) -> Case:
    prepare = partial(_inputs, problem, device="cuda", grad=False, dtype=torch_dtype(dtype))
    nchw = partial(prepare, memory_format=torch.contiguous_format)
    nhwc = partial(prepare, memory_format=torch.channels_last)
    every = _work(problem, dtype, passes=1, every_tap=True)
    kept = _work(problem, dtype, passes=1, every_tap=False)
    builds = (_build_eager, _build_compiled, _build_unpacked)
    eager, compiled, ours = (partial(with_tf32, partial(build, problem)) for build in builds)
    contenders = [
        baseline("eager contiguous", dtype, nchw, eager, every),
        baseline("eager channels_last", dtype, nhwc, eager, every),
        baseline("torch.compile", dtype, nhwc, compiled, every, compiled=True),
        own("vidgen NHWC", dtype, nhwc, ours, kept, "eager channels_last"),
        own("vidgen NCHW", dtype, nchw, ours, kept, "eager contiguous"),
    ]
    return _case(problem, "forward", "cuda", contenders, suffix=f"-{dtype}")


def _case(
    problem: Problem,
    kind: str,
    device: str,
    contenders: list[Contender],
    suffix: str = "",
    left_out: Mapping[str, str] | None = None,
) -> Case:
    grad = kind != "forward"
    return Case(
        op=OP,
        name=f"{kind}-{problem.name}{suffix}",
        title=f"{problem.title}, {kind}{suffix.replace('-', ', ')}",
        kind=kind,
        device=device,
        shape={"n": problem.n, "cin": problem.cin, "height": problem.height, "width": problem.width}
        | {"cout": problem.cout, "kernel": list(problem.kernel), "mask": problem.mask, "colors": problem.colors},
        contenders=contenders,
        truth=partial(_truth, problem, grad),
        compare=partial(_compare, problem),
        left_out=left_out or {},
    )
