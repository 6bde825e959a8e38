"""What sparse.py does, by torch operations: for matrices that lie on a GPU, without a way through the host.

Notation as in sparse.py; a matrix's arrays are tensors on one device. A row is summed in the order of its entries and
nothing is added up by atomics, so that the bits are the same every time.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from cgc.rasterize.sparse_types import Csr

MOST_SHORT = 2**31 - 1
"""Up to so many entries are counted in 32 bits."""


def multiply(matrix: Csr, x: Tensor) -> Tensor:
    """Return the matrix times x [columns, D] float32, [R, D]."""
    rows, channels = len(matrix.indptr) - 1, x.shape[1]
    if not (rows and channels and len(matrix.ids)):
        return x.new_zeros(rows, channels)
    kind = torch.int32 if len(matrix.ids) <= MOST_SHORT else torch.int64
    ids, starts = matrix.ids.to(kind), matrix.indptr.to(kind)
    return embedding_bag(
        ids, x.contiguous(), starts, mode="sum", per_sample_weights=matrix.weights, include_last_offset=True
    )


def rows_of(indptr: Tensor, entries: int) -> Tensor:
    """Return the row of each of so many entries, [E] int64."""
    numbers = torch.arange(len(indptr) - 1, device=indptr.device)
    return torch.repeat_interleave(numbers, indptr.diff(), output_size=entries)


def transpose(matrix: Csr, columns: int) -> Csr:
    """Return the transpose of a matrix of `columns` columns; the entries of a row keep their order."""
    ids, order = torch.sort(matrix.ids, stable=True)
    start = torch.searchsorted(ids, torch.arange(columns + 1, device=ids.device, dtype=ids.dtype))
    rows = rows_of(matrix.indptr, len(ids)).to(matrix.ids.dtype)
    return Csr(start, rows[order], matrix.weights[order])


def take_rows(matrix: Csr, rows: Tensor) -> Csr:
    """Return the matrix of these rows [R] int64, in this order, repeats and all."""
    counts = matrix.indptr.diff()[rows]
    indptr, places = places_of(matrix.indptr[rows], counts)
    return Csr(indptr, matrix.ids[places], matrix.weights[places])


def places_of(starts: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indptr [R+1] of rows of so many entries [R], and where these lie, [E], from where each row starts."""
    indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    shift = torch.repeat_interleave(starts - indptr[:-1], counts)
    return indptr, shift + torch.arange(len(shift), device=shift.device)


def drop_empty_columns(matrix: Csr, columns: int) -> tuple[Csr, Tensor]:
    """Return the matrix without its empty columns, and which of the `columns` are left, [U] int32, rising."""
    present = torch.zeros(columns, dtype=torch.bool, device=matrix.ids.device)
    present[matrix.ids.long()] = True
    numbers = (present.cumsum(0) - 1).to(torch.int32)
    kept = present.nonzero()[:, 0].to(torch.int32)
    return Csr(matrix.indptr, numbers[matrix.ids.long()], matrix.weights), kept
