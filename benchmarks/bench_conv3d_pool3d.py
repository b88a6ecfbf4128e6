"""conv3d_pool3d against eager PyTorch, torch.compile, ONNX Runtime and OpenVINO.

A case is one layer (convolution, bias, activation, pooling) or a chain of them. The baselines get every advantage that
a user could give them: the memory format is tried both ways, ReLU works in place, the forward runs in inference_mode.
Ours is shown from channels_last_3d, which a chain keeps from layer to layer, and from contiguous clips, with weights
packed once; and with weights packed in every call. forward+backward is a training step without its optimiser.

Other libraries measure where they are installed (`pip install 'vidgen[peers]'`); elsewhere a note says why not.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidgen.ops import conv3d_pool3d, conv3d_pool3d_pack

from .contenders import baseline, forward_run, frozen, in_bfloat16, own, torch_dtype, with_tf32
from .conv3d_problems import C3D_LAYERS, CUDA, FULL, QUICK, RESIDUAL, SMALL_C3D, Layer, Problem, Size
from .harness import Case, Contender, Outputs, Run
from .peers import openvino_peer, ort

OP = "conv3d_pool3d"

Inputs = Mapping[str, Any]  # "x" a tensor, "weights" and "biases" a list with one per layer, "grad" that of the output


def cases(*, device: str, full: bool) -> list[Case]:
    """The cases of a device. Building the list makes no inputs."""
    if device == "cuda":
        return [_cuda_case(p, dtype) for p in CUDA for dtype in ("tf32", "bfloat16")]
    forward = [_cpu_case(problem, full) for problem in (FULL if full else QUICK)]
    backward = [_cpu_backward_case(SMALL_C3D, full, wrt_x=False)]
    if full:
        backward += [_cpu_backward_case(problem, full, wrt_x=True) for problem in RESIDUAL]
    return [*forward, *backward]


def _values(problem: Problem) -> dict[str, Any]:
    """The float32 inputs on the CPU: the same for every contender. No layer's output grows or shrinks much."""
    generator = torch.Generator().manual_seed(0)
    gain = 2.0 if any(layer.activation == "relu" for layer in problem.layers) else 1.0
    shapes = problem.weight_shapes()
    return {
        "x": torch.randn(problem.shape, generator=generator),
        "weights": [torch.randn(s, generator=generator) * (gain / math.prod(s[1:])) ** 0.5 for s in shapes],
        "biases": [torch.randn(s[0], generator=generator) / 4 for s in shapes],
        "grad": torch.randn(problem.output_shape(), generator=generator),
    }


def _inputs(
    problem: Problem,
    *,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    device: str = "cpu",
    wrt: Sequence[str] = (),
) -> Inputs:
    """The inputs as a contender wants them; gradients are asked for with respect to those named in `wrt`."""

    def placed(value: Tensor) -> Tensor:
        value = value.to(device, dtype)
        return value.contiguous(memory_format=memory_format) if value.dim() == 5 else value

    values = _values(problem)
    inputs = {
        "x": placed(values["x"]),
        "weights": [placed(weight) for weight in values["weights"]],
        "biases": [placed(bias) for bias in values["biases"]],
    }
    if wrt:
        inputs["grad"] = placed(values["grad"])
        for leaf in _leaves(inputs, wrt):
            leaf.requires_grad_()
    return inputs


def _leaves(inputs: Inputs, wrt: Sequence[str]) -> list[Tensor]:
    return [leaf for name in wrt for leaf in ([inputs[name]] if name == "x" else inputs[name])]


def _gradients(problem: Problem, wrt: Sequence[str]) -> list[str]:
    """The names of the outputs: y, then the gradients in the order of `_leaves`."""
    count = range(len(problem.weight_shapes()))
    names = {
        "x": ["grad_x"],
        "weights": [f"grad_weight_{i}" for i in count],
        "biases": [f"grad_bias_{i}" for i in count],
    }
    return ["y", *(name for key in wrt for name in names[key])]


def _truth(problem: Problem, wrt: Sequence[str], dtype: str) -> Outputs:
    """Float64, from the inputs as rounded to `dtype`."""

    def rounded(value: Tensor) -> Tensor:
        return value.to(torch_dtype(dtype)).double()

    values = _values(problem)
    x, weights, biases = rounded(values["x"]), *([rounded(v) for v in values[k]] for k in ("weights", "biases"))
    if not wrt:
        # eager unfolds a float64 batch as a whole, which takes gigabytes
        with torch.inference_mode():
            return {"y": torch.cat([_eager(problem, clip, weights, biases) for clip in x.split(1)])}
    leaves = [leaf.requires_grad_() for leaf in _leaves({"x": x, "weights": weights, "biases": biases}, wrt)]
    y = _eager(problem, x, weights, biases)
    gradients = torch.autograd.grad(y, leaves, rounded(values["grad"]))
    return dict(zip(_gradients(problem, wrt), (y.detach(), *gradients), strict=True))


