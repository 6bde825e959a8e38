"""Which object is meant: by pixels, points, rays, boxes, masks, or likeness to another.

In a picture each pixel shows a chain of nodes, from the smallest part to the largest whole that holds it; it is empty
where noise or nothing is seen. Notation: N Gaussians, P pixels, T nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from cgc.errors import InputError
from cgc.geometry import quat_to_rotation, sh_dc_to_rgb, vector
from cgc.scene.types import Camera
from cgc.segmentation.objects import Object, Selection, Which, checked_object
from cgc.segmentation.pictures import ViewOrCamera, camera_of, finest_ids, finest_map, id_map, shown_by_node
from cgc.segmentation.prompts import Inseparable, clicked_nodes, ids_inside

if TYPE_CHECKING:
    from cgc.segmentation.segmentation import Segmentation

MOSTLY = 0.5
"""What has more than this share of its Gaussians or pixels inside is inside."""
REACH = 3.33
"""Standard deviations at which a Gaussian ends, as in pictures."""
LEAST_DENSITY = 1 / 255
"""At a point where all Gaussians together are thinner than this there is nothing."""
RAY_FOCAL = 1000.0
"""A ray is a pixel that is one part in this many wide."""
LEAST_HIT = 0.01
"""Objects that a ray sees less than this of are not hit."""

Pixel = tuple[float, float]
"""Column x and row y, from the top left."""
Click = tuple[ViewOrCamera, float, float]
"""A view or a camera, and a pixel of it."""


class Hit(NamedTuple):
    """An object on a ray: the share of what is seen that is its own, and the mean distance at which it is."""

    object: Object
    weight: float
    distance: float


class Match(NamedTuple):
    """An object that is like what was asked for: the score, at most 1, and what it compares."""

    object: Object
    score: float
    by: str


# --- pixels -----------------------------------------------------------------------------------------------


def at_pixel(segmentation: Segmentation, view: ViewOrCamera, x: float, y: float) -> Object | None:
    """The object that a pixel shows at the segmentation's level; None where that is noise or nothing.

    x is the column and y the row, from 0 at the top left; fractions are cut off. It is the id that the id map has
    there, from one row of the contribution matrix.
    """
    camera = camera_of(segmentation, view)
    finest = finest_ids(segmentation, camera, _pixels(camera, [(x, y)]))
    node = int(shown_by_node(segmentation)[finest[0]])
    return Object(node, segmentation) if node else None


def at_pixels(
    segmentation: Segmentation, view: ViewOrCamera, positive: Sequence[Pixel], negative: Sequence[Pixel] = ()
) -> Selection:
    """Select what all positive clicks of a view are on and no negative one is. See `at_clicks`."""
    if not all(isinstance(clicks, (Sequence, np.ndarray)) for clicks in (positive, negative)):
        raise InputError("clicks are lists of pixels, [(x, y), ...]; give such")
    places = [vector(place, 2, "a pixel (x, y)") for place in (*positive, *negative)]
    clicks = [(view, float(x), float(y)) for x, y in places]
    return at_clicks(segmentation, clicks[: len(positive)], clicks[len(positive) :])


def at_clicks(segmentation: Segmentation, positive: Sequence[Click], negative: Sequence[Click] = ()) -> Selection:
    """Select what all positive clicks are on and no negative one is; they may be of several views.

    1. A positive click means the object it is on, as the segmentation's level shows it; where a negative click is in
       that object too, the largest part of it that is under the positive click and under no negative one.
    2. If these are several, and nearly all (80 %) of the smallest node that holds all of them and no negative click,
       that is what was meant.
    3. Else it is all of them together: what holds two things may hold all between them, and what they lie on. A
       coarser level gives wholes.

    Clicks on nothing count for nothing, so the selection may be empty. InputError where a positive and a negative click
    are in one smallest part, which nothing can separate.
    """
    for clicks in (positive, negative):
        if not isinstance(clicks, Sequence) or any(not isinstance(c, Sequence) or len(c) != 3 for c in clicks):
            raise InputError("clicks are lists of views and pixels, [(view, x, y), ...]; give such")
    if not len(positive):
        raise InputError("a selection needs at least one positive click; got none")
    finest = _under(segmentation, [*positive, *negative])
    try:
        picked = clicked_nodes(
            segmentation.hierarchy, shown_by_node(segmentation), finest[: len(positive)], finest[len(positive) :]
        )
    except Inseparable as error:
        view, x, y = positive[error.click]
        where = f" in {view}" if isinstance(view, str) else ""
        raise InputError(
            f"the positive click ({x:g}, {y:g}){where} and a negative one are both in segment {finest[error.click]}, "
            "which has no parts; click farther apart, or leave one of them out"
        ) from error
    return selection(segmentation, picked)


def _under(segmentation: Segmentation, clicks: Sequence[Click]) -> list[int]:
    """Return the finest node under each click, 0 for none; a view is looked at once."""
    found, left = [0] * len(clicks), list(range(len(clicks)))
    while left:
        view = clicks[left[0]][0]
        same = [k for k in left if clicks[k][0] is view or (isinstance(view, str) and clicks[k][0] == view)]
        camera = camera_of(segmentation, view)
        ids = finest_ids(segmentation, camera, _pixels(camera, [clicks[k][1:] for k in same]))
        for k, node in zip(same, ids.tolist()):
            found[k] = node
        left = [k for k in left if k not in same]
    return found


def selection(segmentation: Segmentation, nodes: Iterable[Which]) -> Selection:
    """Select some nodes; those that lie in another of them go with it. InputError for ids there are none of."""
    wanted = {checked_object(segmentation, n).id for n in nodes}
    tree = segmentation.hierarchy
    return Selection(segmentation, tuple(sorted(n for n in wanted if wanted.isdisjoint(tree.ancestors(n)))))


def _pixels(camera: Camera, places: Sequence[Pixel]) -> np.ndarray:
    """Return y * width + x of each place, int64 [P]; InputError for one outside of the image."""
    for place in places:
        xy = vector(place, 2, "a pixel (x, y)")
        if not (0 <= xy[0] < camera.width and 0 <= xy[1] < camera.height):
            raise InputError(
                f"the pixel ({xy[0]:g}, {xy[1]:g}) is outside of the image; expected x in 0 to {camera.width - 1} and "
                f"y in 0 to {camera.height - 1}"
            )
    return np.array([int(y) * camera.width + int(x) for x, y in places], np.int64)


# --- space ------------------------------------------------------------------------------------------------


def at_point(segmentation: Segmentation, xyz: ArrayLike) -> Object | None:
    """The object that is densest at a point of the world; None where noise is, or next to nothing.

    A Gaussian's density is its opacity times exp(-d^2 / 2), d the distance in its own standard deviations.
    """
    point = torch.from_numpy(vector(xyz, 3, "a point (x, y, z)"))
    splats, labels = segmentation.splats, segmentation.labels
    away = splats.means.detach().double() - point
    near = (away.norm(dim=1) <= REACH * splats.log_scales.detach().amax(dim=1).exp()).nonzero()[:, 0]
    local = torch.einsum("nij,ni->nj", quat_to_rotation(splats.quats[near].detach().double()), away[near])
    d2 = ((local / splats.log_scales[near].detach().double().exp()) ** 2).sum(dim=1)
    density = (splats.logit_opacities[near].detach().double().sigmoid() * (-d2 / 2).exp()).numpy()
    sums = np.bincount(np.maximum(labels[near.numpy()], 0), density, minlength=1)
    if sums.sum() < LEAST_DENSITY or not sums.argmax():
        return None
    return Object(int(sums.argmax()), segmentation)


def along_ray(segmentation: Segmentation, origin: ArrayLike, direction: ArrayLike) -> list[Hit]:
    """The objects that a ray meets, from near to far, each with its share of what is seen along it.

    The ray is one narrow pixel, blended as pictures are: what lies behind something opaque is not hit. Weights sum to
    at most 1; an object of which less than a hundredth is seen is left out.
    """
    start = vector(origin, 3, "the origin of a ray (x, y, z)")
    along = vector(direction, 3, "the direction of a ray (x, y, z)")
    if not along.any():
        raise InputError("the direction of a ray has length 0; give the vector it goes along")
    along = along / np.abs(along).max()  # the square of a length may be beyond all numbers
    along /= np.linalg.norm(along)
    camera = Camera.look_at(start.tolist(), (start + along).tolist(), width=1, height=1, focal=RAY_FOCAL)
    rows = segmentation.context.rasterizer.contributions(segmentation.splats, camera)
    ids, weights = rows.ids.cpu(), rows.weights.cpu().double().numpy()
    means = segmentation.splats.means[ids.long()].detach().cpu().double().numpy()
    depths, labels = (means - start) @ along, np.maximum(segmentation.labels[ids.numpy()], 0)
    seen = np.bincount(labels, weights, minlength=1)
    far = np.bincount(labels, weights * depths, minlength=1)
    hits = [
        Hit(Object(i, segmentation), float(seen[i]), float(far[i] / seen[i]))
        for i in np.flatnonzero(seen >= LEAST_HIT).tolist()
        if i
    ]
    return sorted(hits, key=lambda hit: hit.distance)


def in_box(segmentation: Segmentation, low: ArrayLike, high: ArrayLike, *, partly: bool = False) -> list[Object]:
    """The objects that have more than half of their Gaussians in a box along the world's axes; `partly`: at least one.

    The corners low and high [3] may be infinite.
    """
    a, b = (vector(v, 3, f"the {name} corner of a box", finite=False) for v, name in ((low, "low"), (high, "high")))
    if not (a <= b).all():
        raise InputError(f"the box from {a.tolist()} to {b.tolist()} is empty; give the lower corner first")
    means = segmentation.splats.means.detach().cpu().numpy()
    inside = ((means >= a) & (means <= b)).all(axis=1)
    return _mostly(segmentation, segmentation.labels[inside], segmentation.labels, partly)


def _mostly(segmentation: Segmentation, inside: np.ndarray, all_of: np.ndarray, partly: bool) -> list[Object]:
    """The objects of which more than half of the entries of `all_of` are `inside`, or any (`partly`)."""
    n = len(segmentation.hierarchy.parents)
    most, total = (np.bincount(np.maximum(ids.ravel(), 0), minlength=n) for ids in (inside, all_of))
    found = np.flatnonzero((most > 0) & (partly | (most > MOSTLY * total)))
    return [Object(i, segmentation) for i in found.tolist() if i]


# --- areas of a view --------------------------------------------------------------------------------------


def in_rect(
    segmentation: Segmentation,
    view: ViewOrCamera,
    x0: float,
    y0: float,
    x1: float,
    y1: float,
    *,
    partly: bool = False,
) -> list[Object]:
    """The objects that have more than half of what a view shows of them in a rectangle; `partly`: at least a pixel.

    The rectangle goes from (x0, y0) to (x1, y1), in pixels from the top left of the image; what is outside is cut off.
    """
    camera = camera_of(segmentation, view)
    ax, ay, bx, by = vector([x0, y0, x1, y1], 4, "a rectangle (x0, y0, x1, y1)")
    if not (ax < bx and ay < by):
        raise InputError(f"the rectangle from ({ax:g}, {ay:g}) to ({bx:g}, {by:g}) is empty; give its top left first")
    if bx <= 0 or by <= 0 or ax >= camera.width or ay >= camera.height:
        raise InputError(
            f"the rectangle from ({ax:g}, {ay:g}) to ({bx:g}, {by:g}) is outside of the image, which is "
            f"{camera.width}x{camera.height}"
        )
    ids = id_map(segmentation, camera)
    columns, rows = np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5  # a pixel is where its centre is
    inside = ids[(rows >= ay) & (rows < by)][:, (columns >= ax) & (columns < bx)]
    return _mostly(segmentation, inside, ids, partly)


def from_mask(segmentation: Segmentation, view: ViewOrCamera, mask: np.ndarray) -> Selection:
    """Select what fits a mask [H, W] of a view best, by IoU there: one node, or all at one level that lie mostly in it.

    Nodes of all levels are tried. Of equal fits the one with fewer ids wins, then the one at the segmentation's level.
    Empty where the mask shows no object.
    """
    camera, tree = camera_of(segmentation, view), segmentation.hierarchy
    target = np.asarray(mask)
    if target.ndim != 2:
        raise InputError(f"a mask [H, W] was expected, got {type(mask).__name__} of {target.ndim} dimensions")
    if target.shape != (camera.height, camera.width):
        raise InputError(
            f"the mask is {'x'.join(map(str, target.shape[::-1]))} but the view is {camera.width}x{camera.height}; "
            "resize the mask to the nearest pixel (but one of a photo that was undistorted since: draw it on the "
            "undistorted one), or give the camera it was drawn for"
        )
    target = target.astype(bool)
    if not target.any():
        raise InputError("the mask is empty: it is False everywhere; mark at least one pixel")
    finest, shown = finest_map(segmentation, camera), shown_by_node(segmentation)
    inside = tree.add_up(np.bincount(finest[target], minlength=len(tree.parents)))
    area = tree.add_up(np.bincount(finest.ravel(), minlength=len(tree.parents)))
    if not inside.any():
        return Selection(segmentation, ())
    stops = tree.stops[: tree.base_stop + 1] if segmentation.blended else tree.stops
    tries: set[tuple[int, ...]] = {(n,) for n in np.flatnonzero(inside).tolist()}
    for x in stops.tolist():
        there = np.isin(np.arange(len(area)), tree.shown(x))
        tries.add(tuple(ids_inside(inside * there, area * there, int(target.sum()))))

    def fit(ids: tuple[int, ...]) -> tuple[float, int, bool, tuple[int, ...]]:
        both, either = inside[list(ids)].sum(), target.sum() + (area - inside)[list(ids)].sum()
        return float(both / either), -len(ids), all(shown[i] == i for i in ids), tuple(-i for i in ids)

    return selection(segmentation, max(tries - {()}, key=fit))


# --- likeness ---------------------------------------------------------------------------------------------


def similar(segmentation: Segmentation, which: Which, k: int = 5) -> list[Match]:
    """The k objects that look most like one of them, best first.

    A score is 1 less the mean of two differences: of their colours, means and standard deviations taken together (black
    to white is 1), and of their boxes' sides from long to short, each 1 less the ratio of the smaller to the larger.
    Learned features say which Gaussians are of one object, not which objects are of one kind: they are not asked.
    """
    own = checked_object(segmentation, which)
    check_count(k)
    others = [o for o in segmentation.objects if o.id != own.id]
    mine = _looks_of(own)
    scores = np.array([_likeness(mine, _looks_of(o)) for o in others])
    order = np.argsort(-scores, kind="stable")[:k].tolist()
    return [Match(others[i], float(scores[i]), "looks") for i in order]


def check_count(k: int) -> None:
    """Raise InputError unless k is a number of objects to find."""
    if not isinstance(k, (int, np.integer)) or k < 1:
        raise InputError(f"k is {k!r} where a whole number over 0 was expected")


class _Looks(NamedTuple):
    """Means and standard deviations of an object's colours, [6], and its box's sides, falling [3]."""

    colors: np.ndarray
    sides: np.ndarray


def _looks_of(thing: Object) -> _Looks:
    splats = thing.segmentation.splats.select(torch.from_numpy(thing.indices))
    rgb = sh_dc_to_rgb(splats.sh[:, 0]).clamp(0, 1).double().cpu().numpy()
    area = splats.scales.double().sort(dim=1).values[:, 1:].prod(dim=1)
    weight = (splats.opacities.double() * area).cpu().numpy() + 1e-300
    mean = np.average(rgb, axis=0, weights=weight)
    spread = np.sqrt(np.average((rgb - mean) ** 2, axis=0, weights=weight))
    return _Looks(np.concatenate([mean, spread]), np.sort(thing.box.size)[::-1])


def _likeness(a: _Looks, b: _Looks) -> float:
    color = np.linalg.norm(a.colors - b.colors) / 3**0.5
    small, large = np.minimum(a.sides, b.sides), np.maximum(a.sides, b.sides)
    size = 1 - np.where(large > 0, small / np.where(large > 0, large, 1.0), 1.0).mean()
    return float(1 - (color + size) / 2)
