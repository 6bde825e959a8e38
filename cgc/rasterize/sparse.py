"""Products with a sparse matrix in CSR form, its transpose, its rows, its columns: the time of feature learning.

These are the kernels of matrices on the CPU; `sparse_torch.py` has the same for those on a GPU.

Notation: R rows, E entries, D channels; a row's entries are indptr[row] to indptr[row + 1]. A worker has a run of rows
with an equal share of the work (a row costs one, an entry costs one). A row is summed in float32, in the order of its
entries: the bits do not depend on the number of threads. W^T x is the same kernel on the transpose, which a counting
sort makes once: no atomics.
"""

# pyright: reportCallIssue=false, reportReturnType=false, reportAttributeAccessIssue=false
# (numba changes the signatures of what it compiles)

from __future__ import annotations

import numpy as np
from numba import float32 as f

from cgc.kernels import kernel, spread
from cgc.rasterize.lanes import fma, load, splat, store
from cgc.rasterize.sparse_types import Csr


@kernel
def _row_at(indptr, goal):
    """Return the first row before which lie at least `goal` rows and entries together."""
    low, high = 0, indptr.shape[0] - 1
    while low < high:
        middle = (low + high) // 2
        if indptr[middle] + middle >= goal:
            high = middle
        else:
            low = middle + 1
    return low


@kernel
def _share(worker, workers, indptr):
    """Return the first row of a worker's share, and of the next one's."""
    work = indptr[-1] + indptr.shape[0] - 1
    return _row_at(indptr, worker * work // workers), _row_at(indptr, (worker + 1) * work // workers)


@kernel
def multiply(worker, workers, indptr, ids, weights, x, channels, out):
    """Write the matrix times x [columns * D] to out [R * D], sixteen channels at a time."""
    first, last = _share(worker, workers, indptr)
    for row in range(first, last):
        begin, end, at = indptr[row], indptr[row + 1], row * channels
        c = 0
        while c + 16 <= channels:
            low = high = splat(f(0.0))
            for e in range(begin, end):
                w, column = splat(weights[e]), ids[e] * channels + c
                low, high = fma(w, load(x, column), low), fma(w, load(x, column + 8), high)
            store(out, at + c, low)
            store(out, at + c + 8, high)
            c += 16
        if c + 8 <= channels:
            low = splat(f(0.0))
            for e in range(begin, end):
                low = fma(splat(weights[e]), load(x, ids[e] * channels + c), low)
            store(out, at + c, low)
            c += 8
        while c < channels:
            single = f(0.0)
            for e in range(begin, end):
                single += weights[e] * x[ids[e] * channels + c]
            out[at + c] = single
            c += 1


@kernel
def _transpose(indptr, ids, weights, start, rows, out):
    """Counting sort of the entries by column; start [columns + 1] holds zeros on entry."""
    for e in range(ids.shape[0]):
        start[ids[e] + 1] += 1
    for column in range(start.shape[0] - 1):
        start[column + 1] += start[column]
    for row in range(indptr.shape[0] - 1):
        for e in range(indptr[row], indptr[row + 1]):
            to = start[ids[e]]
            start[ids[e]] += 1
            rows[to], out[to] = row, weights[e]
    for column in range(start.shape[0] - 1, 0, -1):  # each start has moved on to the next column's
        start[column] = start[column - 1]
    start[0] = 0


@kernel
def _take_rows(worker, workers, indptr, ids, weights, rows, new_indptr, new_ids, new_weights):
    first, last = _share(worker, workers, new_indptr)
    for k in range(first, last):
        begin, to = indptr[rows[k]], new_indptr[k]
        for e in range(new_indptr[k + 1] - to):
            new_ids[to + e], new_weights[to + e] = ids[begin + e], weights[begin + e]


def product(matrix: Csr, x: np.ndarray) -> np.ndarray:
    """Return the matrix times x [columns, D] float32, [R, D]."""
    out = np.empty((len(matrix.indptr) - 1, x.shape[1]), np.float32)
    spread(multiply, *matrix, x.ravel(), x.shape[1], out.ravel())
    return out


def transpose(matrix: Csr, columns: int) -> Csr:
    """Return the transpose of a matrix of `columns` columns; the entries of a row keep their order."""
    start = np.zeros(columns + 1, np.int64)
    rows, weights = np.empty_like(matrix.ids), np.empty_like(matrix.weights)
    _transpose(*matrix, start, rows, weights)
    return Csr(start, rows, weights)


def take_rows(matrix: Csr, rows: np.ndarray) -> Csr:
    """Return the matrix of these rows [R] int64, in this order, repeats and all."""
    indptr = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(matrix.indptr[rows + 1] - matrix.indptr[rows], out=indptr[1:])
    ids, weights = np.empty(indptr[-1], matrix.ids.dtype), np.empty(indptr[-1], matrix.weights.dtype)
    spread(_take_rows, *matrix, rows, indptr, ids, weights)
    return Csr(indptr, ids, weights)


def drop_empty_columns(matrix: Csr, columns: int) -> tuple[Csr, np.ndarray]:
    """Return the matrix without its empty columns, and which of the `columns` are left, [U] int32, rising."""
    present, numbers = np.zeros(columns, bool), np.empty(columns, np.int32)
    present[matrix.ids] = True
    kept = np.flatnonzero(present).astype(np.int32)
    numbers[kept] = np.arange(len(kept))
    return Csr(matrix.indptr, numbers[matrix.ids], matrix.weights), kept
