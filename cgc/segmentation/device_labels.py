"""Pictures of labels on a device: the ids that labels.py defines, in a few milliseconds.

Notation: P pixels, T nodes of a hierarchy, 0 = noise and background, L labels (nodes that must be told apart), B bits.
The weights of a pixel's labels and of its background add up to 1.

Weights of all pixels take long: 800 x 600 pixels with 30 Gaussians each are 14 million entries, 115 MB as CSR, and
several times that is read and written while they are made: 10 ms and more. A picture of few channels is cheaper.

- Up to ONE_HOT labels are as many channels of one picture, which are all that there is to know (`read_one_hot`).
- More are written in binary, a channel a bit (`find_sure`): s_b is the weight of the labels whose bit b is 1. A label
  with more than half of a pixel decides every s_b > 1/2, so the bits spell it; and what is not that label differs from
  it in a bit, so it weighs at most sum_b min(s_b, 1 - s_b). Where this is under 1/2 the label that is spelled has more
  than half of the pixel, whatever the others are: no other picture or tie could say otherwise. Rows of W are made for
  the rest alone, mostly pixels on the border of two objects.

Arithmetic, 1 million Gaussians, 800 x 600, 200 labels: 8 channels. Projection reads 44 MB and writes 40 MB: 0.03 ms at
3.3 TB/s, some 0.2 ms as kernels are; 4 million pairs are sorted in 1 ms; blending looks at 480,000 x 40 of them, 20
instructions each and 8 fused products: 0.5 ms. Rows of W of a tenth of the pixels project and sort again, 1.2 ms, and
work on 1.4 million entries, 100 B each, in some sixty kernels: 1 ms. The map goes to the host with 2 MB: 0.1 ms. In all
4 ms; estimated, not measured. One-hot pictures of up to 32 labels: 3 ms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cgc.clustering.hierarchy import Hierarchy
from cgc.rasterize.base import Contributions, Rasterizer, device_of, group_contributions
from cgc.scene.types import Camera
from cgc.splats.types import Splats

ONE_HOT = 32  # labels: the channels that a rasteriser blends at once
WEIGHED = 96  # labels that have a channel each where the winner's weight is asked for: up to three pictures
SURE = 1e-3  # that the weights which differ must stay under one half: more than float32 rounds
TABLE = 1 << 26  # weights of pixels and nodes that are held at once, 512 MB


class ShownThere(NamedTuple):
    """What some levels of a hierarchy show, on a device; each tensor has a number of each of T + 1 nodes.

    objects [T + 1] is the object of each node, 0 for what holds several; replaced, of each level what is shown in place
    of each node, 0 where that is its parts (None: the objects); parents [T + 1]; children [T + 1, C] of objects and
    their parts, rising, 0 = none; depth, the longest way from an object down to a leaf. coded [T + 1] is the label that
    must be known of a pixel: the object, or where a level shows parts the leaf; node_of [L + 1] undoes it.
    """

    objects: Tensor
    replaced: list[Tensor | None]
    parents: Tensor
    children: Tensor
    depth: int
    coded: Tensor
    node_of: Tensor

    @classmethod
    def of(cls, hierarchy: Hierarchy, levels: Sequence[float | None], device: torch.device) -> ShownThere:
        """Prepare some levels (None: the objects); made on the host."""
        stops = [hierarchy.base_stop if x is None else hierarchy.stop(x) for x in levels]
        replaced = [None if s == hierarchy.base_stop else hierarchy.shown_for(hierarchy.stops[s]) for s in stops]
        objects, parents = hierarchy.shown_for(hierarchy.base), hierarchy.parents
        finer = any(((shown == 0) & (objects > 0)).any() for shown in replaced if shown is not None)
        known = np.arange(len(parents)) if finer else objects
        used = np.unique(known[np.maximum(np.append(hierarchy.leaves, 0), 0)])  # 0 is one of them
        coded = np.searchsorted(used, known).clip(max=len(used) - 1)

        def there(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array.astype(np.int64)).to(device)

        levels_there = [None if shown is None else there(shown) for shown in replaced]
        tables = (there(parents), there(_children(objects, parents)), _depth(objects, parents))
        return cls(there(objects), levels_there, *tables, there(coded), there(used))


def _children(objects: np.ndarray, parents: np.ndarray) -> np.ndarray:
    """The parts of each node that is in an object, [T + 1, C], rising; 0 = none."""
    part = np.flatnonzero((objects > 0) & (objects[parents] > 0) & (parents > 0))
    part = part[np.argsort(parents[part], kind="stable")]
    counts = np.bincount(parents[part], minlength=len(parents))
    children = np.zeros((len(parents), max(int(counts.max(initial=0)), 1)), np.int64)
    place = np.arange(len(part)) - (np.cumsum(counts) - counts)[parents[part]]
    children[parents[part], place] = part
    return children


def _depth(objects: np.ndarray, parents: np.ndarray) -> int:
    """The longest way from an object down to its parts."""
    node, depth = np.arange(len(parents)), 0
    while (below := (node != objects) & (objects > 0)).any():
        node, depth = np.where(below, parents[node], node), depth + 1
    return depth


class _Entries:
    """Weights of nodes in pixels, listed. Tables are of float64: sums are exact, in whatever order atomics add them."""

    def __init__(self, rows: Tensor, nodes: Tensor, weights: Tensor, shape: tuple[int, int]) -> None:
        """Take rows [E] in [0, P), nodes [E] in [0, T], weights [E]; shape is P and T + 1."""
        self._rows, self._nodes, self._weights, self._shape = rows, nodes.long(), weights.double(), shape

    def by(self, names: Tensor) -> Tensor:
        """Return the weight of each name in each pixel, [P, T + 1], where names [T + 1] are what nodes count as."""
        table = self._weights.new_zeros(self._shape)
        table.view(-1).index_add_(0, self._rows * self._shape[1] + names[self._nodes], self._weights)
        return table

    def left(self) -> Tensor:
        """Return what is left of each pixel, the background, [P]."""
        total = self._weights.new_zeros(self._shape[0]).index_add_(0, self._rows, self._weights)
        return (1 - total).clamp_min(0)


class _Channels:
    """Weights of nodes in pixels as a picture [P, L] of the nodes [L]; sums are products, in one order."""

    def __init__(self, picture: Tensor, nodes: Tensor) -> None:
        self._picture, self._nodes = picture, nodes

    def by(self, names: Tensor) -> Tensor:
        """See `_Entries.by`."""
        kinds = torch.arange(len(names), device=names.device)
        return self._picture @ (names[self._nodes][:, None] == kinds).to(self._picture.dtype)

    def left(self) -> Tensor:
        """See `_Entries.left`."""
        return (1 - self._picture.sum(1)).clamp_min(0)


def _read(given: _Entries | _Channels, shown: ShownThere) -> list[tuple[Tensor, Tensor]]:
    """Say what pixels show at each level, ids [P] int32 and weight [P] float32, by `labels.read_rows`' rules.

    Waits for nothing. Memory: 16 B for each of P x T, and 8 for each of P and the most parts that a node has.
    """
    table = given.by(shown.objects)
    table[:, 0] += given.left()
    weight, best = table.max(1)  # of equal ones the lower
    made = []
    inside = _with_parts(given, shown) if any(r is not None for r in shown.replaced) else table
    for replaced in shown.replaced:
        if replaced is None:
            made.append((best.int(), weight.float()))
            continue
        node = best
        for _ in range(shown.depth):
            parts = shown.children[node]  # [P, C]
            heaviest = inside.gather(1, parts).masked_fill_(parts == 0, -1).argmax(1, keepdim=True)
            node = torch.where((replaced[node] == 0) & (node > 0), parts.gather(1, heaviest)[:, 0], node)
        node = replaced[node]
        own = given.by(replaced).gather(1, node[:, None])[:, 0]
        kept = node == best  # noise, and objects that are shown themselves
        made.append((node.int(), torch.where(kept, weight, own).float()))
    return made


def _with_parts(given: _Entries | _Channels, shown: ShownThere) -> Tensor:
    """The weight of each node in each pixel with that of its parts, [P, T + 1]; column 0 means nothing."""
    names = torch.where(shown.objects > 0, torch.arange(len(shown.objects), device=shown.objects.device), 0)
    table = given.by(names)
    for _ in range(shown.depth):
        names = shown.parents[names]
        table += given.by(names)
    return table


def read_rows_there(rows: Contributions, shown: ShownThere) -> list[tuple[Tensor, Tensor]]:
    """Say what pixels show at each level, ids [P] int32 and weight [P] float32, by their rows of W summed by leaves.

    Waits for nothing while P x T is within TABLE; more pixels are read in pieces, whose entries are counted first.
    """
    count, nodes, of_entry = len(rows), len(shown.objects), rows.rows
    step = max(TABLE // nodes, 1)
    if count <= step:
        return _read(_Entries(of_entry, rows.ids, rows.weights, (count, nodes)), shown)
    begins = [*range(0, count, step), count]
    ends = rows.indptr[torch.tensor(begins, device=rows.indptr.device)].tolist()
    pieces = []
    for begin, end, first, last in zip(begins, begins[1:], ends, ends[1:]):
        entries = of_entry[first:last] - begin, rows.ids[first:last], rows.weights[first:last]
        pieces.append(_read(_Entries(*entries, (end - begin, nodes)), shown))
    return _joined(pieces)


def _joined(pieces: Sequence[list[tuple[Tensor, Tensor]]]) -> list[tuple[Tensor, Tensor]]:
    """Put what pieces of a picture show at each level one behind the other."""
    return [(torch.cat(ids), torch.cat(weight)) for ids, weight in (zip(*of_level) for of_level in zip(*pieces))]


class LabelDrawer:
    """Draws a hierarchy at some levels from any camera; what that takes is brought to the rasteriser's device once."""

    def __init__(
        self, splats: Splats, hierarchy: Hierarchy, levels: Sequence[float | None], rasterizer: Rasterizer
    ) -> None:
        """Prepare some levels (None: the objects). Memory: that of the splats, and 8 B (4 L in pictures) a Gaussian."""
        device = device_of(rasterizer)
        self._rasterizer, self._splats = rasterizer, splats.detach().to(device)
        self._shown = ShownThere.of(hierarchy, levels, device)
        self._leaves = torch.from_numpy(np.maximum(hierarchy.leaves, 0).astype(np.int32)).to(device)
        self._names = self._shown.coded[self._leaves.long()]

    def ids(self, camera: Camera) -> list[Tensor]:
        """Return the ids [H * W] int32 that each level shows, on the device: those of `labels.render_levels`."""
        if self.labels <= ONE_HOT:
            return [ids for ids, _ in self.read_one_hot(camera)]
        label, sure = self.find_sure(camera)
        node = self._shown.node_of[label]
        pictures = [(self._shown.objects if r is None else r)[node].int() for r in self._shown.replaced]
        unsure = (~sure).nonzero()[:, 0]
        if len(unsure):
            rows = group_contributions(self._rasterizer, self._splats, camera, self._leaves, unsure)
            for picture, (ids, _) in zip(pictures, read_rows_there(rows, self._shown)):
                picture[unsure] = ids
        return pictures

    @property
    def labels(self) -> int:
        """L, how many labels must be told apart."""
        return len(self._shown.node_of) - 1

    def read_one_hot(self, camera: Camera) -> list[tuple[Tensor, Tensor]]:
        """Return ids [H * W] and weight [H * W] of each level by a channel for each label. Waits for nothing itself."""
        kinds = torch.arange(1, 1 + max(self.labels, 1), device=self._names.device)
        picture = self._blend((self._names[:, None] == kinds).float(), camera)[:, : self.labels]
        pieces = picture.split(max(TABLE // len(self._shown.objects), 1))
        return _joined([_read(_Channels(piece, self._shown.node_of[1:]), self._shown) for piece in pieces])

    def find_sure(self, camera: Camera) -> tuple[Tensor, Tensor]:
        """Return of each pixel the label that its bits spell, [H * W] int64, and whether that has over half, [H * W].

        Waits for nothing itself.
        """
        count = len(self._shown.node_of)
        bits = torch.arange(max((count - 1).bit_length(), 1), device=self._names.device)
        sums = self._blend(((self._names[:, None] >> bits) & 1).float(), camera)  # [P, B]
        label = ((sums > 0.5).long() << bits).sum(1)
        differs = torch.minimum(sums, 1 - sums).clamp_min(0).sum(1)
        return label.clamp(max=count - 1), (differs < 0.5 - SURE) & (label < count)

    def _blend(self, values: Tensor, camera: Camera) -> Tensor:
        """Blend values [N, L] into a picture, [P, L]."""
        with torch.no_grad():
            picture = self._rasterizer.render(self._splats, values, [camera]).values[0]
        return picture.reshape(camera.width * camera.height, values.shape[1])
