"""From features and masks to objects.

Policy (`cluster`): HDBSCAN's clusters of the features (density.py), cut into compact pieces, are joined where masks of
enough views have them in one (graph.py); the masks then vote through the blending weights (vote.py), and what they
made cleaner is joined and voted on again, the last time by pixels of all kinds (settle.py). Without joining, HDBSCAN's
clusters are the objects; without features, the masks themselves are what is joined (`cluster_masks`). Noise (-1) is
what no view sees, and what the settings ask for.
Labels count from 1, largest segment first, so that one number names an object everywhere: in labels, in id maps and in
file names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from sklearn.cluster import KMeans
from torch import Tensor

from cgc.clustering.beside import Beside
from cgc.clustering.columns import Columns, group_matrix, with_left_out
from cgc.clustering.density import draw_sample, find_clusters
from cgc.clustering.graph import Counts, count_surer, count_views, join, join_groups
from cgc.clustering.hierarchy import Hierarchy
from cgc.clustering.level import USUAL, suitable_level, touching
from cgc.clustering.rows import rows_of
from cgc.clustering.settle import Look, settle
from cgc.clustering.space import take_in, tidy
from cgc.clustering.tree import grow
from cgc.clustering.vote import NOISE, by_size, compact, cut, regroup, revote, row_winners
from cgc.errors import InputError
from cgc.geometry import sh_dc_to_rgb
from cgc.settings import ClusterSettings
from cgc.splats.types import Splats

FINE = 0.6  # share of the views at which pieces are joined before the masks vote for the first time
SPATIAL = 0.3  # what a unit feature's length is worth in scene extents, where clusters are cut into pieces
COLORED = 1.5  # likewise, what it is worth in the range of a colour's channels
CELL = 30  # samples that a cell has at least in the mean: smaller ones show too few pixels to be counted
SMALLEST = 15  # Gaussians: smaller pieces stay with the rest of their cell
MOST_MASKS = 4000  # that are joined with one another, the largest; the others vote only
FEWER_MASKS = 2000  # likewise, for a second opinion on the level
DISAGREE = 1.4  # times the level that masks find by themselves: higher ones are not believed
PURE = 0.6  # share of a mask's views in which its Gaussians stay in one mask; those of several objects have less
HELD = 0.3  # of a Gaussian's largest weight in any mask: what it must weigh in a mask that holds it
UNSEEN = 2.0  # times the level: the rate of what touches and is of one colour, where no view sees both


class NothingFound(InputError):
    """No cluster in the features, or no mask that others confirm."""


@dataclass(frozen=True)
class Space:
    """Where Gaussians are: places [N, 3] in scene extents, their nearest neighbours [N, k], and colours [N, 3] in 0..1.

    Without colours, pieces may be of several, and wholes are what masks fuse.
    """

    places: Tensor
    neighbours: Tensor
    colors: Tensor | None = None

    @classmethod
    def of(cls, splats: Splats, extent: float, neighbours: Tensor) -> Space:
        """Say where splats are in a scene of an extent, and their colours without what changes with the direction."""
        return cls(splats.means / extent, neighbours, sh_dc_to_rgb(splats.sh[:, 0].detach()))

    def on_host(self) -> Space:
        """Return the same in the host's memory."""
        return Space(self.places.cpu(), self.neighbours.cpu(), None if self.colors is None else self.colors.cpu())


@dataclass(frozen=True)
class Clustering:
    """labels [N] int32 (NOISE or 1..K), confidences [N] float32 in [0, 1]; tree: columns of the condensed tree.

    The labels are what the hierarchy shows at its base level.
    """

    labels: np.ndarray
    confidences: np.ndarray
    tree: dict[str, np.ndarray]
    hierarchy: Hierarchy

    @property
    def n_segments(self) -> int:
        """K, the number of segments."""
        return int(self.labels.max(initial=0))


def cluster(
    features: Tensor,
    mass: Tensor,
    columns: Columns,
    settings: ClusterSettings,
    *,
    space: Space | None = None,
    looks: Callable[[], Iterable[Look]] | None = None,
) -> Clustering:
    """Cluster Gaussians by features [N, D] (unit rows) and masks; mass [N] is their visible mass.

    Places keep pieces compact, segments whole; looks at the views show what masks leave out, and settle whose borders
    are. Memory: a copy of the features and 40 B a Gaussian, plus the sparse votes, the looks and `count_views` of the
    pieces and of up to 2,000 masks.
    InputError if nothing clusters.
    """
    if not torch.isfinite(features).all():
        raise InputError("features hold NaN or infinity where finite numbers were expected; run `cgc lift` again")
    normal, mass = torch.nn.functional.normalize(features, dim=-1), mass.cpu()
    seen, unit = _visible(mass), normal.cpu().numpy()
    found = find_clusters(unit, mass, settings, rows_of(normal))
    if found is None:
        raise NothingFound(
            f"everything is noise: HDBSCAN found no cluster of at least {settings.min_cluster_size} among up to "
            f"{settings.samples:,} samples of {int(seen.sum()):,} visible Gaussians; lower min-cluster-size (or "
            "min-samples, where that is given), raise samples, or train the features longer (steps of `cgc lift`)"
        )
    labels, confidences = found.labels.astype(np.int32), found.confidences
    if settings.noise == "keep":
        labels[found.noise] = NOISE
    labels[~seen] = NOISE
    if settings.join and columns.matrix.nnz:
        labels = cut_into_pieces(labels, normal, mass, space, settings)
        return _joined(labels, columns, mass, settings, found.tree, space, looks, second_opinion=True)
    for _ in range(settings.revote):
        labels, confidences = _vote(labels, columns, mass)
    labels, confidences = _finished(labels, confidences, settings)
    return Clustering(labels, confidences, found.tree, Hierarchy.flat(labels))


