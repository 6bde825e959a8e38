"""One segmentation from that of each block: the objects that blocks share, their parts, and the wholes above them.

Notation: N Gaussians, B blocks, n Gaussians and T nodes of a block, its objects among them. The block in whose core a
Gaussian lies is its owner and says what it is; one that has it in its margin says what it would call it. So nodes of
two blocks meet in Gaussians, by visible mass, which is the same in every block. Two are one where each is the other's
best in what their blocks share, and more than half of the smaller's mass there is in both; and a node of which most
belongs to one node of an owner is that node. Objects are joined so, then their finest parts; wholes are what masks of
all blocks hold several objects in. Nothing depends on the order of the blocks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components

from cgc.blocks.trees import Joint, grow_parts
from cgc.clustering.columns import Columns, group_matrix
from cgc.clustering.graph import Counts, count_views, join
from cgc.clustering.hierarchy import Hierarchy
from cgc.clustering.tree import APART, LEAST_RATE, add_wholes, cut_parts
from cgc.clustering.vote import NOISE, by_size

HALF = 0.5  # of two nodes' mass in what blocks share, of a node's mass and Gaussians at all: more is most of it
ENOUGH = 0.02  # of the smaller's Gaussians: with fewer in common two nodes only touch
MOST = 4000  # objects up to which it is asked what masks say of each two: memory goes by their square


class Piece(NamedTuple):
    """What a block was clustered to: `rows` [n] int64, rising; `core` [n] bool; mass, labels, confidences, leaves [n].

    parents and levels [T + 1] are those of its tree (see Hierarchy), the objects 1..K first. shown [T, M], sparse: what
    core Gaussians of each leaf weigh in each of M masks; views [M], ids [M]: those of these masks, and of masks that
    hold others, whose views have other numbers than any view.
    """

    rows: np.ndarray
    core: np.ndarray
    mass: np.ndarray
    labels: np.ndarray
    confidences: np.ndarray
    leaves: np.ndarray
    parents: np.ndarray
    levels: np.ndarray
    shown: Any
    views: np.ndarray
    ids: np.ndarray

    @property
    def count(self) -> int:
        """K, the number of objects."""
        return int(self.labels.max(initial=0))


class Joined(NamedTuple):
    """labels [N] int32 (NOISE or 1..K), confidences [N] float32, and the hierarchy that shows these at its base."""

    labels: np.ndarray
    confidences: np.ndarray
    hierarchy: Hierarchy


class Owned(NamedTuple):
    """Of each Gaussian the node of its owner that is its object, its leaf (0: none), its owner, its confidence: [N].

    Nodes of all blocks count from 1: those of block b, 1 to T, follow firsts[b].
    """

    objects: np.ndarray
    leaves: np.ndarray
    owners: np.ndarray
    confidences: np.ndarray
    firsts: np.ndarray

    @property
    def block_of(self) -> np.ndarray:
        """The block of each node, [nodes + 1]; node 0 has none and is given the first."""
        return np.append(0, np.repeat(np.arange(len(self.firsts) - 1), np.diff(self.firsts)))


def join_blocks(pieces: Sequence[Piece], n_gaussians: int, level: float) -> Joined:
    """Join blocks into one segmentation, whose objects are shown at `level`, as theirs are.

    Pieces are taken one at a time, several times. Memory: 24 B a Gaussian, and `count_views` of up to MOST objects.
    """
    owned = _owned(pieces, n_gaussians)
    objects = _components(len(owned.block_of), _meet(pieces, owned, "labels").pairs())
    object_of = _object_of(pieces, owned.firsts)
    pairs = _meet(pieces, owned, "leaves").pairs()
    within = objects[object_of[pairs[0]]] == objects[object_of[pairs[1]]]
    leaves = _components(len(objects), (pairs[0][within], pairs[1][within]))
    own = np.unique(owned.leaves[owned.leaves > 0])
    whole = np.zeros(int(leaves.max()) + 1, np.int64)  # of each component of leaves, that of objects
    whole[leaves[own]] = objects[object_of[own]]
    labels = by_size(_first_seen(np.where(owned.leaves > 0, whole[leaves[owned.leaves]], NOISE)))
    parts = _first_seen(np.where(owned.leaves > 0, leaves[owned.leaves], NOISE))
    confidences = np.where(labels > 0, owned.confidences, 0).astype(np.float32)
    if not 0 < level < 1 - APART:
        return Joined(labels, confidences, Hierarchy.flat(labels))
    parts, owners = cut_parts(labels, parts)
    part_of = np.full(len(whole), NOISE, np.int64)  # of each component of leaves
    part_of[leaves[owned.leaves[parts >= 0]]] = parts[parts >= 0]
    tree = grow_parts(parts, owners, _joints(pieces, owned.firsts, part_of[leaves], owners), level)
    label_of = np.full(len(whole), NOISE)
    label_of[leaves[owned.leaves[labels > 0]]] = labels[labels > 0] - 1
    if 0 <= label_of.max(initial=NOISE) < MOST:
        counts = _count(_columns(pieces, owned.firsts, leaves), label_of)
        add_wholes(tree.parents, tree.levels, join(counts, LEAST_RATE), level)
    hierarchy = Hierarchy(tree.leaves, np.array(tree.parents, np.int32), np.array(tree.levels, np.float32), level)
    return Joined(labels, confidences, hierarchy)


def _owned(pieces: Sequence[Piece], n_gaussians: int) -> Owned:
    """Let each Gaussian's owner say what it is."""
    objects, leaves, owners = (np.zeros(n_gaussians, np.int32) for _ in range(3))
    confidences, firsts = np.zeros(n_gaussians, np.float32), [0]
    for block, piece in enumerate(pieces):
        rows, first = piece.rows[piece.core], firsts[-1]
        objects[rows] = _numbered(piece.labels[piece.core], first)
        leaves[rows] = _numbered(piece.leaves[piece.core], first)
        confidences[rows], owners[rows] = piece.confidences[piece.core], block
        firsts.append(first + len(piece.parents) - 1)
    return Owned(objects, leaves, owners, confidences, np.array(firsts))


