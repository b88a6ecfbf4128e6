"""Whole systems, a folder per family, all built on vidgen's ops.

Every model has a ``config``: the keyword arguments of its constructor, plain JSON values, from which a checkpoint
rebuilds it. ``MODELS`` is the list of names by which checkpoints and the command line know them.
"""

from vidgen.models.autoregressive import GatedPixelCNN, PixelCNN, PixelCNNPP
from vidgen.models.checkpoint import MODELS, load_checkpoint, read_metadata, save_checkpoint
from vidgen.models.layers import LayerReport, layer_report
from vidgen.models.video import (
    C3D,
    CNNM,
    CNN3d,
    EarlyFusion,
    LateFusion,
    SingleFrame,
    TwoStream,
    displacement_fields,
    flip_flow_stack,
    flow_stack,
    stack_frames,
)

__all__ = [
    "C3D",
    "CNNM",
    "MODELS",
    "CNN3d",
    "EarlyFusion",
    "GatedPixelCNN",
    "LateFusion",
    "LayerReport",
    "PixelCNN",
    "PixelCNNPP",
    "SingleFrame",
    "TwoStream",
    "displacement_fields",
    "flip_flow_stack",
    "flow_stack",
    "layer_report",
    "load_checkpoint",
    "read_metadata",
    "save_checkpoint",
    "stack_frames",
]
