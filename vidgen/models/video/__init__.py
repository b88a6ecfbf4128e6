"""Video classification: from a clip to scores of its classes."""

from vidgen.models.video.c3d import C3D
from vidgen.models.video.fusion import CNN3d, EarlyFusion, LateFusion, SingleFrame

__all__ = ["C3D", "CNN3d", "EarlyFusion", "LateFusion", "SingleFrame"]
