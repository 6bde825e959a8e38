"""Merge neighbouring regions of an image, the two that differ least first.

Regions are the nodes of a graph, shared borders its links. Two regions a and b differ by

    cost = (B^k R^(1 - k) (1 - e s) / (1 + min(c i_a, c i_b, 1)) + S) min(1, min(A_a, A_b) / A)^g

B: mean strength along their border; S: mean step in depth there, which no likeness outweighs; R: L1 distance of their
mean contents; s: its share of the shorter outline; i: mean strength inside a region, so that what is uneven itself
forgives more, up to a limit; A_a, A_b: areas. The product makes one what shades off (R without B) and what is patterned
alike (B without R). k, e, c, A, g are `MergeRules`.
"""

# pyright: reportCallIssue=false, reportReturnType=false, reportArgumentType=false
# (numba changes the signatures of what it compiles)

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cgc.kernels import kernel

_MOST_FORGIVEN = 1.0  # small things are all border inside: they must not merge for that


class MergeRules(NamedTuple):
    """What makes two regions alike."""

    border: float
    """k: power of the border, 0 to 1; contents have the rest."""
    enclosed: float
    """e: how much less a region differs from one that surrounds it wholly, 0 to 1."""
    unrest: float
    """c: how much strength inside both regions forgives."""
    small: float
    """A: area, in pixels, under which regions join more easily."""
    favour_small: float
    """g: how much more easily."""


class Borders(NamedTuple):
    """What neighbouring regions share: E links."""

    ends: np.ndarray
    """[E, 2] int64: two regions, each pair once."""
    lengths: np.ndarray
    """[E] float32: pairs of pixels across the border."""
    strengths: np.ndarray
    """[E] float32: the larger strength of the two pixels, summed over the pairs."""
    steps: np.ndarray
    """[E] float32: the larger step of the two pixels, likewise; 0 where none are known."""


