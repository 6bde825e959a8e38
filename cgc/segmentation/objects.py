"""Objects of a segmentation: one thing each, with its box, colour, views and place in the hierarchy; and sets of them.

An object is an id and the segmentation it is of; what it says of itself is worked out when it is asked for.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.spatial import KDTree

from cgc.errors import InputError, some
from cgc.geometry import sh_dc_to_rgb
from cgc.progress import short_lengths
from cgc.segmentation.pictures import ViewOrCamera, finest_map, node_mask
from cgc.settings import Edges
from cgc.splats.types import Splats

if TYPE_CHECKING:
    from cgc.segmentation.segmentation import Segmentation

BOX_PERCENTILES = (1, 99)
"""A box spans these percentiles of its Gaussians' centres along each axis."""
CORE = 98
"""The axes of a box are those of the Gaussians within this percentile of distance from the median."""


@dataclass(frozen=True, eq=False)
class Box:
    """An oriented box: its centre [3], its unit axes as rows [3, 3], right-handed, and the lengths along them [3]."""

    centre: np.ndarray
    axes: np.ndarray
    size: np.ndarray

    @property
    def volume(self) -> float:
        """The product of the lengths."""
        return float(np.prod(self.size))

    @property
    def corners(self) -> np.ndarray:
        """The eight corners, [8, 3]."""
        signs = np.stack(np.meshgrid(*[[-0.5, 0.5]] * 3, indexing="ij"), -1).reshape(8, 3)
        return self.centre + (signs * self.size) @ self.axes

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Say which points [P, 3] lie in the box, [P] bool."""
        return (np.abs((np.asarray(points) - self.centre) @ self.axes.T) <= self.size / 2 + 1e-9).all(axis=1)


def oriented_box(points: np.ndarray) -> Box:
    """Fit a box to points [P, 3] along their principal axes, the longest first, from the 1st to the 99th percentile.

    The farthest points turn the axes as little as they stretch the box. No direction counts as up.
    """
    points = np.asarray(points, float)
    distance = np.linalg.norm(points - np.median(points, axis=0), axis=1)
    core = points[distance <= np.percentile(distance, CORE)]
    _, vectors = np.linalg.eigh(np.cov(core.T, bias=True) if len(core) > 1 else np.eye(3))
    axes = vectors.T[::-1].copy()
    low, high = np.percentile(points @ axes.T, BOX_PERCENTILES, axis=0)
    axes = axes[np.argsort(low - high, kind="stable")]
    largest = np.abs(axes).argmax(axis=1)
    axes *= np.sign(axes[np.arange(3), largest])[:, None]
    axes[2] = np.cross(axes[0], axes[1])
    low, high = np.percentile(points @ axes.T, BOX_PERCENTILES, axis=0)
    return Box((low + high) / 2 @ axes, axes, high - low)


@dataclass(frozen=True, eq=False)
class Object:
    """One object, part or whole of a segmentation. Lengths are in world units, ids mean the same at every level."""

    id: int
    segmentation: Segmentation

    def __eq__(self, other: object) -> bool:
        """Say whether both are the same node of the same hierarchy over the same Gaussians."""
        if not isinstance(other, Object):
            return NotImplemented
        a, b = self.segmentation, other.segmentation
        return self.id == other.id and a.splats is b.splats and a.hierarchy is b.hierarchy

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        centre = ", ".join(short_lengths(self.centre, self.box.size.max()))
        named = f", name={self.name!r}" if self.name else ""
        return f"Object(id={self.id}{named}, gaussians={self.gaussians}, centre=({centre}))"

    @property
    def name(self) -> str:
        """What the user calls it; empty where it was given no name."""
        return self.segmentation.names.get(self.id, "")

    @cached_property
    def indices(self) -> np.ndarray:
        """Which Gaussians it has, ascending int64."""
        return self.segmentation.members(self.id)

    @property
    def gaussians(self) -> int:
        """How many Gaussians it has."""
        return len(self.indices)

    @cached_property
    def _means(self) -> np.ndarray:
        return self.segmentation.splats.means[torch.from_numpy(self.indices)].detach().cpu().numpy().astype(float)

    @cached_property
    def centre(self) -> np.ndarray:
        """The median of its Gaussians' centres, [3]."""
        return np.median(self._means, axis=0)

    @cached_property
    def box(self) -> Box:
        """The oriented box around its body, without what floats about it; see `oriented_box` and `in_bodies`."""
        tree = self.segmentation.hierarchy
        objects = np.unique(tree.shown_for(tree.base)[tree.leaves[self.indices]])
        return oriented_box(self._means[body_of(in_bodies(self.segmentation, objects), self.indices)])

    @property
    def volume(self) -> float:
        """The volume of its oriented box, not of its matter."""
        return self.box.volume

    @cached_property
    def color(self) -> tuple[int, int, int]:
        """The mean colour of its Gaussians, weighted by their opacity, 0 to 255."""
        splats = self.segmentation.splats
        own = torch.from_numpy(self.indices)
        rgb = sh_dc_to_rgb(splats.sh[own, 0].detach()).cpu().numpy()
        weights = splats.logit_opacities[own].sigmoid().detach().cpu().numpy() + 1e-6
        r, g, b = (255 * np.average(rgb, axis=0, weights=weights)).round().astype(int).tolist()
        return r, g, b

    @cached_property
    def confidence(self) -> float:
        """The mean confidence of its Gaussians, 0 to 1."""
        return float(self.segmentation.confidences[self.indices].mean())

    @cached_property
    def best_view(self) -> str:
        """The name of the view that shows most of it; empty where none does, or where there are no views."""
        return self.segmentation.best_view(self.id)

    @property
    def parent(self) -> int:
        """The id of the node that holds it; 0: none."""
        return self.segmentation.hierarchy.parent(self.id)

    @property
    def children(self) -> tuple[int, ...]:
        """The ids of the parts it is made of."""
        return tuple(self.segmentation.hierarchy.children(self.id))

    @property
    def level(self) -> float:
        """The finest level at which it is shown, 0 (wholes) to 1 (smallest parts)."""
        return float(self.segmentation.hierarchy.levels[self.id])

    def splats(self, *, clean: bool = False) -> Splats:
        """Its Gaussians; `clean` leaves out those that only smear it (see `is_clean`)."""
        own = self.indices
        picked = self.segmentation.splats.select(torch.from_numpy(own))
        if not clean:
            return picked
        return picked.select(torch.from_numpy(np.flatnonzero(is_clean(picked, self.segmentation.confidences[own]))))

    def mask(self, view: ViewOrCamera, edges: Edges = "splats") -> np.ndarray:
        """Where it is seen, [H, W] bool: the pixels that `at_pixel` gives to it or to a part of it.

        With edges="photos" its border is drawn to the edges that the view's photo shows.
        """
        return node_mask(self.segmentation, view, [self.id], edges)


