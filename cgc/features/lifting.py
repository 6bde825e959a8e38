"""Closed-form lifting: a label's weight on a Gaussian is the sum of its blending weights in the pixels of that label.

Source: FlashSplat (arXiv 2409.08270), which shows that the assignment that renders best is this vote. Exact where ids
mean the same thing in every view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix

from cgc.errors import InputError
from cgc.progress import progress_bar
from cgc.rasterize.base import Rasterizer
from cgc.scene.types import Camera
from cgc.splats.types import Splats


def vote_ids(
    splats: Splats,
    cameras: Sequence[Camera],
    id_maps: Mapping[int, np.ndarray],
    rasterizer: Rasterizer,
    min_weight: float = 0.0,
    *,
    quiet: bool = False,
) -> tuple[Any, np.ndarray]:
    """Return W^T onehot(ids) summed over views, [N, I], and the ids [I] of its columns, rising; id 0 is one of them.

    id_maps: [H, W] each, of the cameras of these numbers. Entries of W under `min_weight` are left out. Memory: 12 B an
    entry of W of one view, and of the sum.
    """
    kinds = np.unique(np.concatenate([np.zeros(1, np.int64), *(np.unique(m) for m in id_maps.values())]))
    votes: Any = csr_matrix((len(splats), len(kinds)), dtype=np.float32)
    with progress_bar("votes", len(id_maps), quiet=quiet) as bar:
        for view, id_map in id_maps.items():
            w = rasterizer.contributions(splats, cameras[view], min_weight=min_weight)
            column = np.searchsorted(kinds, id_map.ravel())
            entries = (w.weights.numpy(), (w.ids.numpy(), column[w.rows.numpy()]))
            votes = votes + coo_matrix(entries, shape=votes.shape).tocsr()
            bar.advance()
    return votes, kinds


def vote_labels(
    splats: Splats,
    cameras: Sequence[Camera],
    id_maps: Mapping[int, np.ndarray],
    rasterizer: Rasterizer,
    min_weight: float = 0.0,
    *,
    quiet: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Give each Gaussian the id with most of its weight: labels [N] int32 (-1: id 0, or not seen), their shares [N].

    See `vote_ids`. The ids stay what they are, so that an object keeps the number its masks have. InputError if no id
    is left.
    """
    votes, kinds = vote_ids(splats, cameras, id_maps, rasterizer, min_weight, quiet=quiet)
    labels, shares = np.full(len(splats), -1, np.int32), np.zeros(len(splats), np.float32)
    for begin in range(0, len(splats), 65_536):  # dense rows, a few at a time
        block = votes[begin : begin + 65_536].toarray()
        best, total = block.argmax(1), block.sum(1)
        labelled = (total > 0) & (kinds[best] > 0)
        labels[begin : begin + 65_536][labelled] = kinds[best[labelled]]
        shares[begin : begin + 65_536][labelled] = (block.max(1) / np.maximum(total, 1e-12))[labelled]
    if not (labels > 0).any():
        raise InputError("no id covers most of any Gaussian: check that masks, cameras and splats belong together")
    return labels, shares
