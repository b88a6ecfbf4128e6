"""corr_lookup against RAFT's own way in PyTorch: a matrix product, avg_pool2d, grid_sample on every level.

"lookup" is one of RAFT's twelve or more lookups in a pyramid that is there; grid_sample has its offsets made
beforehand. "from features" is everything that a pair of images takes, the product of all pairs included, for one lookup
and, in the full set, for RAFT's twelve; there vidgen runs in both of its forms, and the memory that each adds is beside
the times.
PyTorch's way ends in channels_last; "grid_sample" copies that to planes as RAFT does, "channels_last" leaves it.
torch.compile gets the whole, in the full set.

The floor of a lookup is memory: the (n + 1)² pixels of every window read once, 7,040 queries * 4 levels * 100 * 4 bytes
= 11.3 MB for Sintel's 436 * 1024 at radius 4, and 9.1 MB written. A window's rows are 40 bytes somewhere in a volume of
263 MB, so a line of 64 bytes or two is fetched for each. From features all pairs take 2 * 256 * 7,040² = 25.4 GFLOP; on
demand a lookup's 2.8 million products take 1.44 GFLOP, of features of 14.4 MB and a third of the second image's more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .contenders import baseline, forward_run, own, torch_dtype
from .harness import Case, Contender, Outputs, Run

OP = "corr_lookup"

Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class Problem:
    n: int
    channels: int
    height: int
    width: int
    levels: int = 4
    radius: int = 4
    lookups: int = 1

    @property
    def title(self) -> str:
        return f"({self.n}, {self.channels}, {self.height}, {self.width}), radius {self.radius}, {self.levels} levels"

    @property
    def name(self) -> str:
        return f"{self.n}x{self.channels}x{self.height}x{self.width}-r{self.radius}-{self.levels}-levels"

    @property
    def queries(self) -> int:
        return self.n * self.height * self.width

    @property
    def pixels_of_windows(self) -> int:
        return self.queries * self.levels * (2 * self.radius + 2) ** 2

    @property
    def values(self) -> int:
        return self.queries * self.levels * (2 * self.radius + 1) ** 2


def cases(*, device: str, full: bool) -> list[Case]:
    """The cases of a device: features of a frame of Sintel, an eighth of its size. Makes no inputs."""
    sintel = Problem(1, 256, 55, 128)
    found = [_lookup(sintel, device, full), _from_features(sintel, "forward", device, full)]
    if full:
        found += [
            _lookup(Problem(4, 128, 46, 62, radius=3), device, full),
            _from_features(Problem(1, 256, 55, 128, lookups=12), "forward", device, full),
            _from_features(sintel, "forward+backward", device, full),
            _from_features(Problem(1, 256, 135, 240), "forward", device, full),
        ]
    return found


def _values(problem: Problem) -> dict[str, Tensor]:
    """In float32 on the CPU: noise as features, coordinates of a smooth flow of some pixels, some out of the image."""
    generator = torch.Generator().manual_seed(0)
    size = (problem.height, problem.width)
    coarse = torch.randn(problem.n, 2, 6, 8, generator=generator) * 6
    flow = F.interpolate(coarse, size, mode="bilinear", align_corners=True)
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    return {
        "fmap1": torch.randn(problem.n, problem.channels, *size, generator=generator),
        "fmap2": torch.randn(problem.n, problem.channels, *size, generator=generator),
        "coords": torch.stack([columns, rows]) + flow,
    }


def offsets(radius: int, device: str) -> Tensor:
    """RAFT's window, (n, n, 2): to the right along the first axis."""
    steps = torch.arange(-radius, radius + 1, dtype=torch.float32, device=device)
    return torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1)


def eager(pyramid: Sequence[Tensor], coords: Tensor, delta: Tensor) -> Tensor:
    """RAFT's lookup (B, H, W, L * n * n), seen as (B, L * n * n, H, W)."""
    batch, _, height, width = coords.shape
    centres = coords.permute(0, 2, 3, 1).reshape(-1, 1, 1, 2)
    found = []
    for number, level in enumerate(pyramid):
        rows, columns = level.shape[-2:]
        grid = (centres / 2**number + delta) * coords.new_tensor([2 / (columns - 1), 2 / (rows - 1)]) - 1
        sampled = F.grid_sample(level.view(-1, 1, rows, columns), grid, align_corners=True)
        found.append(sampled.view(batch, height, width, -1))
    return torch.cat(found, dim=-1).permute(0, 3, 1, 2)


def _eager_contiguous(pyramid: Sequence[Tensor], coords: Tensor, delta: Tensor) -> Tensor:
    return eager(pyramid, coords, delta).contiguous()


def _work(problem: Problem, features: str | None, size: int) -> dict[str, float]:
    """Operations and compulsory bytes: of a lookup, of all pairs and a lookup, or of lookups on demand."""
    written = problem.lookups * 4 * (problem.values + 2 * problem.queries)
    if features is None:
        return {"bytes_moved": float(problem.pixels_of_windows * size + written)}
    maps = 2 * problem.queries * problem.channels * size
    per_query = problem.height * problem.width
    products = problem.queries * per_query if features == "all pairs" else problem.lookups * problem.pixels_of_windows
    return {"flops": 2.0 * problem.channels * products, "bytes_moved": float(maps + written)}


