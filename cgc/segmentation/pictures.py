"""Pictures of a segmentation from any camera: id maps, masks, colours, depth, features, confidence.

An id map is made once a camera, of the finest nodes; what a coarser level shows is read off it, because pictures of
levels are nested (see labels.py). So the mask of a whole is the union of the masks of its parts, to the pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from cgc.errors import InputError
from cgc.rasterize.base import Rasterizer, group_contributions
from cgc.scene.cameras import checked
from cgc.scene.types import Camera
from cgc.segmentation.colors import segment_colors
from cgc.segmentation.edges import check_edges, follow_edges
from cgc.segmentation.labels import ShownNodes, leaf_groups, read_blended, read_rows, render_blended, render_levels
from cgc.settings import Edges
from cgc.splats.types import Splats

if TYPE_CHECKING:
    from cgc.segmentation.segmentation import Segmentation

ViewOrCamera = str | Camera
"""A view by the name of its photo, or any camera."""

What = Literal["rgb", "segments", "features", "depth", "confidence"]
"""What a picture shows."""

KEPT_MAPS = 8
"""Id maps that a segmentation keeps, the last ones: objects of one view are mostly asked for one after the other."""
BATCH = 16
"""Cameras that are rendered at one time."""
NO_LEVELS = "pictures of blended features have no levels, only the objects; cluster with --cluster.masks labels"
FEATURE_RANGE = (2, 98)
"""Percentiles of the features' main directions that are shown as black and as full colour."""


def camera_of(segmentation: Segmentation, view: ViewOrCamera) -> Camera:
    """Return the camera of a view by its name, or the camera itself; InputError where it is neither."""
    if isinstance(view, Camera):
        return checked(view)
    if isinstance(view, str):
        return segmentation.context.camera(view)
    raise InputError(f"expected a Camera or the name of a view, got {type(view).__name__}")


# --- id maps ----------------------------------------------------------------------------------------------


def finest_map(segmentation: Segmentation, camera: Camera) -> np.ndarray:
    """The finest node that each pixel shows, int32 [H, W], 0 = none; kept for the cameras that came last."""
    kept, key = segmentation.kept_maps, _key(camera)
    if (found := kept.pop(key, None)) is not None:
        kept[key] = found
        return found
    context, tree = segmentation.context, segmentation.hierarchy
    if segmentation.blended:
        features, segments = segmentation.features, segmentation.mean_features
        ids = render_blended(segmentation.splats, features, segments, camera, context.rasterizer).ids
    elif segmentation.drawer is not None:
        ids = segmentation.drawer.ids(camera)[0].cpu().numpy().reshape(camera.height, camera.width)
    else:
        ids = render_levels(segmentation.splats, tree, [1.0], camera, context.rasterizer)[0].ids
    kept[key] = ids
    while len(kept) > KEPT_MAPS:
        kept.pop(next(iter(kept)))
    return ids


def _key(camera: Camera) -> bytes:
    """Return what tells a camera from others: its numbers, which its owner may change."""
    arrays = (camera.viewmat, camera.K, torch.tensor([camera.width, camera.height]))
    return b"".join(x.detach().cpu().numpy().tobytes() for x in arrays)


def finest_ids(segmentation: Segmentation, camera: Camera, pixels: np.ndarray) -> np.ndarray:
    """The finest node that some pixels show, int32 [P], as `finest_map` has them; pixels [P] are y * width + x."""
    if (found := segmentation.kept_maps.get(_key(camera))) is not None:
        return found.ravel()[pixels]
    context, tree = segmentation.context, segmentation.hierarchy
    splats, rasterizer, wanted = segmentation.splats, context.rasterizer, torch.from_numpy(pixels)
    if not segmentation.blended:
        rows = group_contributions(rasterizer, splats, camera, leaf_groups(tree), wanted)
        return read_rows(rows, ShownNodes.of(tree, [1.0]))[0].ids
    rows = rasterizer.contributions(splats, camera, wanted)
    alphas = rows.matmul(torch.ones(rows.n_gaussians, 1))[:, 0]
    return read_blended(rows.matmul(segmentation.features), alphas, segmentation.mean_features).ids


