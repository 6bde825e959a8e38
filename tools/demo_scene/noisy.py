"""Spoil exact instance maps the way an automatic segmenter does: each view on its own, ids unrelated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage


@dataclass(frozen=True)
class Flaws:
    """How much goes wrong: chances per instance or pair, pixels (borders move by shake + grow at most)."""

    part_merged: float = 0.5
    missing: float = 0.10
    split: float = 0.15
    pair_merged: float = 0.10
    shake: float = 1.0
    grow: int = 1
    least: int = 60


def touching_pairs(labels: np.ndarray) -> np.ndarray:
    """List the pairs of labels > 0 that share a border of an (H, W) map, (P, 2) with the lower id first."""
    sides = [(labels[:, 1:], labels[:, :-1]), (labels[1:], labels[:-1])]
    pairs = np.concatenate([np.stack([a.ravel(), b.ravel()], 1) for a, b in sides])
    pairs = pairs[(pairs[:, 0] != pairs[:, 1]) & (pairs > 0).all(1)]
    return np.unique(np.sort(pairs, 1), axis=0)


def _merge_pairs(rng: np.random.Generator, labels: np.ndarray, stuff: set[int], chance: float) -> np.ndarray:
    """Give some touching pairs one label; none is merged twice and two stuff regions never are."""
    labels, used = labels.copy(), set()
    for a, b in rng.permutation(touching_pairs(labels)).tolist():
        if rng.random() < chance and not {a, b} & used and not {a, b} <= stuff:
            labels[labels == b] = a
            used |= {a, b}
    return labels


def _split_masks(rng: np.random.Generator, labels: np.ndarray, chance: float) -> np.ndarray:
    """Cut some masks in two along a line near their middle."""
    labels, fresh = labels.copy(), int(labels.max()) + 1
    for ident in np.unique(labels[labels > 0]).tolist():
        if rng.random() >= chance:
            continue
        y, x = np.nonzero(labels == ident)
        angle = rng.uniform(0, np.pi)
        along = x * np.cos(angle) + y * np.sin(angle)
        far = along > np.quantile(along, rng.uniform(0.3, 0.7))
        labels[y[far], x[far]] = fresh
        fresh += 1
    return labels


def _shake_borders(rng: np.random.Generator, labels: np.ndarray, reach: float) -> np.ndarray:
    """Read each label up to `reach` pixels away, the shift varying smoothly over the picture."""
    shift = np.stack([ndimage.gaussian_filter(rng.standard_normal(labels.shape), 5) for _ in range(2)])
    length = np.linalg.norm(shift, axis=0)
    shift *= reach / max(float(length.max()), 1e-12)
    y, x = np.indices(labels.shape) + np.rint(shift).astype(int)
    return labels[np.clip(y, 0, labels.shape[0] - 1), np.clip(x, 0, labels.shape[1] - 1)]


def _grow_or_shrink(rng: np.random.Generator, labels: np.ndarray, reach: int) -> np.ndarray:
    """Widen or narrow each mask by up to `reach` pixels; narrowed ones leave unassigned seams."""
    out = labels.copy()
    for ident in rng.permutation(np.unique(labels[labels > 0])).tolist():
        own = labels == ident
        step = int(rng.integers(-reach, reach + 1))
        if step > 0:
            out[ndimage.binary_dilation(own, iterations=step)] = ident
        elif step < 0:
            core = np.asarray(ndimage.binary_erosion(own, iterations=-step, border_value=1), bool)
            out[own & ~core] = 0
    return out


def _drop_crumbs(labels: np.ndarray, least: int) -> np.ndarray:
    """Clear connected pieces of fewer than `least` pixels."""
    labels = labels.copy()
    for ident in np.unique(labels[labels > 0]).tolist():
        pieces = np.zeros(labels.shape, np.int32)
        ndimage.label(labels == ident, output=pieces)
        small = np.flatnonzero(np.bincount(pieces.ravel()) < least)
        labels[np.isin(pieces, small[small > 0])] = 0
    return labels


def noisy_masks(
    truth: np.ndarray, parents: dict[int, int], stuff: set[int], seed: int, flaws: Flaws | None = None
) -> np.ndarray:
    """Make one view's flawed masks from its exact (H, W) ids; 0 = unassigned, the rest 1..n in random order.

    `parents` maps each part's id to the whole's; a part is merged with its whole in some views.
    Different seeds give unrelated flaws, so give each view its own.
    """
    flaws = flaws or Flaws()
    rng = np.random.default_rng([seed, 5])
    labels = truth.astype(np.int64)
    for part, whole in parents.items():
        if rng.random() < flaws.part_merged:
            labels[labels == part] = whole
    present = np.unique(labels[labels > 0])
    gone = present[rng.random(len(present)) < flaws.missing]
    labels[np.isin(labels, gone)] = 0
    labels = _merge_pairs(rng, labels, stuff, flaws.pair_merged)
    labels = _split_masks(rng, labels, flaws.split)
    labels = _grow_or_shrink(rng, _shake_borders(rng, labels, flaws.shake), flaws.grow)
    labels = _drop_crumbs(labels, flaws.least)
    present = np.unique(labels[labels > 0])
    names = np.zeros(int(labels.max()) + 1, np.uint16)
    names[present] = 1 + rng.permutation(len(present))
    return names[labels]
