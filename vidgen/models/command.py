"""``vidgen layers``."""

from typing import Literal


def layers(
    model: Literal["c3d", "late-fusion", "early-fusion", "3d-cnn"],
    /,
    *,
    markdown: bool = False,
    json: bool = False,
) -> None:
    """Show a model's layers: output sizes, receptive fields, parameters, multiply-accumulates.

    c3d is C3D on clips of 16×112×112; the others are the small fusion networks, without a classifier, on 20×64×64.

    Example: vidgen layers c3d --markdown

    Args:
        model: which one.
        markdown: print Markdown.
        json: print JSON, numbers in full.
    """
    import torch

    from vidgen.models import MODELS, layer_report

    if markdown and json:
        raise ValueError("markdown, json: expected one of them, got both")
    with torch.device("meta"):
        network = MODELS[model]()
    report = layer_report(network, (3, 16, 112, 112) if model == "c3d" else (3, 20, 64, 64))
    print(report.markdown() if markdown else report.json() if json else report)
