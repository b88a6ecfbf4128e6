"""Which backend serves a call, and why the others do not."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch

from vidgen.ops.backends import TABLE, explain_rows, requested


def explain(op: str, *args: Any, **kwargs: Any) -> str:
    """Prints, and returns, which backend a call of `op` with these arguments would run and why each other would not.

    Args:
        op: an op's name, for instance "masked_conv2d".
        args, kwargs: as for the public function `vidgen.ops.<op>`.

    Raises:
        ValueError: there is no op of that name. TypeError: the arguments do not fit the op.
    """
    public = getattr(__import__("vidgen.ops", fromlist=[op]), op, None)
    if public is None or op not in TABLE:
        raise ValueError(f"op must be one of {sorted(name for name in TABLE if '_grad_' not in name)}, got {op!r}")
    bound = inspect.signature(public).bind(*args, **kwargs)
    bound.apply_defaults()
    call = dict(bound.arguments)
    choice = requested(call.pop("impl"))
    call.pop("packed", None)
    algorithm = call.pop("algorithm", "auto")
    device = next(value.device for value in call.values() if isinstance(value, torch.Tensor))
    rows = explain_rows(op, device, tuple(call.values()))
    chosen = choice or next((name for name, reason in rows if reason is None), None)
    lines = [f"{op} on {device}" + (f", impl={choice!r} asked for" if choice else "")]
    for name, reason in rows:
        if name == chosen and reason is None:
            # an op whose kernel has one form only has no plan to tell
            plan_of = getattr(sys.modules[f"vidgen.ops.{op}"], "plan_of", None)
            plan = plan_of(*call.values(), algorithm) if plan_of and name == "cpu" else ""
            lines.append(f"  {name:<10} runs" + (f" ({plan})" if plan else ""))
        else:
            lines.append(f"  {name:<10} {reason or f'could run; {chosen} comes first'}")
    text = "\n".join(lines)
    print(text)
    return text
