"""Edits of a segmented scene: pure functions that return a new Segmentation, so that undoing is keeping the old one.

The ids of what an edit does not touch never change; a new object gets the next free id. Each edit appends what it did
to `Segmentation.edits` as a record of JSON values. Ids are nodes of the hierarchy: objects, parts of them and wholes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike

from cgc.clustering.hierarchy import Hierarchy
from cgc.clustering.vote import NOISE
from cgc.errors import InputError
from cgc.geometry import SH_C0, quat_multiply, quat_to_rotation, rotate_sh, rotation_to_quat, sh_dc_to_rgb, vector
from cgc.rasterize.base import Rasterizer, contributions_by_parts
from cgc.scene.types import Camera
from cgc.segmentation.halo import Halo, find_halo
from cgc.segmentation.objects import plain_name
from cgc.splats.types import PARAMETERS, Splats

if TYPE_CHECKING:
    from cgc.segmentation.segmentation import Segmentation

ORIGIN = "origin_row"
"""The attribute in `Splats.extras` that says which row of the file each Gaussian came of (see `track`)."""
MOVED = "moved"
"""The attribute that says, with a 1, which Gaussians are no longer where photos show them: what they hide now was seen,
and nothing of theirs was left behind there."""
MIN_SHOWN = 0.05
"""A stroke reaches what has at least this blending weight in a pixel: what is seen there, not what lies behind it."""
MIN_SHARE = 0.5
"""It takes the Gaussians that have this share of their weight under it."""
MAX_NAME = 200

Ids = int | Sequence[int]


def track(segmentation: Segmentation, origin: np.ndarray | None = None) -> Segmentation:
    """Remember which row of the original file each Gaussian is, through all edits: `origin` [N], by default its own."""
    n = len(segmentation.splats)
    rows = np.arange(n, dtype=np.int32) if origin is None else np.asarray(origin)
    if rows.shape != (n,) or not np.issubdtype(rows.dtype, np.integer) or rows.min(initial=0) < 0:
        raise InputError(f"origins [{n}] were expected, a row over 0 for each Gaussian, got {rows.shape} {rows.dtype}")
    splats = segmentation.splats
    return replace(segmentation, splats=replace(splats, extras=splats.extras | {ORIGIN: rows.astype(np.int32)}))


def select_rows(segmentation: Segmentation, rows: np.ndarray) -> Segmentation:
    """Return the Gaussians at `rows` [n] (indices), with everything that is kept for each; ids stay."""
    tree = replace(segmentation.hierarchy, leaves=segmentation.hierarchy.leaves[rows])
    return replace(
        segmentation,
        splats=segmentation.splats.select(torch.from_numpy(rows)),
        labels=segmentation.labels[rows],
        confidences=segmentation.confidences[rows],
        hierarchy=tree,
        names=_names_within(segmentation, tree),
    )


# --- what is there ----------------------------------------------------------------------------------------


def keep(segmentation: Segmentation, ids: Ids) -> Segmentation:
    """Keep the Gaussians of some ids alone."""
    chosen = _known(segmentation, ids)
    made = select_rows(segmentation, np.flatnonzero(_members(segmentation, chosen)))
    return _recorded(made, "keep", ids=chosen)


def remove(
    segmentation: Segmentation,
    ids: Ids,
    *,
    halo: bool = True,
    fill: bool = True,
    rasterizer: Rasterizer | None = None,
    cameras: Sequence[Camera] = (),
) -> Segmentation:
    """Remove the Gaussians of some ids, and with `halo` what else shows that they were there.

    Uncertain Gaussians among them go too. With a rasteriser and cameras so does what lies over them in pictures,
    whatever its label, and what they hid gets the colours of what is seen beside it (see halo.py). With `fill` new
    Gaussians continue flat surfaces where nothing of them was seen, and lose the shade that the ids cast on them.
    """
    chosen = _known(segmentation, ids)
    gone = _members(segmentation, chosen)
    own, splats = int(gone.sum()), segmentation.splats
    if gone.all():
        raise InputError(f"removing {_text(chosen)} would leave no Gaussian; keep at least one segment")
    healed, fresh = 0, None
    if halo and (found := _halo_of(segmentation, gone, rasterizer, cameras, fill)):
        if not (gone | found.spill).all():
            gone, fresh = gone | found.spill, found
        splats, healed = replace(splats, sh=found.sh), int((found.healed & ~gone).sum())
    made = replace(segmentation, splats=splats)
    made = select_rows(made, np.flatnonzero(~gone)) if fresh is None else _with_fresh(made, ~gone, fresh)
    filled = 0 if fresh is None else len(fresh.like)
    return _recorded(made, "remove", ids=chosen, halo=int(gone.sum()) - own, healed=healed, filled=filled)


# --- which is which ---------------------------------------------------------------------------------------


def merge(segmentation: Segmentation, ids: Sequence[int]) -> Segmentation:
    """Join shown segments into the first of `ids`; their parts become its parts."""
    chosen = _known(segmentation, ids)
    shown = set(segmentation.ids.tolist())
    if absent := [i for i in chosen if i not in shown]:
        are = "it is" if len(absent) == 1 else "they are"
        raise InputError(f"{_text(absent)} cannot be merged: {are} not shown at this level; give ids that are")
    if len(chosen) < 2:
        raise InputError(f"merging takes two segments or more, got {_text(chosen)}")
    first, others = chosen[0], chosen[1:]
    tree = segmentation.hierarchy
    leaves, parents, levels = tree.leaves.copy(), tree.parents.copy(), tree.levels.copy()
    whole = [i for i in chosen if (parents == i).any()]
    if whole:
        level = levels[whole].min()
        for node in chosen:
            own = leaves == node
            if own.any():  # it has no parts: it becomes one itself
                parents, levels = np.append(parents, np.int32(first)), np.append(levels, np.float32(1))
                leaves[own] = len(parents) - 1
        parents[np.isin(parents, others)] = first
        levels[others], levels[first] = 1, level
    else:
        leaves[np.isin(leaves, others)] = first
    labels = np.where(np.isin(segmentation.labels, others), first, segmentation.labels).astype(np.int32)
    names = {node: name for node, name in segmentation.names.items() if node not in others}
    made = replace(segmentation, labels=labels, hierarchy=replace(tree, leaves=leaves, parents=parents, levels=levels))
    return _recorded(replace(made, names=names), "merge", ids=chosen)


def split(
    segmentation: Segmentation,
    segment: int,
    parts: Literal["children"] | int | np.ndarray = "children",
    *,
    camera: Camera | None = None,
    rasterizer: Rasterizer | None = None,
    features: np.ndarray | None = None,
) -> Segmentation:
    """Split a shown segment; the last record of `edits` has the ids of its pieces.

    "children": its parts in the hierarchy become segments of their own. A number: so many pieces by where its Gaussians
    lie and, where given, `features` [N, D]; the largest keeps the id. A mask [H, W] with its camera and a rasteriser:
    what lies under the mask becomes a new segment; what the camera does not see goes with what is nearest.
    """
    segment = _known_one(segmentation, segment)
    own = np.flatnonzero(segmentation.labels == segment)
    if not len(own):
        raise InputError(f"segment {segment} cannot be split: it is not shown at this level; give one that is")
    if isinstance(parts, str):
        return _split_children(segmentation, segment, parts)
    if isinstance(parts, np.ndarray):
        if camera is None or rasterizer is None:
            raise InputError("splitting by a mask needs the mask's camera and a rasteriser; give both")
        pieces = _pieces_under(segmentation.splats, own, camera, parts, rasterizer)
    else:
        from cgc.segmentation.pieces import find_pieces

        means = segmentation.splats.means.detach().cpu().numpy().astype(float)
        if features is not None and (features.ndim != 2 or len(features) != len(means)):
            raise InputError(f"features [{len(means)}, D] were expected, got {list(features.shape)}")
        pieces = find_pieces(means[own], parts, None if features is None else features[own])
    made, ids = segmentation, [segment]
    for piece in range(1, int(pieces.max()) + 1):
        made, new = _assigned(made, own[pieces == piece], None, parent=segmentation.hierarchy.parent(segment))
        ids.append(new)
    return _recorded(made, "split", ids=[segment], pieces=ids)


def paint(
    segmentation: Segmentation,
    camera: Camera,
    mask: np.ndarray,
    segment: int | None,
    rasterizer: Rasterizer,
) -> Segmentation:
    """Give the Gaussians that show under a mask [H, W] of a camera to a segment; None: a new one; 0: to none."""
    if segment:
        segment, tree = _known_one(segmentation, segment, empty=True), segmentation.hierarchy
        if segment not in tree.shown(tree.base if segmentation.level is None else segmentation.level):
            raise InputError(f"segment {segment} cannot be painted: it is not shown at this level; give one that is")
    share, mass = _shares(segmentation.splats, camera, mask, rasterizer)
    under = np.flatnonzero((share >= MIN_SHARE) & (mass > 0))
    if not len(under):
        raise InputError("no Gaussian shows mostly under the mask; make the mask larger")
    made, given = _assigned(segmentation, under, segment)
    return _recorded(made, "paint", ids=[given], gaussians=len(under))


def relabel(segmentation: Segmentation, segment: int, name: str | None) -> Segmentation:
    """Name a segment; None or nothing takes its name away."""
    segment = _known_one(segmentation, segment)
    wanted = f"a name of up to {MAX_NAME} printable characters was expected, got"
    if not isinstance(name, str | None):
        raise InputError(f"{wanted} {name!r}")
    text = plain_name(name or "")
    if len(text) > MAX_NAME or not text.isprintable():
        raise InputError(f"{wanted} {text[:40]!r}")
    names = {node: n for node, n in segmentation.names.items() if node != segment}
    made = replace(segmentation, names=names | ({segment: text} if text else {}))
    return _recorded(made, "relabel", ids=[segment], name=text)


# --- how it looks -----------------------------------------------------------------------------------------


def recolor(
    segmentation: Segmentation, ids: Ids, rgb: ArrayLike, *, how: Literal["shift", "tint"] = "shift"
) -> Segmentation:
    """Make `rgb` (0 to 1) the mean colour of some ids; shading stays, where the colour leaves room for it.

    A mean of 0 or 1 leaves none: what is all of it as dark, or as bright, as can be is flat.
    "shift" adds the same to every Gaussian, so that patterns stay; "tint" keeps how bright each is and nothing else.
    """
    chosen = _known(segmentation, ids)
    goal = vector(rgb, 3, "a colour (red, green, blue from 0 to 1)")
    if (goal < 0).any() or (goal > 1).any():
        raise InputError(f"a colour (red, green, blue from 0 to 1) was expected, got {goal.tolist()}")
    if how not in ("shift", "tint"):
        raise InputError(f"colours are changed by 'shift' or 'tint', got {how!r}")
    own = torch.from_numpy(np.flatnonzero(_members(segmentation, chosen)))
    splats = segmentation.splats
    sh, weight = splats.sh[own].detach().double(), splats.opacities[own].detach().double()[:, None] + 1e-6
    to = torch.from_numpy(goal).to(sh)
    if how == "tint":
        grey = sh @ torch.tensor([0.299, 0.587, 0.114], dtype=sh.dtype, device=sh.device)  # [n, K]
        grey[:, 0] += 0.5 / SH_C0  # brightness from black on
        mean = ((grey[:, :1] * weight).sum() / weight.sum() * SH_C0).clamp_min(1e-3)
        sh = grey[..., None] * to / mean
        sh[:, 0] -= 0.5 / SH_C0
    for _ in range(50):  # colours end at 0 and 1, so that a shift moves their mean by less than itself
        shown = sh_dc_to_rgb(sh[:, 0])
        missing = to - (shown * weight).sum(0) / weight.sum()
        if missing.abs().max() < 1e-4:
            break
        sh[:, 0] += missing / SH_C0
    colors = splats.sh.detach().clone()
    colors[own] = sh.to(colors.dtype)
    made = replace(segmentation, splats=replace(splats, sh=colors))
    return _recorded(made, "recolor", ids=chosen, rgb=goal.tolist(), how=how)


def transform(
    segmentation: Segmentation,
    ids: Ids | None,
    *,
    translation: ArrayLike = (0.0, 0.0, 0.0),
    rotation: ArrayLike | None = None,
    scale: float = 1.0,
    about: ArrayLike | None = None,
    halo: bool = True,
    rasterizer: Rasterizer | None = None,
    cameras: Sequence[Camera] = (),
) -> Segmentation:
    """Scale, turn and move some ids (None: the whole scene), in this order, `about` their centre or a given point.

    `rotation` is a quaternion wxyz or a matrix [3, 3]. What each Gaussian shows turns with it (its SH). With `halo`, a
    rasteriser and cameras the halo of the ids goes with them and becomes theirs, and what they hid is coloured as by
    `remove`: once, where photos show them. What they hide later was seen, and stays as it is.
    """
    everything = ids is None
    chosen = [] if ids is None else _known(segmentation, ids)
    own = np.ones(len(segmentation.splats), bool) if everything else _members(segmentation, chosen)
    move = vector(translation, 3, "a translation (x, y, z)")
    turn, quat = _rotation(rotation)
    if not isinstance(scale, (int, float, np.number)) or not math.isfinite(scale) or scale <= 0:
        raise InputError(f"a scale over 0 was expected, got {scale!r}")
    splats, tree, labels, healed, joined = segmentation.splats, segmentation.hierarchy, segmentation.labels, 0, 0
    middle = np.median(splats.means[torch.from_numpy(own)].detach().cpu().double().numpy(), axis=0)
    centre = middle if about is None else vector(about, 3, "a point (x, y, z)")
    stays = not move.any() and np.array_equal(turn, np.eye(3)) and scale == 1
    found = None
    if halo and rasterizer is not None and len(cameras) and not own.all() and not stays:
        found = _halo_of(segmentation, own, rasterizer, cameras, fill=False)
    if found:
        tree, labels = _joined_to(segmentation, own, found.spill)
        joined, own = int((found.spill & ~own).sum()), own | found.spill
        splats, healed = replace(splats, sh=found.sh), int((found.healed & ~own).sum())
    rows = torch.from_numpy(np.flatnonzero(own))
    means = splats.means[rows].detach().double()
    R, c, t = (torch.from_numpy(a).to(means) for a in (turn, centre, move))
    changed = {
        "means": scale * (means - c) @ R.T + c + t,
        "log_scales": splats.log_scales[rows].detach().double() + math.log(scale),
    }
    if not np.array_equal(turn, np.eye(3)):
        changed["quats"] = quat_multiply(torch.from_numpy(quat).to(means), splats.quats[rows].detach().double())
        changed["sh"] = rotate_sh(splats.sh[rows].detach(), R)
    columns = {}
    for name, values in changed.items():
        columns[name] = getattr(splats, name).detach().clone()
        columns[name][rows] = values.to(columns[name].dtype)
    if not stays:
        marks = _moved(splats).astype(np.uint8)
        marks[own] = 1
        columns["extras"] = splats.extras | {MOVED: marks}
    moved = replace(splats, **columns)
    if not all(bool(values.isfinite().all()) for values in (moved.means, moved.quats, moved.scales, moved.sh)):
        raise InputError("the Gaussians would leave what numbers can hold; give a smaller translation or scale")
    tree = replace(tree)  # another one: what views knew of it is of before
    made = replace(segmentation, splats=moved, labels=labels, hierarchy=tree)
    return _recorded(
        made, "transform", ids=chosen, translation=move.tolist(), rotation=quat.tolist(), scale=float(scale),
        about=centre.tolist(), halo=joined, healed=healed,
    )  # fmt: skip


# --- inside -----------------------------------------------------------------------------------------------


def _recorded(segmentation: Segmentation, edit: str, **facts: Any) -> Segmentation:
    record: Mapping[str, Any] = {"edit": edit, **facts}
    return replace(segmentation, edits=(*segmentation.edits, record))


def whole_ids(given: Iterable[Any]) -> list[int]:
    """Return ids, each once, as they came; InputError for what is no whole number."""
    given = list(given)
    if wrong := [i for i in given if isinstance(i, bool) or not isinstance(i, (int, np.integer))]:
        raise InputError(
            f"segments have whole numbers as ids, got {wrong[0]!r}; give ids or objects one by one, a list's or a "
            "selection's with a star: *them"
        )
    return list(dict.fromkeys(int(i) for i in given))


def _known_one(segmentation: Segmentation, segment: int, *, empty: bool = False) -> int:
    """Return the id of one segment, likewise."""
    return _known(segmentation, whole_ids([segment]), empty=empty)[0]


def _known(segmentation: Segmentation, ids: Ids, *, empty: bool = False) -> list[int]:
    """Return the ids, each once, as they came; InputError for none, for one that is not there or has no Gaussians."""
    chosen = whole_ids(ids if isinstance(ids, (list, tuple, range, np.ndarray)) else [ids])
    if not chosen:
        raise InputError("no segment was given; name at least one id")
    tree = segmentation.hierarchy
    if unknown := [i for i in chosen if not 1 <= i <= tree.n_nodes or not (empty or tree.sizes[i])]:
        raise InputError(f"there is no {_text(unknown)}: the ids that hold Gaussians are {tree.named()}")
    return chosen


def _members(segmentation: Segmentation, ids: Sequence[int]) -> np.ndarray:
    """Say which Gaussians are in any of the ids, [N] bool."""
    return np.logical_or.reduce([segmentation.hierarchy.holds(i) for i in ids])


def _moved(splats: Splats) -> np.ndarray:
    """Say which Gaussians are no longer where photos show them, [N] bool."""
    marks = splats.extras.get(MOVED)
    return np.zeros(len(splats), bool) if marks is None else np.asarray(marks) != 0


def _halo_of(
    segmentation: Segmentation,
    own: np.ndarray,
    rasterizer: Rasterizer | None,
    cameras: Sequence[Camera],
    fill: bool,
) -> Halo | None:
    """Find the halo of those of `own` [N] bool that are where photos show them; None where none is.

    What was moved itself belongs to nobody's halo, and was seen before.
    """
    splats, moved = segmentation.splats, _moved(segmentation.splats)
    if not (own & ~moved).any():
        return None
    found = find_halo(splats, segmentation.labels, segmentation.confidences, own & ~moved, rasterizer, cameras, fill)
    sh = torch.where(torch.from_numpy(moved).to(found.sh.device)[:, None, None], splats.sh.detach(), found.sh)
    return found._replace(spill=found.spill & ~moved, sh=sh, healed=found.healed & ~moved)


def _joined_to(segmentation: Segmentation, own: np.ndarray, spill: np.ndarray) -> tuple[Hierarchy, np.ndarray]:
    """Give Gaussians `spill` [N] bool to the segments of those of `own` [N] that are nearest; the tree and labels."""
    from scipy.spatial import KDTree

    tree, labels = segmentation.hierarchy, segmentation.labels.astype(np.int32)
    means = segmentation.splats.means.detach().cpu().numpy().astype(float)
    theirs, to = np.flatnonzero(own), np.flatnonzero(spill & ~own)
    if len(to):
        nearest = theirs[KDTree(means[theirs]).query(means[to])[1]]
        leaves = tree.leaves.copy()
        leaves[to], labels[to] = leaves[nearest], labels[nearest]
        tree = replace(tree, leaves=leaves)
    return tree, labels


def _with_fresh(segmentation: Segmentation, kept: np.ndarray, found: Halo) -> Segmentation:
    """Return the Gaussians `kept` [N] bool, and after them what was made to fill the place of others."""
    made = select_rows(segmentation, np.concatenate([np.flatnonzero(kept), found.like]))
    columns = {}
    for name in PARAMETERS:
        columns[name] = getattr(made.splats, name).detach().clone()
        columns[name][int(kept.sum()) :] = getattr(found.fresh, name)
    return replace(made, splats=replace(made.splats, **columns))


def _text(ids: Sequence[int]) -> str:
    return ("segment " if len(ids) == 1 else "segments ") + ", ".join(map(str, ids))


def _rotation(given: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    """Return a rotation as a matrix [3, 3] and a unit quaternion [4]."""
    if given is None:
        return np.eye(3), np.array([1.0, 0, 0, 0])
    what = "a rotation (a quaternion w, x, y, z or a matrix of 3 x 3)"
    try:
        values = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} was expected, got {given!r}") from error
    if values.shape == (4,):
        if not 1e-6 < np.linalg.norm(values) < 1e6:
            raise InputError(f"{what} was expected, got the quaternion {values.tolist()}")
        quat = values / np.linalg.norm(values)
        return quat_to_rotation(torch.from_numpy(quat)).numpy(), quat
    if values.shape != (3, 3) or not np.isfinite(values).all():
        raise InputError(f"{what} was expected, got {values.tolist()}")
    if np.abs(values @ values.T - np.eye(3)).max() > 1e-4 or np.linalg.det(values) < 0:
        raise InputError("the matrix given is no rotation: its rows must be orthonormal, its determinant 1")
    quat = rotation_to_quat(torch.from_numpy(values))
    return quat_to_rotation(quat).numpy(), quat.numpy()  # orthonormal to the last bit


def _assigned(
    segmentation: Segmentation, rows: np.ndarray, segment: int | None, *, parent: int = 0
) -> tuple[Segmentation, int]:
    """Give Gaussians to a segment (None: a new one under `parent`; 0: none); return its id too."""
    tree, labels = segmentation.hierarchy, segmentation.labels.astype(np.int32)
    leaves, parents, levels = tree.leaves.copy(), tree.parents, tree.levels
    if segment is None:
        segment = len(parents)
        parents, levels = np.append(parents, np.int32(parent)), np.append(levels, np.float32(1))
        leaves[rows] = segment
    else:
        leaves[rows] = _largest_leaf(tree, segment) if segment else NOISE
    labels[rows] = segment if segment else NOISE
    tree = replace(tree, leaves=leaves, parents=parents, levels=levels)
    names = _names_within(segmentation, tree)
    return replace(segmentation, labels=labels, hierarchy=tree, names=names), segment


def _names_within(segmentation: Segmentation, tree: Hierarchy) -> dict[int, str]:
    """Return the names of nodes that hold a Gaussian in a tree."""
    return {node: name for node, name in segmentation.names.items() if tree.sizes[node]}


def _largest_leaf(tree: Hierarchy, node: int) -> int:
    """Return the finest node in a node that has most Gaussians (ties: the lower id)."""
    below = tree.inside([node])
    below[tree.parents[below]] = False  # what has children
    sizes = np.bincount(tree.leaves[tree.leaves > 0], minlength=len(below))
    return int(np.where(below, sizes, -1).argmax())


def _split_children(segmentation: Segmentation, segment: int, parts: str) -> Segmentation:
    if parts != "children":
        raise InputError(f"a segment is split into 'children', a number of pieces or by a mask, got {parts!r}")
    tree = segmentation.hierarchy
    children = tree.children(segment)
    if not children:
        raise InputError(f"segment {segment} has no parts in the hierarchy; split it into a number of pieces")
    labels = segmentation.labels.astype(np.int32)
    for child in children:
        labels[tree.holds(child)] = child
    parents, levels = tree.parents.copy(), tree.levels.copy()
    parents[children], levels[segment] = parents[segment], 1
    names = {node: name for node, name in segmentation.names.items() if node != segment}
    made = replace(segmentation, labels=labels, hierarchy=replace(tree, parents=parents, levels=levels), names=names)
    pieces = [c for c in children if (labels == c).any()]
    return _recorded(made, "split", ids=[segment], pieces=pieces)


def _pieces_under(
    splats: Splats, own: np.ndarray, camera: Camera, mask: np.ndarray, rasterizer: Rasterizer
) -> np.ndarray:
    """Say of Gaussians `own` which lie under a mask, 1, and which do not, 0."""
    from scipy.spatial import KDTree

    share, mass = (a[own] for a in _shares(splats, camera, mask, rasterizer))
    seen = np.flatnonzero(mass > 0)
    if not len(seen):
        raise InputError("the camera does not see the segment; choose another view")
    means = splats.means.detach().cpu().numpy().astype(float)[own]
    near = KDTree(means[seen]).query(means, min(5, len(seen)))[1].reshape(len(own), -1)
    under = share[seen][near].mean(1) >= MIN_SHARE
    under[seen] = share[seen] >= MIN_SHARE
    if under.all() or not under.any():
        raise InputError(f"the mask covers {'all' if under.any() else 'none'} of the segment; draw it over a part")
    return under.astype(np.int32)


def _shares(splats: Splats, camera: Camera, mask: np.ndarray, rasterizer: Rasterizer) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of each Gaussian's weight that is under a mask, and its weight in the picture, [N] each."""
    mask = np.asarray(mask)
    if mask.shape != (camera.height, camera.width):
        raise InputError(f"the mask is {list(mask.shape)} but its picture {camera.height} x {camera.width}")
    if not mask.any():
        raise InputError("the mask is empty; draw it over something")
    columns = torch.from_numpy(np.stack([mask.ravel() != 0, np.ones(mask.size, bool)], 1).astype(np.float32))
    parts = contributions_by_parts(rasterizer, splats.detach(), camera, min_weight=MIN_SHOWN)
    weights = sum(w.transpose_matmul(columns[w.pixels.cpu()]).cpu() for w in parts)
    under, mass = torch.as_tensor(weights).numpy().T.astype(float)
    return under / np.maximum(mass, 1e-12), mass