def shown_by_node(segmentation: Segmentation) -> np.ndarray:
    """What a picture at the segmentation's level shows in place of each node, int32 [T + 1], 0 where it shows parts."""
    tree, level = segmentation.hierarchy, segmentation.level
    if segmentation.blended and level is not None and tree.stop(level) != tree.base_stop:
        raise InputError(NO_LEVELS)
    return tree.shown_for(tree.base if level is None else level)


def id_map(segmentation: Segmentation, view: ViewOrCamera, edges: Edges = "splats") -> np.ndarray:
    """The id that each pixel shows at the segmentation's level, int32 [H, W], 0 = noise or nothing.

    Borders are those of the splats, or drawn to the edges of the view's photo (see edges.py); InputError where it has
    none that shows the scene.
    """
    photo = photo_to_follow(segmentation, view, edges)
    ids = shown_by_node(segmentation)[finest_map(segmentation, camera_of(segmentation, view))]
    return ids if photo is None else follow_edges(ids, photo)


def masks(segmentation: Segmentation, views: Sequence[ViewOrCamera], edges: Edges = "splats") -> list[np.ndarray]:
    """The id maps of some views or cameras, int32 [H, W] each, of any sizes; see `id_map`."""
    if isinstance(views, (str, Camera)):
        raise InputError("id maps are made of several views at a time; give a list, of one where it is one: [view]")
    if not isinstance(views, Iterable):
        raise InputError(f"a list of views or cameras was expected, got {views!r}")
    return [id_map(segmentation, view, edges) for view in views]


def photo_to_follow(segmentation: Segmentation, view: ViewOrCamera, edges: Edges) -> np.ndarray | None:
    """The photo whose edges borders in a view follow, [H, W, 3] uint8; None where they are to be those of the splats.

    InputError for a camera of one's own, for a scene that an edit has changed, and where the photo is gone.
    """
    check_edges(edges)
    if edges == "splats":
        return None
    camera, context = camera_of(segmentation, view), segmentation.context
    views = context.cameras if context.known_cameras else {}
    name = next((name for name, known in views.items() if known is camera), None)
    if name is None:
        raise InputError('only views have photos, whose edges can be followed; name a view, or use edges="splats"')
    if not segmentation.photos_hold:
        raise InputError(f'an edit has changed what the photo {name} shows, edges too; use edges="splats"')
    photo = context.read_photo(name) if context.read_photo else None
    if photo is None:
        why = context.lost_photos or f"the photo {name} is gone; restore the scene"
        raise InputError(f'{why}, or use edges="splats"')
    return photo


def node_mask(
    segmentation: Segmentation, view: ViewOrCamera, nodes: Sequence[int], edges: Edges = "splats"
) -> np.ndarray:
    """Where any of some nodes is seen, bool [H, W], whatever the level shows; `edges` as in `id_map`."""
    photo = photo_to_follow(segmentation, view, edges)
    tree = segmentation.hierarchy
    owner = tree.shown_for(tree.base)
    if segmentation.blended and (parts := [n for n in nodes if owner[n] not in (0, n)]):
        raise InputError(
            f"segment {parts[0]} is a part, and pictures of blended features show the objects only; cluster with "
            "--cluster.masks labels"
        )
    finest = finest_map(segmentation, camera_of(segmentation, view))
    inside = tree.inside(nodes)[finest]
    if photo is None:
        return inside
    mine = len(tree.parents)  # an id of no node
    return follow_edges(np.where(inside, mine, shown_by_node(segmentation)[finest]), photo) == mine


# --- pictures ---------------------------------------------------------------------------------------------


