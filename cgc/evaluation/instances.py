"""How well id maps find true instances: one-to-one matching, IoU, boundary IoU, panoptic quality.

Scores are pooled over all views at once: an id that changes its meaning between views is punished.
Notation: H W image; id 0 = unassigned; things are what is scored, stuff (floor, wall, table) is what is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, minimum_filter
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from cgc.errors import InputError

MIN_PIXELS = 60
"""Things with fewer in all views together are not scored."""
BAND = 0.02
"""Width of the boundary band, times the image's diagonal (Boundary IoU, arXiv 2103.16562)."""


def band_depth(shape: Sequence[int]) -> int:
    """Depth in pixels of the boundary band of an image [H, W]."""
    return max(1, round(BAND * math.hypot(*shape)))


@dataclass(frozen=True)
class InstanceRow:
    """The score of one true thing: its `pixels` over all views, and its match (`predicted` = 0: none)."""

    id: int
    pixels: int
    predicted: int
    iou: float
    boundary_iou: float


@dataclass(frozen=True)
class InstanceScores:
    """Scores over a set of views, all in 0..1.

    miou_things, boundary_iou: means over true things of their one-to-one match, 0 where there is none;
    miou_all: the same over things and stuff, matched together; pq = sq * rq: panoptic quality over things (arXiv
    1801.00868: every pair above IoU 0.5 is a true positive, whatever else is matched); recall_iou50: share of things
    in such a pair.
    `skipped` true ids had too few pixels; `missing_views` had no prediction, which counts as all zeros.
    """

    miou_things: float
    miou_all: float
    boundary_iou: float
    pq: float
    sq: float
    rq: float
    recall_iou50: float
    true_positives: int
    false_positives: int
    false_negatives: int
    rows: tuple[InstanceRow, ...]
    skipped: tuple[int, ...]
    missing_views: int


def score_instances(
    truth: Sequence[np.ndarray],
    predicted: Sequence[np.ndarray | None],
    stuff_ids: set[int] | frozenset[int],
    ignore_id: int | None = None,
    min_pixels: int = MIN_PIXELS,
) -> InstanceScores:
    """Score predicted id maps against true ones, int [H, W] each, one pair a view; None is all zeros.

    An id means the same instance in every view. Things are matched one-to-one by the best total IoU over all
    views at once. Pixels where the truth is `ignore_id` count nowhere. True instances under `min_pixels` are
    left out. A predicted segment is a false positive only if more than half of it lies on things (what covers
    stuff or background is no wrong thing) and it has `min_pixels`. Raise InputError if no thing is left.
    """
    views = _views(truth, predicted, ignore_id)
    every_id = _ids(v.truth for v in views)
    every_id = every_id[every_id != ignore_id] if ignore_id is not None else every_id
    predicted_ids = _ids(v.predicted for v in views)
    pooled = _overlap(views, every_id, predicted_ids)
    kept = pooled.true_area >= min_pixels
    true_ids = every_id[kept]
    is_thing = ~np.isin(true_ids, list(stuff_ids))
    if not is_thing.any():
        raise InputError(
            f"the true id maps of {len(views)} views hold no thing of at least {min_pixels} pixels, so nothing can be "
            "scored; check which views they are, and what is marked as stuff"
        )
    iou = pooled.iou()[kept]  # [T, P + 1], stuff too
    thing_iou = iou[is_thing]
    match, scores = _match(thing_iou)
    bands = _overlap([v.bands() for v in views], every_id, predicted_ids).iou()[kept][is_thing]
    boundary = np.array([bands[row, column] if column >= 0 else 0.0 for row, column in enumerate(match.tolist())])

    best, best_iou = thing_iou.argmax(axis=1), thing_iou.max(axis=1).toarray()
    hit = best_iou > 0.5  # and above 0.5 no segment is the best of two things
    on_things = pooled.shared[kept][is_thing].sum(axis=0)[:-1]  # [P] pixels
    countable = (on_things > 0.5 * pooled.predicted_area) & (pooled.predicted_area >= min_pixels)
    countable[best[hit]] = False
    tp, fp, fn = int(hit.sum()), int(countable.sum()), int((~hit).sum())
    sq = float(best_iou[hit].mean()) if tp else 0.0
    rq = tp / (tp + 0.5 * fp + 0.5 * fn)

    names = [int(predicted_ids[m]) if m >= 0 else 0 for m in match]
    areas = pooled.true_area[kept][is_thing]
    columns = (true_ids[is_thing].tolist(), areas.tolist(), names, scores.tolist(), boundary.tolist())
    return InstanceScores(
        miou_things=float(scores.mean()),
        miou_all=float(_match(iou)[1].mean()),
        boundary_iou=float(boundary.mean()),
        pq=sq * rq,
        sq=sq,
        rq=rq,
        recall_iou50=tp / len(hit),
        true_positives=tp,
        false_positives=fp,
        false_negatives=fn,
        rows=tuple(InstanceRow(*row) for row in zip(*columns)),
        skipped=tuple(every_id[~kept].tolist()),
        missing_views=sum(p is None for p in predicted),
    )


