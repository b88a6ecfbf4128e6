"""Chains of convolution, batch normalisation, ReLU and max-pooling in a graph, and why they are no longer.

Nothing here changes a graph. A chain is a convolution and the calls after it of which each takes the result of the one
before and is the only one that does.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Graph, Node

from vidgen.fusion.tracing import hooks_of
from vidgen.nn.dropout import Dropout
from vidgen.nn.prepack import PackedWeights

_MAX_KERNEL, _MAX_POOL = 7, 4

_CONV = {nn.Conv2d: 2, nn.Conv3d: 3}
_NORM = {nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}
_POOL = {nn.MaxPool2d: 2, nn.MaxPool3d: 3}
_CONV_FUNCTIONS = {torch.conv2d: 2, torch.conv3d: 3}
_OTHER_CONV_FUNCTIONS = (torch.conv_transpose2d, torch.conv_transpose3d)
_POOL_FUNCTIONS = {F.max_pool2d: 2, F.max_pool3d: 3, torch.max_pool2d: 2, torch.max_pool3d: 3}
_RELU_FUNCTIONS = (F.relu, F.relu_, torch.relu, torch.relu_)
_RELU_METHODS = ("relu", "relu_")
#: the arguments after the input, in their order
_CONV_ARGUMENTS = ("weight", "bias", "stride", "padding", "dilation", "groups")
_NORM_ARGUMENTS = ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_POOL_ARGUMENTS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
#: what computes an inference's input from itself alone
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout3d, Dropout)

Triple = tuple[int, int, int]


@dataclass
class Conv:
    """A convolution in a graph: where its tensors are, and its geometry; `why_not` tells why the op cannot do it."""

    node: Node
    name: str
    layer: str
    dims: int
    weight: str = ""
    bias: str | None = None
    padding: str | Triple = "same"
    why_not: str | None = None


@dataclass
class Chain:
    """What is to become one call: a convolution, and what was added to it, in order.

    added: nodes and what to call them. norm: the paths of mean, variance, weight and bias. ends: why no more is added.
    """

    conv: Conv
    added: list[tuple[Node, str]] = field(default_factory=list)
    norm: tuple[str, str, str | None, str | None] | None = None
    eps: float = 0.0
    activation: str = "identity"
    pool: Triple | None = None
    ceil_mode: bool = False
    ends: str = ""

    @property
    def nodes(self) -> list[Node]:
        return [self.conv.node, *(node for node, _ in self.added)]


def tensor_at(root: nn.Module, path: str) -> torch.Tensor:
    value = operator.attrgetter(path)(root)
    assert isinstance(value, torch.Tensor)
    return value


def several(value: Any, dims: int) -> tuple[int, ...] | None:
    """`value` for each axis; None unless it is a constant of ints."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value,) * dims
    if isinstance(value, (tuple, list)) and all(isinstance(v, int) for v in value):
        return tuple(value) * dims if len(value) == 1 else tuple(value) if len(value) == dims else None
    return None


def _triple(values: tuple[int, ...], depth: int) -> Triple:
    triple = values if len(values) == 3 else (depth, *values)
    return triple[0], triple[1], triple[2]


def bound(node: Node, names: tuple[str, ...]) -> dict[str, Any]:
    """The arguments of a call by their names, `input` first."""
    return {**dict(zip(("input", *names), node.args, strict=False)), **node.kwargs}


def path_of(value: Any) -> str | None:
    """Where a tensor of the module comes from; None for what is computed."""
    return str(value.target) if isinstance(value, Node) and value.op == "get_attr" else None


def name_of(root: nn.Module, node: Node, weight: str | None) -> str:
    """What to call a convolution that is a function: by its weight, or the module in whose forward it stands."""
    if weight is not None and weight.endswith(".weight"):
        return weight.removesuffix(".weight")
    around = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    if around and isinstance(root.get_submodule(around[-1]), nn.modules.conv._ConvNd):
        return around[-1]
    return ".".join([*around[-1:], node.name])


