"""Video classification: from a clip to scores of its classes."""

from vidgen.models.video.c3d import C3D
from vidgen.models.video.cnn_m import CNNM
from vidgen.models.video.flow_stacks import displacement_fields, flip_flow_stack, flow_stack, stack_frames
from vidgen.models.video.fusion import CNN3d, EarlyFusion, LateFusion, SingleFrame
from vidgen.models.video.two_stream import TwoStream

__all__ = [
    "C3D",
    "CNNM",
    "CNN3d",
    "EarlyFusion",
    "LateFusion",
    "SingleFrame",
    "TwoStream",
    "displacement_fields",
    "flip_flow_stack",
    "flow_stack",
    "stack_frames",
]
