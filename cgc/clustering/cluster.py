"""From features to objects: HDBSCAN on a subsample, labels for everyone, a second look by the masks.

Policy: a subsample drawn by visible mass is clustered, every Gaussian takes the label of its nearest clustered sample
(density.py); the masks then vote once more through the blending weights (vote.py). Noise (-1) is what no view sees, and
what the settings ask for. Labels count from 1, largest segment first, so that one number names an object everywhere: in
labels, in id maps and in file names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cgc.clustering.density import find_clusters
from cgc.clustering.hierarchy import Hierarchy
from cgc.clustering.vote import NOISE, Weighing, by_size, revote
from cgc.errors import InputError
from cgc.settings import ClusterSettings


@dataclass(frozen=True)
class Clustering:
    """labels [N] int32 (NOISE or 1..K), confidences [N] float32 in [0, 1]; tree: columns of the condensed tree.

    The labels are what the hierarchy shows at its base level.
    """

    labels: np.ndarray
    confidences: np.ndarray
    tree: dict[str, np.ndarray]
    hierarchy: Hierarchy

    @property
    def n_segments(self) -> int:
        """K, the number of segments."""
        return int(self.labels.max(initial=0))


def cluster(features: Tensor, mass: Tensor, batches: Sequence[Weighing], settings: ClusterSettings) -> Clustering:
    """Cluster Gaussians by features [N, D] (unit rows); mass [N] is their visible mass.

    Memory: a copy of the features and 40 B a Gaussian, plus the sparse votes. InputError if nothing clusters.
    """
    if not torch.isfinite(features).all():
        raise InputError("features hold NaN or infinity where finite numbers were expected; run `cgc lift` again")
    seen = (mass > 0).numpy()
    if not seen.any():
        raise InputError(
            "no Gaussian is visible in any masked view: check that masks, cameras and splats belong together"
        )
    found = find_clusters(torch.nn.functional.normalize(features, dim=-1).numpy(), mass, settings)
    if found is None:
        raise InputError(
            f"everything is noise: HDBSCAN found no cluster of at least {settings.min_cluster_size} among "
            f"{int(seen.sum())} visible Gaussians; lower min-cluster-size, or train "
            "the features longer (steps of `cgc lift`)"
        )
    labels, confidences = found.labels.astype(np.int32), found.confidences
    if settings.noise == "keep":
        labels[found.noise] = NOISE
    labels[~seen] = NOISE
    for _ in range(settings.revote):
        labels, confidences = revote(labels, batches, mass)
        labels[~seen] = NOISE
    confidences = np.where(labels == NOISE, 0, confidences).astype(np.float32)
    labels = np.where(confidences < settings.min_confidence, NOISE, labels)
    labels = by_size(labels)
    return Clustering(labels, confidences, found.tree, Hierarchy.flat(labels))