def module_of(root: nn.Module, node: Node) -> nn.Module | None:
    return root.get_submodule(str(node.target)) if node.op == "call_module" else None


def _is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether the module computes what `kind` does: itself, or a subclass that leaves its methods alone."""
    if not isinstance(module, kind):
        return False
    methods = ("forward", "_conv_forward", "__call__", "_check_input_dim", "__getattr__")
    return all(getattr(type(module), name, None) is getattr(kind, name, None) for name in methods)


def _kind(module: nn.Module | None, kinds: dict[Any, int]) -> int:
    """The number of axes of a module that is plainly of one of the kinds; 0 if it is of none."""
    return next((dims for kind, dims in kinds.items() if module is not None and _is_plain(module, kind)), 0)


def _written(node: Node) -> str | None:
    """Who may write to a module's tensor, given its get_attr node: all who do more than compute with it."""
    for user in node.users:
        reads = user.op == "call_function" and user.target in (*_CONV_FUNCTIONS, F.batch_norm, torch.batch_norm)
        if not reads:
            return user.name
    return None


def _writers(root: nn.Module, graph: Graph, path: str) -> Iterator[str]:
    """Who may write to the tensor at `path`, whatever other paths lead to it."""
    tensor = tensor_at(root, path)
    for node in graph.nodes:
        if node.op == "get_attr" and operator.attrgetter(node.target)(root) is tensor and (writer := _written(node)):
            yield writer


def conv_of(root: nn.Module, node: Node) -> Conv | None:
    """The convolution that a node is, with what the op does not do; None for other nodes."""
    module = module_of(root, node)
    if isinstance(module, nn.modules.conv._ConvNd) and not isinstance(module, PackedWeights):
        name, layer = str(node.target), type(module).__name__
        conv = Conv(node, name, layer, _kind(module, _CONV))
        if why := hooks_of(module):
            conv.why_not = why
        elif not conv.dims:
            conv.why_not = f"a {layer} is neither a Conv2d nor a Conv3d"
        elif "weight" not in module._parameters:
            conv.why_not = "its weight is computed"
        elif len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], Node):
            conv.why_not = "it is not called with one tensor"
        else:
            conv.weight = f"{name}.weight"
            conv.bias = None if module.bias is None else f"{name}.bias"
            padding: Any = module.padding
            _geometry(conv, module.weight, module.stride, padding, module.dilation, module.groups)
            if module.padding_mode != "zeros":
                conv.why_not = f"padding_mode is {module.padding_mode!r}"
        return _checked(root, conv)
    if node.op != "call_function":
        return None
    if node.target in _OTHER_CONV_FUNCTIONS:
        return Conv(node, node.name, str(node.target), 0, why_not="transposed")
    dims = next((d for function, d in _CONV_FUNCTIONS.items() if node.target is function), 0)
    if not dims:
        return None
    call = bound(node, _CONV_ARGUMENTS)
    weight, bias = path_of(call.get("weight")), path_of(call.get("bias"))
    conv = Conv(node, name_of(root, node, weight), f"conv{dims}d", dims)
    if weight is None or (bias is None and call.get("bias") is not None):
        conv.why_not = "its weight or bias is computed, not a parameter of the module"
    elif not isinstance(call["input"], Node):
        conv.why_not = "it is not called with one tensor"
    else:
        conv.weight, conv.bias = weight, bias
        geometry = [call.get(key, default) for key, default in zip(_CONV_ARGUMENTS[2:], (1, 0, 1, 1), strict=True)]
        _geometry(conv, tensor_at(root, weight), *geometry)
    return _checked(root, conv)


