"""From features to objects: HDBSCAN on a subsample, labels for everyone, a second look by the masks.

Policy: a subsample drawn by visible mass (small things keep their share, floaters get none) is clustered; every
Gaussian takes the label of its nearest clustered sample in feature space; the masks then vote once more through the
blending weights. Noise (-1) is what no view sees, and what the settings ask for. Labels count from 1, largest segment
first, so that one number names an object everywhere: in labels, in id maps and in file names.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from scipy.sparse import coo_matrix
from torch import Tensor

from cgc.errors import InputError
from cgc.settings import ClusterSettings

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


@dataclass(frozen=True)
class Clustering:
    """labels [N] int32 (NOISE or 1..K), confidences [N] float32 in [0, 1]; tree: columns of the condensed tree."""

    labels: np.ndarray
    confidences: np.ndarray
    tree: dict[str, np.ndarray]

    @property
    def n_segments(self) -> int:
        """K, the number of segments."""
        return int(self.labels.max(initial=0))


def cluster(features: Tensor, mass: Tensor, batches: Sequence[Weighing], settings: ClusterSettings) -> Clustering:
    """Cluster Gaussians by features [N, D] (unit rows); mass [N] is their visible mass.

    Memory: 4 B x samples x 4096 for distances, plus the sparse votes. InputError if nothing clusters.
    """
    unit = torch.nn.functional.normalize(features, dim=-1)
    seen = (mass > 0).numpy()
    if not seen.any():
        raise InputError(
            "no Gaussian is visible in any masked view: check that masks, cameras and splats belong together"
        )
    sample = draw_sample(mass, settings)
    sample_labels, tree = run_hdbscan(unit[sample].numpy(), settings)
    clustered = sample_labels >= 0
    if not clustered.any():
        raise InputError(
            f"everything is noise: HDBSCAN found no cluster of at least {settings.min_cluster_size} among "
            f"{len(sample)} sampled Gaussians; lower min-cluster-size, raise samples, or train "
            "the features longer (steps of `cgc lift`)"
        )
    labels, confidences = propagate(unit, unit[sample[clustered]], sample_labels[clustered])
    if settings.noise == "keep":
        own = np.full(len(features), False)
        own[sample[~clustered]] = True
        labels[own] = NOISE
    labels[~seen] = NOISE
    for _ in range(settings.revote):
        labels, confidences = revote(labels, batches, mass)
        labels[~seen] = NOISE
    confidences = np.where(labels == NOISE, 0, confidences).astype(np.float32)
    labels = np.where(confidences < settings.min_confidence, NOISE, labels)
    return Clustering(by_size(labels), confidences, tree)


def draw_sample(mass: Tensor, settings: ClusterSettings) -> np.ndarray:
    """Draw Gaussians without replacement with chance ~ mass^1/2, sorted indices."""
    generator = np.random.default_rng(settings.seed)
    candidates = np.flatnonzero((mass > 0).numpy())
    if len(candidates) <= settings.samples:
        return candidates
    keys = 0.5 * np.log(mass.numpy()[candidates]) + generator.gumbel(size=len(candidates))
    return np.sort(candidates[np.argpartition(-keys, settings.samples)[: settings.samples]])


def run_hdbscan(points: np.ndarray, settings: ClusterSettings) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Run HDBSCAN on points [S, D]; return labels [S] (-1 noise, from 0) and the condensed tree's columns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its import and its calls into scikit-learn warn of renamed arguments
        import hdbscan

        if len(points) < max(settings.min_cluster_size, 3):
            return np.full(len(points), -1), {}
        clusterer = hdbscan.HDBSCAN(
            min_cluster_size=settings.min_cluster_size,
            min_samples=settings.min_samples or None,
            cluster_selection_method=settings.selection,
            core_dist_n_jobs=1,
        ).fit(points.astype(np.float64))
        raw = clusterer.condensed_tree_.to_numpy()
    return clusterer.labels_, {name: np.ascontiguousarray(raw[name]) for name in raw.dtype.names}


def propagate(unit: Tensor, samples: Tensor, sample_labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give each row of unit [N, D] the label of its nearest sample [S, D]; labels [N] and confidences [N].

    Confidence 1 - d1/d2 compares the distances to the nearest sample of its own label and of any other.
    """
    order = np.argsort(sample_labels, kind="stable")
    kinds, starts = np.unique(sample_labels[order], return_index=True)
    samples, ends = samples[torch.from_numpy(order)], [*starts[1:], len(order)]
    labels, confidences = np.empty(len(unit), np.int32), np.empty(len(unit), np.float32)
    for begin in range(0, len(unit), 4096):
        cosine = unit[begin : begin + 4096] @ samples.T  # [4096, S]
        best = torch.stack([cosine[:, a:b].amax(1) for a, b in zip(starts, ends)], dim=1)  # [4096, kinds]
        top, which = best.topk(min(2, len(kinds)), dim=1)
        distance = (2 - 2 * top).clamp_min(0).sqrt()
        labels[begin : begin + 4096] = kinds[which[:, 0].numpy()]
        sure = 1 - distance[:, 0] / distance[:, 1].clamp_min(1e-9) if len(kinds) > 1 else torch.ones(len(top))
        confidences[begin : begin + 4096] = sure.numpy()
    return labels, confidences


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
