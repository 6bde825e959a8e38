"""Votes of masks through the blending weights, and what labels are: NOISE, or 1..K by falling size.

A mask votes for Gaussians by the weight they have in its pixels: a column of W^T M.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from scipy.sparse import coo_matrix
from torch import Tensor

NOISE = -1


class Weighing(Protocol):
    """Sampled pixels of one view: rows of W, whose columns are `gaussians`, with the mask of each pixel.

    features.samples.Batch is one.
    """

    @property
    def gaussians(self) -> Tensor: ...
    @property
    def weights(self) -> Any: ...
    @property
    def masks(self) -> Tensor: ...
    @property
    def mask_ids(self) -> Tensor: ...


def revote(labels: np.ndarray, batches: Sequence[Weighing], mass: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Let each mask vote for the label most of it shows, through W^T, weighted by its purity squared.

    A mask's purity is the share of its majority label in the weight under it. Each Gaussian adds a tenth of its mass
    for the label it has. Returns labels [N] and the winner's share of the votes as confidences [N].
    """
    n = len(labels)
    shift = labels - labels.min(initial=0)  # noise takes part as a label of its own, but is never voted for
    n_labels = int(shift.max(initial=0)) + 1
    is_noise = (np.arange(n_labels) + labels.min(initial=0)) == NOISE
    own = coo_matrix((0.1 * mass.numpy() + 1e-9, (np.arange(n), shift)), shape=(n, n_labels)).tocsr()
    votes = own
    for batch in batches:
        rows, ids, weights = (
            batch.weights.rows.numpy(),
            batch.gaussians.numpy()[batch.weights.ids.numpy()],
            batch.weights.weights.numpy(),
        )
        mask_of_entry = batch.masks.numpy()[rows]
        m = len(batch.mask_ids)
        shown = np.bincount(mask_of_entry * n_labels + shift[ids], weights, m * n_labels).reshape(m, n_labels)
        purity = shown.max(1, initial=0.0, where=~is_noise) / np.maximum(shown.sum(1), 1e-9)
        winner = np.where(is_noise, -1.0, shown).argmax(1)
        strength = (weights * purity[mask_of_entry] ** 2).astype(np.float32)
        votes = votes + coo_matrix((strength, (ids, winner[mask_of_entry])), shape=(n, n_labels)).tocsr()
    best, share = _row_winner(votes)
    return (best + labels.min(initial=0)).astype(np.int32), share


def _row_winner(votes: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return each row's heaviest column and its share of the row; every row holds at least one entry."""
    sums = np.asarray(votes.sum(axis=1)).ravel()
    top = np.maximum.reduceat(votes.data, votes.indptr[:-1])
    rows = np.repeat(np.arange(votes.shape[0]), np.diff(votes.indptr))
    is_top = votes.data == top[rows]
    best = np.full(votes.shape[0], votes.shape[1])
    np.minimum.at(best, rows[is_top], votes.indices[is_top])  # ties: the lower label
    return best, (top / np.maximum(sums, 1e-12)).astype(np.float32)


def by_size(labels: np.ndarray) -> np.ndarray:
    """Renumber labels from 1 by falling size (ties: the older number first); noise stays noise."""
    kept, counts = np.unique(labels[labels != NOISE], return_counts=True)
    new = np.empty(len(kept), np.int32)
    new[np.lexsort((kept, -counts))] = np.arange(1, len(kept) + 1)
    out = np.full(len(labels), NOISE, np.int32)
    out[labels != NOISE] = new[np.searchsorted(kept, labels[labels != NOISE])]
    return out
