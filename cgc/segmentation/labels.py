"""Pictures of labels: one discrete label per Gaussian, rendered as if one-hot, the heaviest wins.

Of a hierarchy, the heaviest object wins whatever the level, then its heaviest part, and so on down: so the mask of a
segment is the union of the masks of its parts, to the pixel, and lies in that of the whole that holds it.

Or, as in Contrastive Gaussian Clustering, of features: the segment that a pixel's blended feature is most like wins.
"""

# pyright: reportCallIssue=false, reportReturnType=false, reportAttributeAccessIssue=false
# (numba changes the signatures of what it compiles)

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cgc import kernels
from cgc.appearance.photos import on_exposed
from cgc.clustering.hierarchy import Hierarchy
from cgc.kernels import kernel, spread
from cgc.rasterize.base import Contributions, Rasterizer, device_of, group_contributions
from cgc.scene.corrections import Correction
from cgc.scene.types import Camera, View
from cgc.segmentation.device_labels import WEIGHED, LabelDrawer, ShownThere, read_rows_there
from cgc.splats.types import Splats

MAX_PIXELS_AT_ONCE = 1 << 20
"""Pixels whose blending weights are held at once; with a few segments a pixel this is less than 100 MB."""


MIN_ALPHA = 0.5
"""Pixels that show less than this of the splats belong to no segment in a picture of blended features."""


class LabelPicture(NamedTuple):
    """ids [H, W] int32, 0 = no segment; weight [H, W] float32, the share of the pixel that the winner has.

    Of blended features, the weight is the cosine to the winner, where it is over 0.
    """

    ids: np.ndarray
    weight: np.ndarray