@dataclass(frozen=True)
class InstanceView:
    """The part of a thing's score that one view gives, in pixels; summed over views they give its two IoUs."""

    view: int
    id: int
    predicted: int
    true_pixels: int
    predicted_pixels: int
    shared_pixels: int
    true_band: int
    predicted_band: int
    shared_band: int


def trace_instances(
    truth: Sequence[np.ndarray],
    predicted: Sequence[np.ndarray | None],
    scores: InstanceScores,
    ignore_id: int | None = None,
) -> list[InstanceView]:
    """Take the scores apart by view: one row for each view in which a true thing or its match shows."""
    true_ids = np.array([r.id for r in scores.rows], np.int64)
    matched = np.unique([r.predicted for r in scores.rows if r.predicted]).astype(np.int64)
    traced = []
    for index, view in enumerate(_views(truth, predicted, ignore_id)):
        whole, band = (_overlap([v], true_ids, matched) for v in (view, view.bands()))
        for row, (i, guess) in enumerate((r.id, r.predicted) for r in scores.rows):
            column = int(np.searchsorted(matched, guess)) if guess else -1
            pixels = [n for overlap in (whole, band) for n in overlap.pair(row, column)]
            if pixels[0] or pixels[1]:
                traced.append(InstanceView(index, i, guess, *pixels))
    return traced


@dataclass(frozen=True)
class _View:
    """One view's id maps [H, W], and where the truth is known."""

    truth: NDArray[np.int64]
    predicted: NDArray[np.int64]
    known: NDArray[np.bool_]

    def bands(self) -> _View:
        """Return the same view with only the inner border of every segment left."""
        depth = band_depth(self.truth.shape)
        truth, predicted = (_band(ids, self.known, depth) for ids in (self.truth, self.predicted))
        return _View(truth, predicted, self.known)


_ABOVE_IDS = 2**52  # the filters compute in doubles: the largest int64 would not survive them


def _band(ids: NDArray[np.int64], known: NDArray[np.bool_], depth: int) -> NDArray[np.int64]:
    """Keep the pixels within `depth` (Chebyshev) of another id or of the image's edge, for all ids at once.

    What lies in unknown pixels is taken to go on as it is, so that no border appears along them.
    """
    size = 2 * depth + 1
    low = minimum_filter(np.where(known, ids, _ABOVE_IDS), size, mode="constant", cval=0)
    high = maximum_filter(np.where(known, ids, 0), size, mode="constant", cval=0)
    return np.where((low == ids) & (high == ids), 0, ids)


@dataclass(frozen=True)
class _Overlap:
    """Pixels shared by T true and P predicted ids, and of each alone [T], [P], over all views.

    `shared` is [T, P + 1], its last column empty: there may be no segment at all. Only pairs that meet take memory.
    """

    shared: csr_array
    true_area: NDArray[np.int64]
    predicted_area: NDArray[np.int64]

    def iou(self) -> csr_array:
        """Intersection over union of every pair, [T, P + 1]."""
        pairs = self.shared.tocoo()
        union = self.true_area[pairs.row] + self.predicted_area[pairs.col] - pairs.data
        return csr_array((pairs.data / union, (pairs.row, pairs.col)), shape=pairs.shape)

    def pair(self, row: int, column: int) -> tuple[int, int, int]:
        """Pixels of a true id, of a predicted one and of both; column -1 is nothing."""
        if column < 0:
            return int(self.true_area[row]), 0, 0
        return int(self.true_area[row]), int(self.predicted_area[column]), int(self.shared[row, column])


