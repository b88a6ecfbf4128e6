"""vidgen.fuse on whole networks that others published, against the same networks unfused.

Both layouts: contiguous, and channels_last, which a fused network keeps from layer to layer. Eager is the network in
eval mode and inference_mode; torch.compile gets channels_last and constant weights, into which it folds what it can.
Fusing, compiling, and the packing that fusing does once are not timed.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import vidgen

from .contenders import baseline, forward_run, frozen, own
from .fusion_networks import NETWORKS, prepared
from .harness import Case, Contender, Outputs, Run

OP = "fusion"
# Winograd forms err at most 16 times eager's error in a layer; through tens of layers both add up
LIMITS = {"absolute_limit": 5e-5}


class Inputs(NamedTuple):
    network: nn.Module
    x: Tensor


def cases(*, device: str, full: bool) -> list[Case]:
    """Six networks in the full set; none in the quick one, for their passes take seconds."""
    return [_case(name, NETWORKS[name][2]) for name in NETWORKS] if device == "cpu" and full else []


def _case(name: str, shape: tuple[int, ...]) -> Case:
    last = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    contenders: list[Contender] = []
    for words, layout in (("contiguous", torch.contiguous_format), ("channels_last", last)):
        prepare = partial(_prepare, name, shape, layout)
        contenders += [
            baseline(f"eager {words}", "float32", prepare, _build, {}, **LIMITS),
            own(f"fused {words}", "float32", prepare, _build_fused, {}, f"eager {words}", **LIMITS),
        ]
    prepare = partial(_prepare, name, shape, last)
    contenders.append(baseline("torch.compile", "float32", prepare, _build_compiled, {}, compiled=True, **LIMITS))
    return Case(
        op=OP,
        name=f"forward-{name}",
        title=f"{NETWORKS[name][0]}, {shape}",
        kind="forward",
        device="cpu",
        shape={"network": name, "input": list(shape)},
        contenders=contenders,
        truth=partial(_truth, name, shape),
    )


def _prepare(name: str, shape: tuple[int, ...], layout: torch.memory_format) -> Inputs:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    network: Any = prepared(name)
    return Inputs(network.to(memory_format=layout), x.contiguous(memory_format=layout))


def _build(inputs: Inputs) -> Run:
    return forward_run(lambda: inputs.network(inputs.x))


def _build_compiled(inputs: Inputs) -> Run:
    network = frozen(inputs.network)
    return forward_run(lambda: network(inputs.x))


def _build_fused(inputs: Inputs) -> Run:
    fused = vidgen.fuse(inputs.network, inputs.x)
    return forward_run(lambda: fused(inputs.x))


def _truth(name: str, shape: tuple[int, ...], _dtype: str) -> Outputs:
    network, x = _prepare(name, shape, torch.contiguous_format)
    with torch.inference_mode():
        return {"y": copy.deepcopy(network).double()(x.double())}
