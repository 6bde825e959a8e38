"""The Gaussians' features, and which of some samples each is nearest to: by a tree, or on a device by all pairs.

Notation: N Gaussians, S samples, D channels. Samples, labels and what is found are arrays of the host, where clusters
are made of them; the features stay where they are, so a search moves 4 to 16 B a Gaussian.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from cgc import kernels, parallel
from cgc.device_neighbours import nearest_points_on_device
from cgc.neighbours import build_tree, nearest_in, nearest_of_another_label

ERROR = 0.05  # that a confidence may have
Found = tuple[np.ndarray, np.ndarray]


class Rows(Protocol):
    """Rows [N, D] that are looked up."""

    def nearest(self, samples: np.ndarray, within: np.ndarray | None = None) -> Found:
        """Return each row's nearest of the samples [S, D] and its distance, [N] each, as `nearest_points` does."""
        ...

    def confidences(
        self, samples: np.ndarray, labels: np.ndarray, nearest: np.ndarray, distances: np.ndarray
    ) -> np.ndarray:
        """Return 1 - d1/d2, [N], to within ERROR, where the nearest samples [N] and their distances d1 [N] are known.

        d2 is the distance to the nearest sample of another label than that one's. It lies between two bounds by the
        triangle inequality: the nearest sample's own d2 less d1, and the distance to the sample that this is from. It
        is looked for only where the two do not tell.
        """
        ...


def rows_of(rows: Tensor) -> Rows:
    """Return rows [N, D] as they are best looked up where they lie."""
    return HostRows(rows.numpy()) if kernels.serve(rows.device) else DeviceRows(rows)


class HostRows:
    """Rows on the CPU; several processes share a search."""

    def __init__(self, rows: np.ndarray) -> None:
        self._rows = rows

    def nearest(self, samples: np.ndarray, within: np.ndarray | None = None) -> Found:
        """See `Rows.nearest`."""
        bounds = np.full(len(self._rows), np.inf, np.float32) if within is None else within
        numbers, distances = parallel.over_rows(nearest_in, [samples], [self._rows, bounds])
        return numbers, distances

    def confidences(
        self, samples: np.ndarray, labels: np.ndarray, nearest: np.ndarray, distances: np.ndarray
    ) -> np.ndarray:
        """See `Rows.confidences`."""
        tree, rows = build_tree(samples), self._rows
        foreign, gaps = nearest_of_another_label(tree, labels, samples, labels)
        if foreign[0] < 0:  # there is one label only
            return np.ones(len(rows), np.float32)
        upper, lower = np.empty(len(rows), np.float32), np.maximum(gaps[nearest] - distances, 1e-9)
        for a in range(0, len(rows), 65_536):
            there = slice(a, a + 65_536)
            upper[there] = np.linalg.norm(rows[there] - samples[foreign[nearest[there]]], axis=1)
        unsure = np.flatnonzero(distances / lower - distances / np.maximum(upper, 1e-9) > ERROR)
        own = labels[nearest[unsure]]
        _, upper[unsure] = nearest_of_another_label(tree, labels, rows[unsure], own, upper[unsure])
        return 1 - np.minimum(distances / np.maximum(upper, 1e-9), 1)


class DeviceRows:
    """Rows on a device; of several processes the first one searches alone."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows.float()

    def _here(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._rows.device)

    def nearest(self, samples: np.ndarray, within: np.ndarray | None = None) -> Found:
        """See `Rows.nearest`."""
        bounds = None if within is None else self._here(within.astype(np.float32))
        numbers, distances = nearest_points_on_device(self._here(samples), self._rows, bounds)
        return numbers.cpu().numpy(), distances.cpu().numpy()

    def confidences(
        self, samples: np.ndarray, labels: np.ndarray, nearest: np.ndarray, distances: np.ndarray
    ) -> np.ndarray:
        """See `Rows.confidences`."""
        points, kinds, near, d1 = (self._here(array) for array in (samples, labels, nearest, distances))
        foreign, gaps = nearest_points_on_device(points, points, labels=kinds, others=kinds)
        if len(labels) == 0 or (labels == labels[0]).all():
            return np.ones(len(nearest), np.float32)
        lower, upper = (gaps[near] - d1).clamp_min(1e-9), torch.empty_like(d1)
        for there in torch.arange(len(near), device=near.device).split(1 << 20):
            upper[there] = (self._rows[there] - points[foreign[near[there]]]).norm(dim=1)
        unsure = (d1 / lower - d1 / upper.clamp_min(1e-9) > ERROR).nonzero()[:, 0]
        wanted = dict(labels=kinds, others=kinds[near[unsure]])
        _, upper[unsure] = nearest_points_on_device(points, self._rows[unsure], upper[unsure], **wanted)
        return (1 - (d1 / upper.clamp_min(1e-9)).clamp(max=1)).cpu().numpy()
