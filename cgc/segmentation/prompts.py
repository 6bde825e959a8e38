"""What a prompt in one view picks of what an id map shows there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cgc.clustering.hierarchy import Hierarchy

LARGEST_SHARE = 0.5
"""A mask picks the ids that lie in it with more than this share of their pixels."""
SLIVER = 0.005
"""Nor does it pick what is this share of it or less: the rim of something hidden says nothing of the rest of it."""
NEARLY_ALL = 0.8
"""What is clicked on together is what holds all of it, where it is more than this share of that."""


def mask_ids(target: np.ndarray, ids: np.ndarray) -> list[int]:
    """The ids that lie in the mask `target` [H, W] bool with more than half of their pixels; else the best single one.

    Slivers are left out. None where no id touches the mask.
    """
    area = np.bincount(ids.ravel())
    return ids_inside(np.bincount(ids[target], minlength=len(area)), area, int(target.sum()))


def ids_inside(inside: np.ndarray, area: np.ndarray, size: int) -> list[int]:
    """As `mask_ids`, from the pixels of each id inside the mask and in all, [K + 1], and those of the mask."""
    inside, area = np.append(0, inside[1:]), np.append(0, area[1:])
    picked = np.flatnonzero((inside > LARGEST_SHARE * area) & (inside > SLIVER * size))
    if len(picked) or not inside.any():
        return picked.tolist()
    return [int((inside / np.maximum(area + size - inside, 1)).argmax())]


class Inseparable(ValueError):
    """A positive click, by its place among them, is in one smallest part with a negative one."""

    def __init__(self, click: int) -> None:
        super().__init__(f"positive click {click} is in one part with a negative one")
        self.click = click


def clicked_nodes(tree: Hierarchy, shown: np.ndarray, positive: Sequence[int], negative: Sequence[int]) -> list[int]:
    """The nodes that clicks mean, by the finest nodes under them (0 = none), as `query.at_pixels` says; Inseparable.

    shown [T + 1]: what is shown in place of each node (`Hierarchy.shown_for`).
    """
    refused = {n for leaf in negative for n in _chain(tree, leaf)}
    picked = []
    for place, leaf in enumerate(positive):
        if leaf == 0:
            continue
        chain = _chain(tree, leaf)
        chain = chain[: chain.index(int(shown[leaf])) + 1]
        allowed = [n for n in chain if n not in refused]
        if not allowed:
            raise Inseparable(place)
        picked.append(allowed[-1])
    if len(set(picked)) > 1:
        holding = set.intersection(*(set(_chain(tree, n)) for n in picked)) - refused
        clicked = tree.sizes[_outermost(tree, picked)].sum()
        common = [n for n in holding if clicked > NEARLY_ALL * tree.sizes[n]]
        if common:
            picked = [max(common, key=lambda n: tree.levels[n])]
    return sorted(set(picked))


def _outermost(tree: Hierarchy, nodes: Sequence[int]) -> list[int]:
    """Those of some nodes that lie in no other of them, once each."""
    return [n for n in set(nodes) if set(nodes).isdisjoint(tree.ancestors(n))]


def _chain(tree: Hierarchy, node: int) -> list[int]:
    """A node and what holds it, up to the root; empty for none."""
    return [node, *tree.ancestors(node)] if node else []
