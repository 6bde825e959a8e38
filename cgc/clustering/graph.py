"""Which groups of Gaussians are one thing: those that masks hold together in enough of the views that see both.

Notation: A groups, M masks, V views. A group's share of a view is how its weight there is spread over the masks,
sharpened (a few Gaussians that belong elsewhere hardly count). Two groups are together in a view as far as one mask
has both, the product of their shares; `seen` counts the views that see both. Where a view's masks have missed a group,
all that they show of it is what spills over its border into the masks beside: such a view counts little. Where it is
known what masks leave out, it speaks in another way: masks miss a thing as a whole, so a view that has masks of one
group and none of the other tells the two apart. A view that leaves out both says nothing. Their rate,
together / (seen + DOUBT), is small where few views speak. Groups are joined by falling rate, and what is joined pools
its counts, so the views of all its Gaussians speak: sides of an object that no view shows at once are joined through
those in between. DOUBT is held against the views, not against what was pooled: a view that shows twenty pieces of a
wall is one view.

The idea of asking other views whether two masks are one is MaskClustering's (arXiv 2401.07745); here it is asked of
groups of Gaussians through the blending weights, so that masks of several objects need not be found and dropped first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cgc.clustering.beside import Beside
from cgc.clustering.columns import Columns, LeftOut, group_matrix
from cgc.clustering.vote import compact, regroup

ENOUGH = 4.0  # sampled pixels of a group in a view: with as many, the view counts half
SPILL = 0.05  # of what a group shows in the view that has most of it: with as little, a view counts half of that
SHARPNESS = 3  # power of the shares
BLOCK = 1 << 24  # of A x M: what is counted at once, in arrays of 64 MB
DOUBT = 1.5  # views that would say no, added to those that see both
CORE = 0.7  # confidence of the Gaussians that speak for a group ...
LEAST_CORE = 0.2  # ... if they are more than this share of it; else all of them do


@dataclass(frozen=True)
class Counts:
    """together [A, A] and seen [A, A] float64, symmetric: in how many views one mask has both groups, and both show.

    Views that show both, but have masks of one only, are among the seen ones where that is known.
    `views` says which these are; without it every count is taken for a view of its own when groups are pooled.
    """

    together: np.ndarray
    seen: np.ndarray
    views: Views | None = None

    def rates(self) -> np.ndarray:
        """The share of the views in which two groups are one, [A, A], pulled to 0 where few see both."""
        return self.together / (self.seen + DOUBT)

    def of(self, some: np.ndarray) -> Counts:
        """The counts of some groups, by their numbers."""
        square = np.ix_(some, some)
        return Counts(self.together[square], self.seen[square], self.views and self.views.of(some))


@dataclass(frozen=True)
class Views:
    """known [A, V] and left_out [A, V] float32: how much each view shows of each group, in its masks and outside."""

    known: np.ndarray
    left_out: np.ndarray

    def of(self, some: np.ndarray) -> Views:
        """The views of some groups, by their numbers."""
        return Views(self.known[some], self.left_out[some])

    def pool(self, i: int, j: int, seen: np.ndarray) -> np.ndarray:
        """Make group j part of group i; return how many views see both it and each group, [A], of `seen` pairs.

        A view that shows one of two groups shows what they make.
        """
        for table in (self.known, self.left_out):
            np.maximum(table[i], table[j], out=table[i])
            table[j] = 0
        both = self.known @ (self.known[i] + self.left_out[i]) + self.left_out @ self.known[i]
        return np.minimum(both, seen)

    def copy(self) -> Views:
        """Return one that can be pooled without changing this."""
        return Views(self.known.copy(), self.left_out.copy())


@dataclass(frozen=True)
class Joins:
    """Joins in their order: `first` [J] and `second` [J] make node A + k, at `rates` [J]; nodes under A are groups."""

    count: int
    first: np.ndarray
    second: np.ndarray
    rates: np.ndarray

    def things(self) -> np.ndarray:
        """Return which of the things that all joins make each group is part of, [A]."""
        root, made = np.arange(self.count + len(self.rates)), self.count + np.arange(len(self.rates))
        root[self.first], root[self.second] = made, made
        for node in range(len(root) - 1, -1, -1):  # a node's own root comes after it
            root[node] = root[root[node]]
        return np.unique(root[: self.count], return_inverse=True)[1]


def count_views(columns: Columns, groups: Any) -> Counts:
    """Count the views in which masks have groups [A, N] (weights of their Gaussians) together, and see them both.

    Memory: 12 B for each of A x M, the masks of some views at a time, and 16 for each of A x A.
    """
    all_shown, of_view = columns.under(groups), columns.by_view.tocsc()  # [A, M], [M, V]
    all_in_view = (all_shown @ of_view).toarray()  # [A, V]
    all_weight, left_out = _known(_view_weights(all_in_view), columns.left_out, groups)
    together = np.zeros((len(all_weight),) * 2, np.float64)
    for views in _blocks(np.diff(of_view.indptr), BLOCK // max(len(all_weight), 1)):
        masks = np.sort(of_view[:, views].indices)
        by_view, shown = of_view[:, views][masks], all_shown[:, masks].toarray()
        share = (shown / np.maximum(all_in_view[:, views] @ by_view.T, 1e-9)) ** SHARPNESS
        share /= np.maximum((share @ by_view) @ by_view.T, 1e-9)
        weighted = share * (all_weight[:, views] @ by_view.T)
        together += weighted @ weighted.T
    one_only = left_out @ all_weight.T
    seen = (all_weight @ all_weight.T + one_only + one_only.T).astype(np.float64)
    return Counts(together, seen, Views(all_weight, left_out))


def _known(weight: np.ndarray, left_out: LeftOut | None, groups: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return how much each view counts for a group as known to its masks, and as left out by them, [A, V] each.

    weight [A, V]: how much it counts by what its masks show. Shares in any mask and in none are sharpened, too.
    """
    if left_out is None:
        return weight, np.zeros_like(weight)
    inside, outside = ((groups @ matrix).toarray() for matrix in (left_out.inside, left_out.outside))
    total = inside + outside
    share = outside / np.maximum(total, 1e-9)
    out, known = share**SHARPNESS, (1 - share) ** SHARPNESS
    out /= out + known
    return weight * (1 - out), _view_weights(total) * out


