"""The last vote: labels settled by pixels spread evenly over every masked view, borders among them.

The pixels that features are learned from are drawn for learning: more of small masks than of large ones, none beside
borders. Votes of these alone make small and thin things too thick. Here every pixel of a view counts alike.

A mask votes for the label it shows most of, weighted by its purity squared. Where a view's masks have missed a label
(left it out, or given it to what it lies on), its pixels say nothing. Notation: N Gaussians, P pixels, M masks of a
view, K labels; W the blending weights of the pixels, [P, N].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_matrix

from cgc.clustering.vote import NOISE, OWN, row_winners
from cgc.rasterize.base import Contributions, Rasterizer
from cgc.scene.types import Camera
from cgc.splats.types import Splats

PIXELS = 40_000  # of a view that vote, at least, where it has as many


class Look(NamedTuple):
    """A view's pixels, spread evenly: their rows of W, and the mask that each is in, [P] int, 0 = none."""

    rows: Contributions
    masks: np.ndarray


Looks = Callable[[], Iterable[Look]]
"""Gives a look at every masked view, one after the other, so that the weights of one at a time are held."""


def look_at(
    splats: Splats,
    cameras: Sequence[Camera],
    id_maps: Mapping[int, np.ndarray],
    rasterizer: Rasterizer,
    min_weight: float = 0.0,
) -> Iterator[Look]:
    """Look at the views that have an id map [H, W], by the numbers of their cameras; small weights are left out."""
    for view, ids in sorted(id_maps.items()):
        stride = max(ids.size // PIXELS, 1)
        pixels = torch.arange(view % stride, ids.size, stride)
        rows = rasterizer.contributions(splats, cameras[view], pixels, min_weight=min_weight)
        yield Look(rows, ids.ravel()[pixels.numpy()])


def settle(labels: np.ndarray, looks: Iterable[Look]) -> tuple[np.ndarray, np.ndarray]:
    """Let the masks of all looks vote once on labels [N] (NOISE or >= 0); returns labels and the winners' shares [N].

    Each Gaussian adds a tenth of its mass for the label it has; nothing else is said for noise. One that no look shows
    stays what it is, with share 0. Memory: 12 B a Gaussian and label that it shows in, and one look.
    """
    n, columns = len(labels), labels.astype(np.int64) + 1  # column 0 is noise
    shape = (n, int(columns.max(initial=0)) + 1)
    has: Any = csr_matrix((np.ones(n, np.float32), (np.arange(n), columns)), shape=shape)
    votes: Any = csr_matrix(shape, dtype=np.float32)
    mass = np.zeros(n)
    for rows, masks in looks:
        matrix = rows.by_pixel
        w: Any = csr_matrix((matrix.weights, matrix.ids, matrix.indptr), shape=(len(rows), n))
        wanted, weight = believed_pixels(w @ has, masks)
        ballots = csr_matrix((weight, (np.arange(len(rows)), wanted)), shape=(len(rows), shape[1]))
        votes = votes + w.T @ ballots
        mass += np.asarray(w.sum(axis=0)).ravel()
    votes = votes + csr_matrix(((OWN * mass).astype(np.float32), (np.arange(n), columns)), shape=shape)
    best, shares = row_winners(votes.tocsr())
    return np.where(best < 0, labels, best + NOISE).astype(np.int32), shares


def believed_pixels(shown: Any, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Say which label each pixel of a view should show, [P], and how far its mask is believed there, [P] in 0 to 1.

    shown [P, K + 1] (csr, column 0 noise): what the pixels show of each label. A pixel is believed by the purity
    squared of its mask, times the share of what it shows that the view's masks have not missed: a label is missed as
    far as it does not lie in masks that vote for it.
    """
    _, index = np.unique(masks, return_inverse=True)
    inside = csr_matrix((np.ones(len(masks), np.float32), (index, np.arange(len(masks)))))
    area = (inside @ shown).toarray()  # [M, K + 1]
    of_masks = area.copy()
    of_masks[:, 0] = 0
    winner = of_masks.argmax(axis=1)
    most = of_masks[np.arange(len(area)), winner]
    if len(masks):
        most[index[masks == 0]] = 0.0  # outside of masks nothing is said
    purity = most / np.maximum(area.sum(axis=1), 1e-9)
    missed = 1 - np.bincount(winner, most, minlength=shown.shape[1]) / np.maximum(area.sum(axis=0), 1e-9)
    missed[0] = 0.0
    unclear = (shown @ missed) / np.maximum(np.asarray(shown.sum(axis=1)).ravel(), 1e-9)
    return winner[index], (purity[index] ** 2 * (1 - unclear).clip(0, 1)).astype(np.float32)
