"""Clusters of Gaussians against 3D truth: labelled samples of the surfaces, and the adjusted Rand index."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial import KDTree

from cgc.errors import InputError
from cgc.files import read_arrays

TOLERANCE = 0.005
"""A Gaussian is on a surface if a sample of it is nearer than this share of the diagonal of the samples' box."""


@dataclass(frozen=True)
class SurfaceSamples:
    """Points on true surfaces, `xyz` [M, 3], and the instance of each, `ids` [M]."""

    xyz: np.ndarray
    ids: np.ndarray


def read_samples(path: Path) -> SurfaceSamples:
    """Read points.npz (`xyz` [M, 3], `instance` [M]); InputError where it is broken."""
    try:
        data = read_arrays(path, "xyz", "instance")
        xyz, ids = data["xyz"].astype(float), data["instance"].astype(np.int64)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f'{path} is no file of surface samples, "xyz" and "instance" ({error}); restore it') from error
    if xyz.ndim != 2 or xyz.shape[1] != 3 or ids.shape != (len(xyz),) or not len(xyz) or not np.isfinite(xyz).all():
        raise InputError(
            f"{path}: finite xyz [M, 3] and instance [M] of at least one sample were expected, got {list(xyz.shape)} "
            f"and {list(ids.shape)}; restore it"
        )
    return SurfaceSamples(xyz, ids)


def true_labels(means: np.ndarray, samples: SurfaceSamples) -> np.ndarray:
    """The instance of each Gaussian's nearest surface sample, [N]; 0 where none is near enough."""
    reach = TOLERANCE * float(np.linalg.norm(np.ptp(samples.xyz, axis=0)))
    distance, nearest = KDTree(samples.xyz).query(means, distance_upper_bound=max(reach, 1e-12))
    found = np.isfinite(distance)
    return np.where(found, samples.ids[np.where(found, nearest, 0)], 0)


def adjusted_rand(truth: np.ndarray, labels: np.ndarray) -> float | None:
    """Adjusted Rand index of labels [N] against true ids [N], over Gaussians whose true id is above 0; None: no such.

    Noise (labels under 1) counts as clusters of one Gaussian each, so that leaving the hard ones out does not pay.
    """
    from sklearn.metrics import adjusted_rand_score

    known = truth > 0
    if not known.any():
        return None
    own = labels[known].astype(np.int64)
    noise = own < 1
    own[noise] = own.max(initial=0) + 1 + np.arange(int(noise.sum()))
    return float(adjusted_rand_score(truth[known], own))
