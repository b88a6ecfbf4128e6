"""Convolutions whose weight forward multiplies by a mask, where the mask is one of `masked_conv2d`.

Two ways are in use: `F.conv2d(x, weight * mask, …)`, and `weight.data *= mask` before the convolution, which writes to
the parameter on every call. Both are recognised by what forward does, and by the values of the mask.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node

from vidgen.fusion.matching import bound, name_of, path_of, several, tensor_at
from vidgen.ops.masked_conv2d import keep_mask

_MULTIPLY = (operator.mul, operator.imul, torch.mul, torch.multiply)
_MULTIPLY_METHODS = ("mul", "mul_", "multiply", "multiply_")


@dataclass
class MaskedConv:
    """A convolution with a masked weight, and the rule of its mask; `why_not` tells why it stays what it is.

    mask: path of the mask. nodes: what the mask does in the graph, for removal, last first.
    """

    node: Node
    name: str
    mask: str
    weight: str = ""
    bias: str | None = None
    dilation: int = 1
    rule: tuple[str, int, str] | None = None
    nodes: tuple[Node, ...] = ()
    why_not: str | None = None


def rule_of(mask: torch.Tensor, weight_size: tuple[int, ...]) -> tuple[str, int, str] | None:
    """(mask, colors, color_layout) of `masked_conv2d` whose kept entries are exactly the ones of `mask`, else None."""
    out_channels, in_channels, kh, kw = weight_size
    try:
        full = mask.detach().expand(weight_size)
    except RuntimeError:
        return None
    if kh % 2 == 0 or kw % 2 == 0:
        return None
    rules = [(kind, 1, "interleaved") for kind in "AB"]
    if in_channels % 3 == 0 and out_channels % 3 == 0:
        rules += [(kind, 3, layout) for kind in "AB" for layout in ("interleaved", "blocked")]
    for rule in rules:
        if torch.equal(full, keep_mask(weight_size, *rule).to(full)):
            return rule
    return None


def _is_data_of(node: Any) -> Node | None:
    """The tensor whose `.data` this is."""
    if isinstance(node, Node) and node.op == "call_function" and node.target is getattr and node.args[1] == "data":
        return node.args[0] if isinstance(node.args[0], Node) else None
    return None


def _product(node: Any) -> tuple[Any, Any] | None:
    if not isinstance(node, Node) or len(node.args) != 2 or node.kwargs:
        return None
    multiplies = node.op == "call_function" and any(node.target is f for f in _MULTIPLY)
    multiplies |= node.op == "call_method" and node.target in _MULTIPLY_METHODS
    return (node.args[0], node.args[1]) if multiplies else None


def _is_written(graph: Graph, path: str) -> bool:
    """Whether forward may write to the module's tensor at `path`."""
    for node in graph.nodes:
        if node.op == "get_attr" and node.target == path:
            for user in node.users:
                name = str(user.target) if user.op == "call_method" else getattr(user.target, "__name__", "")
                if user.target in (setattr, getattr, operator.imul) or (name.endswith("_") and user.args[0] is node):
                    return True
    return False


def _masked_product(weight: Node) -> tuple[str, str, tuple[Node, ...]] | None:
    """(path of the weight, path of the mask, nodes) where a convolution's weight is a parameter times a mask."""
    factors = _product(weight)
    if factors is None or str(weight.target).endswith("_") or weight.target is operator.imul:
        return None
    paths = [path_of(factor) for factor in factors]
    if paths[0] is None or paths[1] is None or any(_is_written(weight.graph, path) for path in paths if path):
        return None
    # which of the two is the mask is decided by its values, below
    return paths[0], paths[1], (weight,) if len(weight.users) == 1 else ()


def _masked_in_place(weight: Node) -> tuple[str, str, tuple[Node, ...]] | None:
    """The same where the parameter itself is masked, by `.data`, and nobody else sees it unmasked."""
    masks: set[str | None] = set()
    nodes: list[Node] = []
    first = None
    convs: list[Node] = []
    for user in weight.users:
        if user.op == "call_function" and user.target is torch.conv2d:
            convs.append(user)
        elif user.op == "call_function" and user.target is setattr:
            if _product(user.args[2]) is None or user.args[:2] != (weight, "data") or user.users:
                return None
            nodes.append(user)
        elif _is_data_of(user) is weight:
            for product in user.users:
                factors = _product(product)
                if factors is None or factors[0] is not user:
                    return None
                masks.add(path_of(factors[1]))
                written = product.target is operator.imul or str(product.target).endswith("_")
                stored = [one for one in product.users if one.target is setattr and one.args[0] is weight]
                if len(product.users) != len(stored) or not (written or stored):
                    return None
                first = first or (product if written else stored[0])
                nodes.append(product)
            nodes.append(user)
        else:
            return None
    mask = masks.pop() if len(masks) == 1 else None
    path = path_of(weight)
    if mask is None or path is None or first is None or any(conv < first for conv in convs):
        return None
    if _is_written(weight.graph, mask):
        return None
    return path, mask, tuple(sorted(nodes, reverse=True))


def masked_conv_of(root: nn.Module, node: Node) -> MaskedConv | None:
    """The masked convolution that a node is; None where no mask is seen."""
    if node.op != "call_function" or node.target is not torch.conv2d:
        return None
    call = bound(node, ("weight", "bias", "stride", "padding", "dilation", "groups"))
    weight = call.get("weight")
    if not isinstance(weight, Node):
        return None
    found = _masked_in_place(weight) if weight.op == "get_attr" else _masked_product(weight)
    if found is None:
        return None
    path, mask_path, nodes = found
    if isinstance(tensor_at(root, mask_path), nn.Parameter) and not isinstance(tensor_at(root, path), nn.Parameter):
        path, mask_path = mask_path, path
    values, mask = tensor_at(root, path), tensor_at(root, mask_path)
    conv = MaskedConv(
        node, name_of(root, node, path), mask_path, weight=path, nodes=nodes, bias=path_of(call.get("bias"))
    )
    if isinstance(mask, nn.Parameter) or values.dim() != 4 or torch.result_type(values, mask) != values.dtype:
        conv.why_not = f"its weight is multiplied by {mask_path}, which is no constant mask"
        return conv
    kernel = tuple(values.shape[2:])
    dilation = several(call.get("dilation", 1), 2)
    padding = call.get("padding", 0)
    around = None if isinstance(padding, str) else several(padding, 2)
    rule = rule_of(mask, tuple(values.shape))
    if several(call.get("stride", 1), 2) != (1, 1) or call.get("groups", 1) != 1:
        conv.why_not = "its weight is masked, and stride or groups is not 1"
    elif rule is None:
        conv.why_not = f"{mask_path} is none of the masks of masked_conv2d"
    elif dilation is None or dilation[0] != dilation[1]:
        conv.why_not = f"its weight is masked, and dilation is {call.get('dilation')}"
    elif padding != "same" and around != tuple(dilation[0] * (k // 2) for k in kernel):
        conv.why_not = f"its weight is masked, and padding {padding} does not keep the size"
    elif conv.bias is None and call.get("bias") is not None:
        conv.why_not = "its weight is masked, and its bias computed"
    elif not isinstance(call["input"], Node) or not values.is_floating_point():
        conv.why_not = "it is not a convolution of floating-point images"
    else:
        conv.rule, conv.dilation = rule, dilation[0]
    return conv
