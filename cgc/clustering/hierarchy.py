"""A hierarchy of segments: objects, the parts of them, and wholes that hold several; one number moves along it.

The meaning of a level x: two parts are one thing at x where at least the share x of the views that see both have them
in one mask. So a higher level is finer: at 0 the wholes are shown, at 1 the smallest parts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from cgc.clustering.vote import NOISE
from cgc.errors import InputError, some


@dataclass(frozen=True)
class Hierarchy:
    """A tree of segments 1..T: the objects (the run's own segments, 1..K unless edited), and parts of them and wholes.

    parents [T + 1] int32, 0 = none; levels [T + 1] float32 in 0..1, levels[0] = -1; leaves [N] int32: the finest node
    of each Gaussian (NOISE: none), one without children; base: the level at which the objects are shown.

    Node n is shown at the levels x with levels[parents[n]] < x <= levels[n]. Levels fall towards the roots, and are 1
    where a node has no children: at every level a Gaussian is in one node or noise.
    """

    leaves: np.ndarray
    parents: np.ndarray
    levels: np.ndarray
    base: float = 1.0

    def __post_init__(self) -> None:
        problem = _problem(self.leaves, self.parents, self.levels)
        if not problem and not 0 <= self.base <= 1:
            problem = f"its base level is {self.base} where 0 to 1 was expected"
        if problem:
            raise InputError(f"the hierarchy is broken: {problem}; cluster again")

    @classmethod
    def flat(cls, labels: np.ndarray) -> Hierarchy:
        """Make a hierarchy of objects alone, from labels [N] (NOISE or 1..K)."""
        n = int(labels.max(initial=0))
        levels = np.append(-1, np.ones(n)).astype(np.float32)
        return cls(np.where(labels > 0, labels, NOISE).astype(np.int32), np.zeros(n + 1, np.int32), levels)

    @property
    def n_nodes(self) -> int:
        """T, the number of nodes."""
        return len(self.parents) - 1

    @property
    def objects(self) -> np.ndarray:
        """The nodes that are shown at the base level, [K]."""
        return self.shown(self.base)

    @property
    def stops(self) -> np.ndarray:
        """The levels that are shown differently, ascending: x is shown like the first stop that is not below it."""
        return np.unique(self.levels[1:])

    @property
    def base_stop(self) -> int:
        """The index in `stops` of how the base level is shown."""
        return self.stop(self.base)

    @cached_property
    def sizes(self) -> np.ndarray:
        """How many Gaussians each node has, [T + 1] int64; 0 for node 0."""
        return self.add_up(np.bincount(self.leaves[self.leaves > 0], minlength=len(self.parents)))

    def named(self, most: int = 12) -> str:
        """Write the first ids that have a Gaussian, for a sentence."""
        return some(np.flatnonzero(self.sizes).tolist(), most)

    def add_up(self, counts: np.ndarray) -> np.ndarray:
        """Return the counts of nodes [T + 1] with those of all that is in each, int64; 0 for node 0."""
        counts = counts.astype(np.int64)
        for node in (1 + np.argsort(-self.levels[1:], kind="stable")).tolist():  # finest first
            counts[self.parents[node]] += counts[node]
        counts[0] = 0
        return counts

    def stop(self, level: float) -> int:
        """The index in `stops` of how a level is shown."""
        return int(np.searchsorted(self.stops, _checked(level)))

    def shown(self, level: float) -> np.ndarray:
        """The nodes that are shown at a level, ascending."""
        x = _checked(level)
        return np.flatnonzero((self.levels[self.parents] < x) & (x <= self.levels))

    def shown_for(self, level: float) -> np.ndarray:
        """What is shown at a level in place of each node, [T + 1]: itself or an ancestor; 0 where it is too coarse."""
        x = _checked(level)
        node = np.arange(len(self.parents), dtype=np.int32)
        while (hidden := self.levels[self.parents[node]] >= x).any():
            node = np.where(hidden, self.parents[node], node)
        return np.where(self.levels[node] < x, 0, node).astype(np.int32)

    def follow(self, origin: np.ndarray, labels: np.ndarray) -> Hierarchy:
        """Return the tree for other Gaussians, which came of those at `origin` [N'] and have labels [N'] of objects.

        One whose object is another than its origin's goes to the largest leaf of that object.
        """
        leaves = self.leaves[origin].astype(np.int32)
        moved = np.flatnonzero(self.at(self.base)[origin] != labels)
        if len(moved):
            sizes = np.bincount(self.leaves[self.leaves > 0], minlength=len(self.parents))
            owner = self.shown_for(self.base)  # each node's object
            largest = np.full(len(self.parents), NOISE, np.int32)
            for leaf in np.argsort(sizes, kind="stable").tolist():  # the last one written is the largest
                if sizes[leaf]:
                    largest[owner[leaf]] = leaf
            leaves[moved] = np.where(labels[moved] > 0, largest[np.maximum(labels[moved], 0)], NOISE)
        return replace(self, leaves=leaves)

    def at(self, level: float | None = None) -> np.ndarray:
        """The node that is shown for each Gaussian at a level (None: the base), labels [N] int32 with NOISE."""
        shown = self.shown_for(self.base if level is None else level)
        return np.where(self.leaves > 0, shown[np.maximum(self.leaves, 0)], NOISE).astype(np.int32)

    def parent(self, node: int) -> int:
        """The node that holds this one; 0 = none."""
        return int(self.parents[self._known(node)])

    def children(self, node: int) -> list[int]:
        """The nodes that this one is made of, ascending."""
        return (1 + np.flatnonzero(self.parents[1:] == self._known(node))).tolist()

    def ancestors(self, node: int) -> list[int]:
        """The nodes that hold this one, from its parent to its root."""
        found = []
        while node := self.parent(node):
            found.append(node)
        return found

    def inside(self, nodes: Iterable[int]) -> np.ndarray:
        """Say which nodes are some nodes or in one of them, [T + 1] bool."""
        found = np.isin(np.arange(len(self.parents)), list(nodes))
        while (more := found[self.parents] & ~found).any():
            found |= more
        return found

    def holds(self, node: int) -> np.ndarray:
        """Say which Gaussians a node holds, [N] bool."""
        return self.inside([self._known(node)])[np.maximum(self.leaves, 0)] & (self.leaves > 0)

    def _known(self, node: int) -> int:
        if not 1 <= node <= self.n_nodes:
            raise InputError(f"there is no segment {node}: ids go from 1 to {self.n_nodes}")
        return node


def _checked(level: float) -> np.float32:
    """Return a level as levels are stored; InputError where it is none."""
    if not isinstance(level, (int, float, np.number)) or not 0 <= level <= 1:
        raise InputError(f"level {level} is outside of the hierarchy: expected 0 (wholes) to 1 (smallest parts)")
    return np.float32(level)


def _problem(leaves: np.ndarray, parents: np.ndarray, levels: np.ndarray) -> str:
    """Say what is wrong with a tree; nothing where it is whole. Levels that rise to the children leave no cycles."""
    if leaves.ndim != 1 or parents.ndim != 1 or parents.shape != levels.shape or not len(parents):
        return f"it has parents of shape {parents.shape}, levels {levels.shape} and leaves {leaves.shape}"
    if not all(np.issubdtype(a.dtype, np.integer) for a in (leaves, parents)):
        return f"its nodes are {leaves.dtype} and {parents.dtype} where integers were expected"
    last = len(parents) - 1
    if parents[0] != 0 or levels[0] != -1:
        return f"node 0, which is none, has parent {parents[0]} and level {levels[0]:g} where 0 and -1 were expected"
    if parents.min() < 0 or parents.max() > last:
        return f"a parent is {parents.max() if parents.max() > last else parents.min()} where 0 to {last} was expected"
    if ((leaves != NOISE) & ((leaves < 1) | (leaves > last))).any():
        return f"leaves go from {leaves.min()} to {leaves.max()} where {NOISE} or 1 to {last} was expected"
    if not ((levels[1:] >= 0) & (levels[1:] <= 1)).all():
        return "a level is outside of 0 to 1"
    rises = levels[parents[1:]] < levels[1:]
    if not rises.all():
        node = 1 + int(np.flatnonzero(~rises)[0])
        return f"node {node} has level {levels[node]:g}, which is not above its parent's, {levels[parents[node]]:g}"
    has_children = np.zeros(last + 1, bool)
    has_children[parents[1:]] = True
    has_children[0] = False
    if (levels[1:][~has_children[1:]] != 1).any():
        node = 1 + int(np.flatnonzero(~has_children[1:] & (levels[1:] < 1))[0])
        return f"node {node} has no children but level {levels[node]:g} where 1 was expected"
    if has_children[np.maximum(leaves, 0)].any():
        node = int(leaves[has_children[np.maximum(leaves, 0)]][0])
        return f"a Gaussian's finest node is {node}, which has children; give what none of them has to one of its own"
    return ""
