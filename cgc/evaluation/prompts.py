"""Promptable scoring: an object is pointed at in one view, and what comes back is scored in all the others.

Predictions are id maps that are consistent across views, one list of them for every level of a hierarchy. What a
prompt picks is a set of ids. Notation: H W image; id 0 = unassigned, picks nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from scipy import ndimage

from cgc.clustering.hierarchy import Hierarchy
from cgc.errors import InputError
from cgc.evaluation.binary import Counts, count
from cgc.evaluation.instances import MIN_PIXELS
from cgc.segmentation.prompts import Inseparable, clicked_nodes, mask_ids

Level = float | None
"""A level of the hierarchy, 0 to 1; None is the run's own segments."""

LEAST_SCRIBBLE = 0.05
"""Scribbles pick ids that have at least this share of the positive ones."""


@dataclass(frozen=True)
class Click:
    """A pixel (column x, row y) that is on the object (positive) or on what is not wanted."""

    x: int
    y: int
    positive: bool


@dataclass(frozen=True)
class Parts:
    """What lies under the clicks: the finest nodes of a hierarchy that each view shows, [H, W] with 0 = none."""

    tree: Hierarchy
    finest: Sequence[np.ndarray]

    def mask(self, view: int, nodes: Sequence[int]) -> np.ndarray:
        """Where a view shows any of some nodes, [H, W] bool."""
        return self.tree.inside(nodes)[self.finest[view]]


@dataclass(frozen=True)
class PromptRow:
    """What one object's prompt at one level gave: `views` are the counts of every other view, by its index.

    iou pools the other views; iou_of_views is the mean over those where the object is seen.
    """

    id: int
    level: Level
    prompt_view: int
    clicks: tuple[Click, ...]
    predicted: tuple[int, ...]
    views: Mapping[int, Counts]

    @cached_property
    def pooled(self) -> Counts:
        """Counts over all other views."""
        return sum(self.views.values(), Counts(0, 0, 0))

    @property
    def iou(self) -> float:
        """IoU pooled over the other views."""
        return self.pooled.iou

    @property
    def iou_of_views(self) -> float:
        """Mean IoU over the other views where the object is seen."""
        return float(np.mean([c.iou for c in self.views.values() if c.true]))


@dataclass(frozen=True)
class PromptScores:
    """Rows of every object at every level; `one_view` were seen in one view only, `skipped` had too few pixels."""

    rows: tuple[PromptRow, ...]
    one_view: tuple[int, ...]
    skipped: tuple[int, ...]

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels that were scored."""
        return tuple(dict.fromkeys(r.level for r in self.rows))

    def at(self, level: Level) -> tuple[PromptRow, ...]:
        """The rows of one level, one an object."""
        return tuple(r for r in self.rows if r.level == level)

    def miou(self, level: Level) -> float:
        """Mean over objects of their pooled IoU at one level."""
        return float(np.mean([r.iou for r in self.at(level)]))

    @property
    def common_level(self) -> Level:
        """The one level that is best for all objects together."""
        return max(self.levels, key=self.miou)

    @cached_property
    def best(self) -> tuple[PromptRow, ...]:
        """Each object's row at its own best level: an upper bound, since the truth chose the level."""
        found: dict[int, PromptRow] = {}
        for row in self.rows:
            if row.id not in found or row.iou > found[row.id].iou:
                found[row.id] = row
        return tuple(found.values())


def score_prompts(
    truth: Sequence[np.ndarray],
    predicted: Mapping[Level, Sequence[np.ndarray]],
    *,
    prompt: Literal["click", "mask"] = "click",
    clicks: int = 1,
    left_out: set[int] | frozenset[int] = frozenset(),
    ignore_id: int | None = None,
    prompt_views: Mapping[int, int] | None = None,
    min_pixels: int = MIN_PIXELS,
    parts: Parts | None = None,
) -> PromptScores:
    """Prompt every true object in one view and score what is picked in the others; id maps int [H, W], one a view.

    The prompt view is the one where the object is largest, unless `prompt_views` (id to index) names another. A
    click is on the pixel farthest from the border; what is picked say `click_nodes` (with `parts`), `click_ids` and
    `mask_ids`. Pixels where the truth is `ignore_id` count nowhere; ids in `left_out` (stuff) are not
    prompted.
    """
    _check(truth, predicted)
    maps = [np.asarray(m, np.int64) for m in truth]
    known = [m != ignore_id if ignore_id is not None else np.ones(m.shape, bool) for m in maps]
    found = np.unique(np.concatenate([np.unique(m) for m in maps])) if maps else np.zeros(0, np.int64)
    ids = [i for i in found.tolist() if i > 0 and i != ignore_id and i not in left_out]
    rows, one_view, skipped = [], [], []
    for i in ids:
        areas = np.array([int((m == i).sum()) for m in maps])
        if areas.sum() < min_pixels:
            skipped.append(i)
            continue
        at = (prompt_views or {}).get(i, int(areas.argmax()))
        if not 0 <= at < len(maps) or not areas[at]:
            raise InputError(f"object {i} is not seen in view {at}, where it was to be prompted; name another view")
        if (areas > 0).sum() < 2:
            one_view.append(i)
            continue
        counted: dict[tuple[Level, tuple[int, ...]], dict[int, Counts]] = {}  # of what several levels pick alike
        for level, guess in predicted.items():
            target, shown = maps[at] == i, np.where(known[at], guess[at], 0)
            made: tuple[Click, ...] = ()
            nodes = parts if prompt == "click" else None
            if nodes is not None:
                picked, made = click_nodes(target, nodes, at, level, clicks, known[at])
            elif prompt == "click":
                picked, made = click_ids(target, shown, clicks, known[at])
            else:
                picked = mask_ids(target, shown)
            what = (None if nodes else level, tuple(picked))
            if what not in counted:
                masks = {
                    v: nodes.mask(v, picked) if nodes else np.isin(guess[v], picked)
                    for v in range(len(maps)) if v != at
                }  # fmt: skip
                counted[what] = {v: count(maps[v] == i, mask & known[v]) for v, mask in masks.items()}
            rows.append(PromptRow(i, level, at, made, what[1], counted[what]))
    if not rows:
        raise InputError(
            f"no object of the truth is seen in two of its {len(maps)} views with at least {min_pixels} pixels, so "
            "none can be prompted in one and scored in another; give truth of more views"
        )
    return PromptScores(tuple(rows), tuple(one_view), tuple(skipped))


