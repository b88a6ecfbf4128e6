"""Autoregressive image models: every value given the values before it."""

from vidgen.models.autoregressive.gated_pixelcnn import GatedPixelCNN
from vidgen.models.autoregressive.pixelcnn import PixelCNN
from vidgen.models.autoregressive.pixelcnnpp import PixelCNNPP

__all__ = ["GatedPixelCNN", "PixelCNN", "PixelCNNPP"]
