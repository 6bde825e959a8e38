"""Exact nearest neighbours in a few dimensions: a tree of boxes, eight wide.

Notation: N points, D dimensions. Points are sorted by median splits (a k-d tree), cut where blocks of 8, 64, 512, ...
end: eight points are a leaf, eight leaves a node of level 1, eight of these a node of level 2. So a node's eight
children are eight lanes, coordinates as [node, D, 8]: one visit gives eight distances. The distance to a box is rounded
like that to any point in it, so nothing is lost by pruning: results are exact, up to ties, for any float32 points.
"""

# pyright: reportCallIssue=false, reportReturnType=false, reportArgumentType=false
# (numba changes the signatures of what it compiles)

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import float32 as f

from cgc.kernels import kernel, spread
from cgc.rasterize.lanes import bits, broadcast, fma, greater, load, lowest_bit, maximum, splat, store

_MIXED = -1  # the label of a node whose points have several
_LEVELS = 12  # 8^12 points
_MANY = 8  # dimensions from which a box of eight points rules out so little that its leaf is looked at anyway


class Tree(NamedTuple):
    """Points in the tree's order, filled up to whole nodes with points at infinity; levels count from the leaves."""

    order: np.ndarray
    """The number of each point, [N] int64."""
    leaves: np.ndarray
    """Coordinates [L, D, 8], flat."""
    low: np.ndarray
    """Least coordinates of each node's children [n, D, 8], flat, level after level."""
    high: np.ndarray
    """Largest coordinates, alike."""
    starts: np.ndarray
    """The first node of each level in them, [levels + 1]; level 1 has the first."""


