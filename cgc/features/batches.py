"""Sampled pixels of a view with the blending weights behind them: what features are learned from, and votes read.

A `Batch` is a few thousand pixels of one view, each inside a mask and off its border, their rows of the contribution
matrix, and the Gaussians that they show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from cgc.rasterize.base import Contributions


@dataclass(frozen=True)
class Batch:
    """Sampled pixels of one view, sorted by mask.

    `gaussians` [U] int32, rising, are those that the pixels show, and `weights` the pixels' rows of W with columns 0 to
    U - 1 in that order; `masks` [P] int64 in [0, len(mask_ids)), `mask_ids` [M] the ids the masks have in the view's
    id map. Memory: 16 B an entry of W, which is held by pixel and by Gaussian, 24 B a pixel, 12 B a Gaussian of U.
    """

    view: int
    gaussians: Tensor
    weights: Contributions
    masks: Tensor
    mask_ids: Tensor

    @cached_property
    def counts(self) -> np.ndarray:
        """How many of the pixels each mask has, [M] int64."""
        return np.bincount(self.masks.numpy(), minlength=len(self.mask_ids))


@dataclass(frozen=True)
class Elsewhere:
    """A batch that another process holds: which one, how many Gaussians its pixels show, whether it is on a device."""

    holder: int
    shown: int
    on_device: bool = False


def held(batches: Sequence[Batch | Elsewhere]) -> list[Batch]:
    """Return the batches that this process holds, in their order."""
    return [batch for batch in batches if isinstance(batch, Batch)]
