"""`vidgen.fuse`: over a whole network, traced as one where that can be, else part by part."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vidgen.fusion.masks import masked_conv_of
from vidgen.fusion.matching import chain_of, conv_of, module_of, tensor_at
from vidgen.fusion.module import FusedForward, Pack, Rewriter, taken_name
from vidgen.fusion.report import ATTRIBUTE, FusedChain, FusionReport
from vidgen.fusion.tracing import Trace, UntraceableError, hooks_of, is_layer, trace
from vidgen.nn.prepack import Packable, PackedWeights
from vidgen.ops.backends import TABLE
from vidgen.ops.conv3d_pool3d import Algorithm

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix and name else prefix or name


class _Network:
    """The walk over a network's modules, and what it finds."""

    def __init__(self, algorithm: str, impl: str | None):
        self.algorithm, self.impl = algorithm, impl
        self.report = FusionReport()
        self.seen: set[nn.Module] = set()
        self.calls: list[tuple[FusedChain, Pack]] = []

    def walk(self, module: nn.Module, path: str, why_alone: str = "") -> None:
        """Fuses `module` as one graph, or what it consists of."""
        if module in self.seen or isinstance(module, (PackedWeights, torch.jit.ScriptModule)):
            return
        self.seen.add(module)
        is_conv = isinstance(module, nn.modules.conv._ConvNd)
        if is_layer(module) and not is_conv:
            for name, child in module.named_children():
                self.walk(child, _join(path, name), why_alone)
            return
        if is_conv and (why := hooks_of(module)):
            self.report.left[path] = why
            return
        try:
            if taken := taken_name(module):
                raise UntraceableError(module, f"it has an attribute {taken!r}, a name that fusing needs")
            found = trace(module)
        except UntraceableError as error:
            # of a list or a dict of modules nobody expects a forward
            if not is_layer(module) and type(module).forward is not nn.Module.forward:
                self.report.untraced[path] = error.reason
            for name, child in module.named_children():
                self.walk(child, _join(path, name), f"the forward around it is not traced: {error.reason}")
            return
        self._rewrite(module, path, found, why_alone)
        for inner, reason in found.opaque.items():
            # what is a call in this graph may have one of its own: hooks, for instance, are around a forward
            self.report.untraced[_join(path, inner)] = reason
            self.walk(module.get_submodule(inner), _join(path, inner))

    def _rewrite(self, root: nn.Module, path: str, found: Trace, why_alone: str) -> None:
        # all are found before the first is replaced
        nodes = list(found.graph.nodes)
        masked = [one for node in nodes if (one := masked_conv_of(root, node)) is not None]
        handled = {one.node for one in masked}
        convs = [conv for node in nodes if node not in handled and (conv := conv_of(root, node)) is not None]
        chains = [chain_of(root, conv) for conv in convs if conv.why_not is None]
        rewriter = Rewriter(root, found.graph, self.algorithm, self.impl)
        refused = [(one.name, one.why_not) for one in masked] + [(conv.name, conv.why_not) for conv in convs]
        self.report.left |= {_join(path, name): why for name, why in refused if why is not None}
        for masked_conv in masked:
            if masked_conv.rule is not None:
                name = _join(path, masked_conv.name)
                call = dict(zip(("mask", "colors", "color_layout"), masked_conv.rule, strict=True))
                layers = [f"{name} (conv2d with {_join(path, masked_conv.mask)})"]
                self._note(FusedChain(name, "masked_conv2d", layers, call, ""), rewriter.masked(masked_conv))
        modes = list(found.inlined.values())
        for chain in chains:
            modes += [module for node in chain.nodes if (module := module_of(root, node)) is not None]
            alone = isinstance(root, nn.modules.conv._ConvNd)
            name = path if alone else _join(path, chain.conv.name)
            layers = [f"{name} ({type(root).__name__ if alone else chain.conv.layer})"]
            layers += [_join(path, layer) if node.op == "call_module" else layer for node, layer in chain.added]
            call = {"padding": chain.conv.padding, "activation": chain.activation, "pool": chain.pool}
            call["ceil_mode"] = chain.ceil_mode
            ends = why_alone if alone and why_alone else chain.ends
            self._note(FusedChain(name, "conv3d_pool3d", layers, call, ends), rewriter.chain(chain))
        if rewriter.packs:
            rewriter.finish(modes)

    def _note(self, line: FusedChain, pack: Pack) -> None:
        self.report.fused.append(line)
        self.calls.append((line, pack))

    def name_the_rest(self, root: nn.Module) -> None:
        """Convolutions that stand in no traced forward."""
        named = {chain.name for chain in self.report.fused} | set(self.report.left)
        for path, module in root.named_modules():
            is_conv = isinstance(module, nn.modules.conv._ConvNd) and not isinstance(module, PackedWeights)
            if is_conv and path not in named:
                self.report.left[path] = "no forward that is traced calls it"


