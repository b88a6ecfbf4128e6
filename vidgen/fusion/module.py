"""Modules whose forward in eval mode is a rewritten graph of their own.

A fused module is the original (a copy of it) under a subclass of its class that overrides `forward`: its layers, its
parameters, its other methods and its state dict are what they were. The graph calls `vidgen.fusion.layer` with tensors
that it looks up at their old places, so that nothing has to be kept in step but the packed weights.

Graphs take for granted what the module was when they were traced: which of its layers were in train mode, and that
optional arguments have their defaults. Where that is no longer so, forward is the original's, which stands there
unchanged. This is how training works: batch normalisation normalises by the batch and updates its statistics.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from vidgen.fusion import layer
from vidgen.fusion.masks import MaskedConv, rule_of
from vidgen.fusion.matching import Chain, tensor_at
from vidgen.nn.prepack import PackedWeights, reads_packed
from vidgen.ops import conv3d_pool3d_pack, masked_conv2d_pack


@dataclass
class Pack:
    """The tensors that calls of one kind share, and what is made of them ahead of time.

    norm: paths of mean, variance, weight and bias. mask: path of the mask whose rule the call relies on.
    rule: arguments of the packing op. buffers: names of folded weight, folded bias (None where nothing is folded) and
    packed weight. made_of: dtype and device that the weight had when the buffers were made.
    """

    op: str
    weight: str
    bias: str | None
    norm: tuple[str, str, str | None, str | None] | None
    eps: float
    mask: str | None
    rule: dict[str, Any]
    buffers: tuple[str | None, str | None, str]
    input_size: tuple[int, ...] | None = None
    made_of: tuple[torch.dtype, torch.device] | None = None

    @property
    def paths(self) -> list[str]:
        return [path for path in (self.weight, self.bias, self.mask, *(self.norm or ())) if path is not None]

    @property
    def kept(self) -> list[str]:
        return [name for name in self.buffers if name is not None]


class FusedForward(PackedWeights):
    """Comes before the original class; see the head of this module. `Rewriter.finish` sets its attributes.

    A module of this class is not pickled (its class is made at run time): save its state dict, which is the original's.
    """

    _inputs: tuple[str, ...]
    _packs: tuple[Pack, ...]
    _modes: tuple[tuple[nn.Module, bool], ...]
    _masks_hold: bool
    _graph_forward: Callable[..., Any]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs and len(args) + len(kwargs) == len(self._inputs) and set(kwargs) == set(self._inputs[len(args) :]):
            args, kwargs = (*args, *(kwargs[name] for name in self._inputs[len(args) :])), {}
        # a graph answers "is it None?" with no
        if kwargs or len(args) != len(self._inputs) or any(a is None for a in args):
            return super().forward(*args, **kwargs)
        for module, mode in self._modes:
            if module.training is not mode:
                # whoever trains a part of the module may write to its weights
                self._drop_packed()
                return super().forward(*args, **kwargs)
        if not self._masks_hold:
            return super().forward(*args, **kwargs)
        self._drop_unfit()
        return self._graph_forward(self, *args)

    def _drop_unfit(self) -> None:
        """Drops what was made of weights of another dtype or device: a part of the module may be moved on its own."""
        for pack in self._packs:
            weight = tensor_at(self, pack.weight)
            if pack.made_of is not None and pack.made_of != (weight.dtype, weight.device):
                for name in pack.kept:
                    setattr(self, name, None)
                pack.made_of = None

    def prepack_(self) -> None:
        self._drop_packed()
        self._check_masks()
        for pack in self._packs:
            self._prepack_one(pack)

    def _prepack_one(self, pack: Pack) -> None:
        weight = tensor_at(self, pack.weight).detach()
        pack.made_of = weight.dtype, weight.device
        folded_name, bias_name, packed_name = pack.buffers
        if pack.op == "masked_conv2d":
            if reads_packed(pack.op, weight):
                setattr(self, packed_name, masked_conv2d_pack(weight, **pack.rule))
            return
        # images are clips of depth 1
        weight = weight.unsqueeze(2) if weight.dim() == 4 else weight
        if pack.norm is not None:
            bias = None if pack.bias is None else tensor_at(self, pack.bias).detach()
            mean, variance, gamma, beta = (None if p is None else tensor_at(self, p).detach() for p in pack.norm)
            assert mean is not None
            assert variance is not None
            assert folded_name is not None
            assert bias_name is not None
            weight, bias = layer.fold(weight, bias, (mean, variance, gamma, beta), pack.eps)
            setattr(self, folded_name, weight)
            setattr(self, bias_name, bias)
        if reads_packed(pack.op, weight):
            setattr(self, packed_name, conv3d_pool3d_pack(weight, input_size=pack.input_size, **pack.rule))

    def _check_masks(self) -> None:
        """Whether the masks are still those whose rules the graph has: a state dict may bring others."""
        self._masks_hold = all(
            rule_of(tensor_at(self, pack.mask), tuple(tensor_at(self, pack.weight).shape))
            == (pack.rule["mask"], pack.rule["colors"], pack.rule["color_layout"])
            for pack in self._packs
            if pack.mask is not None
        )

    def _watch(self, network: nn.Module) -> None:
        """Has `_loaded` called by every module of `network` that holds a tensor that is packed here: some are tied."""
        packed = {id(tensor_at(self, path)) for pack in self._packs for path in pack.paths}
        for module in network.modules():
            if not packed.isdisjoint(_held(module)):
                module.register_load_state_dict_post_hook(self._loaded)

    def _loaded(self, owner: nn.Module, _incompatible_keys: Any) -> None:
        """Called when a module whose tensors are packed here has loaded a state dict."""
        self._check_masks()
        held = _held(owner)
        with torch.no_grad():
            for pack in self._packs:
                kept = any(getattr(self, name) is not None for name in pack.kept)
                if kept and any(id(tensor_at(self, path)) in held for path in pack.paths):
                    self._prepack_one(pack)


#: what fusing adds to a module; the buffers of packs come on top
_ADDED = {name for kind in (FusedForward, PackedWeights) for name in (*vars(kind), *kind.__annotations__)}
_ADDED -= set(dir(nn.Module))
_BUFFER = "_fused_"


def taken_name(module: nn.Module) -> str | None:
    """An attribute or method of the module, if there is one, whose name a fused module needs for its own."""
    return next((name for name in dir(module) if name in _ADDED or name.startswith(_BUFFER)), None)


def _held(module: nn.Module) -> set[int]:
    """The identities of a module's own parameters and buffers."""
    tensors = (*module._parameters.values(), *module._buffers.values())
    return {id(tensor) for tensor in tensors if tensor is not None}