def _geometry(conv: Conv, weight: torch.Tensor, stride: Any, padding: Any, dilation: Any, groups: Any) -> None:
    """Sets padding, or why the op cannot compute this geometry."""
    if weight.dim() != conv.dims + 2:
        conv.why_not = f"its weight has shape {tuple(weight.shape)}"
        return
    kernel = tuple(weight.shape[2:])
    around = None if isinstance(padding, str) else several(padding, conv.dims)
    ones = (1,) * conv.dims
    if several(stride, conv.dims) != ones:
        conv.why_not = f"stride is {stride}"
    elif several(dilation, conv.dims) != ones:
        conv.why_not = f"dilation is {dilation}"
    elif groups != 1:
        conv.why_not = f"groups is {groups}"
    elif max(kernel) > _MAX_KERNEL:
        conv.why_not = f"its kernel {kernel} has more than {_MAX_KERNEL} taps"
    elif around is None and padding not in ("same", "valid"):
        conv.why_not = f"padding is {padding}"
    elif around is not None and any(not 0 <= p < k for p, k in zip(around, kernel, strict=True)):
        conv.why_not = f"padding {around} is not smaller than the kernel {kernel}"
    else:
        conv.padding = padding if around is None else _triple(around, 0)


def _checked(root: nn.Module, conv: Conv) -> Conv:
    """Adds what its tensors forbid."""
    if conv.why_not is None:
        weight = tensor_at(root, conv.weight)
        if not weight.is_floating_point():
            conv.why_not = f"its weight is of {weight.dtype}"
        for path in filter(None, (conv.weight, conv.bias)):
            if writer := next(_writers(root, conv.node.graph, path), None):
                conv.why_not = f"forward does more with {path} than to convolve ({writer})"
    return conv


def _relu(root: nn.Module, node: Node) -> str | None:
    """Adds nothing but a ReLU: its name; else None."""
    module = module_of(root, node)
    if module is not None:
        return f"{node.target} (ReLU)" if _is_plain(module, nn.ReLU) else None
    function = node.op == "call_function" and any(node.target is f for f in _RELU_FUNCTIONS)
    return "relu" if function or (node.op == "call_method" and node.target in _RELU_METHODS) else None


def _add_norm(root: nn.Module, node: Node, chain: Chain) -> str | None:
    """Takes a batch normalisation into the chain, or says why not; "" if the node is none."""
    module, dims = module_of(root, node), chain.conv.dims
    if isinstance(module, nn.modules.batchnorm._NormBase):
        if _kind(module, _NORM) != dims:
            return f"{node.target} is a {type(module).__name__}"
        training, eps = module.training, module.eps
        values = {n: getattr(module, n) for n in _NORM_ARGUMENTS[:4]}
        paths = [None if values[n] is None else f"{node.target}.{n}" for n in _NORM_ARGUMENTS[:4]]
        name = f"{node.target} ({type(module).__name__})"
    elif node.op == "call_function" and (node.target is F.batch_norm or node.target is torch.batch_norm):
        if node.target is torch.batch_norm:
            return "torch.batch_norm"
        call = bound(node, _NORM_ARGUMENTS)
        training, eps = call.get("training", False), call.get("eps", 1e-5)
        paths = [path_of(call.get(n)) for n in _NORM_ARGUMENTS[:4]]
        if any(path is None and call.get(n) is not None for path, n in zip(paths, _NORM_ARGUMENTS[:4], strict=True)):
            return "batch_norm with tensors that are computed"
        name = "batch_norm"
    else:
        return ""
    if chain.norm is not None or chain.activation != "identity" or chain.pool is not None:
        return f"{name} comes after {chain.added[-1][1]}"
    if training is not False or paths[0] is None or paths[1] is None:
        return f"{name} uses the statistics of the batch" + (" (train mode)" if training is True else "")
    if not isinstance(eps, (int, float)):
        return f"{name} has an eps that is computed"
    for path in filter(None, paths):
        if writer := next(_writers(root, node.graph, path), None):
            return f"forward does more with {path} than to normalise ({writer})"
    chain.norm, chain.eps = (paths[0], paths[1], paths[2], paths[3]), float(eps)
    chain.added.append((node, name))
    return None


