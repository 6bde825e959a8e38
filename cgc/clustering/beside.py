"""What lies beside what, and looks alike: which groups of Gaussians touch, and how much of their colours they share.

It speaks where masks say little: of the wholes that objects make, where hardly any mask holds two together; and of
whether two groups are one object, where few views see both. Notation: N Gaussians, k neighbours of each, A groups, B
bins of colour.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import coo_matrix

LEAST_LINKS = 3  # neighbours across the border: groups with fewer do not touch
ALIKE = 0.1  # what a whole of one colour is worth, as a share of the views
BINS = 8  # of each channel


@dataclass
class Beside:
    """links [A, A], symmetric: pairs of neighbours across each border; colors [A, B]: how much each group has of each.

    Both are pooled as groups are joined. unseen: the rate of groups of one colour that touch, where no view sees both;
    without it wholes are made: only what touches is joined, and what is alike first.
    """

    links: np.ndarray
    colors: np.ndarray
    unseen: float | None = None

    @classmethod
    def of(
        cls, groups: np.ndarray, neighbours: np.ndarray, colors: np.ndarray, mass: np.ndarray,
        unseen: float | None = None,
    ) -> Beside:  # fmt: skip
        """Count groups [N] (-1: none) of Gaussians with `neighbours` [N, k], colours [N, 3] in 0..1 and mass [N].

        Memory: 8 B for each of A x A and 4 kB a group.
        """
        count = int(groups.max(initial=-1)) + 1
        own = groups >= 0
        return cls(links_across(groups, neighbours), _histograms(groups[own], colors[own], mass[own], count), unseen)

    def says(self, i: int, unknown: np.ndarray) -> np.ndarray:
        """What is added to the rates of group i with each, [A], of which views leave the share `unknown` [A] open."""
        near = np.flatnonzero(self.links[i] >= LEAST_LINKS)
        share, own = self.colors[near], self.colors[i]
        share = share / np.maximum(share.sum(axis=1, keepdims=True), 1e-12)  # [near, B]
        alike = np.minimum(share, own / max(own.sum(), 1e-12)).sum(axis=1)
        made = np.full(len(self.links), -np.inf if self.unseen is None else 0.0)
        made[near] = alike * (ALIKE if self.unseen is None else self.unseen * unknown[near])
        return made

    def pool(self, i: int, j: int) -> None:
        """Make group j part of group i."""
        self.links[i] += self.links[j]
        self.links[:, i] = self.links[i]
        self.links[j] = self.links[:, j] = 0
        self.links[i, i] = 0
        self.colors[i] += self.colors[j]

    def copy(self) -> Beside:
        """Return one that can be pooled without changing this."""
        return replace(self, links=self.links.copy(), colors=self.colors.copy())


def links_across(groups: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """Count the pairs of `neighbours` [N, k] across each border of groups [N] (-1: none), [A, A], symmetric."""
    count = int(groups.max(initial=-1)) + 1
    a, b = np.repeat(groups, neighbours.shape[1]), groups[neighbours.ravel()]
    across = (a >= 0) & (b >= 0) & (a != b)
    a, b = a[across], b[across]
    links = coo_matrix((np.ones(len(a)), (a, b)), shape=(count, count)).toarray()
    return links + links.T


def _histograms(groups: np.ndarray, colors: np.ndarray, mass: np.ndarray, count: int) -> np.ndarray:
    """Histograms of colours [n, 3] by group, [count, BINS^3]; a colour is shared out among the eight bins around it."""
    place = np.clip(colors * BINS - 0.5, 0, BINS - 1 - 1e-6)
    low = place.astype(np.int64)
    part = place - low
    made = np.zeros((count, BINS**3))
    for corner in np.ndindex(2, 2, 2):
        weight = np.where(corner, part, 1 - part).prod(axis=1) * mass
        index = (low + corner) @ (BINS**2, BINS, 1)
        made += coo_matrix((weight, (groups, index)), shape=made.shape).toarray()
    return made
