"""A sparse matrix in CSR form, wherever it lies."""

from __future__ import annotations

from typing import Any, NamedTuple


class Csr(NamedTuple):
    """indptr [R+1] int64, ids [E] int32 (columns), weights [E] float32.

    Arrays of numpy where the matrix is on the CPU, which is what kernels take; tensors where it is on a GPU.
    """

    indptr: Any
    ids: Any
    weights: Any
