"""Turn the features of blocks into one space, so that things of different blocks can be compared.

Each block's features are learned from a random start of their own. Losses see angles only, so a block's features are as
good turned as a whole: each is turned (an orthogonal map) until the features of the Gaussians that it shares with those
turned before it are most like theirs. Exact where all directions show in what is shared; blocks that share nothing stay
as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cgc.blocks.work import load_arrays


def align(paths: Sequence[Path]) -> list[np.ndarray]:
    """Return what each lifted block's features [n, D] are to be multiplied with, [D, D]; the largest meetings first."""
    moments = _moments(paths)
    dim = load_arrays(paths[0], "features")["features"].shape[1]
    turns = [np.eye(dim, dtype=np.float32) for _ in paths]
    done = {0}
    while dim and len(done) < len(paths):
        ways = [(weight, a, b) for (a, b), (_, weight) in moments.items() if (a in done) != (b in done)]
        if not ways:
            done.add(min(set(range(len(paths))) - done))
            continue
        _, a, b = max(ways)
        cross = moments[a, b][0]  # features of a, transposed, times those of b
        if a in done:
            turns[b] = _turn(cross.T @ turns[a])
        else:
            turns[a] = _turn(cross @ turns[b])
        done |= {a, b}
    return turns


def _turn(cross: np.ndarray) -> np.ndarray:
    """Return the orthogonal map that brings X nearest to Y, of X^T Y [D, D] (Procrustes)."""
    left, _, right = np.linalg.svd(cross)
    return (left @ right).astype(np.float32)


def _moments(paths: Sequence[Path]) -> dict[tuple[int, int], tuple[np.ndarray, float]]:
    """Return A^T B [D, D] of the unit features of what two blocks share, weighted by mass, and the weight; a < b."""
    found = {}
    for a in range(len(paths)):
        own = load_arrays(paths[a], "rows", "core", "cells", "features", "mass")
        for b in range(a + 1, len(paths)):
            if not np.intersect1d(own["cells"], load_arrays(paths[b], "cells")["cells"]).size:
                continue
            other = load_arrays(paths[b], "rows", "features")
            _, i, j = np.intersect1d(own["rows"], other["rows"], assume_unique=True, return_indices=True)
            mass = own["mass"][i]
            if mass.sum() > 0:
                one, two = (_unit(x) for x in (own["features"][i], other["features"][j]))
                found[a, b] = ((one * mass[:, None]).T.astype(float) @ two, float(mass.sum()))
    return found


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
