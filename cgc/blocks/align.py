"""Turn the features of blocks into one space, so that things of different blocks can be compared.

Each block's features are learned from a random start of their own. Losses see angles only, so a block's features are as
good turned as a whole (by an orthogonal map): each is turned so that the Gaussians that it shares with others have
features like theirs. At first one block after the other is turned to what is turned already, then all are turned again
to all that they meet (generalised Procrustes). Exact where all directions show in what is shared; a block that shares
nothing stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cgc.blocks.work import load_arrays

ROUNDS = 20  # in which all blocks are turned again: errors of a chain of blocks are evened out


def align(paths: Sequence[Path]) -> list[np.ndarray]:
    """Return what each lifted block's features [n, D] are to be multiplied with, [D, D]."""
    meetings = _meetings(paths)
    dim = load_arrays(paths[0], "features")["features"].shape[1]
    turns = [np.eye(dim) for _ in paths]
    done = {0}
    while dim and len(done) < len(paths):
        ways = [(shared, a, b) for (a, b), (_, shared) in meetings.items() if a in done and b not in done]
        if ways:
            _, a, b = max(ways)
            turns[b] = _turn(meetings[b, a][0] @ turns[a])
        else:
            b = min(set(range(len(paths))) - done)
        done.add(b)
    for _ in range(ROUNDS if dim else 0):
        for b in range(1, len(paths)):
            goals = [product @ turns[a] for (own, a), (product, _) in meetings.items() if own == b]
            if goals:
                turns[b] = _turn(np.sum(goals, axis=0))
    return [turn.astype(np.float32) for turn in turns]


def _turn(product: np.ndarray) -> np.ndarray:
    """Return the orthogonal map that brings X nearest to Y, of X^T Y [D, D]."""
    left, _, right = np.linalg.svd(product)
    return left @ right


def _meetings(paths: Sequence[Path]) -> dict[tuple[int, int], tuple[np.ndarray, int]]:
    """Return A^T B [D, D] of the unit features of what blocks (a, b) share and masks show, and how many these are."""
    found = {}
    for a in range(len(paths)):
        own = load_arrays(paths[a], "rows", "cells", "features", "mass")
        for b in range(a + 1, len(paths)):
            if not np.intersect1d(own["cells"], load_arrays(paths[b], "cells")["cells"]).size:
                continue
            other = load_arrays(paths[b], "rows", "features")
            _, i, j = np.intersect1d(own["rows"], other["rows"], assume_unique=True, return_indices=True)
            i, j = i[own["mass"][i] > 0], j[own["mass"][i] > 0]
            if len(i):
                product = _unit(own["features"][i]).T @ _unit(other["features"][j])
                found[a, b], found[b, a] = (product, len(i)), (product.T, len(i))
    return found


def _unit(features: np.ndarray) -> np.ndarray:
    return features.astype(float) / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