@dataclass(frozen=True, eq=False)
class Selection:
    """A set of objects, parts or wholes of one segmentation, none of which lies in another; it may be empty."""

    segmentation: Segmentation
    ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Object]:
        return iter(self.objects)

    def __contains__(self, item: Which) -> bool:
        if isinstance(item, str):
            return any(i in self.ids for i in named(self.segmentation, item))
        return (item.id if isinstance(item, Object) else item) in self.ids

    def __repr__(self) -> str:
        return f"Selection(ids={self.ids})"

    @property
    def objects(self) -> list[Object]:
        """What is selected, by rising id."""
        return [Object(i, self.segmentation) for i in self.ids]

    @property
    def object(self) -> Object | None:
        """What is selected, where that is one object; None where it is nothing or several."""
        return Object(self.ids[0], self.segmentation) if len(self.ids) == 1 else None

    @cached_property
    def indices(self) -> np.ndarray:
        """Which Gaussians are selected, ascending int64."""
        found = [self.segmentation.members(i) for i in self.ids]
        return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)

    def splats(self, *, clean: bool = False) -> Splats:
        """The Gaussians of all that is selected; `clean` as for an object, one after the other."""
        if not clean or not self.ids:
            return self.segmentation.splats.select(torch.from_numpy(self.indices))
        kept = [i[is_clean(o.splats(), self.segmentation.confidences[i])] for o in self.objects for i in [o.indices]]
        return self.segmentation.splats.select(torch.from_numpy(np.unique(np.concatenate(kept))))

    def mask(self, view: ViewOrCamera, edges: Edges = "splats") -> np.ndarray:
        """Where any of it is seen, [H, W] bool; `edges` as of an object."""
        return node_mask(self.segmentation, view, self.ids, edges)


MIN_CONFIDENCE = 0.5
"""Gaussians of a segment that the masks give to another one more often than not are left out of its file."""
MAX_ISOLATION = 6.0
"""So are those whose neighbours in the segment are this many times farther than usual: floaters ..."""
MAX_REACH = 0.5
"""... and those wider (one standard deviation) than this share of the segment's box: smears."""