def cluster_masks(
    mass: Tensor,
    columns: Columns,
    settings: ClusterSettings,
    *,
    space: Space | None = None,
    looks: Callable[[], Iterable[Look]] | None = None,
) -> Clustering:
    """Cluster without features: masks of different views are joined by the Gaussians they share, and label these.

    Masks whose Gaussians other views tell apart (of several objects) take no part. Memory: `count_views` of up to 4,000
    masks. InputError where no mask is left.
    """
    mass, columns = mass.cpu(), columns.on_host()
    _ = _visible(mass)
    labels = join_masks(columns, MOST_MASKS)
    if labels is None:
        raise NothingFound(
            "no mask shows one thing that other views confirm: expected masks of which most keep together in the other "
            "views; give better masks, or more views"
        )
    return _joined(labels, columns, mass, settings, {}, space, looks)


def join_masks(columns: Columns, most: int) -> np.ndarray | None:
    """Join the largest masks, `most` of them, by the Gaussians they share; return these' labels [N], None without any.

    Masks whose Gaussians other views tell apart take no part.
    """
    held = _held(columns)
    picked = np.sort(np.argsort(-np.asarray(held.sum(axis=0)).ravel(), kind="stable")[:most])
    counts = count_views(columns, csr_matrix(held[:, picked].T))
    purity = np.diag(counts.together) / np.maximum(np.diag(counts.seen), 1e-9)
    pure = np.flatnonzero(purity >= PURE)
    if not len(pure):
        return None
    joined = join(counts.of(pure), FINE).things()
    shape = (held.shape[1], int(joined.max()) + 1)
    ballots = csr_matrix((np.ones(len(pure), np.float32), (picked[pure], joined)), shape=shape)
    return row_winners(csr_matrix(held @ ballots))[0]


def cluster_ids(votes: Any, ids: np.ndarray) -> Clustering:
    """Give each Gaussian the id with most of its votes [N, I] (see features.lifting): NOISE for id 0 and without votes.

    ids [I] are those of the columns. They stay what they are, so that an object keeps the number its masks have.
    InputError if no id is left.
    """
    best, shares = row_winners(votes)
    labels = np.where(best >= 0, ids[best], 0).astype(np.int32)
    labelled = labels > 0
    if not labelled.any():
        raise InputError("no id covers most of any Gaussian: check that masks, cameras and splats belong together")
    labels = np.where(labelled, labels, NOISE).astype(np.int32)
    return Clustering(labels, np.where(labelled, shares, 0).astype(np.float32), {}, Hierarchy.flat(labels))


def _held(columns: Columns) -> Any:
    """Which Gaussians each mask holds, [N, M] of ones: those that show in it nearly as much as in any mask.

    A mask's faint Gaussians (what lies behind it, say) are left out: other views show them in full, in other masks.
    """
    held = columns.matrix.copy()
    most = np.maximum(held.max(axis=1).toarray().ravel(), 1e-9)
    held.data = (held.data >= HELD * np.repeat(most, np.diff(held.indptr))).astype(np.float32)
    held.eliminate_zeros()
    return held


