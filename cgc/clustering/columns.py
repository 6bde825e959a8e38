"""W^T M: how much of every mask each Gaussian is, over the sampled pixels of all views.

Notation: N Gaussians, M masks (those of different views are different masks), V views, A groups of Gaussians.
Everything that masks say of Gaussians is said by these columns: which of them one mask holds, which it tells apart;
and by what masks leave out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from scipy.sparse import coo_matrix, csc_matrix, csr_matrix, hstack
from torch import Tensor

from cgc.clustering.device_columns import DeviceMatrix, Summing

CHUNK = 1 << 24  # entries of W that are turned into columns at once: 200 MB


class Weighing(Protocol):
    """Sampled pixels of one view: rows of W, whose columns are `gaussians`, with the mask of each pixel.

    features.samples.Batch is one.
    """

    @property
    def view(self) -> int: ...
    @property
    def gaussians(self) -> Tensor: ...
    @property
    def weights(self) -> Any: ...
    @property
    def masks(self) -> Tensor: ...
    @property
    def mask_ids(self) -> Tensor: ...


@runtime_checkable
class PlacedWeighing(Protocol):
    """Sampled pixels that are worked on at home, a device, wherever they are kept: features.device_batches has some."""

    @property
    def home(self) -> torch.device: ...
    def at_home(self) -> Weighing: ...


class Seen(Protocol):
    """A view's evenly spread pixels: weights [U, M] of its `gaussians` [U] in the masks `ids` [M], 0 = in none.

    clustering.settle.Look is one.
    """

    @property
    def view(self) -> int: ...
    @property
    def gaussians(self) -> np.ndarray: ...
    @property
    def weights(self) -> Any: ...
    @property
    def ids(self) -> np.ndarray: ...


@dataclass(frozen=True)
class LeftOut:
    """How much of each Gaussian is in some mask of a view and how much in none, inside and outside [N, V] float32, csr.

    Memory: 8 B for each of these, a Gaussian and a view that it shows in.
    """

    inside: Any
    outside: Any

    def of_views(self, index: np.ndarray) -> LeftOut:
        """Return the views [V'] of these numbers."""
        return LeftOut(self.inside[:, index], self.outside[:, index])


@dataclass(frozen=True)
class Columns:
    """matrix [N, M] float32, sparse: the weight of each Gaussian in the sampled pixels of each mask; or on a device.

    views [M] int64, the view of each mask, and ids [M] int64, its id there. Memory: 8 B an entry. `nested` has the
    masks that hold others too, where these are known: it says what is together, the masks alone what is whose.
    `left_out` says what no mask of a view has, by the rising numbers of the views, where that is known.
    """

    matrix: Any  # csr_matrix, whose stubs know less than it does, or a DeviceMatrix
    views: np.ndarray
    ids: np.ndarray
    nested: Columns | None = None
    left_out: LeftOut | None = None

    @property
    def together(self) -> Columns:
        """What says which Gaussians are one thing: the masks, and those that hold them."""
        return self.nested or self

    def under(self, groups: Any) -> Any:
        """Return what groups [A, N], a sparse matrix of weights, weigh in each mask, [A, M] float32, sparse by mask."""
        on_device = isinstance(self.matrix, DeviceMatrix)
        return csc_matrix(self.matrix.under(groups)) if on_device else (groups @ self.matrix).tocsc()

    def on_host(self) -> Columns:
        """Return the columns as the host's matrix."""
        nested = self.nested.on_host() if self.nested else None
        return replace(self, matrix=self.matrix.host, nested=nested) if isinstance(self.matrix, DeviceMatrix) else self

    @property
    def by_view(self) -> Any:
        """Which view each mask is of, [M, V], one 1 a row; V counts the views that have a mask."""
        found, index = np.unique(self.views, return_inverse=True)
        shape = (len(self.views), len(found))
        return csr_matrix((np.ones(len(index), np.float32), (np.arange(len(index)), index)), shape=shape)


def mask_columns(batches: Sequence[Weighing], n_gaussians: int) -> Columns:
    """Sum the weights of sampled pixels by Gaussian and mask; a view's batches share its masks.

    Of batches whose home is a device the columns are there.
    """
    placed = [batch for batch in batches if isinstance(batch, PlacedWeighing)]
    if placed:
        return mask_columns_on_device((batch.at_home() for batch in placed), n_gaussians, placed[0].home)
    keys = [(batch.view, int(i)) for batch in batches for i in batch.mask_ids]
    number = {key: k for k, key in enumerate(dict.fromkeys(keys))}
    total: Any = csr_matrix((n_gaussians, len(number)), dtype=np.float32)
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for i, batch in enumerate(batches):
        columns = np.array([number[batch.view, int(j)] for j in batch.mask_ids], np.int32)
        rows, ids = batch.weights.rows.numpy(), batch.weights.ids.numpy()
        parts.append((batch.gaussians.numpy()[ids], columns[batch.masks.numpy()[rows]], batch.weights.weights.numpy()))
        if sum(len(p[2]) for p in parts) > CHUNK or i + 1 == len(batches):
            gaussians, masks, weights = (np.concatenate(x) for x in zip(*parts))
            total = total + coo_matrix((weights, (gaussians, masks)), shape=total.shape).tocsr()
            parts = []
    views, ids = np.array(list(number), np.int64).reshape(-1, 2).T
    return Columns(total.astype(np.float32), views, ids)


def mask_columns_on_device(batches: Iterable[Weighing], n_gaussians: int, device: torch.device) -> Columns:
    """Do as `mask_columns` where batches are, which are looked at once, one after the other; a view's come together."""
    summing, keys = Summing(n_gaussians, device), []
    for view, own in groupby(batches, lambda batch: batch.view):
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        number: dict[int, int] = {}
        for batch in own:
            table = torch.tensor([number.setdefault(i, len(number)) for i in batch.mask_ids.tolist()], device=device)
            gaussians, weights = batch.gaussians[batch.weights.ids.long()], batch.weights.weights
            parts.append((gaussians, table[batch.masks[batch.weights.rows]], weights))
        gaussians, masks, weights = (torch.cat(some) for some in zip(*parts))
        summing.add(gaussians, masks, weights, len(number))
        keys += [(view, i) for i in number]
    views, ids = np.array(keys, np.int64).reshape(-1, 2).T
    return Columns(summing.matrix(), views, ids)


def side_by_side(parts: Sequence[Columns]) -> Columns:
    """Put the columns of different views side by side."""
    matrix = hstack([part.matrix for part in parts], format="csr")
    return Columns(matrix, np.concatenate([part.views for part in parts]), np.concatenate([part.ids for part in parts]))


def with_wholes(columns: Columns, wholes: Mapping[int, np.ndarray]) -> Columns:
    """Return the columns with `nested`: the masks that hold others count as those of further views.

    A view with ids that its table does not have (maps that were painted on) is left out.
    wholes: of a view, which mask holds each id, [ids + 1]. A pair of parts that no id map has in one mask, but every
    whole, is then together in half of the views.
    """
    first = int(columns.views.max(initial=-1)) + 1
    most = {int(v): int(columns.ids[columns.views == v].max()) for v in np.unique(columns.views)}
    known = np.isin(columns.views, [v for v, table in wholes.items() if most.get(v, 0) < len(table)])
    pairs = [(first + int(v), int(wholes[v][i])) for v, i in zip(columns.views[known], columns.ids[known])]
    number = {pair: k for k, pair in enumerate(dict.fromkeys(pairs))}
    if not number:
        return columns
    index = np.array([number[pair] for pair in pairs])
    shape = (len(columns.views), len(number))
    held = csr_matrix((np.ones(len(index), np.float32), (np.flatnonzero(known), index)), shape=shape)
    views, ids = np.array(list(number), np.int64).T
    if isinstance(columns.matrix, DeviceMatrix):
        matrix: Any = replace(columns.matrix, wholes=held)
    else:
        matrix = hstack([columns.matrix, columns.matrix @ held], format="csr")
    return replace(columns, nested=Columns(matrix, np.append(columns.views, views), np.append(columns.ids, ids)))


def with_left_out(columns: Columns, looks: Sequence[Seen], n_gaussians: int) -> Columns:
    """Return the columns with what masks leave out, as looks at their views show it; a view without a look: nothing.

    Masks that hold others leave out what the masks of their view do.
    """
    views, first = np.unique(columns.views), int(columns.views.max(initial=-1)) + 1
    number = {int(view): k for k, view in enumerate(views)}
    known = [look for look in looks if look.view in number]
    if not known:
        return columns
    gaussians = np.concatenate([look.gaussians for look in known])
    of_view = np.repeat([number[look.view] for look in known], [len(look.gaussians) for look in known])
    matrices = []
    for inside in (True, False):
        kept = [((look.ids > 0) == inside).astype(np.float32) for look in known]
        sums = np.concatenate([look.weights @ own for look, own in zip(known, kept)])
        some = np.flatnonzero(sums)
        matrix = coo_matrix((sums[some], (gaussians[some], of_view[some])), shape=(n_gaussians, len(views)))
        matrices.append(matrix.tocsr())
    left_out = LeftOut(*matrices)
    if nested := columns.nested:
        further = np.unique(nested.views)
        own = np.searchsorted(views, np.where(further < first, further, further - first))
        nested = replace(nested, left_out=left_out.of_views(own))
    return replace(columns, left_out=left_out, nested=nested)


def group_matrix(groups: np.ndarray, kept: np.ndarray | None = None) -> Any:
    """Turn groups [N] (-1: none) into a matrix [A, N] of ones, of the `kept` [N] bool only."""
    own = groups >= 0 if kept is None else (groups >= 0) & kept
    members = np.flatnonzero(own)
    shape = (int(groups.max(initial=-1)) + 1, len(groups))
    return csr_matrix((np.ones(len(members), np.float32), (groups[members], members)), shape=shape)
