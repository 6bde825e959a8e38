"""Exact nearest neighbours on a device, as tensor operations: a tree for points in space, all pairs for features.

Notation: N points, D dimensions, Q queries. Points are sorted by median splits until LEAF of them are a leaf: sorts of
all points, one a level. Boxes around leaves, around eight of them, around eight of those are the nodes. A query knows
the points of its own leaf; the list of pairs (query, node) is narrowed level by level to nodes that may hold something
nearer, and so to leaves, whose points are looked at. A query far from all begins with a hopeless bound: it goes on with
its nearest few nodes, which gives a good one, and starts again. So there is no step of N^2 for points of any
distribution. A distance to a box is rounded as those to points in it: nothing is lost, results are exact up to ties, as
long as squares of distances are finite.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LEAF = 32  # points
FAN = 8  # nodes in a node
FEW = 64  # nodes that a query goes on with at a level; eight times as many each time it starts again
AT_ONCE = 1 << 16  # queries: some 300 MB
PAIRS = 1 << 26  # distances of all pairs that are held at once, 256 MB
CLOSE = 8  # candidates whose distances are found anew, without the rounding of a product


class BoxTree(NamedTuple):
    """Points in the order of the tree: order [N] int64 their numbers, leaves [D, L, LEAF], the last one filled up.

    levels: boxes of the nodes, low and high [n, D] (infinite for those without a point), the coarsest, of at most FAN,
    first; node n of a level holds nodes FAN n to FAN n + FAN - 1 of the next. leaf_of [n] is the leaf of the last's.
    """

    order: Tensor
    leaves: Tensor
    levels: list[tuple[Tensor, Tensor]]
    leaf_of: Tensor


def build_box_tree(points: Tensor) -> BoxTree:
    """Sort finite points [N, D], N > 0, into leaves. Memory: 8 D + 40 B a point."""
    n, dim = points.shape
    rows, order = points.detach().float(), torch.arange(n, device=points.device)
    leaves = -(-n // LEAF)
    depth = (leaves - 1).bit_length()
    leaf = order // LEAF  # of each place
    for level in range(depth):
        node = _node(leaf, level, leaves)
        low, high = _boxes(rows, node, 1 << level)
        axis = (high - low).argmax(1)[node]
        values = rows.gather(1, axis[:, None])[:, 0] + 0.0  # no -0.0, whose bits are another's
        bits = values.view(torch.int32)
        rising = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # as whole numbers in the order of the values
        places = (node * 2**32 + rising).sort(stable=True)[1]
        rows, order = rows[places], order[places]
    filled = rows[torch.arange(leaves * LEAF, device=points.device).clamp(max=n - 1)]
    slots = torch.arange(1 << depth, device=points.device)
    low, high = _boxes(rows, _node(leaf, depth, leaves), 1 << depth)
    levels = [(low, high)]
    while len(low) > FAN:
        low, high = low.view(-1, FAN, dim).amin(1), high.view(-1, FAN, dim).amax(1)
        levels.insert(0, (low, high))
    return BoxTree(order, filled.T.reshape(dim, leaves, LEAF).contiguous(), levels, (slots * leaves) >> depth)


def _node(leaf: Tensor, level: int, leaves: int) -> Tensor:
    """The node of each leaf at a level of a tree of two: node j has the leaves from j leaves / 2^level on."""
    return ((leaf + 1) * (1 << level) - 1) // leaves


def _boxes(rows: Tensor, node: Tensor, count: int) -> tuple[Tensor, Tensor]:
    index = node[:, None].expand_as(rows)
    low = rows.new_full((count, rows.shape[1]), torch.inf).scatter_reduce_(0, index, rows, "amin")
    return low, rows.new_full((count, rows.shape[1]), -torch.inf).scatter_reduce_(0, index, rows, "amax")


def nearest_others_on_device(points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the min(k, N - 1) nearest others of each point, nearest first: numbers [N, k] and distances [N, k].

    Memory besides: some 400 MB.
    """
    n = len(points)
    k = min(k, n - 1)
    numbers = torch.empty(n, max(k, 0), dtype=torch.int64, device=points.device)
    distances = torch.empty(n, max(k, 0), device=points.device)
    if k <= 0:
        return numbers, distances
    tree = build_box_tree(points)
    for begin in range(0, n, AT_ONCE):
        places = torch.arange(begin, min(begin + AT_ONCE, n), device=points.device)
        found, squares = _nearest_others(tree, places, k)
        rows = tree.order[places]
        numbers[rows], distances[rows] = tree.order[found], squares.sqrt()
    return numbers, distances


