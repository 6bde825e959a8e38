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

from cgc import kernels, parallel
from cgc.keyed import sum_by_key
from cgc.progress import progress_bar
from cgc.rasterize.base import Rasterizer, contributions_by_parts, device_of
from cgc.scene.types import Camera
from cgc.splats.types import Splats

MERGE = 1 << 25  # sums that may wait on a device to be added up: 500 MB


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
    every so many-th pixel counts so many times. Memory: 12 B an entry of W of a part of a view, and of the sum. Of
    several processes each weighs a share of the views, and the first one has the sum.
    """
    kinds = np.unique(np.concatenate([np.zeros(1, np.int64), *(np.unique(m) for m in id_maps.values())]))
    if not kernels.serve(device_of(rasterizer)) and parallel.here()[1] == 1:
        return vote_on_device(splats, cameras, id_maps, kinds, rasterizer, min_weight, stride, quiet), kinds
    votes: Any = csr_matrix((len(splats), len(kinds)), dtype=np.float32)  # none

    def weigh(view: int) -> list[np.ndarray]:
        id_map, found = id_maps[view], votes
        pixels = None if stride == 1 else torch.arange(view % stride, id_map.size, stride)
        for w in contributions_by_parts(rasterizer, splats, cameras[view], pixels, min_weight=min_weight):
            column = np.searchsorted(kinds, id_map.ravel()[w.pixels.cpu().numpy()])[w.rows.cpu().numpy()]
            entries = stride * w.weights.cpu().numpy(), (w.ids.cpu().numpy(), column)
            found = found + coo_matrix(entries, shape=votes.shape).tocsr()
        return [found.data, found.indices, found.indptr]

    total = votes
    with progress_bar("votes", len(id_maps), quiet=quiet) as bar:
        for found in parallel.shared(list(id_maps), weigh):
            total = total + csr_matrix(tuple(found), shape=votes.shape)
            bar.advance()
    return total, kinds


def vote_on_device(
    splats: Splats,
    cameras: Sequence[Camera],
    id_maps: Mapping[int, np.ndarray],
    kinds: np.ndarray,
    rasterizer: Rasterizer,
    min_weight: float,
    stride: int,
    quiet: bool,
) -> Any:
    """Return W^T onehot(ids) summed over views, [N, I], summed where W is: an id map goes there, the sum comes back."""
    device, count = device_of(rasterizer), len(kinds)
    there, names = splats.detach().to(device), torch.from_numpy(kinds).to(device)
    parts = [(names.new_zeros(0), torch.zeros(0, dtype=torch.float64, device=device))]  # keys and sums
    with torch.no_grad(), progress_bar("votes", len(id_maps), quiet=quiet) as bar:
        for view, id_map in id_maps.items():
            pixels = None if stride == 1 else torch.arange(view % stride, id_map.size, stride)
            ids = torch.from_numpy(id_map.ravel().astype(np.int64)).to(device)
            for w in contributions_by_parts(rasterizer, there, cameras[view], pixels, min_weight=min_weight):
                column = torch.searchsorted(names, ids[w.pixels])[w.rows]
                parts.append(sum_by_key(w.ids.long() * count + column, w.weights))
                if sum(len(keys) for keys, _ in parts) > MERGE:
                    parts = [_merged(parts)]
            bar.advance()
    keys, sums = _merged(parts)
    rows = torch.searchsorted(keys, torch.arange(len(splats) + 1, device=device) * count)
    arrays = ((stride * sums).float(), (keys % count).int(), rows)
    return csr_matrix(tuple(x.cpu().numpy() for x in arrays), shape=(len(splats), count))


def _merged(parts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    keys, sums = zip(*parts)
    return sum_by_key(torch.cat(keys), torch.cat(sums))
