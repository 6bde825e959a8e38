"""The nearest and the farthest points of a few anchors, exactly: every pair is looked at, none is kept.

On a GPU by blocks of anchors in torch, otherwise by a kernel: positions that move every step make trees not worth their
building, and 1,000 anchors among 100,000 points take 0.1 s.
"""

# pyright: reportCallIssue=false, reportReturnType=false
# (numba changes the signatures of what it compiles)

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cgc.kernels import kernel, spread

BLOCK = 512
PAIRS = 1 << 26  # of an anchor and a point that tensors hold at once


@kernel
def _insert(distances, ids, distance, point):
    """Put a point into a list that rises by distance, whose last one goes; of equal ones the older stays before."""
    at = distances.shape[0] - 1
    while at > 0 and distances[at - 1] > distance:
        distances[at], ids[at] = distances[at - 1], ids[at - 1]
        at -= 1
    distances[at], ids[at] = distance, point


@kernel
def _search(worker, workers, x, y, z, anchors, nearest, farthest):
    """Write the points nearest to and farthest from each of this worker's anchors.

    Distances of a block first, in a short loop without branches; then the few that enter a list.
    """
    near, far = np.empty(nearest.shape[1], np.float32), np.empty(farthest.shape[1], np.float32)
    squares = np.empty(BLOCK, np.float32)
    for a in range(worker * len(anchors) // workers, (worker + 1) * len(anchors) // workers):
        near[:], far[:] = np.inf, np.inf
        px, py, pz = x[anchors[a]], y[anchors[a]], z[anchors[a]]
        for begin in range(0, len(x), BLOCK):
            size = min(BLOCK, len(x) - begin)
            for i in range(size):
                dx, dy, dz = x[begin + i] - px, y[begin + i] - py, z[begin + i] - pz
                squares[i] = dx * dx + dy * dy + dz * dz
            for i in range(size):
                if squares[i] < near[-1]:
                    _insert(near, nearest[a], squares[i], begin + i)
                if -squares[i] < far[-1]:
                    _insert(far, farthest[a], -squares[i], begin + i)


def nearest_and_farthest(points: Tensor, anchors: Tensor, near: int, far: int) -> tuple[Tensor, Tensor]:
    """Return the `near` nearest points to each anchor, itself among them, and the `far` farthest, [A, k] int64 each.

    points [N, 3]; anchors [A] are indices of points; near and far are at least 1, and no more than N of each are given.
    """
    if points.device.type != "cpu":
        return of_tensors(points.detach(), anchors, near, far)
    x, y, z = np.ascontiguousarray(points.detach().cpu().numpy().T, np.float32)
    index = anchors.cpu().numpy()
    nearest = np.zeros((len(index), min(near, len(x))), np.int64)
    farthest = np.zeros((len(index), min(far, len(x))), np.int64)
    spread(_search, x, y, z, index, nearest, farthest)
    return torch.from_numpy(nearest), torch.from_numpy(farthest)


def of_tensors(points: Tensor, anchors: Tensor, near: int, far: int) -> tuple[Tensor, Tensor]:
    """Return what `nearest_and_farthest` does, on any device, a block of anchors at a time."""
    found = []
    for some in anchors.split(max(PAIRS // max(len(points), 1), 1)):
        distances = torch.cdist(points[some], points, compute_mode="donot_use_mm_for_euclid_dist")  # [A, N]
        ends = ((min(near, len(points)), False), (min(far, len(points)), True))
        found.append([distances.topk(count, largest=largest).indices for count, largest in ends])
    nearest, farthest = (torch.cat(parts) for parts in zip(*found))
    return nearest, farthest