def _nearest_others(tree: BoxTree, places: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the places [Q, k] of the k points nearest to those at some places [Q], and their squared distances."""
    left = torch.arange(len(places), device=places.device)
    nothing = torch.zeros(len(places), k, dtype=torch.int64, device=places.device)
    nowhere = torch.full_like(nothing, torch.inf, dtype=torch.float32)
    own = _look(tree, places, left, places // LEAF, (nothing, nowhere))
    found, squares = (known.clone() for known in own)
    bounds, few = squares[:, -1].clone(), FEW
    while len(left):
        queries, leaves, cut = _narrow(tree, places[left], bounds[left], few)
        begun = own[0][left], own[1][left]  # in their own leaf, and not with what is found a second time now
        found[left], squares[left] = _look(tree, places[left], queries, leaves, begun)
        left, few = left[cut], few * FAN
        bounds[left] = torch.minimum(bounds[left], squares[left, -1].nextafter(bounds.new_tensor(torch.inf)))
    return found, squares


def _coordinates(tree: BoxTree, places: Tensor) -> list[Tensor]:
    """The coordinates of the points at some places, one list an axis."""
    return [axis.view(-1)[places] for axis in tree.leaves]


def _narrow(tree: BoxTree, places: Tensor, bounds: Tensor, few: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return whose leaves [n] may have points under the squared `bounds` [Q], queries [n], rising; not the own leaf.

    Of nodes of one level at most `few` of a query are followed, the nearest: cut [Q] says where there were more.
    """
    coordinates = _coordinates(tree, places)
    cut = torch.zeros(len(places), dtype=torch.bool, device=places.device)
    queries = torch.arange(len(places), device=places.device)[:, None]
    nodes = torch.zeros_like(queries)[:, 0]
    children = torch.arange(FAN, device=places.device)
    for low, high in tree.levels:
        own = children[: len(low)]
        queries, nodes = queries.reshape(-1, 1).expand(-1, len(own)), nodes[:, None] * FAN + own
        squares = torch.zeros(nodes.shape, device=places.device)
        for axis, x in enumerate(coordinates):
            at = x[queries]
            outside = torch.maximum(low[:, axis][nodes] - at, at - high[:, axis][nodes]).clamp_min(0)
            squares = squares + outside * outside
        near = squares < bounds[queries]
        near &= low[:, 0][nodes] < torch.inf  # where the bound is infinite
        queries, nodes, squares = queries[near], nodes[near], squares[near]
        counts = torch.bincount(queries, minlength=len(places))
        if int(counts.max()) > few:
            order = squares.argsort(stable=True)
            order = order[queries[order].argsort(stable=True)]
            ranks = torch.arange(len(order), device=places.device) - (counts.cumsum(0) - counts)[queries]
            queries, nodes = queries[ranks < few], nodes[order][ranks < few]
            cut |= counts > few
    leaves = tree.leaf_of[nodes]
    other = leaves != places[queries] // LEAF
    return queries[other], leaves[other], cut


def _look(
    tree: BoxTree, places: Tensor, queries: Tensor, leaves: Tensor, begun: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the places [Q, k] of the nearest others among the points of some leaves, and their squared distances.

    queries [n], rising, say whose leaf each of `leaves` [n] is; begun has what is known before, places and squares.
    """
    counts = torch.bincount(queries, minlength=len(places))
    by_count = counts.argsort(descending=True, stable=True)  # queries with many leaves first: shorter lists each turn
    first, coordinates = (counts.cumsum(0) - counts)[by_count], _coordinates(tree, places[by_count])
    inside, n = torch.arange(LEAF, device=places.device), len(tree.order)
    found, nearest = (known[by_count] for known in begun)
    more = (len(places) - torch.bincount(counts).cumsum(0)).tolist()  # queries with more leaves than 0, 1, ...
    for turn, some in enumerate(more[:-1]):
        leaf = leaves[first[:some] + turn]
        squares = torch.zeros(some, LEAF, device=places.device)
        for axis, x in zip(tree.leaves, coordinates):
            apart = axis[leaf] - x[:some, None]
            squares = squares + apart * apart
        there = leaf[:, None] * LEAF + inside
        squares.masked_fill_((there == places[by_count[:some], None]) | (there >= n), torch.inf)
        nearest[:some], who = torch.cat([nearest[:some], squares], 1).topk(nearest.shape[1], largest=False)
        found[:some] = torch.cat([found[:some], there], 1).gather(1, who)
    back = by_count.argsort()
    return found[back], nearest[back]


def nearest_points_on_device(
    points: Tensor,
    queries: Tensor,
    within: Tensor | None = None,
    *,
    labels: Tensor | None = None,
    others: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the number of the point nearest to each query [Q, D] and its distance, [Q] each, as `nearest_points` does.

    With `within` [Q], only points nearer than that count; with labels [N] of the points, only those of another label
    than others [Q]. Where there is none, the number is -1, the distance `within` or infinite. All pairs are looked at,
    by a product, |p|^2 / 2 - q p; what its rounding leaves undecided among the nearest few is decided by differences.
    Memory: 12 B for each of 67 million pairs. FLOPs: 2 Q N D; 1 million queries among 12,000 points in 16 dimensions
    take 0.4 T, write 50 GB and read it some six times to select: 0.1 s on an H100, estimated, not measured.
    """
    numbers = torch.full((len(queries),), -1, dtype=torch.int64, device=queries.device)
    distances = torch.full_like(queries[:, 0], torch.inf) if within is None else within.clone()
    if not len(points):
        return numbers, distances
    halves = (points * points).sum(1) / 2
    margin = 2 * (queries.shape[1] + 2) * 2**-24 * (2 * halves.max()).sqrt()  # of rounding, times the query's length
    chunk = max(PAIRS // len(points), 1)
    for begin in range(0, len(queries), chunk):
        there = slice(begin, begin + chunk)
        own = None if labels is None or others is None else labels == others[there, None]
        nearest, squares = _nearest_of_pairs(points, halves, queries[there], own, margin)
        found = squares.sqrt()
        better = found < distances[there]
        numbers[there] = torch.where(better, nearest, numbers[there])
        distances[there] = torch.where(better, found, distances[there])
    return numbers, distances


def _nearest_of_pairs(
    points: Tensor, halves: Tensor, queries: Tensor, never: Tensor | None, margin: Tensor
) -> tuple[Tensor, Tensor]:
    """Return each query's nearest point [Q] and the squared distance [Q]; not those where never [Q, N] is True."""
    scores = torch.addmm(halves, queries, points.T, alpha=-1)  # half the squares, but for the query's own
    if never is not None:
        scores.masked_fill_(never, torch.inf)
    few, which = scores.topk(min(CLOSE, len(points)), largest=False)
    squares = (points[which] - queries[:, None]).square().sum(2).masked_fill_(few == torch.inf, torch.inf)
    squares, at = squares.min(1)
    nearest = which.gather(1, at[:, None])[:, 0]
    limit = few[:, 0] + margin * (queries.norm(dim=1) + (2 * halves.max()).sqrt())
    unsure = ((few[:, -1] <= limit) & (few[:, -1] < torch.inf)).nonzero()[:, 0] if len(points) > CLOSE else at[:0]
    if len(unsure):  # more candidates than were kept are as near as rounding can tell
        exact = torch.zeros(len(unsure), len(points), device=points.device)
        for axis in range(points.shape[1]):
            exact += (points[:, axis] - queries[unsure, axis, None]).square()
        if never is not None:
            exact.masked_fill_(never[unsure], torch.inf)
        squares[unsure], nearest[unsure] = exact.min(1)
    return nearest, squares
