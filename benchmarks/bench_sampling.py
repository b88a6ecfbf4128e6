"""Drawing images from autoregressive networks: full forward passes against vidgen's cached executors.

Without a cache a pixel costs a forward pass of the whole network. Hours of them are not waited for: one pass is timed,
and its time multiplied by the number of pixels (the samples on file are so multiplied; `parts` says by what). The
passes are of the network in plain PyTorch, weights masked or normalised beforehand: contiguous, channels_last, and by
torch.compile. Ours draw whole images, noise and all; what is done once per network (the plan, packing, capturing) is
not timed. On a GPU nobody multiplies in TF32.

Everybody is judged by the distributions that pixels are drawn from: the largest difference from a float64 pass over the
finished image, in the units of the network's output.

The floor is the multiply-adds of one forward pass over the machine's peak: every pixel has to be computed once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .contenders import frozen
from .harness import Case, Contender, Outputs, Run
from .machine import tf32

OP = "sampling"
KIND = "drawing"
LIMIT = 1e-4  # on differences of logits, and of a mixture's parameters
CHANNELS_LAST = "full passes, channels_last"
EXECUTORS = {"cpu": ("cpu", "eager"), "cuda": ("persistent", "graph", "eager")}


@dataclass(frozen=True)
class Problem:
    title: str
    name: str
    network: Callable[[], Any]
    n: int
    device: str = "cpu"


def _pixelcnn() -> Any:
    from vidgen.models import PixelCNN

    return PixelCNN((1, 28, 28), hidden=64, blocks=15)


def _pixelcnnpp() -> Any:
    from vidgen.models import PixelCNNPP

    return PixelCNNPP((3, 32, 32), resnets=5, filters=160)


def cases(*, device: str, full: bool) -> list[Case]:
    """The cases of a device: PixelCNN of 15 blocks for 28×28; PixelCNN++ of 5 resnets, 160 filters; 1 image and 16.

    PixelCNN++ is in the full set, for a pass of it takes CPUs seconds.
    """
    networks = [("PixelCNN, 15 blocks of 64, 28×28", "pixelcnn", _pixelcnn)]
    if full or device == "cuda":
        networks.append(("PixelCNN++, 5 resnets of 160, 32×32×3", "pixelcnnpp", _pixelcnnpp))
    return [
        _case(Problem(f"{title}, {n} at once", f"{name}-{n}", make, n, device), full)
        for title, name, make in networks
        for n in (1, 16)
    ]


class Inputs(NamedTuple):
    model: Any
    images: Tensor  # (n, C, H, W) in [-1, 1]


def _inputs(problem: Problem) -> Inputs:
    torch.manual_seed(0)
    model = problem.network().eval()
    images = torch.rand(problem.n, *model.image_shape) * 2 - 1
    return Inputs(model.to(problem.device), images.to(problem.device))


def in_plain_pytorch(model: Any) -> Any:
    """A copy whose convolutions are PyTorch's own: weights masked, and normalised, once."""
    from vidgen.nn import MaskedConv2d, fold_weight_norm
    from vidgen.ops.masked_conv2d import keep_mask

    model = fold_weight_norm(copy.deepcopy(model))
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if not isinstance(layer, MaskedConv2d):
                continue
            plain = nn.Conv2d(
                layer.in_channels,
                layer.out_channels,
                layer.kernel_size,  # type: ignore[arg-type]
                padding="same",
                dilation=layer.dilation,  # type: ignore[arg-type]
                bias=layer.bias is not None,
            )
            plain.load_state_dict(layer.state_dict())
            keep = keep_mask(tuple(layer.weight.shape), layer.mask, layer.colors, layer.color_layout)
            plain.weight.data = torch.where(keep.to(layer.weight.device), layer.weight.data, 0)
            setattr(parent, name, plain.to(layer.weight.device, layer.weight.dtype))
    return model.eval()


