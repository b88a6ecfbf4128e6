"""Data sets: real images that need no download."""

from vidgen.data.digits import DIGITS_LEVELS, digits

__all__ = ["DIGITS_LEVELS", "digits"]