def render(segmentation: Segmentation, views: ViewOrCamera | Sequence[ViewOrCamera], what: What = "rgb") -> np.ndarray:
    """Render one view or camera, or several of one size, which are stacked.

    rgb, segments and features are uint8 [H, W, 3]; depth is float32 [H, W], the mean distance along the camera's axis,
    0 where nothing is; so is confidence, the Gaussians' confidences blended as colours are, 0 for noise.
    """
    if not isinstance(what, str) or what not in DRAW:
        raise InputError(f"what={what!r} cannot be rendered; expected one of {', '.join(DRAW)}")
    if isinstance(views, (str, Camera)):
        return DRAW[what](segmentation, [camera_of(segmentation, views)])[0]
    if not isinstance(views, Iterable):
        camera_of(segmentation, views)  # which says what is wrong with it
    cameras = [camera_of(segmentation, v) for v in views]
    sizes = sorted({(c.width, c.height) for c in cameras})
    if len(sizes) != 1:
        came = " and ".join(f"{w}x{h}" for w, h in sizes) or "no camera at all"
        raise InputError(
            f"pictures of one call are stacked, so they need one size, got {came}; render a size at a time"
        )
    batches = [cameras[i : i + BATCH] for i in range(0, len(cameras), BATCH)]
    return np.concatenate([DRAW[what](segmentation, batch) for batch in batches])


def _blend(segmentation: Segmentation, values: Tensor, cameras: list[Camera], background: Tensor | None) -> np.ndarray:
    with torch.no_grad():
        made = segmentation.context.rasterizer.render(segmentation.splats, values, cameras, backgrounds=background)
    return made.values.cpu().numpy()


def _bytes(picture: np.ndarray) -> np.ndarray:
    return (255 * picture.clip(0, 1)).round().astype(np.uint8)


def _rgb(segmentation: Segmentation, cameras: list[Camera]) -> np.ndarray:
    with torch.no_grad():
        colors = torch.stack([segmentation.splats.colors(c.position) for c in cameras])  # [C, N, 3]
    return _bytes(_blend(segmentation, colors, cameras, segmentation.context.background))


def _segments(segmentation: Segmentation, cameras: list[Camera]) -> np.ndarray:
    colors = segment_colors(np.arange(len(segmentation.hierarchy.parents)))
    return np.stack([colors[id_map(segmentation, camera)] for camera in cameras])


def _features(segmentation: Segmentation, cameras: list[Camera]) -> np.ndarray:
    return _bytes(_blend(segmentation, segmentation.feature_colors, cameras, None))


def _confidence(segmentation: Segmentation, cameras: list[Camera]) -> np.ndarray:
    sure = np.where(segmentation.labels > 0, segmentation.confidences, 0).astype(np.float32)
    return _blend(segmentation, torch.from_numpy(sure)[:, None], cameras, None)[..., 0]


def render_depths(splats: Splats, cameras: list[Camera], rasterizer: Rasterizer) -> np.ndarray:
    """Render the mean distance along each camera's axis, [C, H, W] float32, 0 where nothing is."""
    nothing = torch.zeros(len(splats), 1, device=splats.means.device)
    with torch.no_grad():
        made = rasterizer.render(splats, nothing, cameras, depth=True)
    if made.depths is None:
        raise InputError("this rasteriser gives no depths; use the CPU's")
    return made.depths.cpu().numpy()


def _depth(segmentation: Segmentation, cameras: list[Camera]) -> np.ndarray:
    return render_depths(segmentation.splats, cameras, segmentation.context.rasterizer)


DRAW: dict[str, Callable[[Segmentation, list[Camera]], np.ndarray]] = {
    "rgb": _rgb, "segments": _segments, "features": _features, "depth": _depth, "confidence": _confidence,
}  # fmt: skip
"""What makes each kind of picture, of cameras of one size."""


def feature_colors(features: Tensor) -> Tensor:
    """Colour features [N, D] by their three main directions, [N, 3] float32 in 0..1."""
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    centred = unit - unit.mean(dim=0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)  # rising
    main = (centred @ vectors[:, -3:].flip(1)).numpy()
    low, high = np.percentile(main, FEATURE_RANGE, axis=0)
    shown = ((main - low) / np.maximum(high - low, 1e-9)).clip(0, 1).astype(np.float32)
    return torch.from_numpy(np.pad(shown, ((0, 0), (0, 3 - shown.shape[1]))))