def is_clean(splats: Splats, confidences: np.ndarray) -> np.ndarray:
    """Say which Gaussians of one segment make up its body, [N] bool; all of them where a rule would leave none."""
    means = splats.means.detach().cpu().numpy().astype(float)
    kept = confidences >= MIN_CONFIDENCE
    neighbours = 8
    if len(means) > neighbours:
        distance = KDTree(means).query(means, neighbours + 1)[0][:, 1:].mean(axis=1)
        kept &= distance <= MAX_ISOLATION * np.median(distance)
        low, high = np.percentile(means[kept] if kept.any() else means, [5, 95], axis=0)
        kept &= splats.scales.detach().cpu().numpy().max(axis=1) <= MAX_REACH * np.linalg.norm(high - low)
    return kept if kept.any() else np.ones(len(means), bool)


def in_bodies(segmentation: Segmentation, objects: np.ndarray) -> np.ndarray:
    """Say which Gaussians are of the body of one of some objects, [N] bool; see `is_clean`."""
    found = np.zeros(len(segmentation.splats), bool)
    for segment in objects.tolist():
        own = segmentation.members(segment)
        found[own[is_clean(segmentation.splats.select(torch.from_numpy(own)), segmentation.confidences[own])]] = True
    return found


def body_of(bodies: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Say which of the Gaussians `own` of a part, an object or a whole are in `bodies` [N] bool; all where none is."""
    kept = bodies[own]
    return kept if kept.any() else ~kept


def table(segmentation: Segmentation) -> dict[str, list]:
    """What the objects are, as columns of equal length: one row an object, what every table library reads.

    The best view is named where the run has found it; elsewhere it is empty (`Object.best_view` renders to find it).
    """
    objects = segmentation.objects
    known = segmentation.known_best_views()
    columns = {
        "id": [o.id for o in objects],
        "name": [o.name for o in objects],
        "gaussians": [o.gaussians for o in objects],
        **{name: [float(o.centre[i]) for o in objects] for i, name in enumerate("xyz")},
        **{name: [float(o.box.size[i]) for o in objects] for i, name in enumerate(("length", "width", "height"))},
        "volume": [o.volume for o in objects],
        **{name: [o.color[i] for o in objects] for i, name in enumerate(("red", "green", "blue"))},
        "confidence": [o.confidence for o in objects],
        "best_view": [known.get(o.id, "") for o in objects],
        "parent": [o.parent for o in objects],
        "children": [o.children for o in objects],
        "level": [o.level for o in objects],
    }
    return columns


Which = int | str | Object
"""What an object is meant by: its id, its name, or itself or its like in another segmentation."""


def checked_object(segmentation: Segmentation, which: Which) -> Object:
    """Return the object of an id, of a name that one has, or of another object's id; InputError where there is none."""
    if isinstance(which, Object):
        which = which.id
    if isinstance(which, str):
        which = _id_of(segmentation, which)
    tree = segmentation.hierarchy
    whole = isinstance(which, (int, np.integer)) and not isinstance(which, bool)
    if not whole:
        raise InputError(f"segments have whole numbers as ids, got {which!r}")
    if not 1 <= which <= tree.n_nodes or not segmentation.owns(int(which)):
        raise InputError(f"there is no segment {which}: the ids that hold Gaussians are {tree.named()}")
    return Object(int(which), segmentation)


def plain_name(text: str) -> str:
    """Return a name as it is kept: without spaces around it, and accents as systems that compose them write them."""
    return unicodedata.normalize("NFC", text.strip())


def named(segmentation: Segmentation, name: str) -> list[int]:
    """Return the ids of the objects that have a name."""
    wanted = plain_name(name)
    return [i for i, own in segmentation.names.items() if own == wanted and segmentation.owns(i)]


def _id_of(segmentation: Segmentation, name: str) -> int:
    ids = named(segmentation, name)
    if len(ids) == 1:
        return ids[0]
    if ids:
        raise InputError(f"{len(ids)} objects are called {name!r}, {some(ids)}; give an id")
    names = sorted({own for i, own in segmentation.names.items() if segmentation.owns(i)})
    there = f"the names are {some(names)}; give one of these, or an id" if names else "none has a name yet; give an id"
    raise InputError(f"no object is called {name!r}: {there}")


SMALL_SIDE = 160
"""Views are counted in pictures whose longer side is at most this, in pixels."""


def count_pixels(segmentation: Segmentation) -> np.ndarray:
    """Count the pixels of each node that every view shows, [V, T + 1], in small pictures of the same shape."""
    tree, counts = segmentation.hierarchy, []
    for camera in segmentation.context.cameras.values():
        shrink = min(1.0, SMALL_SIDE / max(camera.width, camera.height))
        small = camera.resized(max(1, round(camera.width * shrink)), max(1, round(camera.height * shrink)))
        ids = finest_map(segmentation, small)
        counts.append(tree.add_up(np.bincount(ids.ravel(), minlength=len(tree.parents))))
    return np.stack(counts)
