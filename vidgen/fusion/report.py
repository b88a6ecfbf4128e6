"""What `vidgen.fuse` did to a module, and what it left."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

#: where a fused module keeps its report
ATTRIBUTE = "_fusion_report"


@dataclass
class FusedChain:
    """A chain of layers that is one call now.

    name: path of the convolution (or of its weight's owner). op: "conv3d_pool3d" or "masked_conv2d".
    layers: what is in the call, in the order of the original.
    call: the op's arguments that say so. input_size: (D, H, W) as far as an example told.
    ends: why nothing more is in it.
    """

    name: str
    op: str
    layers: list[str]
    call: dict[str, Any]
    ends: str
    input_size: tuple[int, ...] | None = None


@dataclass
class FusionReport:
    """fused: every chain that became one call. left: path of every other convolution -> why it is left.
    untraced: path of every submodule whose forward stays Python, -> why ("" is the module itself).
    """

    fused: list[FusedChain] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    untraced: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, strings and numbers."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [("convolution", "", "", "why no more")]
        for chain in self.fused:
            rest = " + ".join(chain.layers[1:])
            rows.append((chain.name, chain.op, f"+ {rest}" if rest else "alone", chain.ends))
        rows += [(name, "left", "", why) for name, why in self.left.items()]
        rows += [(name or "(the module)", "not traced", "", why) for name, why in self.untraced.items()]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]) for row in rows]
        lines.append(f"{len(self.fused)} fused, {len(self.left)} left as they are")
        return "\n".join(line.rstrip() for line in lines)


def fusion_report(fused: nn.Module) -> FusionReport:
    """What `vidgen.fuse` fused, and for every other convolution why not.

    Args:
        fused: what `vidgen.fuse` returned, or a deep copy of it.

    Returns:
        An object that prints as a table; `as_dict()` gives plain values.

    Raises:
        TypeError: it is no module that `vidgen.fuse` made.
    """
    report = vars(fused).get(ATTRIBUTE) if isinstance(fused, nn.Module) else None
    if not isinstance(report, FusionReport):
        raise TypeError(f"fused must be a module that vidgen.fuse returned, got {type(fused).__name__}")
    return report