def _difference(model: Any, images: Tensor, met: Tensor) -> Outputs:
    """The largest difference of distributions (N, P, [steps,] H, W) from those of a float64 pass over the images."""
    with torch.inference_mode():
        exact = in_plain_pytorch(model).double()(images.double())
    return {"distributions": (met.double().reshape(exact.shape) - exact).abs().max()}


def _passes(inputs: Inputs, *, layout: torch.memory_format, compiled: bool) -> Run:
    model = in_plain_pytorch(inputs.model).to(memory_format=layout)
    images = inputs.images.contiguous(memory_format=layout)
    call: Any = frozen(model) if compiled else model
    with tf32(allowed=False), torch.inference_mode():
        found = _difference(inputs.model, inputs.images, call(images))

    def run() -> Outputs:
        with tf32(allowed=False), torch.inference_mode():
            call(images)
        return found

    return run


def _cached(inputs: Inputs, *, impl: str, weight_dtype: torch.dtype | None = None) -> Run:
    from vidgen.sampling import generate, trace
    from vidgen.sampling.executors import Request, choose
    from vidgen.sampling.philox import image_noise

    model, images = inputs
    plan = trace(model)
    n, *shape = images.shape
    steps = model.head.steps_per_pixel(shape[0])
    met = torch.empty(n, plan.best_program.parameters, steps, *shape[1:], device=images.device)
    executor, prepared = choose(model, impl, plan, weight_dtype)
    request = Request(
        noise=torch.from_numpy(image_noise(0, range(n), model.image_shape)).to(images.device),
        values=torch.zeros_like(images),
        known=torch.zeros_like(images, dtype=torch.bool),
        conditions={},
        temperature=1.0,
        quantize=True,
        parameters=met,
    )
    with tf32(allowed=False), torch.inference_mode():
        found = _difference(model, executor.run(prepared, request), met)

    def run() -> Outputs:
        with tf32(allowed=False):
            generate(model, n, impl=impl, plan=plan, weight_dtype=weight_dtype, progress=False)
        return found

    return run


def _case(problem: Problem, full: bool) -> Case:
    from vidgen.models import layer_report

    prepare = partial(_inputs, problem)
    with torch.device("meta"):
        model = problem.network()
    shape = tuple(model.image_shape)
    pixels = shape[1] * shape[2]
    flops = 2.0 * problem.n * layer_report(model, shape).macs

    def contender(name: str, build: Any, *, ours: bool = False, dtype: str = "float32", **more: Any) -> Contender:
        if dtype == "float32":
            more |= {"absolute_limit": LIMIT, "flops": flops * more.get("parts", 1)}
            more |= {"against": CHANNELS_LAST if ours else None}
        return Contender(name, dtype, prepare, build, ours=ours, **more)

    passes = partial(_passes, compiled=False)
    contenders = [
        contender("full passes", partial(passes, layout=torch.contiguous_format), parts=pixels),
        contender(CHANNELS_LAST, partial(passes, layout=torch.channels_last), parts=pixels),
        contender(
            "full passes, torch.compile",
            partial(_passes, layout=torch.channels_last, compiled=True),
            parts=pixels,
            compiled=True,
        ),
        *(contender(f"vidgen, {impl}", partial(_cached, impl=impl), ours=True) for impl in EXECUTORS[problem.device]),
    ]
    if full and problem.device == "cpu":
        # judged by nothing: the distributions are those of rounded weights
        narrow = partial(_cached, impl="cpu", weight_dtype=torch.bfloat16)
        contenders.append(contender("vidgen, cpu, bf16 weights", narrow, ours=True, dtype="bfloat16"))
    return Case(
        op=OP,
        name=f"{KIND}-{problem.name}",
        title=f"{problem.title}, {KIND}",
        kind=KIND,
        device=problem.device,
        shape={"n": problem.n, "pixels": pixels},
        contenders=contenders,
        truth=_nothing_differs,
        weighed=False,  # the plan prints what a cache takes
    )


def _nothing_differs(dtype: str) -> Mapping[str, Tensor]:
    return {"distributions": torch.zeros((), dtype=torch.float64)}
