"""Cut a set of points into a number of pieces: at gaps where there are some, else into compact lumps."""

from __future__ import annotations

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial import KDTree

from cgc.errors import InputError

MAX_POINTS = 2000
"""So many points are looked at; the others go with the nearest of them."""
MIN_SHARE = 0.02
"""A piece at a gap has at least this share of the points."""


def find_pieces(means: np.ndarray, pieces: int, features: np.ndarray | None = None) -> np.ndarray:
    """Cut points [n, 3] into pieces [n] from 0, the largest first; `features` [n, D] count as much as places do."""
    if isinstance(pieces, bool) or not isinstance(pieces, (int, np.integer)) or not 2 <= pieces <= len(means):
        raise InputError(
            f"a number of pieces from 2 to the segment's {len(means)} Gaussians was expected, got {pieces!r}"
        )
    points = _spread_one(means)
    if features is not None:
        if not np.isfinite(features).all():
            raise InputError("the features hold NaN or infinite values; learn them again")
        points = np.concatenate([points, _spread_one(features.astype(float))], axis=1)
    chosen = np.random.default_rng(0).permutation(len(points))[: max(MAX_POINTS, pieces)]
    sample = points[np.sort(chosen)]
    found = _at_gaps(sample, int(pieces))
    if found is None:
        found = fcluster(linkage(sample, "ward"), pieces, "maxclust")
    near = KDTree(sample).query(points)[1]
    names, index, counts = np.unique(found[near], return_inverse=True, return_counts=True)
    if len(names) < pieces:
        raise InputError(f"the segment does not fall into {pieces} pieces: its Gaussians lie in {len(names)} places")
    rank = np.empty(len(names), np.int32)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(names))
    return rank[index]


def _spread_one(values: np.ndarray) -> np.ndarray:
    """Centre values [n, D] and scale them to a mean square distance of 1."""
    centred = values - values.mean(0)
    return centred / max(float(np.sqrt((centred**2).sum(1).mean())), 1e-12)


def _at_gaps(points: np.ndarray, pieces: int) -> np.ndarray | None:
    """Cut at the widest gap that leaves `pieces` sizeable pieces; crumbs go with the nearest. None: there is none.

    A gap is twice as wide as what lies between neighbours in the pieces that it parts.
    """
    tree = linkage(points, "single")
    least = max(2, int(np.ceil(MIN_SHARE * len(points))))
    usual = np.percentile(tree[:, 2], 95)
    for height in np.unique(tree[tree[:, 2] > 2 * usual, 2])[::-1]:
        found = fcluster(tree, height * (1 - 1e-9), "distance")
        sizes = np.bincount(found)
        large = np.flatnonzero(sizes >= least)
        if len(large) == pieces:
            kept = np.flatnonzero(np.isin(found, large))
            return found[kept][KDTree(points[kept]).query(points)[1]]
        if len(large) > pieces:
            return None
    return None
