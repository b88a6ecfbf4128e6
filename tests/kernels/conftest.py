"""What the cases of the Triton kernels share."""

import os

import numpy as np
import pytest


class _ProductsInOrder:
    """numpy, but for ``matmul``: BLAS rounds a row by where it stands in the matrix (most Haswell-like kernels fuse
    multiplication and addition in whole panels and not in the rows left over), so that a pixel's bits would depend on
    the images before it. Each element is summed over k in one order here, whatever its row and column."""

    def __getattr__(self, name: str):
        return getattr(np, name)

    @staticmethod
    def matmul(a: np.ndarray, b: np.ndarray, dtype: np.dtype | None = None) -> np.ndarray:
        products = np.multiply(a[..., :, :, None], b[..., None, :, :], dtype=dtype)
        return products.sum(axis=-2, dtype=dtype)


@pytest.fixture
def products_in_order(monkeypatch):
    """Makes the products of Triton's interpreter as independent of their neighbours as a GPU's are; slow."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        import triton.runtime.interpreter

        monkeypatch.setattr(triton.runtime.interpreter, "np", _ProductsInOrder())