def _add_relu(root: nn.Module, node: Node, chain: Chain) -> str | None:
    name = _relu(root, node)
    if name is None:
        return ""
    if chain.activation == "relu":
        return f"{name} is a second one"
    # after the pooling too: the maximum of what ReLU gives is what ReLU gives of the maximum
    chain.activation = "relu"
    chain.added.append((node, name))
    return None


def _add_pool(root: nn.Module, node: Node, chain: Chain) -> str | None:
    module, dims = module_of(root, node), chain.conv.dims
    kind = _kind(module, _POOL)
    if kind:
        call = {name: getattr(module, name) for name in _POOL_ARGUMENTS}
        name = f"{node.target} ({type(module).__name__})"
    elif node.op == "call_function" and any(node.target is f for f in _POOL_FUNCTIONS):
        kind = next(d for f, d in _POOL_FUNCTIONS.items() if node.target is f)
        call = bound(node, _POOL_ARGUMENTS)
        name = f"max_pool{kind}d"
    else:
        return ""
    if kind != dims:
        return f"{name} pools {kind} axes"
    if chain.pool is not None:
        return f"{name} is a second one"
    window = several(call.get("kernel_size"), dims)
    stride = call.get("stride")
    if window is None or max(window) > _MAX_POOL or min(window) < 1:
        return f"{name} has a window of {call.get('kernel_size')}, more than {_MAX_POOL}"
    # F.max_pool takes an empty list for no stride, too
    if stride not in (None, [], ()) and several(stride, dims) != window:
        return f"{name} has stride {stride}, not its window {window}"
    if several(call.get("padding", 0), dims) != (0,) * dims:
        return f"{name} has padding {call.get('padding')}"
    if several(call.get("dilation", 1), dims) != (1,) * dims:
        return f"{name} has dilation {call.get('dilation')}"
    if call.get("return_indices", False) is not False:
        return f"{name} returns indices"
    if not isinstance(call.get("ceil_mode", False), bool):
        return f"{name} has a ceil_mode that is computed"
    chain.pool, chain.ceil_mode = _triple(window, 1), call.get("ceil_mode", False)
    chain.added.append((node, name))
    return None


def _add_nothing(root: nn.Module, node: Node, chain: Chain) -> str | None:
    module = module_of(root, node)
    if module is None or not any(_is_plain(module, kind) for kind in _NOTHING):
        return ""
    if not isinstance(module, nn.Identity) and module.training:
        return f"{node.target} ({type(module).__name__}) is in train mode"
    chain.added.append((node, f"{node.target} ({type(module).__name__})"))
    return None


_ADD: tuple[Callable[[nn.Module, Node, Chain], str | None], ...] = (_add_norm, _add_relu, _add_pool, _add_nothing)


def _why_not_next(root: nn.Module, last: Node, chain: Chain) -> str | None:
    """Takes the user of the chain's last result into it (None), or says why the chain ends there."""
    if len(last.users) != 1:
        return f"its result is used {len(last.users)} times"
    user = next(iter(last.users))
    if user.op == "output":
        return "its result is returned"
    first = user.args[0] if user.args else user.kwargs.get("input")
    if first is not last or user.all_input_nodes.count(last) != 1:
        return f"followed by {_shown(root, user)}"
    module = module_of(root, user)
    if module is not None and (why := hooks_of(module)):
        return f"{user.target} ({type(module).__name__}): {why}"
    if module is not None and len(user.args) + len(user.kwargs) != 1:
        return f"{user.target} gets more than one argument"
    for add in _ADD:
        why = add(root, user, chain)
        if why is None or why:
            return why
    return f"followed by {_shown(root, user)}"


def _shown(root: nn.Module, node: Node) -> str:
    module = module_of(root, node)
    if module is not None:
        return f"{node.target} ({type(module).__name__})"
    return str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", str(node.target))


def chain_of(root: nn.Module, conv: Conv) -> Chain:
    """The longest chain that starts with this convolution and is one call of the op."""
    chain = Chain(conv)
    while True:
        why = _why_not_next(root, chain.nodes[-1], chain)
        if why is not None:
            chain.ends = why
            return chain
