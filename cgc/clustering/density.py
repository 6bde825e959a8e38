"""Clusters of features: HDBSCAN on a subsample drawn by visible mass, labels for everyone.

Small things keep their share of the subsample, floaters get none; every Gaussian takes the label of its nearest
clustered sample in feature space.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from cgc.settings import ClusterSettings


def draw_sample(mass: Tensor, settings: ClusterSettings) -> np.ndarray:
    """Draw visible Gaussians without replacement with chance ~ mass^1/2, or all alike; sorted indices."""
    generator = np.random.default_rng(settings.seed)
    candidates = np.flatnonzero((mass > 0).numpy())
    if len(candidates) <= settings.samples:
        return candidates
    if settings.draw == "uniform":
        return np.sort(generator.choice(candidates, settings.samples, replace=False))
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