def cut_into_pieces(
    labels: np.ndarray, unit: Tensor, mass: Tensor, space: Space | None, settings: ClusterSettings
) -> np.ndarray:
    """Cut clusters [N] into compact pieces, [N] from 0: by the cells of k-means on features, positions and colours.

    A few wrong masks can bend features so that a cluster holds two things: pieces are small enough not to, and which of
    them are one is then counted. Two things that most masks fuse are seldom of one colour. K-means is fitted to a
    sample as HDBSCAN is. Crumbs of a cell stay with its largest piece.
    """
    beside = [] if space is None else [SPATIAL * space.places]
    beside += [] if space is None or space.colors is None else [COLORED * space.colors]
    points = torch.cat([unit, *(x.to(unit.device) for x in beside)], 1).float().contiguous()
    sample = draw_sample(mass, settings)
    drawn = points[torch.from_numpy(sample).to(points.device)].cpu().numpy()
    cells = min(settings.pieces, max(len(sample) // CELL, 1), len(np.unique(drawn, axis=0)))
    fitted = KMeans(cells, n_init=1, max_iter=30, random_state=settings.seed).fit(drawn)  # pyright: ignore
    cell, _ = rows_of(points).nearest(np.ascontiguousarray(fitted.cluster_centers_, np.float32))
    own = labels >= 0
    pieces = np.full(len(labels), NOISE, np.int32)
    pieces[own] = cut(cell[own], labels[own], SMALLEST)
    return pieces


@dataclass(frozen=True)
class _Sure:
    """Pieces, by their `counts`, joined to parts [N] where they surely are one; labels and confidences [N] by masks."""

    counts: Counts
    parts: np.ndarray
    labels: np.ndarray
    confidences: np.ndarray

    def level(self, columns: Columns, space: Space) -> float:
        """Return the level that suits the masks, by how often they have pieces, and parts that touch, in one."""
        groups = compact(self.labels)
        counts = count_surer(columns, groups, self.confidences)
        return round(suitable_level(self.counts, counts, touching(groups, space.neighbours.numpy())), 3)


def _surely_one(pieces: np.ndarray, columns: Columns, mass: Tensor, fine: float) -> _Sure:
    """Join pieces [N] (-1: none, from 0) that are surely one, and let the masks vote."""
    counts = count_views(columns.together, group_matrix(pieces))
    parts = regroup(pieces, join(counts, fine).things())
    return _Sure(counts, parts, *_vote(parts, columns, mass))


def _joined(
    pieces: np.ndarray,
    columns: Columns,
    mass: Tensor,
    settings: ClusterSettings,
    tree: dict[str, np.ndarray],
    space: Space | None,
    looks: Callable[[], Iterable[Look]] | None,
    *,
    second_opinion: bool = False,
) -> Clustering:
    """Join pieces [N] that are surely one, let the masks vote, join by and by what is one at the level, and settle.

    Then what settled borders show to be one is joined too: before, spill across them spoke against it. The level is
    found from the pieces; with a second opinion, from masks that are joined by themselves, too.
    """
    seen, space = list(looks()) if looks is not None else [], space and space.on_host()
    columns = with_left_out(columns, seen, len(pieces))
    together, pieces, fine = columns.together, compact(pieces), max(FINE, settings.level)
    sure = _surely_one(pieces, columns, mass, fine)
    parts, labels, confidences, level = sure.parts, sure.labels, sure.confidences, settings.level or USUAL
    if not settings.level and columns.left_out and space:
        level = sure.level(together, space)
        masks = join_masks(columns.on_host(), FEWER_MASKS) if second_opinion else None
        if masks is not None:
            found = _surely_one(compact(masks), columns, mass, fine).level(together, space)
            level = min(level, round(DISAGREE * found, 3))
    for at in (float(np.sqrt(fine * level)), level):
        labels = join_groups(labels, together, at, confidences)
        labels, confidences = _vote(labels, columns, mass)
    if space is not None:
        places, neighbours = space.places.numpy().astype(float), space.neighbours.numpy()
        labels = tidy(labels, confidences, places, neighbours, together, level)
    if seen and settings.settle:
        labels, confidences = settle(labels, seen)
        beside = _beside(labels, space, mass, UNSEEN * level)
        labels = join_groups(labels, together, level, confidences, beside)
        labels = _without_specks(labels, confidences, together, space)
    labels, confidences = _finished(labels, confidences, settings)
    hierarchy = grow(labels, parts, together, level, _beside(labels, space, mass))
    return Clustering(labels, confidences, tree, hierarchy)


def _without_specks(labels: np.ndarray, confidences: np.ndarray, columns: Columns, space: Space | None) -> np.ndarray:
    """Let segments [N] take in the specks in them that hardly a view shows, where places are known."""
    if space is None or not space.neighbours.shape[1]:
        return labels
    groups = compact(labels)
    seen = np.diag(count_surer(columns, groups, confidences).seen)
    return take_in(groups, seen, space.neighbours.numpy())


def _beside(labels: np.ndarray, space: Space | None, mass: Tensor, unseen: float | None = None) -> Beside | None:
    """What lies beside what among segments [N], numbered by rising label, where places and colours are known."""
    if space is None or space.colors is None:
        return None
    neighbours, colors = space.neighbours.numpy(), space.colors.numpy().astype(float)
    return Beside.of(compact(labels), neighbours, colors, mass.numpy().astype(float), unseen)


def _vote(labels: np.ndarray, columns: Columns, mass: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Let the masks vote; what no view sees stays noise."""
    labels, confidences = revote(labels, columns, mass)
    return np.where(mass.numpy() > 0, labels, NOISE).astype(np.int32), confidences


def _visible(mass: Tensor) -> np.ndarray:
    """Say which Gaussians any masked view sees, [N] bool; InputError if none."""
    seen = (mass > 0).numpy()
    if not seen.any():
        raise InputError(
            "no Gaussian is visible in any masked view: check that masks, cameras and splats belong together"
        )
    return seen


def _finished(labels: np.ndarray, confidences: np.ndarray, settings: ClusterSettings) -> tuple[np.ndarray, np.ndarray]:
    """Drop unsure labels, and number the rest by size."""
    confidences = np.where(labels == NOISE, 0, confidences).astype(np.float32)
    labels = np.where(confidences < settings.min_confidence, NOISE, labels)
    return by_size(labels), confidences
