"""What the masks show of one block: the sampled pixels of all views, with the weights of the block's own Gaussians.

A pixel is weighed with everything that a view may see of it, so that other blocks' Gaussians hide what they hide; then
the block keeps its own entries. Pixels are those of a run without blocks, and so are a Gaussian's entries: what masks
say of it (columns, visible mass) is the same in every block that has it, up to rounding. A feature is learned from the
pixels of which the block's own Gaussians show the greater part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_matrix

from cgc.blocks.geometry import Geometry, Members, as_splats
from cgc.clustering.columns import Columns, mask_columns
from cgc.features.cache import Cache
from cgc.features.samples import Batch, draw_pixels, from_arrays, part_pixels, to_arrays, visible_mass
from cgc.progress import progress_bar
from cgc.rasterize.base import Contributions, Rasterizer
from cgc.scene.types import Camera
from cgc.settings import LiftSettings

Part = tuple[np.ndarray, np.ndarray]
"""Pixels of one view, flat indices [P] int32 sorted by mask, and the masks' ids [P] int32."""


class Drawn(NamedTuple):
    """A view whose pixels were drawn: its number and parts, none of them empty."""

    view: int
    parts: list[Part]


class Evidence(NamedTuple):
    """What a block is learned from and clustered by: batches, columns [n, M], visible mass [n] float32."""

    batches: list[Batch]
    columns: Columns
    mass: torch.Tensor


def draw_views(id_maps: Iterable[tuple[int, np.ndarray]], settings: LiftSettings) -> list[Drawn]:
    """Draw the pixels of each view, once for all blocks: those that `sample_batches` draws.

    id_maps: numbers of views and their id maps [H, W], one in memory at a time. 8 B a pixel are kept, past
    `settings.cache_gb` in a temporary file.
    """
    generator = np.random.default_rng(settings.seed)
    views, counts = [], []
    with Cache(settings.cache_gb) as cache:
        for view, id_map in id_maps:
            parts = part_pixels(id_map, draw_pixels(id_map, settings, generator), settings)
            views.append(view)
            counts.append(len(parts))
            for part in parts:
                cache.keep([part.pixels.astype(np.int32), part.mask_ids[part.masks].astype(np.int32)])
        kept = iter([(pixels, ids) for pixels, ids in cache.groups()])
    return [Drawn(view, [next(kept) for _ in range(n)]) for view, n in zip(views, counts) if n]


class Block:
    """A block's Gaussians among all: what a rasteriser shows of them."""

    def __init__(self, geometry: Geometry, members: Members, rasterizer: Rasterizer) -> None:
        self.geometry, self.members, self._rasterizer = geometry, members, rasterizer

    @property
    def is_all(self) -> bool:
        """Say whether the block is the whole scene."""
        return len(self.members.rows) == len(self.geometry)

    def may_show(self, camera: Camera) -> np.ndarray:
        """Say at which pixels the block may show, [H * W] bool."""
        if self.is_all:
            return np.ones(camera.width * camera.height, bool)
        return self.geometry.shown_in(camera, self.members.cells)

    def weigh(self, camera: Camera, pixels: np.ndarray, settings: LiftSettings) -> tuple[Contributions, np.ndarray]:
        """Return the rows of W of some pixels [P], a column each of the block's Gaussians, and what others weigh [P].

        Memory: 44 B, and the rasteriser's own, for each Gaussian in the cells that the view may see at the pixels.
        """
        n_cells = len(self.geometry.cut.cells) - 1
        cells = np.arange(n_cells) if self.is_all else self.geometry.in_view(camera, pixels)
        rows, values = self.geometry.read(cells)
        found = self._rasterizer.contributions(
            as_splats(values), camera, torch.from_numpy(pixels), min_weight=settings.min_weight,
            heaviest=settings.heaviest,
        )  # fmt: skip
        return restrict(found.to("cpu"), rows, self.members.rows)


def restrict(found: Contributions, rows: np.ndarray, members: np.ndarray) -> tuple[Contributions, np.ndarray]:
    """Keep the entries of members [n] of a matrix whose columns are `rows` [N], both rising numbers of Gaussians.

    Returns the matrix with a column a member, and the weight [P] float32 of what was left out, which its remainder has.
    """
    by_pixel = found.by_pixel
    place = np.searchsorted(members, rows)
    is_member = np.append(members, -1)[place] == rows
    own = is_member[by_pixel.ids]
    of_row = np.repeat(np.arange(len(found)), np.diff(by_pixel.indptr))
    others = np.bincount(of_row[~own], by_pixel.weights[~own], minlength=len(found)).astype(np.float32)
    indptr = np.append(0, np.cumsum(own))[by_pixel.indptr]
    made = replace(
        found, indptr=torch.from_numpy(indptr), ids=torch.from_numpy(place[by_pixel.ids[own]].astype(np.int32)),
        weights=torch.from_numpy(by_pixel.weights[own]), n_gaussians=len(members), transposed=None,
        remainder=None if found.remainder is None else found.remainder + torch.from_numpy(others),
    )  # fmt: skip
    return made, others


