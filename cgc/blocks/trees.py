"""The parts of joined objects, from the trees of the blocks that know some of them each.

Notation: an object's parts are what its Gaussians' finest nodes became when blocks were joined. A joint is a node of a
block's tree: at its level, and at all coarser ones, its parts are one. Joints of all blocks are taken by falling level,
so that parts which no block has seen together are one as soon as others between them say so, and all are one object.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from cgc.clustering.vote import regroup


class Joint(NamedTuple):
    """A level, and the parts that are one there."""

    level: float
    parts: frozenset[int]


class Tree(NamedTuple):
    """leaves [N] int32 (NOISE or a node), parents and levels [T + 1] of nodes, the objects 1..K first."""

    leaves: np.ndarray
    parents: list[int]
    levels: list[float]


class _Node(NamedTuple):
    """A node before it has a number: a part (>= 0), or the nodes that it is made of."""

    level: float
    part: int
    children: tuple[_Node, ...] = ()

    @property
    def first(self) -> int:
        """Its lowest part: what nodes are sorted by."""
        return min((child.first for child in self.children), default=self.part)


def grow_parts(parts: np.ndarray, owners: np.ndarray, joints: Iterable[Joint], level: float) -> Tree:
    """Make the tree of objects 1..K down to parts [N] (-1: none), whose objects are `owners` [parts]."""
    count = int(owners.max(initial=0))
    of_object: list[list[Joint]] = [[] for _ in range(count + 1)]
    for joint in joints:
        of_object[int(owners[next(iter(joint.parts))])].append(joint)
    parents, levels = [0] * (count + 1), [-1.0] + [1.0] * count
    node_of = np.zeros(len(owners), np.int32)

    def place(node: _Node, number: int) -> None:
        levels[number] = node.level
        if not node.children:
            node_of[node.part] = number
        for child in sorted(node.children, key=lambda n: n.first):
            parents.append(number)
            levels.append(1.0)
            place(child, len(parents) - 1)

    by_object = np.split(np.argsort(owners, kind="stable"), np.searchsorted(np.sort(owners), np.arange(2, count + 1)))
    for k in range(1, count + 1):
        place(_join(by_object[k - 1].tolist(), of_object[k], level), k)
    leaves = regroup(parts, node_of).astype(np.int32)
    return Tree(leaves, parents, levels)


def _join(parts: Sequence[int], joints: Sequence[Joint], level: float) -> _Node:
    """Join the parts of an object by falling level of the joints; what is left apart is one at `level`."""
    standing = {part: _Node(1.0, part) for part in parts}  # of each part, the node it is in so far
    for at, some in groupby(sorted(joints, key=lambda j: -j.level), key=lambda j: j.level):
        for group in _groups([joint.parts for joint in some], standing):
            _replace(standing, group, at)
    if len(top := set(standing.values())) > 1:
        _replace(standing, top, level)
    return next(iter(standing.values()))


def _groups(sets: Sequence[frozenset[int]], standing: dict[int, _Node]) -> list[set[_Node]]:
    """Return which nodes sets of parts connect, where these are several."""
    groups: list[set[_Node]] = []
    for parts in sets:
        found = {standing[part] for part in parts}
        apart = [group for group in groups if not group & found]
        groups = [*apart, found.union(*(group for group in groups if group & found))]
    return [group for group in groups if len(group) > 1]


def _replace(standing: dict[int, _Node], nodes: set[_Node], level: float) -> None:
    """Put one node at a level in place of several; those that are not finer become one with it."""
    children: list[_Node] = []
    for node in nodes:
        children += [node] if node.level > level + 1e-6 else node.children
    made = _Node(level, -1, tuple(sorted(children, key=lambda n: n.first)))
    for part, node in standing.items():
        if node in nodes:
            standing[part] = made