# One lookup in a pyramid that is there.


def _pyramid(problem: Problem, *, dtype: torch.dtype, layout: torch.memory_format, device: str) -> dict[str, Any]:
    from vidgen.ops import corr_pyramid

    values = {name: value.to(device) for name, value in _values(problem).items()}
    with torch.inference_mode():
        pyramid = corr_pyramid(values["fmap1"], values["fmap2"], levels=problem.levels)
    return {
        "pyramid": [level.to(dtype) for level in pyramid],
        "coords": values["coords"].contiguous(memory_format=layout),
        "delta": offsets(problem.radius, device),
    }


def _build_eager(call: Callable[..., Tensor], inputs: Inputs) -> Run:
    return forward_run(lambda: call(inputs["pyramid"], inputs["coords"], inputs["delta"]))


def _build_compiled(inputs: Inputs) -> Run:
    return _build_eager(torch.compile(_eager_contiguous, fullgraph=True, dynamic=False), inputs)


def _build_ours(radius: int, inputs: Inputs) -> Run:
    from vidgen.ops import corr_lookup

    return forward_run(lambda: corr_lookup(inputs["pyramid"], inputs["coords"], radius))


def _truth_of_lookup(problem: Problem, dtype: str) -> Outputs:
    """Float64, of the pyramid as rounded to `dtype`."""
    from vidgen.ops.corr_lookup import reference

    made = _pyramid(problem, dtype=torch_dtype(dtype), layout=torch.contiguous_format, device="cpu")
    return {"y": reference([t.double() for t in made["pyramid"]], made["coords"].double(), problem.radius, None)}


# grid_sample rounds positions to some 1e-5 of a pixel
WIDE = {"absolute_limit": 1e-3}


def _lookup(problem: Problem, device: str, full: bool) -> Case:
    prepare = partial(_pyramid, problem, device=device)
    nchw = partial(prepare, dtype=torch.float32, layout=torch.contiguous_format)
    nhwc = partial(prepare, dtype=torch.float32, layout=torch.channels_last)
    nchw_bf16 = partial(prepare, dtype=torch.bfloat16, layout=torch.contiguous_format)
    work, work_bf16 = _work(problem, None, 4), _work(problem, None, 2)
    planes, last, ours = (
        partial(_build_eager, _eager_contiguous),
        partial(_build_eager, eager),
        partial(_build_ours, problem.radius),
    )
    contenders = [
        baseline("grid_sample", "float32", nchw, planes, work, **WIDE),
        baseline("grid_sample channels_last", "float32", nhwc, last, work, **WIDE),
        own("vidgen NCHW", "float32", nchw, ours, work, "grid_sample"),
        own("vidgen NHWC", "float32", nhwc, ours, work, "grid_sample channels_last"),
        # a grid of bfloat16 has steps of half a pixel, so nobody samples so
        own("vidgen NCHW bf16", "bfloat16", nchw_bf16, ours, work_bf16, None, relative_limit=float("inf")),
    ]
    if full:
        compiled = baseline("torch.compile", "float32", nchw, _build_compiled, work, compiled=True, **WIDE)
        contenders.insert(2, compiled)
    truth = partial(_truth_of_lookup, problem)
    return _case(
        problem, f"forward-lookup-{problem.name}", f"lookup, {problem.title}", "forward", device, contenders, truth
    )


# Everything from features on.


def _features(
    problem: Problem, *, dtype: torch.dtype, layout: torch.memory_format, device: str, grad: bool
) -> dict[str, Any]:
    values = {name: value.to(device) for name, value in _values(problem).items()}
    made: dict[str, Any] = {
        name: values[name].to(dtype).contiguous(memory_format=layout).requires_grad_(grad)
        for name in ("fmap1", "fmap2")
    }
    generator = torch.Generator().manual_seed(1)
    channels = problem.levels * (2 * problem.radius + 1) ** 2
    if grad:
        made["grad"] = torch.randn(problem.n, channels, problem.height, problem.width, generator=generator).to(device)
    return {**made, "coords": values["coords"], "delta": offsets(problem.radius, device)}


def _eager_from_features(problem: Problem, inputs: Inputs) -> Tensor:
    from vidgen.ops import corr_pyramid

    pyramid = corr_pyramid(inputs["fmap1"], inputs["fmap2"], levels=problem.levels)
    for _ in range(problem.lookups):
        y = _eager_contiguous(pyramid, inputs["coords"], inputs["delta"])
    return y


def _all_pairs(problem: Problem, inputs: Inputs) -> Tensor:
    from vidgen.ops import corr_lookup, corr_pyramid

    pyramid = corr_pyramid(inputs["fmap1"], inputs["fmap2"], levels=problem.levels)
    for _ in range(problem.lookups):
        y = corr_lookup(pyramid, inputs["coords"], problem.radius)
    return y