def _views(truth: Sequence[np.ndarray], predicted: Sequence[np.ndarray | None], ignore_id: int | None) -> list[_View]:
    if len(truth) != len(predicted):
        raise InputError(f"{len(truth)} true and {len(predicted)} predicted id maps came; one pair a view is needed")
    views = []
    for i, (true, guess) in enumerate(zip(truth, predicted)):
        true = np.asarray(true, np.int64)
        guess = np.zeros_like(true) if guess is None else np.asarray(guess, np.int64)
        if true.ndim != 2 or true.shape != guess.shape:
            raise InputError(
                f"view {i}: the predicted id map is {guess.shape} where the true one is {true.shape}; "
                "render the prediction at the truth's size"
            )
        known = np.ones(true.shape, bool) if ignore_id is None else true != ignore_id
        views.append(_View(np.maximum(true, 0), np.maximum(guess, 0), known))  # noise (-1) is unassigned
    return views


def _ids(maps: Any) -> NDArray[np.int64]:
    """All ids above 0 of some maps, sorted."""
    found = [np.unique(m) for m in maps]
    every = np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)
    return every[every > 0]


def _overlap(views: Sequence[_View], true_ids: NDArray[np.int64], predicted_ids: NDArray[np.int64]) -> _Overlap:
    """Count shared pixels; what is in neither list goes to a row and a column of its own, after the others."""
    rows, columns = len(true_ids) + 1, len(predicted_ids) + 1
    table = csr_array((rows, columns), dtype=np.int64)
    for view in views:
        row = position_in(view.truth[view.known], true_ids)
        column = position_in(view.predicted[view.known], predicted_ids)
        pairs, pixels = np.unique(row * columns + column, return_counts=True)
        table += csr_array((pixels, np.divmod(pairs, columns)), shape=(rows, columns))
    true_area, predicted_area = table.sum(axis=1)[:-1], table.sum(axis=0)[:-1]
    pairs = table[:-1].tocoo()
    met = pairs.col < columns - 1
    shared = csr_array((pairs.data[met], (pairs.row[met], pairs.col[met])), shape=pairs.shape)
    return _Overlap(shared, true_area, predicted_area)


def position_in(values: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Index of each value in the sorted `ids`; len(ids) for those that are not there."""
    if len(ids) == 0:
        return np.zeros(values.shape, np.int64)
    index = np.minimum(np.searchsorted(ids, values), len(ids) - 1)
    return np.where(ids[index] == values, index, len(ids))


def _match(iou: csr_array) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Match rows to columns one-to-one by the largest total: column [T] (-1: none), and its IoU [T].

    What no chain of pairs that meet connects cannot take from each other, so each connected part is solved by itself.
    """
    rows, pairs = len(iou.indptr) - 1, iou.tocoo()
    match, scores = np.full(rows, -1), np.zeros(rows)
    nodes = rows + int(pairs.col.max(initial=0)) + 1
    graph = coo_array((pairs.data, (pairs.row, rows + pairs.col)), shape=(nodes, nodes))
    part = connected_components(graph, directed=False)[1][pairs.row]
    order = np.argsort(part, kind="stable")
    for own in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
        row, i = np.unique(pairs.row[own], return_inverse=True)
        column, j = np.unique(pairs.col[own], return_inverse=True)
        table = np.zeros((len(row), len(column)))
        table[i, j] = pairs.data[own]
        best = linear_sum_assignment(table, maximize=True)
        met = table[best] > 0
        match[row[best[0][met]]] = column[best[1][met]]
        scores[row[best[0][met]]] = table[best][met]
    return match, scores
