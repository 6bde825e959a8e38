"""A spanning tree for HDBSCAN whose cost does not grow as the square of the points.

Each point is linked with its nearest ones, by mutual reachability max(d, core_i, core_j): a minimum spanning forest of
these links is that of all pairs wherever clusters hang together. What is left apart are whole clusters. Their densest
points stand for them in a tree of all pairs, and each of its links is then moved to where the two come close. So the
tree's links inside of clusters are exact, and those between clusters at most a little long.
"""

# pyright: reportCallIssue=false, reportReturnType=false, reportArgumentType=false
# (numba changes the signatures of what it compiles)

from __future__ import annotations

import numpy as np
from numba import float32 as f
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from cgc.kernels import kernel
from cgc.neighbours import build_tree, nearest_others

_LEAST = 1e-12  # of a link: scipy takes 0 for no link


def spanning_tree(points: np.ndarray, min_samples: int) -> np.ndarray:
    """Return S - 1 links of points [S, D], S > 1, by rising length: columns from, to, mutual reachability [S - 1, 3].

    A core distance is that to the min_samples-th other point. Memory: 60 B x S x min_samples.
    """
    points = np.ascontiguousarray(points, np.float32)
    n = len(points)
    others, distances = nearest_others(build_tree(points), min_samples)
    cores = distances[:, -1].copy()
    lengths = np.maximum(distances, np.maximum(cores[:, None], cores[others])).astype(np.float64)
    rows = np.repeat(np.arange(n), others.shape[1])
    links = _canonical(rows, others.ravel(), lengths.ravel(), n)
    forest = minimum_spanning_tree(links).tocoo()
    count, part = connected_components(forest, directed=False)
    edges = np.stack([forest.row, forest.col, forest.data], axis=1)
    if count > 1:
        by_core = np.lexsort((cores, part))
        starts = np.searchsorted(part[by_core], np.arange(count + 1))
        joints = _join(points, cores, by_core, starts)
        edges = np.concatenate([edges, joints])
    return edges[np.argsort(edges[:, 2], kind="stable")]


def _canonical(rows: np.ndarray, columns: np.ndarray, lengths: np.ndarray, n: int) -> coo_matrix:
    """Each link once, from the lower number to the higher one."""
    low, high = np.minimum(rows, columns), np.maximum(rows, columns)
    _, first = np.unique(low * n + high, return_index=True)
    return coo_matrix((np.maximum(lengths[first], _LEAST), (low[first], high[first])), shape=(n, n)).tocsr()


@kernel
def _join(points, cores, members, starts):
    """Link parts c, whose points are members[starts[c]:starts[c + 1]], densest first: C - 1 links [C - 1, 3].

    A minimum spanning tree (Prim) of the densest points; then the nearest pair is sought from one side to the other.
    """
    parts = starts.shape[0] - 1
    links = np.empty((parts - 1, 3))
    best, origin = np.full(parts, np.inf, np.float32), np.zeros(parts, np.int64)
    inside, newest = np.zeros(parts, np.bool_), 0
    inside[0] = True
    centres = np.empty((parts, points.shape[1]), np.float32)
    for c in range(parts):
        centres[c] = points[members[starts[c]]]
    for k in range(parts - 1):
        least, following = f(np.inf), -1
        for c in range(parts):
            if inside[c]:
                continue
            square = f(0.0)
            for d in range(points.shape[1]):
                square += (centres[c, d] - centres[newest, d]) ** 2
            if square < best[c]:
                best[c], origin[c] = square, newest
            if best[c] < least or following < 0:
                least, following = best[c], c
        newest = following
        inside[newest] = True
        a = members[starts[origin[newest]]]
        b = _closest(points, a, members, starts[newest], starts[newest + 1])
        for _ in range(3):
            a = _closest(points, b, members, starts[origin[newest]], starts[origin[newest] + 1])
            b = _closest(points, a, members, starts[newest], starts[newest + 1])
        length = np.sqrt(_square(points, a, b))
        links[k, 0], links[k, 1] = a, b
        links[k, 2] = max(length, cores[a], cores[b], _LEAST)
    return links


@kernel
def _square(points, a, b):
    square = f(0.0)
    for d in range(points.shape[1]):
        square += (points[a, d] - points[b, d]) ** 2
    return square


@kernel
def _closest(points, point, members, begin, end):
    """The one of members[begin:end] that is nearest to a point."""
    least, closest = f(np.inf), members[begin]
    for k in range(begin, end):
        square = _square(points, point, members[k])
        if square < least:
            least, closest = square, members[k]
    return closest