def weigh_block(
    block: Block,
    cameras: Sequence[Camera],
    drawn: Sequence[Drawn],
    settings: LiftSettings,
    *,
    quiet: bool = False,
) -> Evidence:
    """Weigh the drawn pixels at which a block may show; views that do not show it give nothing.

    What `settings.cache_gb` does not hold lies in a temporary file.
    """
    made: list[tuple[int, bool, bool]] = []  # of each kept batch: its view, whether columns and learning want it
    with Cache(settings.cache_gb) as cache, progress_bar("weights", len(drawn), quiet=quiet) as bar:
        for view, parts in drawn:
            for batch, counts, teaches in _batches(block, view, cameras[view], parts, settings):
                cache.keep(to_arrays(batch))
                made.append((view, counts, teaches))
            bar.advance(1, batches=sum(teaches for _, _, teaches in made))
        arrays = cache.groups()
    batches = [from_arrays(view, cameras[view], group) for (view, _, _), group in zip(made, arrays)]
    counted, n = [batch for batch, (_, counts, _) in zip(batches, made) if counts], len(block.members.rows)
    if counted:
        columns = mask_columns(counted, n)
    else:
        columns = Columns(csr_matrix((n, 0), dtype=np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64))
    taught = [batch for batch, (_, _, teaches) in zip(batches, made) if teaches]
    return Evidence(taught, columns, visible_mass(counted, n))


def _batches(
    block: Block, view: int, camera: Camera, parts: Sequence[Part], settings: LiftSettings
) -> Iterator[tuple[Batch, bool, bool]]:
    """Yield the batches of a view, and whether each is for columns and for learning.

    Where other blocks are in the way, those for learning are others than those that masks are counted by, and as many
    as their pixels are worth.
    """
    may_show = block.may_show(camera)
    parts = [(pixels[may_show[pixels]], ids[may_show[pixels]]) for pixels, ids in parts]
    ids = np.concatenate([ids for _, ids in parts])
    if not len(ids):
        return
    pixels = np.concatenate([pixels for pixels, _ in parts]).astype(np.int64)
    weights, others = block.weigh(camera, pixels, settings)
    own = np.bincount(weights.rows.numpy(), weights.weights.numpy(), minlength=len(ids))
    ends = np.cumsum([len(of_part) for _, of_part in parts])
    rows_of_parts = [np.arange(end - len(of_part), end) for (_, of_part), end in zip(parts, ends)]
    clear = not (others > 0).any()  # nothing of other blocks is in the way
    for rows in rows_of_parts:
        rows = rows[(own[rows] > 0) | (others[rows] == 0)]
        if len(rows):
            yield _batch(view, weights, rows, ids), True, clear
    if clear:
        return
    taught = [rows[own[rows] > others[rows]] for rows in rows_of_parts]
    n_parts = max(1, round(sum(map(len, taught)) / settings.pixels_per_step))
    for some in np.array_split(np.arange(len(taught)), min(n_parts, len(taught))):
        rows = np.concatenate([taught[i] for i in some])
        _, index, counts = np.unique(ids[rows], return_inverse=True, return_counts=True)
        rows = rows[(counts >= settings.min_mask_pixels)[index]]
        if (counts >= settings.min_mask_pixels).sum() > 1:  # one mask alone teaches nothing
            yield _batch(view, weights, rows[np.lexsort((pixels[rows], ids[rows]))], ids), False, True


def _batch(view: int, weights: Contributions, rows: np.ndarray, ids: np.ndarray) -> Batch:
    """Make a batch of some rows of a view's weights; ids [P] are those of the pixels' masks."""
    mask_ids, masks = np.unique(ids[rows], return_inverse=True)
    of_rows, gaussians = weights.select(torch.from_numpy(rows)).compact()
    return Batch(view, gaussians, of_rows, torch.from_numpy(masks), torch.from_numpy(mask_ids.astype(np.int64)))
