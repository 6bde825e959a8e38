"""W^T M on a device: the columns that masks are, and the two questions that are asked of them again and again.

Notation: N Gaussians, M masks, E entries (Gaussian, mask, weight), A groups, L labels. Weights are summed in float64,
where sums of float32 weights are exact for any scene there is, and votes, which are products, in whole numbers of
1 / FINEST: so they are added in any order, by atomics, and the result is the same. A million Gaussians in 200 views
are some 30 million entries, 12 B each: what groups weigh in masks (`under`) reads them once, 0.1 ms and about a
millisecond of atomics on an H100; an election (`elect`) does as much and writes and reads a table [N, L] in pieces,
16 B for each of N x L, 1 ms for 200 labels. Estimated, not measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix, hstack
from torch import Tensor

from cgc.keyed import sum_by_key

TABLE = 1 << 25  # numbers of 8 bytes that are held at once: 256 MB
FINEST = 1 << 32  # parts of a pixel's weight that votes are counted in; a Gaussian may have those of 2e9 pixels


@dataclass(frozen=True)
class DeviceMatrix:
    """The matrix [N, M] of `Columns` on a device: gaussians [E] int32, rising, masks [E] int32, weights [E] float32.

    indptr [N + 1] int64 says where each Gaussian's entries begin. `wholes` [M, K] says which further columns, sums of
    those here, come after them.
    """

    gaussians: Tensor
    masks: Tensor
    weights: Tensor
    indptr: Tensor
    n_masks: int
    wholes: Any = None

    @property
    def nnz(self) -> int:
        """How many entries there are, E."""
        return len(self.weights)

    @cached_property
    def host(self) -> Any:
        """The matrix as scipy has it; the entries come from the device."""
        arrays = (x.cpu().numpy() for x in (self.weights, self.masks, self.indptr))
        matrix: Any = csr_matrix(tuple(arrays), shape=(len(self.indptr) - 1, self.n_masks))
        return matrix if self.wholes is None else hstack([matrix, matrix @ self.wholes], format="csr")

    def under(self, groups: Any) -> np.ndarray:
        """Return what groups [A, N], a sparse matrix of weights, weigh in each mask, [A, M] float32, on the host."""
        if np.bincount(groups.indices, minlength=1).max(initial=0) > 1:  # a Gaussian in several groups
            return (groups @ self.host).toarray()
        count, device = groups.shape[0], self.weights.device
        groups = groups.tocoo()
        of = np.full(groups.shape[1], count)
        scale = np.zeros(len(of), np.float32)
        of[groups.col], scale[groups.col] = groups.row, groups.data
        index = torch.from_numpy(of).to(device)[self.gaussians] * self.n_masks + self.masks
        shown = torch.zeros((count + 1) * self.n_masks, dtype=torch.float64, device=device)
        shown.index_add_(0, index, self.weights.double() * torch.from_numpy(scale).to(device)[self.gaussians])
        own = shown[: count * self.n_masks].view(count, self.n_masks).float().cpu().numpy()
        return own if self.wholes is None else np.concatenate([own, own @ self.wholes], 1)

    def elect(
        self, winners: np.ndarray, worth: np.ndarray, labels: np.ndarray, own: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Let each mask vote for a label by `worth` [M] times its weight on a Gaussian; returns who wins.

        Each Gaussian adds `own` [N] for its label. winners [M] and labels [N] are from 0. Returns the label with most
        votes [N] (ties: the lower), and its share.
        """
        count = int(max(winners.max(initial=0), labels.max(initial=0))) + 1
        n, device = len(labels), self.weights.device
        winner, value = torch.from_numpy(winners).to(device), torch.from_numpy(worth.astype(np.float64)).to(device)
        label, mine = torch.from_numpy(labels).to(device).long(), torch.from_numpy(own.astype(np.float64)).to(device)
        best = torch.empty(n, dtype=torch.int32, device=device)
        share = torch.empty(n, device=device)
        rows = max(TABLE // count, 1)
        begins = torch.arange(0, n + rows, rows, device=device).clamp(max=n)
        places, bounds = begins.tolist(), self.indptr[begins].tolist()
        for begin, end, first, last in zip(places, places[1:], bounds, bounds[1:]):
            entries, votes = slice(first, last), torch.zeros(end - begin, count, dtype=torch.int64, device=device)
            masks = self.masks[entries].long()
            index = (self.gaussians[entries].long() - begin) * count + winner[masks]
            votes.view(-1).index_add_(0, index, _whole(self.weights[entries].double() * value[masks]))
            votes.scatter_add_(1, label[begin:end, None], _whole(mine[begin:end, None]))
            top, which = votes.max(1)  # of equal ones the first
            best[begin:end], share[begin:end] = which.int(), (top.double() / votes.sum(1).clamp_min(1)).float()
        return best.cpu().numpy(), share.cpu().numpy()


def _whole(votes: Tensor) -> Tensor:
    """Return votes in whole numbers of 1 / FINEST."""
    return (votes * FINEST).round().long()


class Summing:
    """Makes a `DeviceMatrix` of one view's entries after the other's. Memory: 12 B an entry, 40 while it is made."""

    def __init__(self, n_gaussians: int, device: torch.device) -> None:
        """Begin with a matrix of no columns."""
        self._n, self._device, self._first = n_gaussians, device, 0
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, gaussians: Tensor, masks: Tensor, weights: Tensor, count: int) -> None:
        """Add `count` columns and their entries [E], of which several may be of one Gaussian and mask."""
        keys, sums = sum_by_key(gaussians.long() * count + masks, weights)
        self._parts.append(((keys // count).int(), (keys % count).int() + self._first, sums.float()))
        self._first += count

    def matrix(self) -> DeviceMatrix:
        """Return what was added, by Gaussian."""
        none = torch.empty(0, dtype=torch.int32, device=self._device)
        gaussians, masks, weights = (torch.cat(some) for some in zip((none, none, none.float()), *self._parts))
        self._parts = []
        gaussians, order = gaussians.sort(stable=True)
        numbers = torch.arange(self._n + 1, dtype=torch.int32, device=self._device)
        indptr = torch.searchsorted(gaussians, numbers)
        return DeviceMatrix(gaussians, masks[order], weights[order], indptr, self._first)
