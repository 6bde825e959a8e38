"""A segmented scene, and all that can be asked of it: thin methods over the functions of this room.

what is there    objects.py     which one is meant    query.py, text.py     its pictures    pictures.py
changed          edit.py        taken away            saved.py, export.py
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from cgc import kernels
from cgc.clustering.hierarchy import Hierarchy
from cgc.errors import InputError
from cgc.rasterize.base import device_of
from cgc.scene.types import Camera
from cgc.segmentation import edit, objects, pictures, query, text
from cgc.segmentation.context import Context
from cgc.segmentation.device_labels import LabelDrawer
from cgc.segmentation.labels import MeanFeatures
from cgc.segmentation.objects import Object, Selection, Which
from cgc.segmentation.pictures import ViewOrCamera, What
from cgc.segmentation.query import Hit, Match, Pixel
from cgc.segmentation.text import TextImageModel
from cgc.settings import Edges
from cgc.splats.types import Splats

SEEN = ("keep", "remove", "transform", "recolor")
"""Edits after which photos no longer show the scene."""
REGROUPED = ("merge", "split", "paint")
"""Edits that say anew which object Gaussians are of, whatever their features."""


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Splats with labels [N] (-1 noise, else what is shown) and confidences [N] in [0, 1].

    The ids are nodes of the hierarchy (by default a flat one of the labels), so they mean the same at every level.
    `names` has what the user calls some of them, `edits` what was changed since clustering. `level` is the one that
    the labels show, None: the objects. `context` knows the views and makes the pictures.
    A view is named as its photo, "0007.jpg" or "0007"; wherever one is asked for, any `Camera` will do.
    """

    splats: Splats
    labels: np.ndarray
    confidences: np.ndarray
    hierarchy: Hierarchy = None  # pyright: ignore[reportAssignmentType] (set below)
    names: Mapping[int, str] = field(default_factory=dict)
    edits: tuple[Mapping[str, Any], ...] = ()
    level: float | None = None
    context: Context = field(default_factory=Context, repr=False)

    def __post_init__(self) -> None:
        n = len(self.splats)
        if self.labels.shape != (n,) or self.confidences.shape != (n,):
            raise InputError(
                f"{len(self.labels)} labels and {len(self.confidences)} confidences came for {n} Gaussians: segments "
                "and splats are of different runs; cluster again"
            )
        if self.hierarchy is None:
            object.__setattr__(self, "hierarchy", Hierarchy.flat(self.labels))
        if len(self.hierarchy.leaves) != n:
            raise InputError(
                f"a hierarchy of {len(self.hierarchy.leaves)} Gaussians came for {n}: they are of different runs; "
                "cluster again"
            )

    def __repr__(self) -> str:
        level = "" if self.level is None else f", level={self.level:g}"
        return f"Segmentation({len(self)} objects, {len(self.splats)} Gaussians{level})"

    # --- what is there --------------------------------------------------------------------------------------

    @cached_property
    def ids(self) -> np.ndarray:
        """The ids of the segments that own a Gaussian, ascending."""
        return np.unique(self.labels[self.labels > 0])

    @cached_property
    def objects(self) -> list[Object]:
        """The objects that are shown, by rising id."""
        return [Object(i, self) for i in self.ids.tolist()]

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Object]:
        return iter(self.objects)

    def __getitem__(self, which: int | str) -> Object:
        """The object, part or whole of an id, or of a name, shown or not; InputError where there is none."""
        return objects.checked_object(self, which)

    def __contains__(self, which: Which) -> bool:
        """Say whether an object is shown."""
        if isinstance(which, str):
            return any(i in self for i in objects.named(self, which))
        number = which.id if isinstance(which, Object) else which
        return isinstance(number, (int, np.integer)) and bool(np.isin(number, self.ids))

    def select(self, *which: Which) -> Selection:
        """Select some objects, parts or wholes, to have them together."""
        return query.selection(self, which)

    def _ids(self, which: Iterable[Any]) -> list[int]:
        """The ids of what may be objects or names; whether there are such ids is for those to say that take them."""
        return [self[w].id if isinstance(w, str) else w.id if isinstance(w, Object) else w for w in which]

    def table(self) -> dict[str, list]:
        """What the objects are, as columns of equal length; `pandas.DataFrame(seg.table())` reads it."""
        return objects.table(self)

    def at_level(self, level: float | None) -> Segmentation:
        """The same splats as the hierarchy shows them at a level, 0 (wholes) to 1 (smallest parts); None: objects."""
        made = replace(self, labels=self.hierarchy.at(level), level=level)
        made.__dict__["kept_maps"] = self.kept_maps  # of the finest nodes, whatever the level
        made.__dict__["drawer"] = self.drawer
        return made

    def members(self, node: int) -> np.ndarray:
        """Which Gaussians are in a node, ascending int64."""
        order, first = self._by_leaf
        nodes = np.flatnonzero(self.hierarchy.inside([node]))
        return np.sort(np.concatenate([order[first[n] : first[n + 1]] for n in nodes]))

    def owns(self, node: int) -> bool:
        """Say whether a node has a Gaussian."""
        return bool(self.hierarchy.sizes[node])

    @cached_property
    def bodies(self) -> np.ndarray:
        """Which Gaussians are of the body of an object of the run's own, [N] bool. See `objects.in_bodies`."""
        return objects.in_bodies(self, self.hierarchy.objects)

    @cached_property
    def _by_leaf(self) -> tuple[np.ndarray, np.ndarray]:
        """Gaussians in the order of their leaves, and where each node's begin, [T + 2]."""
        leaves = np.maximum(self.hierarchy.leaves, 0)
        order = np.argsort(leaves, kind="stable")
        return order, np.searchsorted(leaves[order], np.arange(len(self.hierarchy.parents) + 1))

    # --- which one ------------------------------------------------------------------------------------------

    def at_pixel(self, view: ViewOrCamera, x: float, y: float) -> Object | None:
        """The object that a pixel shows, None where that is noise or nothing. See `query.at_pixel`."""
        return query.at_pixel(self, view, x, y)

    def at_pixels(self, view: ViewOrCamera, positive: Sequence[Pixel], negative: Sequence[Pixel] = ()) -> Selection:
        """Select what all positive clicks are on and no negative one is. See `query.at_pixels`."""
        return query.at_pixels(self, view, positive, negative)

    def at_clicks(self, positive: Sequence[query.Click], negative: Sequence[query.Click] = ()) -> Selection:
        """Select by clicks (view, x, y) of one or several views. See `query.at_clicks`."""
        return query.at_clicks(self, positive, negative)

    def at_point(self, xyz: ArrayLike) -> Object | None:
        """The object that is densest at a point of the world. See `query.at_point`."""
        return query.at_point(self, xyz)

    def along_ray(self, origin: ArrayLike, direction: ArrayLike) -> list[Hit]:
        """The objects that a ray meets, from near to far. See `query.along_ray`."""
        return query.along_ray(self, origin, direction)

    def in_box(self, low: ArrayLike, high: ArrayLike, *, partly: bool = False) -> list[Object]:
        """The objects that are mostly in a box along the world's axes. See `query.in_box`."""
        return query.in_box(self, low, high, partly=partly)

    def in_rect(
        self, view: ViewOrCamera, x0: float, y0: float, x1: float, y1: float, *, partly: bool = False
    ) -> list[Object]:
        """The objects that are mostly in a rectangle of a view. See `query.in_rect`."""
        return query.in_rect(self, view, x0, y0, x1, y1, partly=partly)

    def from_mask(self, view: ViewOrCamera, mask: np.ndarray) -> Selection:
        """Select what fits a mask of a view best. See `query.from_mask`."""
        return query.from_mask(self, view, mask)

    def similar(self, which: Which, k: int = 5) -> list[Match]:
        """The k objects that are most like one of them. See `query.similar`."""
        return query.similar(self, which, k)

    def find(self, words: str, k: int = 5, model: TextImageModel | None = None) -> list[Match]:
        """The k objects that fit a text best; needs the extra "text", or a model of yours. See `text.find`."""
        return text.find(self, words, k, model)

    # --- its pictures ---------------------------------------------------------------------------------------

    @property
    def views(self) -> list[str]:
        """The names of the views."""
        return list(self.context.cameras)

    def camera(self, view: str) -> Camera:
        """The camera of a view; InputError names close ones where there is none."""
        return self.context.camera(view)

    def masks(self, views: Sequence[ViewOrCamera] | None = None, edges: Edges = "splats") -> list[np.ndarray]:
        """The id maps of some views or cameras (None: all views), int32 [H, W] each, 0 = noise or nothing.

        Borders are where the splats have them, or drawn to the "photos" of the views. See `pictures.id_map`.
        """
        return pictures.masks(self, self.views if views is None else views, edges)

    def render(self, views: ViewOrCamera | Sequence[ViewOrCamera], what: What = "rgb") -> np.ndarray:
        """Render colours, segments, features, depth or confidence; several views are stacked. See `pictures.render`."""
        return pictures.render(self, views, what)

    # --- changed: a new segmentation each, so that undoing is keeping the old one; nothing is written ---------

    def keep(self, *which: Which) -> Segmentation:
        """Keep the Gaussians of some objects alone. See `edit.keep`."""
        return edit.keep(self, self._ids(which))

    def remove(self, *which: Which, halo: bool = True, fill: bool = True) -> Segmentation:
        """Remove some objects, with `halo` what else shows that they were there, and `fill` what they hid.

        See `edit.remove`.
        """
        return edit.remove(
            self, self._ids(which), halo=halo, fill=fill, rasterizer=self.context.rasterizer,
            cameras=self.context.known_cameras if halo else (),
        )  # fmt: skip

    def merge(self, *which: Which) -> Segmentation:
        """Join some objects into the first of them. See `edit.merge`."""
        return edit.merge(self, self._ids(which))

    def split(
        self, which: Which, parts: Literal["children"] | int | np.ndarray = "children",
        view: ViewOrCamera | None = None,
    ) -> Segmentation:  # fmt: skip
        """Split an object: into its parts, so many clusters, or what a mask of `view` covers. See `edit.split`."""
        camera = None if view is None else pictures.camera_of(self, view)
        features = self.features.detach().cpu().numpy() if self.has_features else None
        (segment,) = self._ids([which])
        return edit.split(self, segment, parts, camera=camera, rasterizer=self.context.rasterizer, features=features)

    def paint(self, view: ViewOrCamera, mask: np.ndarray, which: Which | None = None) -> Segmentation:
        """Give what a mask of a view covers to an object; None: to a new one; 0: to none. See `edit.paint`."""
        segment = None if which is None else self._ids([which])[0]
        return edit.paint(self, pictures.camera_of(self, view), mask, segment, self.context.rasterizer)

    def rename(self, which: Which, name: str | None) -> Segmentation:
        """Give an object a name; None takes it away. See `edit.relabel`."""
        return edit.relabel(self, self._ids([which])[0], name)

    def recolor(self, which: Which, rgb: Sequence[float], how: Literal["shift", "tint"] = "shift") -> Segmentation:
        """Make an object's mean colour `rgb`, 0 to 1; its shading stays. See `edit.recolor`."""
        return edit.recolor(self, self._ids([which]), rgb, how=how)

    def transform(
        self, which: Which, *, translation: ArrayLike = (0, 0, 0), rotation: ArrayLike | None = None,
        scale: float = 1.0, about: ArrayLike | None = None, halo: bool = True,
    ) -> Segmentation:  # fmt: skip
        """Move, turn (a quaternion wxyz or a matrix) and scale an object, with `halo` what it left. See `transform`."""
        return edit.transform(
            self, self._ids([which]), translation=translation, rotation=rotation, scale=scale, about=about, halo=halo,
            rasterizer=self.context.rasterizer, cameras=self.context.known_cameras if halo else (),
        )  # fmt: skip

    # --- taken away -----------------------------------------------------------------------------------------

    def save(self, folder: Path | str | None = None) -> Path:
        """Save it in a folder of its own, which `cgc.load` opens (default: where it is from, or edited/ in the run)."""
        from cgc.segmentation.saved import FACTS_FILE, save

        own = self.context.folder
        if folder is None and own is None:
            raise InputError("this segmentation is of no run; say which folder to save it in")
        if folder is None and own is not None:
            folder = own if (own / FACTS_FILE).is_file() else own / "edited"
        return save(self, folder or "", {**self.context.source, "blended": self.context.blended})

    def export(
        self,
        folder: Path | str,
        formats: str | Sequence[str] = ("ply",),
        which: Which | Iterable[Which] | None = None,
        edges: Edges = "photos",
    ) -> list[Path]:
        """Write some formats of some objects (None: all that are shown) into a folder. See `export.FORMATS`.

        Masks of photos and cut-outs end at the photos' edges, or where pictures of the splats have their borders.
        """
        from cgc.segmentation.export import export, job_of

        several = which if isinstance(which, Iterable) and not isinstance(which, str) else [which]
        ids = None if which is None else self._ids(several)
        return export(job_of(self, ids, edges), folder, [formats] if isinstance(formats, str) else formats)

    @property
    def blended(self) -> bool:
        """Say whether id maps are of blended features: as the run's are, until an edit says what is one object."""
        return self.context.blended and not any(edit["edit"] in REGROUPED for edit in self.edits)

    @property
    def photos_hold(self) -> bool:
        """Say whether photos still show the scene: no edit has changed what is seen."""
        return not any(edit["edit"] in SEEN for edit in self.edits)

    # --- what is worked out once ----------------------------------------------------------------------------

    @property
    def has_features(self) -> bool:
        """Say whether the Gaussians carry features."""
        features = self.splats.features
        return features is not None and features.shape[1] > 0

    @property
    def features(self) -> Tensor:
        """The features [N, D]; InputError where the run has learned none."""
        features = self.splats.features
        if features is None or not features.shape[1]:
            raise InputError(
                "this segmentation has no features: its run joined masks without learning any; lift with "
                "--method contrast, or do without"
            )
        return features

    @cached_property
    def mean_features(self) -> MeanFeatures:
        """The mean unit feature of each object."""
        return MeanFeatures.of(self.features, self.hierarchy.at())

    @cached_property
    def feature_colors(self) -> Tensor:
        """The features' three main directions as colours, [N, 3]."""
        return pictures.feature_colors(self.features)

    @cached_property
    def kept_maps(self) -> dict[bytes, np.ndarray]:
        """Id maps of the last cameras; see `pictures.finest_map`."""
        return {}

    @cached_property
    def drawer(self) -> LabelDrawer | None:
        """What draws id maps of the finest nodes, where pictures are made on a device; None on the CPU."""
        rasterizer = self.context.rasterizer
        if kernels.serve(device_of(rasterizer)):
            return None
        return LabelDrawer(self.splats, self.hierarchy, [1.0], rasterizer)

    @cached_property
    def pixels_of_views(self) -> np.ndarray:
        """How many pixels of each node every view shows, [V, T + 1], in small pictures; see `objects.count_pixels`."""
        return objects.count_pixels(self)

    def known_best_views(self) -> Mapping[int, str]:
        """The best views that the run has found, of what has not changed since."""
        return self.context.best_views if self.hierarchy is self.context.hierarchy else {}

    def best_view(self, node: int) -> str:
        """The name of the view that shows most of a node; empty where none does, or where there are no views."""
        if node in (known := self.known_best_views()):
            return known[node]
        if not self.context.known_cameras:
            return ""
        counts = self.pixels_of_views[:, node]
        return self.views[int(counts.argmax())] if counts.any() else ""
