"""C3D weights as others name them, translated to vidgen's names.

Names of layers in the three common namings; weights and biases follow them after a dot:

    conv1   conv2   conv3a  conv3b  conv4a  conv4b  conv5a  conv5b  fc6 fc7 fc8         vidgen's own, and most ports
    features.0 .3   .6      .8      .11     .13     .16     .18     classifier.0 .3 .6  one nn.Sequential each
    backbone.conv1a.conv …  the same names, "conv1a" for "conv1"    backbone.fc6 .fc7   cls_head.fc_cls

The last is also known without ``backbone.``, as the weights of such a backbone alone are named.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vidgen.models.weights import listed

_OWN = ("conv1", "conv2", "conv3a", "conv3b", "conv4a", "conv4b", "conv5a", "conv5b", "fc6", "fc7", "fc8")
_SEQUENTIAL = (*(f"features.{i}" for i in (0, 3, 6, 8, 11, 13, 16, 18)), *(f"classifier.{i}" for i in (0, 3, 6)))
_BACKBONE = (
    "backbone.conv1a.conv",
    "backbone.conv2a.conv",
    *(f"backbone.{name}.conv" for name in _OWN[2:8]),
    "backbone.fc6",
    "backbone.fc7",
    "cls_head.fc_cls",
)
_LAYOUTS = {
    "conv1 … fc8": _OWN,
    "features.0 … classifier.3": _SEQUENTIAL,
    "backbone.conv1a.conv …": _BACKBONE,
    "conv1a.conv …": tuple(layer.removeprefix("backbone.") for layer in _BACKBONE),
}


def translated(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], *, kept: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """The weights under vidgen's names, checked against a model's own state dict.

    Args:
        weights: by name, in one of the namings above.
        own: the model's state dict; only names and shapes are read.
        kept: beginnings of names that are left out, and need not be there.

    Raises:
        ValueError: an unknown naming, or names missing, unexpected or of another shape.
    """
    # the naming that knows most of the names; nothing known is no C3D
    layout = max(_LAYOUTS, key=lambda key: len(_known(weights, _LAYOUTS[key])))
    names = _known(weights, _LAYOUTS[layout])
    if not names:
        raise ValueError(
            f"source: expected C3D's weights, named {', or '.join(_LAYOUTS)}; got {listed(weights)}, which is none of "
            "these"
        )
    renamed = {names[name]: tensor for name, tensor in weights.items() if name in names}
    renamed = {name: tensor for name, tensor in renamed.items() if not name.startswith(kept)}
    wanted = {ours: _theirs(ours, _LAYOUTS[layout]) for ours in own if not ours.startswith(kept)}
    wrong = {
        "missing": [theirs for ours, theirs in wanted.items() if ours not in renamed],
        "unexpected": [name for name in weights if name not in names],
        "wrong shape": [
            f"{wanted[ours]} (expected {tuple(own[ours].shape)}, got {tuple(tensor.shape)})"
            for ours, tensor in renamed.items()
            if tensor.shape != own[ours].shape
        ],
    }
    if any(wrong.values()):
        found = "; ".join(f"{what}: {listed(those)}" for what, those in wrong.items() if those)
        fitting = [ours for ours, tensor in renamed.items() if tensor.shape == own[ours].shape]
        only_fc8 = not wrong["unexpected"] and all(ours in fitting or ours.startswith("fc8.") for ours in wanted)
        hint = " (new_classifier=True keeps the model's own fc8)" if only_fc8 else ""
        raise ValueError(f"source: named {layout}, but does not fit this C3D: {found}{hint}")
    return renamed


def _known(weights: Mapping[str, Tensor], layers: tuple[str, ...]) -> dict[str, str]:
    """The names among `weights` that a naming knows -> vidgen's."""
    table = {_theirs(f"{ours}.{kind}", layers): f"{ours}.{kind}" for ours in _OWN for kind in ("weight", "bias")}
    return {name: table[name] for name in weights if name in table}


def _theirs(ours: str, layers: tuple[str, ...]) -> str:
    layer, _, kind = ours.partition(".")
    return f"{layers[_OWN.index(layer)]}.{kind}"
