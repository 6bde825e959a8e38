"""The last vote: labels settled by pixels spread evenly over every masked view, borders among them.

The pixels that features are learned from are drawn for learning: more of small masks than of large ones, none beside
borders. Votes of these alone make small and thin things too thick. Here every pixel of a view counts alike.

A mask votes for the label it shows most of, weighted by its purity. A view's masks know a label as far as it lies in
masks that vote for it; they may have left it out, or given it to what it lies on. So whether a Gaussian is of one label
or of another is said only by views that know both. Notation: N Gaussians, U of them in a view, M masks of a view,
K labels; column 0 is noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_matrix, csr_matrix, diags

from cgc.clustering.vote import NOISE, row_winners, without
from cgc.rasterize.base import Rasterizer
from cgc.scene.types import Camera
from cgc.splats.types import Splats

PIXELS = 40_000  # of a view that vote, at least, where it has as many ...
IN_ALL = 6_000_000  # ... but fewer where the views would have more than this together: it bounds the memory
ROUNDS = 3  # of voting: who contends for a Gaussian is known after the first
OWN = 0.03  # of its mass: what a Gaussian's vote for the label it has weighs, where nothing else is said
RUNNER_UP = 0.05  # of a Gaussian's votes: a label with more contends for it


@dataclass(frozen=True)
class Look:
    """One view: weights [U, M] (csr) of the Gaussians [U] in the pixels of each mask; ids [M], 0 = in none.

    Memory: 8 B an entry, 8 B a Gaussian.
    """

    view: int
    gaussians: np.ndarray
    weights: Any
    ids: np.ndarray


def look_at(
    splats: Splats,
    cameras: Sequence[Camera],
    id_maps: Mapping[int, np.ndarray],
    rasterizer: Rasterizer,
    min_weight: float = 0.0,
) -> Iterator[Look]:
    """Look at the views that have an id map [H, W], by the numbers of their cameras; small weights are left out."""
    wanted = max(min(PIXELS, IN_ALL // max(len(id_maps), 1)), 1)
    for view, id_map in sorted(id_maps.items()):
        stride = max(id_map.size // wanted, 1)
        pixels = torch.arange(view % stride, id_map.size, stride)
        found = rasterizer.contributions(splats, cameras[view], pixels, min_weight=min_weight)
        rows, gaussians = found.to("cpu").compact()
        ids, mask = np.unique(id_map.ravel()[pixels.numpy()], return_inverse=True)
        matrix, shape = rows.by_pixel, (rows.n_gaussians, len(ids))
        entries = (matrix.ids, np.repeat(mask, np.diff(matrix.indptr)))
        yield Look(view, gaussians.numpy(), coo_matrix((matrix.weights, entries), shape).tocsr(), ids)


def settle(labels: np.ndarray, looks: Iterable[Look], own: float = OWN) -> tuple[np.ndarray, np.ndarray]:
    """Let the masks of all looks vote on labels [N] (NOISE or >= 0); returns labels and the winners' shares [N].

    `own` is what a Gaussian's vote for the label it has weighs, times its mass. Noise is never voted for. A Gaussian
    that no look shows stays what it is, with share 0. Memory: all looks, and 12 B a Gaussian and label that it shows
    in.
    """
    looks = list(looks)
    columns = labels.astype(np.int64) + 1
    contenders, shares = np.stack([columns, np.full_like(columns, -1)]), np.zeros(len(labels), np.float32)
    for _ in range(ROUNDS):
        votes = count(columns, contenders, looks, own)
        first, shares, second = two_best(votes)
        columns = np.where(first < 0, columns, first)
        contenders = np.stack([columns, second])
    return (columns + NOISE).astype(np.int32), shares


def count(columns: np.ndarray, contenders: np.ndarray, looks: Sequence[Look], own: float) -> Any:
    """Count the votes of masks for labels `columns` [N] (0 noise), [N, K + 1] csr; a Gaussian adds `own` for its own.

    contenders [2, N]: the labels that each Gaussian may be of, -1 = none; views count as far as they know both.
    """
    shape = (len(columns), int(columns.max(initial=0)) + 1)
    votes: Any = csr_matrix(shape, dtype=np.float32)
    for look in looks:
        has = columns[look.gaussians]
        winner, purity, known = hear(look, has, shape[1])
        said = np.append(known, 1.0)[contenders[:, look.gaussians]].prod(axis=0)  # the last one: no contender
        ballots = csr_matrix((purity, (np.arange(len(winner)), winner)), shape=(len(winner), shape[1]))
        cast = (diags(said) @ look.weights @ ballots).tocoo()
        mass = own * np.asarray(look.weights.sum(axis=1)).ravel()
        places = np.append(look.gaussians[cast.row], look.gaussians), np.append(cast.col, has)
        votes = votes + coo_matrix((np.append(cast.data, mass).astype(np.float32), places), shape).tocsr()
    return votes


def hear(look: Look, columns: np.ndarray, n_columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Say which label each mask votes for and its purity, [M] each, and how far the view knows each label [K + 1].

    columns [U]: the labels of the look's Gaussians. Outside of masks the purity is 0; noise is known everywhere.
    """
    has = csr_matrix((np.ones(len(columns), np.float32), (columns, np.arange(len(columns)))), (n_columns, len(columns)))
    shown = (has @ look.weights).toarray().T  # [M, K + 1]
    of_labels = np.where((np.arange(n_columns) > 0) & (look.ids[:, None] > 0), shown, 0.0)
    winner, most = of_labels.argmax(axis=1), of_labels.max(axis=1)
    known = np.bincount(winner, most, n_columns) / np.maximum(shown.sum(axis=0), 1e-9)
    known[0] = 1.0
    return winner, most / np.maximum(shown.sum(axis=1), 1e-9), known.clip(0, 1)


def two_best(votes: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The label with most of each Gaussian's votes [N, K + 1], its share, and the one that comes next; -1 = none."""
    first, shares = row_winners(votes)
    rest = without(votes, first)
    total = np.asarray(votes.sum(axis=1)).ravel()
    most = rest.max(axis=1).toarray().ravel()
    second, _ = row_winners(rest)
    return first, shares, np.where(most > RUNNER_UP * total, second, -1)