def _get(graph: Graph, path: str | None) -> Node | None:
    return None if path is None else graph.create_node("get_attr", path, (), {})


def _replace(graph: Graph, nodes: list[Node], call: Callable[..., Tensor], pack: Pack, rule: dict[str, Any]) -> None:
    """Puts one call where the first of `nodes` stands; each of them takes the result of the one before."""
    x = nodes[0].args[0] if nodes[0].args else nodes[0].kwargs["input"]
    with graph.inserting_before(nodes[0]):
        tensors: list[Any] = [_get(graph, pack.weight), _get(graph, pack.bias)]
        if call is layer.fused_conv:
            tensors.append(None if pack.norm is None else tuple(_get(graph, path) for path in pack.norm))
        kept = tuple(_get(graph, name) for name in pack.buffers)
        new = graph.call_function(call, (x, *tensors, kept), rule)
    nodes[-1].replace_all_uses_with(new)
    for node in reversed(nodes):
        graph.erase_node(node)


class Rewriter:
    """Replaces chains of one graph by calls, and turns the graph's module into a fused one."""

    def __init__(self, root: nn.Module, graph: Graph, algorithm: str, impl: str | None):
        self.root, self.graph, self.algorithm, self.impl = root, graph, algorithm, impl
        self.packs: dict[str, Pack] = {}

    def _pack(self, op: str, rule: dict[str, Any], **tensors: Any) -> Pack:
        """The pack of these tensors, which calls of one convolution share."""
        key, index = repr((op, rule, tensors)), len(self.packs)
        folded = (f"{_BUFFER}{index}_weight", f"{_BUFFER}{index}_bias") if tensors["norm"] else (None, None)
        names = (*folded, f"{_BUFFER}{index}_packed")
        return self.packs.setdefault(key, Pack(op=op, rule=rule, buffers=names, **tensors))

    def chain(self, chain: Chain) -> Pack:
        conv = chain.conv
        rule = {"padding": conv.padding, "pool": chain.pool, "algorithm": self.algorithm}
        pack = self._pack(
            "conv3d_pool3d", rule, weight=conv.weight, bias=conv.bias, norm=chain.norm, eps=chain.eps, mask=None
        )
        rest = {"eps": chain.eps, "activation": chain.activation, "ceil_mode": chain.ceil_mode, "impl": self.impl}
        _replace(self.graph, chain.nodes, layer.fused_conv, pack, {**rule, **rest})
        return pack

    def masked(self, conv: MaskedConv) -> Pack:
        assert conv.rule is not None
        mask, colors, layout = conv.rule
        rule = {"mask": mask, "colors": colors, "color_layout": layout, "dilation": conv.dilation,
                "algorithm": self.algorithm}  # fmt: skip
        pack = self._pack("masked_conv2d", rule, weight=conv.weight, bias=conv.bias, norm=None, eps=0.0, mask=conv.mask)
        weight = conv.node.args[1] if len(conv.node.args) > 1 else conv.node.kwargs["weight"]
        _replace(self.graph, [conv.node], layer.masked_conv, pack, {**rule, "impl": self.impl})
        # once no convolution reads the masked weight nobody needs to mask it
        if isinstance(weight, Node) and not any(user.target is torch.conv2d for user in weight.users):
            for node in conv.nodes:
                if not node.users:
                    self.graph.erase_node(node)
        return pack

    def finish(self, modes: list[nn.Module]) -> None:
        """Makes the module a fused one.

        Args:
            modes: modules whose being in train or eval mode the graph takes for granted.
        """
        for node in reversed(list(self.graph.nodes)):
            if node.op == "get_attr" and not node.users:
                self.graph.erase_node(node)
            elif node.op in ("placeholder", "output"):
                # annotations mean nothing outside their own file
                node.type = None
        self.graph.lint()
        code = self.graph.python_code("self")
        namespace = dict(code.globals)
        exec(compile(code.src, f"<fused {type(self.root).__name__}>", "exec"), namespace)
        root, base = self.root, type(self.root)
        inputs = tuple(str(node.target) for node in self.graph.nodes if node.op == "placeholder")
        packs = tuple(self.packs.values())
        # torch.export counts a module's buffers as if none were None: those that may be (packed weights, in a dtype
        # that no kernel packs) come last
        names = tuple(sorted((name for pack in packs for name in pack.kept), key=lambda name: name.endswith("packed")))
        # torch.export asks forward for the names of its arguments
        body = FusedForward.forward
        forward = FunctionType(body.__code__, body.__globals__, "forward", body.__defaults__, body.__closure__)
        forward.__signature__ = inspect.signature(base.forward)  # type: ignore[attr-defined]
        members = {"__module__": base.__module__, "forward": forward}
        root.__class__ = type(f"Fused{base.__name__}", (FusedForward, base), members)
        vars(root).update(
            _inputs=inputs,
            _packs=packs,
            _packed_names=names,
            _modes=tuple((module, module.training) for module in modes),
            _masks_hold=True,
            _graph_forward=namespace["forward"],
        )
        for name in names:
            root.register_buffer(name, None, persistent=False)
