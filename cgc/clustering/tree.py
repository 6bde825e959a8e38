"""The hierarchy of segments that masks imply: objects, the parts that most views join, and wholes that few views fuse.

Parts of an object are joined by falling rate until the object is whole, and objects by falling rate while any view
fuses them (graph.py). A node's level is the rate at which it came about, kept above its parent's, and on the objects'
side of the level that made these.
"""

from __future__ import annotations

import numpy as np

from cgc.clustering.beside import Beside
from cgc.clustering.columns import Columns, group_matrix
from cgc.clustering.graph import Joins, count_views, join
from cgc.clustering.hierarchy import Hierarchy
from cgc.clustering.vote import NOISE, cut, regroup

LEAST_SHARE = 0.03  # of an object's Gaussians: smaller parts stay with its largest
LEAST_PART = 15  # Gaussians, likewise
LEAST_RATE = 0.05  # at which objects still become wholes
APART = 1e-3  # between the levels of a node and its parent, where rates say nothing


def grow(
    labels: np.ndarray, parts: np.ndarray, columns: Columns, level: float, beside: Beside | None = None
) -> Hierarchy:
    """Make the hierarchy of objects labels [N] (NOISE or 1..K) from what they were joined of, parts [N] (-1: none).

    With what lies `beside` what, objects become wholes as long as any touch; without, while masks fuse them.
    """
    count = int(labels.max(initial=0))
    if not count or not 0 < level < 1 - APART:
        return Hierarchy.flat(labels)
    pieces, owners = cut_parts(labels, parts)
    pieces_of = [np.flatnonzero(owners == k) for k in range(1, count + 1)]
    parents, levels = [0] * (count + 1), [-1.0] + [1.0] * count
    node_of = np.zeros(len(owners), np.int32)
    counts = count_views(columns, group_matrix(pieces))

    def add(parent: int, at: float) -> int:
        parents.append(parent)
        levels.append(at)
        return len(parents) - 1

    for k, own in enumerate(pieces_of, 1):
        if len(own) == 1:
            node_of[own] = k
            continue
        joins = join(counts.of(own), 0.0)
        nodes = {joins.count + len(joins.rates) - 1: k}
        apart = min(APART, (1 - level) / (2 * len(joins.rates) + 2))
        levels[k] = float(np.clip(joins.rates[-1], level, 1 - apart * len(joins.rates)))
        for j in range(len(joins.rates) - 1, -1, -1):  # from the whole object down
            above = nodes[joins.count + j]
            for child in (int(joins.first[j]), int(joins.second[j])):
                if child < joins.count:
                    nodes[child] = node_of[own[child]] = add(above, 1.0)
                else:
                    rate = joins.rates[child - joins.count]
                    most = 1 - apart * (child - joins.count + 1)
                    nodes[child] = add(above, float(min(max(rate, levels[above] + apart), most)))
    objects = count_views(columns, group_matrix(np.where(labels > 0, labels - 1, -1)))
    add_wholes(parents, levels, join(objects, 0.0 if beside else LEAST_RATE, beside), level)
    leaves = regroup(pieces, node_of).astype(np.int32)
    return Hierarchy(leaves, np.array(parents, np.int32), np.array(levels, np.float32), level)


def add_wholes(parents: list[int], levels: list[float], joins: Joins, level: float) -> None:
    """Add what objects 1..K become above their `level`, by their joins, to the parents and levels of a tree."""
    made: list[int] = []
    lowest, apart = level, min(APART, level / (2 * len(joins.rates) + 2))
    for j in range(len(joins.rates)):  # from the objects up
        children = [int(c) for c in (joins.first[j], joins.second[j])]
        left = apart * (len(joins.rates) - j)  # what the joins to come need below this one
        lowest = float(min(max(joins.rates[j], left), lowest - apart))
        parents.append(0)
        levels.append(lowest)
        made.append(len(parents) - 1)
        for child in children:
            parents[child + 1 if child < joins.count else made[child - joins.count]] = made[-1]


def cut_parts(labels: np.ndarray, parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut objects by parts, small ones left with the object's largest: pieces [N] from 0 (-1: none), their objects."""
    own = np.flatnonzero(labels > 0)
    pieces = np.full(len(labels), NOISE, np.int32)
    pieces[own] = cut(labels[own], parts[own] + 1, LEAST_PART, LEAST_SHARE)
    owners = np.zeros(int(pieces.max()) + 1, np.int64)
    owners[pieces[own]] = labels[own]
    return pieces, owners