def _on_demand(problem: Problem, inputs: Inputs) -> Tensor:
    from vidgen.ops import corr_feature_pyramid, corr_lookup

    pyramid = corr_feature_pyramid(inputs["fmap2"], levels=problem.levels)
    for _ in range(problem.lookups):
        y = corr_lookup(pyramid, inputs["coords"], problem.radius, fmap1=inputs["fmap1"])
    return y


def _build_from_features(
    call: Callable[[Problem, Inputs], Tensor], problem: Problem, grad: bool, inputs: Inputs
) -> Run:
    if not grad:
        return forward_run(lambda: call(problem, inputs))

    def run() -> Outputs:
        y = call(problem, inputs)
        # RAFT has no gradient in the coordinates
        by_fmap1, by_fmap2 = torch.autograd.grad(y, (inputs["fmap1"], inputs["fmap2"]), inputs["grad"])
        return {"y": y.detach(), "grad_fmap1": by_fmap1, "grad_fmap2": by_fmap2}

    return run


def _truth_from_features(problem: Problem, grad: bool, dtype: str) -> Outputs:
    """Float64, of the features as rounded to `dtype`."""
    from vidgen.ops import corr_feature_pyramid
    from vidgen.ops.corr_lookup import reference

    made = _features(problem, dtype=torch_dtype(dtype), layout=torch.contiguous_format, device="cpu", grad=grad)
    fmap1, fmap2 = (made[name].detach().double().requires_grad_(grad) for name in ("fmap1", "fmap2"))
    y = reference(corr_feature_pyramid(fmap2, levels=problem.levels), made["coords"].double(), problem.radius, fmap1)
    if not grad:
        return {"y": y}
    by_fmap1, by_fmap2 = torch.autograd.grad(y, (fmap1, fmap2), made["grad"].double())
    return {"y": y.detach(), "grad_fmap1": by_fmap1, "grad_fmap2": by_fmap2}


def _from_features(problem: Problem, kind: str, device: str, full: bool) -> Case:
    grad = kind != "forward"
    prepare = partial(_features, problem, device=device, grad=grad)
    nchw = partial(prepare, dtype=torch.float32, layout=torch.contiguous_format)
    nhwc = partial(prepare, dtype=torch.float32, layout=torch.channels_last)
    nhwc_bf16 = partial(prepare, dtype=torch.bfloat16, layout=torch.channels_last)

    def build(call: Callable[[Problem, Inputs], Tensor]) -> Callable[[Inputs], Run]:
        return partial(_build_from_features, call, problem, grad)

    pairs, demand, demand_bf16 = (
        _work(problem, form, size) for form, size in (("all pairs", 4), ("on demand", 4), ("on demand", 2))
    )
    eager_name = "matmul, grid_sample"
    contenders = [
        baseline(eager_name, "float32", nchw, build(_eager_from_features), pairs, **WIDE),
        own("vidgen all pairs", "float32", nchw, build(_all_pairs), pairs, eager_name),
        own("vidgen on demand NCHW", "float32", nchw, build(_on_demand), demand, eager_name),
        own("vidgen on demand NHWC", "float32", nhwc, build(_on_demand), demand, eager_name),
    ]
    if full:  # its float64 answer is one more product of all pairs
        run = build(_on_demand)
        alone: dict[str, Any] = {"relative_limit": float("inf")}
        contenders.append(own("vidgen on demand NHWC bf16", "bfloat16", nhwc_bf16, run, demand_bf16, None, **alone))
    left_out = {}
    if 4 * problem.queries * problem.height * problem.width * 4 // 3 > 4e9:
        left_out = {c.name: "the volume of all pairs has more than 4 GB" for c in contenders[:2]}
        contenders = [replace(c, against=None, relative_limit=float("inf")) for c in contenders[2:]]
    times = "" if problem.lookups == 1 else f", {problem.lookups} lookups"
    name = f"{kind}-features-{problem.name}" + ("" if problem.lookups == 1 else f"-{problem.lookups}-lookups")
    title = f"from features{times}, {problem.title}" + ("" if kind == "forward" else f", {kind}")
    truth = partial(_truth_from_features, problem, grad)
    return _case(problem, name, title, kind, device, contenders, truth, left_out)


def _case(
    problem: Problem,
    name: str,
    title: str,
    kind: str,
    device: str,
    contenders: Sequence[Contender],
    truth: Callable[[str], Outputs],
    left_out: Mapping[str, str] | None = None,
) -> Case:
    shape = {
        "n": problem.n, "channels": problem.channels, "height": problem.height, "width": problem.width,
        "levels": problem.levels, "radius": problem.radius, "lookups": problem.lookups,
    }  # fmt: skip
    return Case(
        op=OP,
        name=name,
        title=title,
        kind=kind,
        device=device,
        shape=shape,
        contenders=contenders,
        truth=truth,
        left_out=left_out or {},
    )