def _blocks(counts: np.ndarray, most: int) -> list[slice]:
    """Cut views with so many masks each, [V], into runs of at most `most` masks, or of one view."""
    ends, first = [], 0
    for v in range(1, len(counts) + 1):
        if v == len(counts) or counts[first : v + 1].sum() > most:
            ends.append(slice(first, v))
            first = v
    return ends


def _view_weights(in_view: np.ndarray) -> np.ndarray:
    """Return how much each view counts for each group, [A, V] in 0..1, of what it shows in the view's masks."""
    largest = in_view.max(axis=1, keepdims=True, initial=0.0)
    share = (in_view / np.maximum(largest, 1e-9)) ** 2
    return in_view / (in_view + ENOUGH) * share / (share + SPILL**2)


def join(counts: Counts, least: float, beside: Beside | None = None) -> Joins:
    """Join the two things of the highest rate, again and again while it is at least `least`. Time and memory: A^2.

    A rate is pulled to 0 by DOUBT views, whose number is held against the views that see both: one that shows many
    pairs of pieces is one view. What lies beside what, and looks alike, may speak too.
    """
    beside, views = beside and beside.copy(), counts.views and counts.views.copy()
    together, seen = counts.together.copy(), counts.seen.copy()
    n = len(together)
    alive, name = np.ones(n, bool), np.arange(n)
    rates = counts.rates()
    if beside:
        unknown = DOUBT / (seen + DOUBT)
        rates += np.array([beside.says(i, unknown[i]) for i in range(n)]).reshape(n, n)
    np.fill_diagonal(rates, -1.0)
    partner = rates.argmax(1) if n else np.zeros(0, np.int64)
    best = rates[np.arange(n), partner]
    made: list[tuple[int, int, float]] = []
    while n:
        i = int(np.where(alive, best, -2.0).argmax())
        j, rate = int(partner[i]), float(best[i])
        if rate < least or not alive[i]:
            break
        made.append((int(name[i]), int(name[j]), rate))
        for table in (together, seen):
            table[i] += table[j]
            table[:, i] = table[i]
        alive[j] = False
        name[i] = n + len(made) - 1
        unknown = DOUBT / ((views.pool(i, j, seen[i]) if views else seen[i]) + DOUBT)
        row = together[i] / np.maximum(seen[i], 1e-9) * (1 - unknown)
        if beside:
            beside.pool(i, j)
            row = row + beside.says(i, unknown)
        row[~alive] = -1.0
        row[i] = -1.0
        rates[i] = rates[:, i] = row
        rates[j] = rates[:, j] = -1.0
        for k in [i, *np.flatnonzero(alive & ((partner == i) | (partner == j))).tolist()]:
            partner[k] = rates[k].argmax()
            best[k] = rates[k, partner[k]]
        closer = alive & (row > best)
        partner[closer], best[closer] = i, row[closer]
    first, second, rate = (np.array(x) for x in zip(*made)) if made else (np.zeros(0, int),) * 3
    return Joins(n, first.astype(np.int64), second.astype(np.int64), rate.astype(np.float64))


def join_groups(
    groups: np.ndarray, columns: Columns, level: float, confidences: np.ndarray | None = None,
    beside: Beside | None = None,
) -> np.ndarray:  # fmt: skip
    """Join groups [N] (-1: none) that one mask has in at least the share `level` of the views; groups [N] from 0.

    With the confidences [N] of a vote only the surer Gaussians of a group speak for it. `beside`: of `compact` groups.
    """
    groups = compact(groups)
    return regroup(groups, join(count_surer(columns, groups, confidences), level, beside).things())


def count_surer(columns: Columns, groups: np.ndarray, confidences: np.ndarray | None) -> Counts:
    """Do as `count_views` by the surer Gaussians of groups [N] (-1: none, from 0); without confidences [N] by all."""
    return count_views(columns, group_matrix(groups, None if confidences is None else core(groups, confidences)))


def core(groups: np.ndarray, confidences: np.ndarray) -> np.ndarray:
    """Say which Gaussians [N] speak for their group: the sure ones, or all where these are few."""
    own = groups >= 0
    sure = own & (confidences >= CORE)
    size = np.bincount(groups[own], minlength=1)
    few = np.bincount(groups[sure], minlength=len(size)) <= LEAST_CORE * size
    return sure | (own & few[np.maximum(groups, 0)])