@kernel
def _winners(worker, workers, indptr, ids, weights, labels, n_labels, out_ids, out_weight):
    """Per row: sum the weights by label (column 0 holds noise and what is left of the background); keep the largest.

    Sums of weights are exact in float64, so it does not matter in what order or in which pieces they come.
    """
    rows = indptr.shape[0] - 1
    sums = np.zeros(n_labels + 1)
    for row in range(worker * rows // workers, (worker + 1) * rows // workers):
        left = 1.0
        for e in range(indptr[row], indptr[row + 1]):
            sums[labels[ids[e]]] += weights[e]
            left -= weights[e]
        sums[0] += max(left, 0.0)
        best = 0
        for e in range(indptr[row], indptr[row + 1]):
            label = labels[ids[e]]
            if sums[label] > sums[best] or (sums[label] == sums[best] and label < best):
                best = label
        out_ids[row] = best
        out_weight[row] = sums[best]
        sums[0] = 0.0
        for e in range(indptr[row], indptr[row + 1]):
            sums[labels[ids[e]]] = 0.0


@kernel
def _walk(worker, workers, indptr, ids, weights, parents, first, children, shown, out_ids, out_weight):
    """Replace each row's object (out_ids) by what is shown in it: an ancestor, or the heaviest of the parts.

    Entries are of leaves (ids), 0 for noise.
    The children of node n are children[first[n]:first[n + 1]]; shown [T + 1] has what is shown in place of a node, 0
    where that is its parts.
    """
    rows = indptr.shape[0] - 1
    sums = np.zeros(len(parents))
    for row in range(worker * rows // workers, (worker + 1) * rows // workers):
        node = out_ids[row]
        if node == 0 or shown[node] == node:
            continue
        if shown[node] == 0:
            for e in range(indptr[row], indptr[row + 1]):
                n = ids[e]
                while n:
                    sums[n] += weights[e]
                    n = parents[n]
            while shown[node] == 0:
                best = children[first[node]]
                for c in range(first[node] + 1, first[node + 1]):
                    if sums[children[c]] > sums[best]:
                        best = children[c]
                node = best
            for e in range(indptr[row], indptr[row + 1]):
                n = ids[e]
                while n:
                    sums[n] = 0.0
                    n = parents[n]
        node = shown[node]
        weight = 0.0
        for e in range(indptr[row], indptr[row + 1]):
            if shown[ids[e]] == node:
                weight += weights[e]
        out_ids[row], out_weight[row] = node, weight


def render_labels(splats: Splats, labels: np.ndarray, camera: Camera, rasterizer: Rasterizer) -> LabelPicture:
    """Rasterise labels [N] (-1 noise, 1..K) into an id map: per pixel the label with the largest blending weight.

    What shows the background or noise more than any segment gets id 0.
    """
    return render_levels(splats, Hierarchy.flat(labels), [None], camera, rasterizer)[0]


def render_levels(
    splats: Splats,
    hierarchy: Hierarchy,
    levels: Sequence[float | None],
    camera: Camera,
    rasterizer: Rasterizer,
) -> list[LabelPicture]:
    """Rasterise a hierarchy at some levels (None: its objects) into id maps of nodes, as nested as the nodes are.

    Per pixel the object with the largest blending weight wins, as in `render_labels`; a coarser level shows what holds
    it, a finer one the heaviest of its parts (ties: the lower id), whatever else is in the pixel.
    """
    size = camera.width * camera.height
    if not kernels.serve(device_of(rasterizer)):
        drawer = LabelDrawer(splats, hierarchy, levels, rasterizer)
        if drawer.labels <= WEIGHED:
            return _pictures(drawer.read_one_hot(camera), (camera.height, camera.width))
    made = [LabelPicture(np.zeros(size, np.int32), np.zeros(size, np.float32)) for _ in levels]
    groups, shown = leaf_groups(hierarchy), ShownNodes.of(hierarchy, levels)
    for begin in range(0, size, MAX_PIXELS_AT_ONCE):
        piece = slice(begin, min(begin + MAX_PIXELS_AT_ONCE, size))
        rows = group_contributions(rasterizer, splats, camera, groups, torch.arange(piece.start, piece.stop))
        for whole, part in zip(made, read_rows(rows, shown)):
            whole.ids[piece], whole.weight[piece] = part
    shape = (camera.height, camera.width)
    return [LabelPicture(ids.reshape(shape), weight.reshape(shape)) for ids, weight in made]


def render_ids(
    splats: Splats, hierarchy: Hierarchy, level: float | None, camera: Camera, rasterizer: Rasterizer
) -> np.ndarray:
    """Return the ids [H, W] int32 that `render_levels` gives at one level; without their weights this is faster."""
    if kernels.serve(device_of(rasterizer)):
        return render_levels(splats, hierarchy, [level], camera, rasterizer)[0].ids
    ids = LabelDrawer(splats, hierarchy, [level], rasterizer).ids(camera)[0]
    return ids.cpu().numpy().reshape(camera.height, camera.width)


def _pictures(found: Sequence[tuple[Tensor, Tensor]], shape: tuple[int, ...]) -> list[LabelPicture]:
    """Bring ids and weights [P] to the host."""
    return [LabelPicture(*(x.cpu().numpy().reshape(shape) for x in pair)) for pair in found]


def leaf_groups(hierarchy: Hierarchy) -> Tensor:
    """The finest node of each Gaussian, [N] int32, 0 for noise: the groups that pixels are read by."""
    return torch.from_numpy(np.maximum(hierarchy.leaves, 0).astype(np.int32))


class ShownNodes(NamedTuple):
    """What some levels of a hierarchy show, as the kernels read it; a level's `replaced` is None: the objects."""

    objects: np.ndarray  # of each node
    last_object: int
    replaced: list[np.ndarray | None]
    tree: tuple[np.ndarray, ...]  # parents, first, children: see _walk
    there: Callable[[torch.device], ShownThere]  # the same on a device

    @classmethod
    def of(cls, hierarchy: Hierarchy, levels: Sequence[float | None]) -> ShownNodes:
        """Prepare some levels (None: the objects)."""
        stops = [hierarchy.base_stop if x is None else hierarchy.stop(x) for x in levels]
        replaced = [None if s == hierarchy.base_stop else hierarchy.shown_for(hierarchy.stops[s]) for s in stops]
        children = np.argsort(hierarchy.parents, kind="stable").astype(np.int32)
        first = np.searchsorted(hierarchy.parents[children], np.arange(len(children) + 1))
        objects = hierarchy.shown_for(hierarchy.base)
        there = partial(ShownThere.of, hierarchy, levels)
        return cls(objects, int(objects.max(initial=0)), replaced, (hierarchy.parents, first, children), there)


def read_rows(rows: Contributions, shown: ShownNodes) -> list[LabelPicture]:
    """Say what pixels show, ids [P] and weight [P], at each level, by their rows of W summed by `leaf_groups`."""
    if not kernels.serve(rows.ids.device):
        return _pictures(read_rows_there(rows, shown.there(rows.ids.device)), (len(rows),))
    parts = [t.numpy() for t in (rows.indptr, rows.ids, rows.weights)]
    own_ids, own_weight = np.zeros(len(rows), np.int32), np.zeros(len(rows), np.float32)
    spread(_winners, *parts, shown.objects, shown.last_object, own_ids, own_weight)
    made = []
    for replaced in shown.replaced:
        ids, weight = own_ids.copy(), own_weight.copy()
        if replaced is not None:
            spread(_walk, *parts, *shown.tree, replaced, ids, weight)
        made.append(LabelPicture(ids, weight))
    return made


def render_blended(
    splats: Splats, features: Tensor, labels: np.ndarray | MeanFeatures, camera: Camera, rasterizer: Rasterizer
) -> LabelPicture:
    """Blend features [N, D] as colour is blended; per pixel the segment whose mean unit feature is most similar.

    labels [N] (-1 noise, 1..K), or what their segments' features are. Pixels with an alpha under 0.5 get id 0; of equal
    segments the lower number wins.
    """
    segments = labels if isinstance(labels, MeanFeatures) else MeanFeatures.of(features, labels)
    with torch.no_grad():
        picture = rasterizer.render(splats, features, [camera])
    size = camera.height * camera.width
    flat = read_blended(picture.values[0].reshape(size, -1), picture.alphas[0].reshape(size), segments)
    shape = (camera.height, camera.width)
    return LabelPicture(flat.ids.reshape(shape), flat.weight.reshape(shape))


class MeanFeatures(NamedTuple):
    """The mean unit feature of each segment: ids [K] ascending, means [K, D] of norm 1."""

    ids: np.ndarray
    means: Tensor

    def those_of(self, labels: np.ndarray) -> MeanFeatures:
        """Return those of the segments that some labels hold."""
        held = np.isin(self.ids, labels)
        return MeanFeatures(self.ids[held], self.means[torch.from_numpy(held)])

    @classmethod
    def of(cls, features: Tensor, labels: np.ndarray) -> MeanFeatures:
        """Average features [N, D] over labels [N] (-1 noise, 1..K)."""
        ids, rows = np.unique(labels, return_inverse=True)
        unit = torch.nn.functional.normalize(features, dim=-1)
        index = torch.from_numpy(rows).to(unit.device)
        sums = unit.new_zeros(len(ids), unit.shape[1]).index_add(0, index, unit)  # [K, D]
        return cls(ids[ids > 0], torch.nn.functional.normalize(sums[torch.from_numpy(ids > 0)], dim=-1))


def read_blended(blended: Tensor, alphas: Tensor, segments: MeanFeatures) -> LabelPicture:
    """Say which segment each of P pixels shows, by its blended feature [P, D] and its alpha [P]."""
    ids, weight = np.zeros(len(alphas), np.int32), np.zeros(len(alphas), np.float32)
    seen = alphas >= MIN_ALPHA
    if len(segments.ids):
        unit = torch.nn.functional.normalize(blended[seen], dim=-1)  # [P, D]
        most, best = (x.cpu().numpy() for x in (unit @ segments.means.to(unit.device).T).max(1))  # of [P, K]
        where = seen.cpu().numpy()
        ids[where], weight[where] = segments.ids[best], most.clip(0, 1)
    return LabelPicture(ids, weight)


def render_rgb(
    splats: Splats,
    camera: Camera,
    rasterizer: Rasterizer,
    background: Tensor | None = None,
    exposure: Correction | None = None,
) -> np.ndarray:
    """Render the picture of one camera, [H, W, 3] float32 in 0..1, on `background` [3] (default black).

    exposure: that of a photo, which the picture is to be like.
    """
    with torch.no_grad():
        colors = splats.colors(camera.position.to(splats.means.device))
        picture = rasterizer.render(splats, colors, [camera], backgrounds=background).values[0]
    picture = picture if exposure is None else exposure.photographed(picture)
    return picture.clamp(0, 1).cpu().numpy()


def picture_and_photo(
    splats: Splats,
    view: View,
    load_image: Callable[[View], np.ndarray],
    rasterizer: Rasterizer,
    background: Tensor | None = None,
    exposure: Correction | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return a view's picture and the photo that it is measured against, [H, W, 3] float32 in 0..1 each.

    What is see-through in the photo shows the background, exposed as the photo was where that is known, as in training.
    """
    behind = None if background is None else background.cpu()
    photo = on_exposed(torch.tensor(load_image(view)).float() / 255, behind, exposure)
    return render_rgb(splats, view.camera, rasterizer, background, exposure), photo.numpy()