class _InputSizes(TorchDispatchMode):
    """Notes the clip sizes that calls of the op see, by the address of their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, set[tuple[int, ...]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.vidgen.conv3d_pool3d.default:
            self.sizes.setdefault(args[1].data_ptr(), set()).add(tuple(args[0].shape[2:]))
        return func(*args, **(kwargs or {}))


def _note_input_sizes(module: nn.Module, example: tuple[Any, ...], calls: list[tuple[FusedChain, Pack]]) -> None:
    """Runs `module` once on the example and writes down each call's input size; changes no buffer."""
    packed = [getattr(part, name) for part in module.modules() if isinstance(part, PackedWeights)
              for name in part._packed_names]  # fmt: skip
    buffers = [(one, one.clone()) for one in module.buffers() if not any(one is own for own in packed)]
    with torch.no_grad(), torch.random.fork_rng(devices=[]), _InputSizes() as seen:
        module(*example)
    for buffer, before in buffers:
        buffer.copy_(before)
    for owner in module.modules():
        if isinstance(owner, FusedForward):
            for pack in owner._packs:
                folded = None if pack.buffers[0] is None else getattr(owner, pack.buffers[0])
                weight = tensor_at(owner, pack.weight) if folded is None else folded
                sizes = seen.sizes.get(weight.data_ptr(), set())
                # a convolution that is called on clips of several sizes has one packed weight for all
                pack.input_size = next(iter(sizes)) if len(sizes) == 1 else None
    for line, pack in calls:
        line.input_size = pack.input_size


def _copy(module: ModuleT) -> ModuleT:
    """A deep copy, also where layers keep results (as the older weight_norm does), which refuse to be copied."""
    results = [value for part in module.modules() for value in vars(part).values() if isinstance(value, Tensor)]
    return copy.deepcopy(module, {id(one): one.detach().clone() for one in results if not one.is_leaf})


def fuse(
    module: ModuleT, example_input: Any = None, *, algorithm: Algorithm = "auto", impl: str | None = None
) -> ModuleT:
    """A copy of `module` in which chains of layers are single calls of vidgen's ops, for inference.

    Conv3d [+ BatchNorm3d] [+ ReLU] [+ MaxPool3d] become `vidgen.ops.conv3d_pool3d`, and so do their 2-d kin, as clips
    of depth 1; a Conv2d whose forward multiplies the weight by the mask of a PixelCNN becomes
    `vidgen.ops.masked_conv2d`. Layers may be modules, functions of torch.nn.functional or methods of tensors; ReLU may
    come before or after the pooling. What the ops do not compute (strides, groups, overlapping windows, …), results
    that are used more than once, batch normalisation in train mode and layers with hooks or parametrizations are left
    as they are, and the chain ends there. `print(vidgen.fusion_report(fused))` tells what became of each convolution.

    The module is traced by torch.fx. Where a forward cannot be traced (control flow that depends on values, say) its
    parts are, so that the chains inside them are still found.

    The result is of a subclass of the module's class, has its parameters (copies), its other methods, and its state
    dict: state dicts load both ways. It is in eval mode, and its weights are packed (`vidgen.prepack`): load_state_dict
    and `.to()` keep them up to date, other changes in place need a `vidgen.prepack(fused)`. In train mode, whether of
    the module as a whole or of a part of it, and for calls with other than the required arguments, forward is the
    original's in every respect; back in eval mode it is the fused one, which packs on every call until
    `vidgen.prepack(fused)`. Attributes that forward reads and submodules must not be replaced: fuse again instead.
    Hooks that are put on fused layers later do not run in eval mode, and hooks on all modules
    (`torch.nn.modules.module.register_module_forward_hook`) do not see them. Fine-tuning in eval mode wants a
    `vidgen.prepack(fused)` after each change of weights. A fused module is not pickled: save its state dict.

    Args:
        module: any module; left alone. If it is in train mode its copy is first put into eval mode; if it is in eval
            mode each of its parts stays in the mode it is in.
        example_input: a tensor, or a tuple of forward's arguments. The copy runs once on it to learn the sizes of the
            clips by which packed weights are chosen; None for a choice that serves any size.
        algorithm: "auto" or "direct", as in the ops.
        impl: forces a backend, as in the ops.

    Returns:
        The fused copy. Its outputs equal the module's up to rounding. Gradients reach input and parameters.

    Raises:
        TypeError: module is no torch.nn.Module. ValueError: it is fused already, or algorithm or impl is unknown.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    if algorithm not in ("auto", "direct"):
        raise ValueError(f"algorithm must be 'auto' or 'direct', got {algorithm!r}")
    backends = sorted({row.name for op in ("conv3d_pool3d", "masked_conv2d") for row in TABLE[op]})
    if impl is not None and impl not in backends:
        raise ValueError(f"impl must be one of {backends} or None, got {impl!r}")
    if ATTRIBUTE in vars(module):
        raise ValueError("module must be one that is not fused yet, got what vidgen.fuse returned")
    fused = _copy(module)
    if fused.training:
        fused.eval()
    network = _Network(algorithm, impl)
    network.walk(fused, "")
    network.name_the_rest(fused)
    for part in fused.modules():
        if isinstance(part, FusedForward):
            part._watch(fused)
    vars(fused)[ATTRIBUTE] = network.report
    _prepack(fused)
    if example_input is not None:
        _note_input_sizes(fused, example_input if isinstance(example_input, tuple) else (example_input,), network.calls)
        _prepack(fused)
    return fused


def _prepack(module: nn.Module) -> None:
    """Packs like `vidgen.prepack`, but leaves every part in its mode."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, Packable):
                part.prepack_()
