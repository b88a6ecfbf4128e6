"""Autoregressive image models: every value given the values before it."""

from vidgen.models.autoregressive.pixelcnn import PixelCNN

__all__ = ["PixelCNN"]