def shared_borders(regions: np.ndarray, strength: np.ndarray, steps: np.ndarray | None = None) -> Borders:
    """Find the borders of regions [H, W], numbered from 0, on maps of strengths and of steps [H, W]."""
    n = int(regions.max()) + 1
    keys, of_strength, of_step = [], [], []
    for near, far in (np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:]):
        a, b = regions[near].astype(np.int64), regions[far]
        differ = a != b
        keys.append((np.minimum(a, b) * n + np.maximum(a, b))[differ])
        of_strength.append(np.maximum(strength[near], strength[far])[differ])
        if steps is not None:
            of_step.append(np.maximum(steps[near], steps[far])[differ])
    pairs, link, counts = np.unique(np.concatenate(keys), return_inverse=True, return_counts=True)
    sums = [
        np.bincount(link, np.concatenate(values) if values else None, len(pairs)).astype(np.float32) * bool(values)
        for values in (of_strength, of_step)
    ]
    return Borders(np.stack([pairs // n, pairs % n], 1), counts.astype(np.float32), *sums)


def merge_levels(
    regions: np.ndarray,
    strength: np.ndarray,
    planes: np.ndarray,
    levels: Sequence[float],
    min_areas: Sequence[float],
    rules: MergeRules,
    steps: np.ndarray | None = None,
) -> np.ndarray:
    """Return for every region of [H, W], numbered from 0, which one it belongs to at each level: [levels, R] int64.

    Levels rise: what differs by no more than the level is merged, and so is what has fewer pixels than its `min_areas`.
    `planes` [C, H, W] are the contents; `steps` [H, W], in the unit of levels, part regions whatever these are.
    """
    n, flat = int(regions.max()) + 1, regions.ravel()
    borders = shared_borders(regions, strength, steps)
    area = np.bincount(flat, minlength=n).astype(np.float32)
    outline = np.bincount(borders.ends.ravel(), np.repeat(borders.lengths, 2), n).astype(np.float32)
    contents = np.stack([np.bincount(flat, plane.ravel(), n) for plane in planes], 1).astype(np.float32)
    inside = np.bincount(flat, strength.ravel(), n).astype(np.float32)
    nodes = np.stack([area, inside, outline], 1)
    of_level = np.stack([levels, min_areas], 1).astype(np.float32)
    return _merge(nodes, contents, *borders, of_level, np.array(rules, np.float32))


@kernel
def _cost(a, b, length, total, step, nodes, contents, rules):
    border, enclosed, unrest, small, favour_small = rules
    apart = np.float32(0)
    for c in range(contents.shape[1]):
        apart += abs(contents[a, c] / nodes[a, 0] - contents[b, c] / nodes[b, 0])
    share = min(length / min(nodes[a, 2], nodes[b, 2]), np.float32(1))
    forgiven = 1 + min(unrest * min(nodes[a, 1] / nodes[a, 0], nodes[b, 1] / nodes[b, 0]), np.float32(_MOST_FORGIVEN))
    size = min(min(nodes[a, 0], nodes[b, 0]) / small, np.float32(1)) ** favour_small
    difference = (total / length) ** border * apart ** (1 - border)
    return np.float32((difference * (1 - enclosed * share) / forgiven + step / length) * size)


@kernel
def _merge(nodes, contents, ends, lengths, totals, steps, levels, rules):
    """Merge from a heap of links (cost, link, version); see `merge_levels`.

    Every node has a list of its links: 2 e + k is the k-th end of link e, `following` the next one of the same node.
    A link is renewed by a higher version, so that its older entries in the heap are passed over.
    """
    rules = (rules[0], rules[1], rules[2], rules[3], rules[4])
    n, m = nodes.shape[0], ends.shape[0]
    first, last, following = np.full(n, -1, np.int64), np.full(n, -1, np.int64), np.full(2 * m, -1, np.int64)
    version = np.zeros(m, np.int64)  # -1: the link is gone
    owner, met = np.arange(n), np.full(n, -1, np.int64)
    heap = [(np.float32(0), 0, np.int64(0)) for _ in range(0)]
    for e in range(m):
        for k in range(2):
            node = ends[e, k]
            if first[node] < 0:
                first[node] = 2 * e + k
            else:
                following[last[node]] = 2 * e + k
            last[node] = 2 * e + k
        cost = _cost(ends[e, 0], ends[e, 1], lengths[e], totals[e], steps[e], nodes, contents, rules)
        heap.append((cost, e, np.int64(0)))
    heapq.heapify(heap)
    found = np.empty((levels.shape[0], n), np.int64)
    for level in range(levels.shape[0]):
        kept = [(np.float32(0), 0, np.int64(0)) for _ in range(0)]
        while len(heap):
            cost, e, age = heapq.heappop(heap)
            if version[e] != age:
                continue
            a, b = ends[e, 0], ends[e, 1]
            if cost > levels[level, 0] and min(nodes[a, 0], nodes[b, 0]) >= levels[level, 1]:
                kept.append((cost, e, age))
                continue
            if nodes[a, 0] < nodes[b, 0]:
                a, b = b, a
            owner[b], version[e] = a, -1
            nodes[a] += nodes[b]
            nodes[a, 2] -= 2 * lengths[e]
            contents[a] += contents[b]
            _take_links(a, b, first, last, following, ends, lengths, totals, steps, version, met)
            half = first[a]
            while half >= 0:
                e = half // 2
                version[e] += 1
                cost = _cost(ends[e, 0], ends[e, 1], lengths[e], totals[e], steps[e], nodes, contents, rules)
                heapq.heappush(heap, (cost, e, version[e]))
                half = following[half]
        heap = kept
        heapq.heapify(heap)
        for node in range(n):
            top = node
            while owner[top] != top:
                top = owner[top]
            found[level, node] = top
    return found


@kernel
def _take_links(a, b, first, last, following, ends, lengths, totals, steps, version, met):
    """Give the links of b to a: two that lead to one neighbour become one, and what is gone leaves a's list."""
    half = first[a]
    while half >= 0:
        e = half // 2
        if version[e] >= 0:
            met[ends[e, 0] + ends[e, 1] - a] = e
        half = following[half]
    half = first[b]
    while half >= 0:
        e, k = half // 2, half % 2
        if version[e] >= 0:
            known = met[ends[e, 1 - k]]
            if known >= 0:
                lengths[known] += lengths[e]
                totals[known] += totals[e]
                steps[known] += steps[e]
                version[e] = -1
            else:
                ends[e, k] = a
        half = following[half]
    if first[a] < 0:
        first[a] = first[b]
    else:
        following[last[a]] = first[b]
    half, first[a], last[a] = first[a], -1, -1
    while half >= 0:
        e, then = half // 2, following[half]
        if version[e] >= 0:
            met[ends[e, 0] + ends[e, 1] - a] = -1
            if first[a] < 0:
                first[a] = half
            else:
                following[last[a]] = half
            last[a] = half
        half = then
    if last[a] >= 0:
        following[last[a]] = -1
