"""Closed-form lifting: a label's weight on a Gaussian is the sum of its blending weights in the pixels of that label.

Source: FlashSplat (arXiv 2409.08270), which shows that the assignment that renders best is this vote. Exact where ids
mean the same thing in every view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_matrix, csr_matrix

from cgc import parallel
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
    stride: int = 1,
    quiet: bool = False,
) -> tuple[Any, np.ndarray]:
    """Return W^T onehot(ids) summed over views, [N, I], and the ids [I] of its columns, rising; id 0 is one of them.

    id_maps: [H, W] each, of the cameras of these numbers. Entries of W under `min_weight` are left out. With a `stride`
    every so many-th pixel counts so many times. Memory: 12 B an entry of W of one view, and of the sum. Of several
    processes each weighs a share of the views, and the first one has the sum.
    """
    kinds = np.unique(np.concatenate([np.zeros(1, np.int64), *(np.unique(m) for m in id_maps.values())]))
    votes: Any = csr_matrix((len(splats), len(kinds)), dtype=np.float32)

    def weigh(view: int) -> list[np.ndarray]:
        id_map = id_maps[view]
        pixels = None if stride == 1 else torch.arange(view % stride, id_map.size, stride)
        w = rasterizer.contributions(splats, cameras[view], pixels, min_weight=min_weight)
        column = np.searchsorted(kinds, id_map.ravel()[w.pixels.cpu().numpy()])
        return [stride * w.weights.cpu().numpy(), w.ids.cpu().numpy(), column[w.rows.cpu().numpy()]]

    with progress_bar("votes", len(id_maps), quiet=quiet) as bar:
        for weights, gaussians, columns in parallel.shared(list(id_maps), weigh):
            votes = votes + coo_matrix((weights, (gaussians, columns)), shape=votes.shape).tocsr()
            bar.advance()
    return votes, kinds