def _numbered(nodes: np.ndarray, first: int) -> np.ndarray:
    """Number a block's nodes (NOISE or 1..T) as those of all blocks, from 1; 0 for NOISE."""
    return np.where(nodes > 0, nodes + first, 0)


class Meetings(NamedTuple):
    """How nodes meet: the mass and number of Gaussians that node `own` of one block has in node `met` of an owner, [E].

    shared [nodes, B]: the mass of a node in what its block shares with each other one; mass and sizes [nodes]: all of
    its own mass, and how many Gaussians.
    """

    own: np.ndarray
    met: np.ndarray
    weights: np.ndarray
    counts: np.ndarray
    shared: Any
    mass: np.ndarray
    sizes: np.ndarray
    block_of: np.ndarray

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Return which nodes are one: each other's best with most of the smaller's mass, or most of a node."""
        low, high = np.minimum(self.own, self.met), np.maximum(self.own, self.met)
        low, high, weights, counts = _summed(low, high, self.weights, self.counts, len(self.mass))
        least = np.minimum(self._shared(low, high), self._shared(high, low))
        one = self._best(low, high, weights) & self._best(high, low, weights) & (weights > HALF * least)
        one &= counts > ENOUGH * np.minimum(self.sizes[low], self.sizes[high])
        owned = (self.weights > HALF * self.mass[self.own]) & (self.counts > HALF * self.sizes[self.own])
        return np.append(low[one], self.own[owned]), np.append(high[one], self.met[owned])

    def _shared(self, node: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.asarray(self.shared[node, self.block_of[other]]).ravel() if len(node) else np.zeros(0)

    def _best(self, node: np.ndarray, other: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Say where `other` is the heaviest that `node` meets in that block, [E] bool."""
        key = node * (int(self.block_of.max()) + 1) + self.block_of[other]
        order = np.lexsort((-weights, key))
        best = np.zeros(len(node), bool)
        best[order[np.append(True, np.diff(key[order]) > 0)[: len(order)]]] = True
        return best


def _meet(pieces: Sequence[Piece], owned: Owned, which: str) -> Meetings:
    """Find how the objects ("labels") or the finest parts ("leaves") of blocks meet."""
    of_owner = owned.objects if which == "labels" else owned.leaves
    n, block_of = len(owned.block_of), owned.block_of
    mass, sizes, found, places = np.zeros(n), np.zeros(n), [], []
    for block, piece in enumerate(pieces):
        own = _numbered(getattr(piece, which), int(owned.firsts[block]))
        mass += np.bincount(own, piece.mass, minlength=n)
        sizes += np.bincount(own, minlength=n)
        margin = ~piece.core
        own, rows, weights = own[margin], piece.rows[margin], piece.mass[margin].astype(float)
        met, owners = of_owner[rows].astype(np.int64), owned.owners[rows]
        both = (own > 0) & (met > 0) & (weights > 0)
        found.append(_summed(own[both], met[both], weights[both], np.ones(int(both.sum())), n))
        places += [(own, owners, weights), (met, np.full(len(met), block), weights)]
    own, met, weights, counts = (np.concatenate(x) for x in zip(*found))
    nodes, blocks, weighs = (np.concatenate(x) for x in zip(*places))
    shared = coo_matrix((weighs, (nodes, blocks)), shape=(n, len(pieces))).tocsr()
    return Meetings(own, met, weights, counts, shared, mass, sizes, block_of)