def build_tree(points: np.ndarray) -> Tree:
    """Build the tree of finite points [N, D], N > 0. Memory: 9 D + 8 B a point."""
    assert np.isfinite(points).all(), "points must be finite"
    n, dim = points.shape
    order = np.arange(n)
    rows = np.array(points, np.float32, order="C")
    _sort(rows, order, np.empty((64, 2), np.int64))
    sizes = [-(-n // 8)]  # of levels
    while sizes[-1] > 1 or len(sizes) == 1:
        sizes.append(-(-sizes[-1] // 8))
    starts = np.concatenate([[0], np.cumsum(sizes[1:])])
    low, high = np.full((starts[-1], dim, 8), np.inf, np.float32), np.full((starts[-1], dim, 8), -np.inf, np.float32)
    leaves = np.full((sizes[0], dim, 8), np.inf, np.float32)
    _fill(rows, leaves, low, high, starts)
    return Tree(order, leaves.reshape(-1), low.reshape(-1), high.reshape(-1), starts)


@kernel
def _sort(points, order, stack):
    """Sort points [N, D] and their numbers by median splits at multiples of the largest block in each range."""
    top = 1
    stack[0, 0], stack[0, 1] = 0, len(points)
    while top > 0:
        top -= 1
        begin, end = stack[top]
        if end - begin <= 8:
            continue
        block = 8
        while block * 8 < end - begin:
            block *= 8
        middle = begin + max(1, (end - begin + block) // (2 * block)) * block
        _select(points, order, begin, end, middle, _widest(points, begin, end))
        # the longer part waits: the stack stays short
        first, second = (begin, middle), (middle, end)
        if middle - begin < end - middle:
            first, second = second, first
        stack[top] = first
        stack[top + 1] = second
        top += 2


@kernel
def _widest(points, begin, end):
    """The axis along which points[begin:end] vary most; long ranges are looked at by every so many points."""
    best, axis, step = -1.0, 0, 1 + (end - begin) // 4096
    for c in range(points.shape[1]):
        total, squares, count = 0.0, 0.0, 0
        for k in range(begin, end, step):
            value = np.float64(points[k, c] - points[begin, c])
            total += value
            squares += value * value
            count += 1
        variance = squares - total * total / count
        if variance > best:
            best, axis = variance, c
    return axis


@kernel
def _select(points, order, begin, end, middle, axis):
    """Move points so that none of [begin, middle) lies above any of [middle, end) along the axis (Hoare)."""
    low, high = begin, end - 1
    while low < high:
        a, b, c = points[low, axis], points[(low + high) // 2, axis], points[high, axis]
        pivot = max(min(a, b), min(max(a, b), c))
        i, j = low, high
        while i <= j:
            while points[i, axis] < pivot:
                i += 1
            while points[j, axis] > pivot:
                j -= 1
            if i <= j:
                for c in range(points.shape[1]):
                    points[i, c], points[j, c] = points[j, c], points[i, c]
                order[i], order[j] = order[j], order[i]
                i += 1
                j -= 1
        if middle <= j:
            high = j
        elif middle >= i:
            low = i
        else:
            return


@kernel
def _fill(points, leaves, low, high, starts):
    """Fill leaves with the sorted points, and the boxes with them, level by level."""
    n, dim = points.shape
    for k in range(n):
        leaf = k // 8
        for c in range(dim):
            value = points[k, c]
            leaves[leaf, c, k % 8] = value
            node, lane = leaf // 8, leaf % 8
            low[node, c, lane] = min(low[node, c, lane], value)
            high[node, c, lane] = max(high[node, c, lane], value)
    for level in range(1, starts.shape[0] - 1):
        for child in range(starts[level] - starts[level - 1]):
            node, lane = starts[level] + child // 8, child % 8
            for c in range(dim):
                low[node, c, lane] = low[starts[level - 1] + child, c].min()
                high[node, c, lane] = high[starts[level - 1] + child, c].max()


@kernel
def _leaf_squares(leaves, leaf, point, at, dim):
    """Squared distances of a point, whose coordinates begin at `at`, to a leaf's eight."""
    total = splat(f(0.0))
    for c in range(dim):
        difference = load(leaves, (leaf * dim + c) * 8) - broadcast(point, at + c)
        total = fma(difference, difference, total)
    return total


@kernel
def _box_squares(low, high, node, point, at, dim):
    """Squared distances of a point to the boxes of a node's eight children; 0 inside."""
    total = splat(f(0.0))
    for c in range(dim):
        x, k = broadcast(point, at + c), (node * dim + c) * 8
        outside = maximum(maximum(load(low, k) - x, x - load(high, k)), splat(f(0.0)))
        total = fma(outside, outside, total)
    return total


@kernel
def _push(near, squares, first, level, top, nodes, levels, bounds):
    """Push the children among `near` (bits), the nearest last; returns the new height of the stack."""
    bottom = top
    while near:
        lane = lowest_bit(near)
        near &= near - np.uint64(1)
        bound, k = squares[lane], top
        while k > bottom and bounds[k - 1] < bound:
            nodes[k], levels[k], bounds[k] = nodes[k - 1], levels[k - 1], bounds[k - 1]
            k -= 1
        nodes[k], levels[k], bounds[k] = first + lane, level, bound
        top += 1
    return top


@kernel
def _nearest(worker, workers, order, leaves, low, high, starts, dim, scan, k, found, distances):
    """Find the k nearest others of each point: found [N, k] numbers and distances [N, k], nearest first."""
    n, highest = order.shape[0], starts.shape[0] - 1
    nodes, levels = np.empty(8 * _LEVELS, np.int64), np.empty(8 * _LEVELS, np.int64)
    bounds, squares, point = np.empty(8 * _LEVELS, np.float32), np.empty(8, np.float32), np.empty(dim, np.float32)
    best, who = np.empty(k, np.float32), np.empty(k, np.int64)
    for place in range(worker * n // workers, (worker + 1) * n // workers):
        for c in range(dim):
            point[c] = leaves[(place // 8 * dim + c) * 8 + place % 8]
        best[:] = np.inf
        nodes[0], levels[0], bounds[0], top = 0, highest, f(0.0), 1
        while top > 0:
            top -= 1
            node, level = nodes[top], levels[top]
            if bounds[top] >= best[k - 1]:
                continue
            if level > scan:
                some = _box_squares(low, high, starts[level - 1] + node, point, 0, dim)
                store(squares, 0, some)
                near = bits(greater(splat(best[k - 1]), some))
                top = _push(near, squares, node * 8, level - 1, top, nodes, levels, bounds)
                continue
            for leaf in range(node * 8**level, min((node + 1) * 8**level, -(-n // 8))):
                some = _leaf_squares(leaves, leaf, point, 0, dim)
                near = bits(greater(splat(best[k - 1]), some))
                if near:
                    store(squares, 0, some)
                while near:
                    lane = lowest_bit(near)
                    near &= near - np.uint64(1)
                    square, at = squares[lane], k - 1
                    if square >= best[at] or leaf * 8 + lane == place:
                        continue
                    while at > 0 and best[at - 1] > square:
                        best[at], who[at] = best[at - 1], who[at - 1]
                        at -= 1
                    best[at], who[at] = square, leaf * 8 + lane
        for c in range(k):
            found[order[place], c], distances[order[place], c] = order[who[c]], np.sqrt(best[c])


def nearest_others(tree: Tree, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the min(k, N - 1) nearest others of each point, nearest first: numbers [N, k] and distances [N, k]."""
    n = len(tree.order)
    k = min(k, n - 1)
    found, distances = np.empty((n, k), np.int64), np.empty((n, k), np.float32)
    dim = len(tree.leaves) // (8 * -(-n // 8))
    if k > 0:
        spread(_nearest, *tree, dim, int(dim >= _MANY), k, found, distances)
    return found, distances


@kernel
def _label_nodes(order, labels, starts, of_points, of_nodes):
    """Write the labels of points in the tree's order, and of each node's children: their own, or _MIXED."""
    n = order.shape[0]
    of_nodes[:] = -2  # no child yet
    for k in range(n):
        of_points[k] = labels[order[k]]
        child = k // 8
        of_nodes[child] = of_points[k] if of_nodes[child] in (-2, of_points[k]) else _MIXED
    for level in range(1, starts.shape[0] - 1):
        for child in range((starts[level] - starts[level - 1]) * 8):
            label = of_nodes[starts[level - 1] * 8 + child]
            at = starts[level] * 8 + child // 8
            if label != -2:
                of_nodes[at] = label if of_nodes[at] in (-2, label) else _MIXED


@kernel
def _nearest_point(worker, workers, order, leaves, low, high, starts, dim, scan, queries, numbers, distances):
    """Improve each query's nearest point: its number in the tree [Q] and its distance [Q]."""
    n, highest = order.shape[0], starts.shape[0] - 1
    nodes, levels = np.empty(8 * _LEVELS, np.int64), np.empty(8 * _LEVELS, np.int64)
    bounds, squares = np.empty(8 * _LEVELS, np.float32), np.empty(8, np.float32)
    for query in range(worker * len(numbers) // workers, (worker + 1) * len(numbers) // workers):
        least, place = distances[query] ** 2, -1
        nodes[0], levels[0], bounds[0], top = 0, highest, f(0.0), 1
        while top > 0:
            top -= 1
            node, level = nodes[top], levels[top]
            if bounds[top] >= least:
                continue
            if level > scan:
                some = _box_squares(low, high, starts[level - 1] + node, queries, query * dim, dim)
                store(squares, 0, some)
                near = bits(greater(splat(least), some))
                top = _push(near, squares, node * 8, level - 1, top, nodes, levels, bounds)
                continue
            for leaf in range(node * 8**level, min((node + 1) * 8**level, -(-n // 8))):
                some = _leaf_squares(leaves, leaf, queries, query * dim, dim)
                near = bits(greater(splat(least), some))
                if near:
                    store(squares, 0, some)
                while near:
                    lane = lowest_bit(near)
                    near &= near - np.uint64(1)
                    if squares[lane] < least:
                        least, place = squares[lane], leaf * 8 + lane
        if place >= 0:
            numbers[query], distances[query] = order[place], np.sqrt(least)


def nearest_points(tree: Tree, queries: np.ndarray, within: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of the point nearest to each query [Q, D] and its distance, [Q] each.

    With `within` [Q], only points nearer than that count: where there is none, the number is -1, the distance `within`.
    """
    numbers = np.full(len(queries), -1, np.int64)
    distances = np.full(len(queries), np.inf, np.float32) if within is None else within.astype(np.float32)
    flat, dim = np.ascontiguousarray(queries, np.float32).reshape(-1), queries.shape[1]
    spread(_nearest_point, *tree, dim, int(dim >= _MANY), flat, numbers, distances)
    return numbers, distances


def nearest_in(
    points: np.ndarray, queries: np.ndarray, within: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Do as `nearest_points` for points [N, D] without a tree."""
    return nearest_points(build_tree(points), queries, within)


@kernel
def _nearest_other_label(
    worker, workers, leaves, low, high, starts, of_points, of_nodes, queries, dim, labels, numbers, distances
):
    """Improve each query's nearest point of another label than labels [Q]: its place in the tree, its distance, [Q]."""
    highest = starts.shape[0] - 1
    nodes, levels = np.empty(8 * _LEVELS, np.int64), np.empty(8 * _LEVELS, np.int64)
    bounds, squares = np.empty(8 * _LEVELS, np.float32), np.empty(8, np.float32)
    for query in range(worker * len(labels) // workers, (worker + 1) * len(labels) // workers):
        label, least, place = labels[query], distances[query] ** 2, -1
        nodes[0], levels[0], bounds[0], top = 0, highest, f(0.0), 1
        while top > 0:
            top -= 1
            node, level = nodes[top], levels[top]
            if bounds[top] >= least or (level < highest and of_nodes[starts[level] * 8 + node] == label):
                continue
            if level > 0:
                some = _box_squares(low, high, starts[level - 1] + node, queries, query * dim, dim)
                store(squares, 0, some)
                near = bits(greater(splat(least), some))
                top = _push(near, squares, node * 8, level - 1, top, nodes, levels, bounds)
                continue
            some = _leaf_squares(leaves, node, queries, query * dim, dim)
            store(squares, 0, some)
            near = bits(greater(splat(least), some))
            while near:
                lane = lowest_bit(near)
                near &= near - np.uint64(1)
                if squares[lane] < least and of_points[node * 8 + lane] != label:
                    least, place = squares[lane], node * 8 + lane
        if place >= 0:
            numbers[query], distances[query] = place, np.sqrt(least)


def nearest_of_another_label(
    tree: Tree, labels: np.ndarray, queries: np.ndarray, own: np.ndarray, within: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of the nearest point of another label than own [Q], and its distance, [Q] each.

    labels [N], from 0, are of the tree's points. `within` as in `nearest_points`; no such point is infinitely far.
    """
    n, dim = len(tree.order), queries.shape[1]
    of_points, of_nodes = np.empty(n, np.int64), np.empty(tree.starts[-1] * 8, np.int64)
    _label_nodes(tree.order, labels.astype(np.int64), tree.starts, of_points, of_nodes)
    places = np.full(len(queries), -1, np.int64)
    distances = np.full(len(queries), np.inf, np.float32) if within is None else within.astype(np.float32)
    flat = np.ascontiguousarray(queries, np.float32).reshape(-1)
    own = own.astype(np.int64)
    spread(_nearest_other_label, *tree[1:], of_points, of_nodes, flat, dim, own, places, distances)
    return np.where(places < 0, -1, tree.order[places]), distances