# The ways to compute it.


def _eager(problem: Problem, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    for layer, weight, bias in zip(problem.layers, weights, biases, strict=False):
        depth, height, width = (k // 2 for k in layer.kernel)
        x = F.conv3d(x, weight, bias, padding=(depth, height, width))
        if layer.activation == "relu":
            x = x.relu_()
        if layer.pools:
            x = F.max_pool3d(x, layer.pool, ceil_mode=layer.ceil_mode)
    return _dense(problem, x, weights, biases)


def _ours(
    problem: Problem,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    packed: Sequence[Tensor | None] | None = None,
) -> Tensor:
    for i, layer in enumerate(problem.layers):
        x = conv3d_pool3d(
            x,
            weights[i],
            biases[i],
            padding="same",
            activation=layer.activation,
            pool=layer.pool,
            ceil_mode=layer.ceil_mode,
            packed=packed[i] if packed else None,
        )
    return _dense(problem, x, weights, biases)


def _dense(problem: Problem, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    if not problem.dense:
        return x
    x = x.flatten(1)
    for i in range(len(problem.layers), len(weights)):
        x = F.linear(x, weights[i], biases[i])
        if i + 1 < len(weights):
            x = x.relu_()
    return x


class _Net(nn.Module):
    """The eager form as a module with constant weights, for what wants one."""

    def __init__(self, problem: Problem, inputs: Inputs) -> None:
        super().__init__()
        self.problem = problem
        self.weights, self.biases = (
            nn.ParameterList([nn.Parameter(value, requires_grad=False) for value in inputs[name]])
            for name in ("weights", "biases")
        )

    def forward(self, x: Tensor) -> Tensor:
        return _eager(self.problem, x, list(self.weights), list(self.biases))


def _compiled(problem: Problem) -> Callable[[Tensor, Sequence[Tensor], Sequence[Tensor]], Tensor]:
    return torch.compile(partial(_eager, problem), fullgraph=True, dynamic=False)


def _build(call: Callable[..., Tensor], inputs: Inputs) -> Run:
    return forward_run(lambda: call(inputs["x"], inputs["weights"], inputs["biases"]))


def _build_eager(problem: Problem, inputs: Inputs) -> Run:
    return _build(partial(_eager, problem), inputs)


def _build_compiled(problem: Problem, inputs: Inputs) -> Run:
    return _build(_compiled(problem), inputs)


def _build_frozen(problem: Problem, inputs: Inputs) -> Run:
    net = frozen(_Net(problem, inputs), max_autotune=True)
    return forward_run(lambda: net(inputs["x"]))


def _build_unpacked(problem: Problem, inputs: Inputs) -> Run:
    return _build(partial(_ours, problem), inputs)


def _build_packed(problem: Problem, inputs: Inputs) -> Run:
    packed = [
        conv3d_pool3d_pack(weight, input_size=size, padding="same", pool=layer.pool)
        for weight, (layer, _, size) in zip(inputs["weights"], problem.steps(), strict=False)
    ]
    return _build(partial(_ours, problem, packed=packed), inputs)


def _build_backward(
    problem: Problem, wrt: Sequence[str], make: Callable[[Problem], Callable[..., Tensor]], inputs: Inputs
) -> Run:
    call, leaves, names = make(problem), _leaves(inputs, wrt), _gradients(problem, wrt)

    def run() -> Outputs:
        y = call(inputs["x"], inputs["weights"], inputs["biases"])
        return dict(zip(names, (y.detach(), *torch.autograd.grad(y, leaves, inputs["grad"])), strict=True))

    return run


def _peer_inputs(peer: ModuleType, problem: Problem, dtype: str) -> tuple[Any, Tensor]:
    """The peer's own form of the model, and a clip: contiguous float32, holding what `dtype` can hold."""
    inputs = _inputs(problem, dtype=torch_dtype(dtype), memory_format=torch.contiguous_format)
    x, net = inputs["x"].float(), _Net(problem, inputs).float()
    return peer.convert(net, x), x


def _build_peer(peer: ModuleType, dtype: str, inputs: tuple[Any, Tensor]) -> Run:
    model, x = inputs
    call = peer.load(model, threads=torch.get_num_threads(), dtype=dtype)
    return forward_run(lambda: call(x))


# Work.


def _plan(layer: Layer, cin: int, size: Size, dtype: torch.dtype) -> tuple[str, float]:
    """The CPU kernel's plan in words, and its FLOPs for one clip (the plan does not depend on the batch)."""
    x = torch.empty(1, cin, *size, dtype=dtype)
    weight = torch.empty(layer.cout, cin, *layer.kernel, dtype=dtype)
    padding = [k // 2 for k in layer.kernel for _ in range(2)]
    return torch.ops.vidgen.conv3d_pool3d_cpu_plan(x, weight, padding, list(layer.pool), layer.ceil_mode, "auto")


def _direct_flops(layer: Layer, cin: int, size: Size) -> float:
    """A multiply-add counts as two; a tap that lies in the padding is no work: PyTorch's kernels skip it."""
    return 2.0 * layer.products(cin, size, in_padding=False)


def _own_flops(layer: Layer, cin: int, size: Size, dtype: str) -> float:
    """Those of the form that the op's plan chooses; the direct form's where it has none."""
    with contextlib.suppress(RuntimeError):  # no CPU kernel, or a dtype that it does not compute
        return _plan(layer, cin, size, torch_dtype(dtype))[1]
    return _direct_flops(layer, cin, size)


def _work(problem: Problem, dtype: str, *, ours: bool) -> dict[str, float]:
    """FLOPs and compulsory bytes of the forward pass."""
    count = partial(_own_flops, dtype=dtype) if ours else _direct_flops
    flops = sum(count(*step) for step in problem.steps()) + 2.0 * problem.dense_products()
    size = torch_dtype(dtype).itemsize
    return {"flops": problem.shape[0] * flops, "bytes_moved": float(size * sum(problem.compulsory()))}


def _backward_work(problem: Problem, *, wrt_x: bool, ours: bool) -> dict[str, float]:
    """FLOPs and compulsory bytes of a forward and backward pass in float32."""
    flops = 0.0
    for i, (layer, cin, size) in enumerate(problem.steps()):
        direct = _direct_flops(layer, cin, size)
        one = _own_flops(layer, cin, size, "float32") if ours else direct
        # the gradient of x is the forward's form mirrored, that of the weight is direct
        flops += one + direct + (one if i > 0 or wrt_x else 0.0)
        if ours and layer.pools:
            flops += one  # finds the maxima again
    x, parameters, y = problem.compulsory()
    return {
        "flops": problem.shape[0] * flops,
        "bytes_moved": 4.0 * (x * (2 if wrt_x else 1) + 2 * parameters + 2 * y),
    }


# The cases.


def _cpu_case(problem: Problem, full: bool) -> Case:
    prepare = partial(_inputs, problem)
    ncdhw = partial(prepare, dtype=torch.float32, memory_format=torch.contiguous_format)
    ndhwc = partial(prepare, dtype=torch.float32, memory_format=torch.channels_last_3d)
    ndhwc_bf16 = partial(prepare, dtype=torch.bfloat16, memory_format=torch.channels_last_3d)
    direct, direct_bf16 = (_work(problem, d, ours=False) for d in ("float32", "bfloat16"))
    planned, planned_bf16 = (_work(problem, d, ours=True) for d in ("float32", "bfloat16"))
    eager, compiled, tuned, packed, unpacked = (
        partial(build, problem)
        for build in (_build_eager, _build_compiled, _build_frozen, _build_packed, _build_unpacked)
    )
    contenders = [
        baseline("eager contiguous", "float32", ncdhw, eager, direct),
        baseline("eager channels_last_3d", "float32", ndhwc, eager, direct),
        baseline("torch.compile", "float32", ndhwc, compiled, direct, compiled=True),
    ]
    if full:  # tuning takes long, and gains little
        contenders.append(baseline("torch.compile, tuned", "float32", ndhwc, tuned, direct, compiled=True))
    contenders += [
        own("vidgen NDHWC", "float32", ndhwc, packed, planned, "eager channels_last_3d"),
        own("vidgen NCDHW", "float32", ncdhw, packed, planned, "eager contiguous"),
        own("vidgen NDHWC, packing", "float32", ndhwc, unpacked, planned, "eager channels_last_3d"),
    ]
    in_16_bits, left_out = in_bfloat16(
        baseline("eager bf16", "bfloat16", ndhwc_bf16, eager, direct_bf16),
        own("vidgen NDHWC bf16", "bfloat16", ndhwc_bf16, packed, planned_bf16, "eager bf16"),
        full=full,
    )
    contenders += in_16_bits
    for name, peer, dtype, work in (
        (ort.NAME, ort, "float32", direct),
        (openvino_peer.NAME, openvino_peer, "float32", direct),
        (f"{openvino_peer.NAME} bf16", openvino_peer, "bfloat16", direct_bf16),
    ):
        if reason := peer.missing(dtype):
            left_out[name] = reason
        else:
            inputs, build = partial(_peer_inputs, peer, problem, dtype), partial(_build_peer, peer, dtype)
            contenders.append(baseline(name, dtype, inputs, build, work, peer=peer.DISTRIBUTION))
    # the quick set weighs the trunk and not each of its layers
    weighed = full or problem not in C3D_LAYERS
    return _case(problem, "forward", "cpu", contenders, left_out=left_out, weighed=weighed)


def _cpu_backward_case(problem: Problem, full: bool, *, wrt_x: bool) -> Case:
    wrt = ("x", "weights", "biases") if wrt_x else ("weights", "biases")
    prepare = partial(_inputs, problem, dtype=torch.float32, wrt=wrt)
    ncdhw = partial(prepare, memory_format=torch.contiguous_format)
    ndhwc = partial(prepare, memory_format=torch.channels_last_3d)
    direct, planned = (_backward_work(problem, wrt_x=wrt_x, ours=ours) for ours in (False, True))
    eager, compiled, ours = (
        partial(_build_backward, problem, wrt, make)
        for make in (lambda p: partial(_eager, p), _compiled, lambda p: partial(_ours, p))
    )
    limits = _backward_limits(problem)
    contenders = [
        baseline("eager contiguous", "float32", ncdhw, eager, direct, **limits),
        baseline("eager channels_last_3d", "float32", ndhwc, eager, direct, **limits),
        own("vidgen NDHWC, packing", "float32", ndhwc, ours, planned, "eager channels_last_3d", **limits),
        own("vidgen NCDHW, packing", "float32", ncdhw, ours, planned, "eager contiguous", **limits),
    ]
    if full:
        contenders.insert(2, baseline("torch.compile", "float32", ndhwc, compiled, direct, compiled=True, **limits))
    return _case(problem, "forward+backward", "cpu", contenders, wrt=wrt)


def _backward_limits(problem: Problem) -> dict[str, Any]:
    """The usual limits where the gradients are continuous in the inputs; elsewhere they hold for the output.

    Where two values of a window, or a value and zero, differ by less than rounding, the gradient goes another way for
    everybody who rounds otherwise. The share of such windows is about the rounding error, 1e-6, and the relative rms
    error of a sum over all of them about its root, 1e-3; through eight layers it adds up. Luck decides which contender
    has how many.
    """
    if all(layer.activation == "identity" and not layer.pools for layer in problem.layers):
        return {}
    _, *gradients = _gradients(problem, ("x", "weights", "biases"))
    return {"own_limits": dict.fromkeys(gradients, 1e-2)}


def _cuda_case(problem: Problem, dtype: str) -> Case:
    prepare = partial(_inputs, problem, device="cuda", dtype=torch_dtype(dtype))
    ncdhw = partial(prepare, memory_format=torch.contiguous_format)
    ndhwc = partial(prepare, memory_format=torch.channels_last_3d)
    work = _work(problem, dtype, ours=False)
    eager, compiled, ours = (
        partial(with_tf32, partial(build, problem)) for build in (_build_eager, _build_compiled, _build_unpacked)
    )
    contenders = [
        baseline("eager contiguous", dtype, ncdhw, eager, work),
        baseline("eager channels_last_3d", dtype, ndhwc, eager, work),
        baseline("torch.compile", dtype, ndhwc, compiled, work, compiled=True),
        own("vidgen NDHWC", dtype, ndhwc, ours, work, "eager channels_last_3d"),
        own("vidgen NCDHW", dtype, ncdhw, ours, work, "eager contiguous"),
    ]
    return _case(problem, "forward", "cuda", contenders, suffix=f"-{dtype}")


def _case(
    problem: Problem,
    kind: str,
    device: str,
    contenders: Sequence[Contender],
    *,
    wrt: Sequence[str] = (),
    suffix: str = "",
    left_out: Mapping[str, str] | None = None,
    weighed: bool = True,
) -> Case:
    return Case(
        op=OP,
        name=f"{kind}-{problem.name}{suffix}",
        title=f"{problem.title}, {kind}{suffix.replace('-', ', ')}",
        kind=kind,
        device=device,
        shape=problem.facts(),
        contenders=contenders,
        truth=partial(_truth, problem, wrt),
        left_out=left_out or {},
        weighed=weighed,
    )