def _summed(
    a: np.ndarray, b: np.ndarray, weights: np.ndarray, counts: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sum the weights and counts [E] of each pair (a, b) of n nodes, by rising pair."""
    keys, index = np.unique(a.astype(np.int64) * n + b, return_inverse=True)
    summed, counted = (np.bincount(index, some, minlength=len(keys)) for some in (weights, counts))
    return keys // n, keys % n, summed, counted


def _components(n: int, pairs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Number what pairs of n nodes connect, [n] from 0."""
    graph = coo_matrix((np.ones(len(pairs[0]), bool), pairs), shape=(n, n))
    return connected_components(graph, directed=False)[1]


def _first_seen(values: np.ndarray) -> np.ndarray:
    """Number values [N] from 0 in the order in which they come; NOISE stays."""
    kinds, first, index = np.unique(values, return_index=True, return_inverse=True)
    own = kinds != NOISE
    number = np.full(len(kinds), NOISE)
    number[np.flatnonzero(own)[np.argsort(first[own])]] = np.arange(int(own.sum()))
    return number[index]


def _object_of(pieces: Sequence[Piece], firsts: np.ndarray) -> np.ndarray:
    """Return the object that each node is or is a part of, [nodes + 1]; 0 for wholes."""
    found = [np.zeros(1, np.int64)]
    for piece, first in zip(pieces, firsts):
        node, count = np.arange(len(piece.parents)), piece.count
        while (part := (node > count) & (piece.parents[node] > 0)).any():
            node = np.where(part, piece.parents[node], node)
        found.append(_numbered(np.where(node > count, 0, node)[1:], int(first)))
    return np.concatenate(found)


def _columns(pieces: Sequence[Piece], firsts: np.ndarray, leaves: np.ndarray) -> Columns:
    """Sum what masks show of the components of leaves [nodes + 1], over all blocks: a row a component."""
    keys = np.concatenate([np.stack([piece.views, piece.ids], 1) for piece in pieces])
    masks, index = np.unique(keys, axis=0, return_inverse=True)
    total: Any = csr_matrix((int(leaves.max()) + 1, len(masks)), dtype=np.float32)
    begin = 0
    for piece, first in zip(pieces, firsts):
        shown = piece.shown.tocoo()
        end = begin + len(piece.views)
        places = (leaves[shown.row + 1 + first], index.ravel()[begin:end][shown.col])
        total = total + coo_matrix((shown.data, places), shape=total.shape).tocsr()
        begin = end
    return Columns(total, masks[:, 0], masks[:, 1])


def _count(columns: Columns, groups: np.ndarray) -> Counts:
    """Count the views in which masks have groups of components together; groups [components] from 0, or NOISE."""
    rows = group_matrix(groups) @ columns.matrix
    shown = np.flatnonzero(np.asarray(rows.sum(axis=0)).ravel())
    some = Columns(csr_matrix(rows[:, shown]), columns.views[shown], columns.ids[shown])
    return count_views(some, group_matrix(np.arange(rows.shape[0])))


def _joints(pieces: Sequence[Piece], firsts: np.ndarray, part_of: np.ndarray, owners: np.ndarray) -> Iterator[Joint]:
    """Yield what the blocks' trees say of the parts of objects; part_of [nodes + 1] is that of a leaf, or NOISE."""
    for piece, first in zip(pieces, firsts):
        below: dict[tuple[int, int], set[int]] = defaultdict(set)
        for leaf in np.unique(piece.leaves[piece.leaves > 0]).tolist():
            part, node = int(part_of[leaf + first]), leaf
            while part != NOISE and node > piece.count:
                node = int(piece.parents[node])
                below[node, int(owners[part])].add(part)
        for (node, _), parts in below.items():
            if len(parts) > 1:
                yield Joint(float(piece.levels[node]), frozenset(parts))
