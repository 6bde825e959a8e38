"""Pictures of labels: one discrete label per Gaussian, rendered as if one-hot, the heaviest wins.

Of a hierarchy, the heaviest object wins whatever the level, then its heaviest part, and so on down: so the mask of a
segment is the union of the masks of its parts, to the pixel, and lies in that of the whole that holds it.

Or, as in Contrastive Gaussian Clustering, of features: the segment that a pixel's blended feature is most like wins.
"""

# pyright: reportCallIssue=false, reportReturnType=false, reportAttributeAccessIssue=false
# (numba changes the signatures of what it compiles)

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cgc.clustering.hierarchy import Hierarchy
from cgc.kernels import kernel, spread
from cgc.rasterize.base import Rasterizer
from cgc.scene.types import Camera
from cgc.splats.types import Splats

MAX_PIXELS_AT_ONCE = 1 << 18
"""Pixels whose blending weights are held at once; with some 30 entries a pixel this is about 120 MB."""


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
    """Per row: sum the weights by label (column 0 holds noise and what is left of the background); keep the largest."""
    rows = indptr.shape[0] - 1
    sums = np.zeros(n_labels + 1, np.float32)
    for row in range(worker * rows // workers, (worker + 1) * rows // workers):
        left = np.float32(1.0)
        for e in range(indptr[row], indptr[row + 1]):
            sums[max(labels[ids[e]], 0)] += weights[e]
            left -= weights[e]
        sums[0] += max(left, np.float32(0.0))
        best = 0
        for e in range(indptr[row], indptr[row + 1]):
            label = max(labels[ids[e]], 0)
            if sums[label] > sums[best] or (sums[label] == sums[best] and label < best):
                best = label
        out_ids[row] = best
        out_weight[row] = sums[best]
        sums[0] = 0.0
        for e in range(indptr[row], indptr[row + 1]):
            sums[max(labels[ids[e]], 0)] = 0.0


@kernel
def _walk(worker, workers, indptr, ids, weights, leaves, parents, first, children, shown, out_ids, out_weight):
    """Replace each row's object (out_ids) by what is shown in it: an ancestor, or the heaviest of the parts.

    The children of node n are children[first[n]:first[n + 1]]; shown [T + 1] has what is shown in place of a node, 0
    where that is its parts.
    """
    rows = indptr.shape[0] - 1
    sums = np.zeros(len(parents), np.float32)
    for row in range(worker * rows // workers, (worker + 1) * rows // workers):
        node = out_ids[row]
        if node == 0 or shown[node] == node:
            continue
        if shown[node] == 0:
            for e in range(indptr[row], indptr[row + 1]):
                n = max(leaves[ids[e]], 0)
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
                n = max(leaves[ids[e]], 0)
                while n:
                    sums[n] = 0.0
                    n = parents[n]
        node = shown[node]
        weight = np.float32(0.0)
        for e in range(indptr[row], indptr[row + 1]):
            if shown[max(leaves[ids[e]], 0)] == node:
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
    made = [(np.zeros(size, np.int32), np.zeros(size, np.float32)) for _ in levels]
    labels = hierarchy.at()
    last = int(labels.max(initial=0))
    stops = [hierarchy.base_stop if x is None else hierarchy.stop(x) for x in levels]
    shown = [None if s == hierarchy.base_stop else hierarchy.shown_for(hierarchy.stops[s]) for s in stops]
    children = np.argsort(hierarchy.parents, kind="stable").astype(np.int32)
    first = np.searchsorted(hierarchy.parents[children], np.arange(len(children) + 1))
    for begin in range(0, size, MAX_PIXELS_AT_ONCE):
        piece = slice(begin, min(begin + MAX_PIXELS_AT_ONCE, size))
        rows = rasterizer.contributions(splats, camera, torch.arange(piece.start, piece.stop))
        parts = [t.cpu().numpy() for t in (rows.indptr, rows.ids, rows.weights)]
        own_ids, own_weight = np.zeros(len(parts[0]) - 1, np.int32), np.zeros(len(parts[0]) - 1, np.float32)
        spread(_winners, *parts, labels, last, own_ids, own_weight)
        for (ids, weight), replaced in zip(made, shown):
            ids[piece], weight[piece] = own_ids, own_weight
            if replaced is not None:
                tree = (hierarchy.leaves, hierarchy.parents, first, children, replaced)
                spread(_walk, *parts, *tree, ids[piece], weight[piece])
    shape = (camera.height, camera.width)
    return [LabelPicture(ids.reshape(shape), weight.reshape(shape)) for ids, weight in made]


def render_blended(
    splats: Splats, features: Tensor, labels: np.ndarray, camera: Camera, rasterizer: Rasterizer
) -> LabelPicture:
    """Blend features [N, D] as colour is blended; per pixel the segment whose mean unit feature is most similar.

    labels [N] (-1 noise, 1..K). Pixels with an alpha under 0.5 get id 0; of equal segments the lower number wins.
    """
    ids, rows = np.unique(labels, return_inverse=True)
    unit = torch.nn.functional.normalize(features, dim=-1)
    sums = unit.new_zeros(len(ids), unit.shape[1]).index_add(0, torch.from_numpy(rows), unit)  # [K, D]
    ids, means = ids[ids > 0], torch.nn.functional.normalize(sums[torch.from_numpy(ids > 0)], dim=-1)
    out_ids = np.zeros((camera.height, camera.width), np.int32)
    out_weight = np.zeros((camera.height, camera.width), np.float32)
    if not len(ids):
        return LabelPicture(out_ids, out_weight)
    with torch.no_grad():
        picture = rasterizer.render(splats, features, [camera])
    seen = (picture.alphas[0] >= MIN_ALPHA).cpu().numpy()
    blended = torch.nn.functional.normalize(picture.values[0].cpu()[torch.from_numpy(seen)], dim=-1)  # [P, D]
    cosine = (blended @ means.T).numpy()  # [P, K]
    out_ids[seen] = ids[cosine.argmax(1)]
    out_weight[seen] = cosine.max(1).clip(0, 1)
    return LabelPicture(out_ids, out_weight)


def render_rgb(splats: Splats, camera: Camera, rasterizer: Rasterizer, background: Tensor | None = None) -> np.ndarray:
    """Render the picture of one camera, [H, W, 3] float32 in 0..1, on `background` [3] (default black)."""
    with torch.no_grad():
        colors = splats.colors(camera.position)
        picture = rasterizer.render(splats, colors, [camera], backgrounds=background).values[0]
    return picture.clamp(0, 1).cpu().numpy()