def _check(truth: Sequence[np.ndarray], predicted: Mapping[Level, Sequence[np.ndarray]]) -> None:
    for level, maps in predicted.items():
        if [np.shape(m) for m in maps] != [np.shape(m) for m in truth]:
            raise InputError(
                f"the predicted id maps of level {level} are not one of each true map's size; "
                "render the prediction at the truth's views and size"
            )


def innermost(mask: np.ndarray) -> tuple[int, int]:
    """The pixel (x, y) of a mask [H, W] that is farthest from its border; the image's edge is one too."""
    depth = np.asarray(ndimage.distance_transform_edt(np.pad(mask, 1)))
    y, x = divmod(int(depth.argmax()), depth.shape[1])
    return x - 1, y - 1


def click_ids(
    target: np.ndarray, ids: np.ndarray, clicks: int, known: np.ndarray | None = None
) -> tuple[list[int], tuple[Click, ...]]:
    """Click `clicks` times for the object `target` [H, W] bool on an id map [H, W]: the ids picked, and the clicks.

    The first click is on the object's innermost pixel and picks the id under it. Each further one is on the innermost
    pixel of the largest connected error in this view: a positive one adds the id under it, a negative one takes it
    away. Where that makes the error larger the click is taken back, as who sees the picture would, and no more follow.
    """

    def pick(made: Sequence[Click]) -> list[int]:
        picked: set[int] = set()
        for click in made:
            here = {int(ids[click.y, click.x])} - {0}
            picked = picked | here if click.positive else picked - here
        return sorted(picked)

    return _click(target, clicks, known, pick, lambda picked: np.isin(ids, picked))


def click_nodes(
    target: np.ndarray, parts: Parts, view: int, level: Level, clicks: int, known: np.ndarray | None = None
) -> tuple[list[int], tuple[Click, ...]]:
    """Click as in `click_ids`, on what a hierarchy shows at a level: the nodes that `Segmentation.at_pixels` selects.

    A negative click where the object is clicked on too leaves the largest part of it that has no negative one.
    """
    tree, finest = parts.tree, parts.finest[view]
    shown = tree.shown_for(tree.base if level is None else level)

    def pick(made: Sequence[Click]) -> list[int] | None:
        leaves = [[int(finest[c.y, c.x]) for c in made if c.positive is sign] for sign in (True, False)]
        try:
            return clicked_nodes(tree, shown, *leaves)
        except Inseparable:
            return None

    return _click(target, clicks, known, pick, lambda picked: parts.mask(view, picked))


def _click(
    target: np.ndarray,
    clicks: int,
    known: np.ndarray | None,
    pick: Callable[[Sequence[Click]], list[int] | None],
    mask: Callable[[list[int]], np.ndarray],
) -> tuple[list[int], tuple[Click, ...]]:
    """Click until the clicks are used up, or one does not help: `pick` says what they select (None: nothing can)."""
    known = np.ones(target.shape, bool) if known is None else known
    if not target.any():
        return [], ()
    made = [Click(*innermost(target), True)]
    picked = pick(made) or []
    error = (mask(picked) != target) & known
    while len(made) < clicks and error.any():
        missed, wrong = _largest(error & target), _largest(error & ~target)
        positive = bool(missed.sum() >= wrong.sum())
        more = [*made, Click(*innermost(missed if positive else wrong), positive)]
        changed = pick(more)
        if changed is None:
            break
        left = (mask(changed) != target) & known
        if left.sum() >= error.sum():
            break
        picked, error, made = changed, left, more
    return picked, tuple(made)


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected part (over edges) of a mask."""
    parts, n = ndimage.label(mask)  # pyright: ignore[reportGeneralTypeIssues]
    return parts == 1 + int(np.bincount(parts.ravel())[1:].argmax()) if n else mask


def scribble_ids(positive: np.ndarray, negative: np.ndarray, ids: np.ndarray) -> list[int]:
    """The ids that positive scribbles [H, W] bool cover more than negative ones do, as shares of each.

    An id with less than a twentieth of the positive pixels was only brushed; if all are, the most covered one counts.
    """
    n = int(ids.max(initial=0)) + 1
    for_it, against = (np.bincount(ids[s], minlength=n).astype(float) for s in (positive, negative))
    for_it, against = for_it / max(for_it.sum(), 1), against / max(against.sum(), 1)
    for_it[0] = 0
    picked = np.flatnonzero((for_it > against) & (for_it >= LEAST_SCRIBBLE))
    return picked.tolist() if len(picked) or not for_it.any() else [int(for_it.argmax())]
