"""Votes of masks through the blending weights, and what labels are: NOISE, or 1..K by falling size.

A mask votes for Gaussians by the weight they have in its pixels: a column of W^T M.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix, diags
from torch import Tensor

from cgc.clustering.columns import Columns
from cgc.clustering.device_columns import DeviceMatrix

NOISE = -1
OWN = 0.1  # of its mass: what a Gaussian's vote for the label it has weighs


def revote(labels: np.ndarray, columns: Columns, mass: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Let each mask vote for the label most of it shows, through W^T, weighted by its purity squared.

    A mask's purity is the share of its majority label in the weight under it, so that masks of several objects
    (under-segmented ones) hardly count. Each Gaussian adds a tenth of its mass for the label it has. Returns labels [N]
    and the winner's share of the votes as confidences [N].
    """
    n, lowest = len(labels), labels.min(initial=0)
    shift = labels - lowest  # noise takes part as a label of its own, but is never voted for
    shape = (n, int(shift.max(initial=0)) + 1)
    is_noise = (np.arange(shape[1]) + lowest) == NOISE
    own = OWN * mass.numpy() + 1e-9
    ones: Any = csr_matrix((np.ones(n, np.float32), (shift, np.arange(n))), shape=shape[::-1])
    shown = columns.under(ones).toarray().T  # [M, labels]
    purity = shown.max(1, initial=0.0, where=~is_noise) / np.maximum(shown.sum(1), 1e-9)
    winner = np.where(is_noise, -1.0, shown).argmax(1)
    if isinstance(columns.matrix, DeviceMatrix):
        best, share = columns.matrix.elect(winner, purity**2, shift, own)
        return (best + lowest).astype(np.int32), share
    masks = np.arange(len(winner))
    ballots: Any = csr_matrix((np.ones(len(masks), np.float32), (masks, winner)), shape=(len(masks), shape[1]))
    votes = columns.matrix @ diags(purity**2) @ ballots + coo_matrix((own, (np.arange(n), shift)), shape=shape).tocsr()
    best, share = _winners(votes.tocsr())
    return (best + lowest).astype(np.int32), share


def row_winners(votes: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return each row's heaviest column of a csr matrix, and its share, [N] each; -1 and 0 for rows without a vote.

    Zeros that `votes` stores are dropped from it, in place.
    """
    votes.eliminate_zeros()
    some = np.flatnonzero(np.diff(votes.indptr))
    best, shares = np.full(votes.shape[0], -1, np.int32), np.zeros(votes.shape[0], np.float32)
    if len(some):
        best[some], shares[some] = _winners(votes[some])
    return best, shares


def without(votes: Any, best: np.ndarray) -> Any:
    """Return votes [N, K] in which each row's column `best` [N] (-1: none) has none."""
    rest = votes.copy()
    rest.data[rest.indices == np.repeat(best, np.diff(rest.indptr))] = 0.0
    return rest


def _winners(votes: Any) -> tuple[np.ndarray, np.ndarray]:
    """Do as `row_winners` where every row holds an entry."""
    sums = np.asarray(votes.sum(axis=1)).ravel()
    top = np.maximum.reduceat(votes.data, votes.indptr[:-1])
    rows = np.repeat(np.arange(votes.shape[0]), np.diff(votes.indptr))
    is_top = votes.data == top[rows]
    best = np.full(votes.shape[0], votes.shape[1])
    np.minimum.at(best, rows[is_top], votes.indices[is_top])  # ties: the lower label
    return best, (top / np.maximum(sums, 1e-12)).astype(np.float32)


def by_size(labels: np.ndarray) -> np.ndarray:
    """Renumber labels [N] from 1 by falling size (ties: the older number first); noise stays noise."""
    kept, counts = np.unique(labels[labels != NOISE], return_counts=True)
    new = np.empty(len(kept), np.int32)
    new[np.lexsort((kept, -counts))] = np.arange(1, len(kept) + 1)
    out = np.full(len(labels), NOISE, np.int32)
    out[labels != NOISE] = new[np.searchsorted(kept, labels[labels != NOISE])]
    return out


def compact(labels: np.ndarray) -> np.ndarray:
    """Renumber labels [N] from 0 in their order, without gaps; noise stays -1."""
    out = np.full(len(labels), NOISE, np.int32)
    out[labels >= 0] = np.unique(labels[labels >= 0], return_inverse=True)[1]
    return out


def regroup(groups: np.ndarray, into: np.ndarray) -> np.ndarray:
    """Return into[g] for each g of groups [N] that count from 0; noise stays noise."""
    return np.where(groups >= 0, into[np.maximum(groups, 0)], NOISE) if len(into) else groups


def cut(owners: np.ndarray, kinds: np.ndarray, least: int, share: float = 0.0) -> np.ndarray:
    """Cut groups `owners` [n] by `kinds` [n], both from 0, into pieces [n] from 0.

    Pieces of fewer than `least` members, or than `share` of their owner's, stay with the largest piece of their owner.
    """
    pair = owners.astype(np.int64) * (int(kinds.max(initial=0)) + 1) + kinds
    names, index, counts = np.unique(pair, return_inverse=True, return_counts=True)
    owner = names // (int(kinds.max(initial=0)) + 1)
    order = np.lexsort((-counts, owner))  # each owner's largest piece first
    groups, first = np.unique(owner[order], return_index=True)
    largest = order[first][np.searchsorted(groups, owner)]
    size = np.bincount(owner, counts)[owner]
    stays = counts >= np.maximum(least, share * size)
    return np.unique(np.where(stays, np.arange(len(names)), largest)[index], return_inverse=True)[1]
