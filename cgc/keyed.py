"""Sums by key on a device: what a sparse matrix needs whose entries come several times."""

from __future__ import annotations

import torch
from torch import Tensor


def sum_by_key(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the keys that are there, rising, and the sum of the values [E] of each, float64.

    keys [E] int64. Sums of float32 values of like size are exact in float64, in whatever order atomics add them. Waits
    for the device once, to count. Memory: 40 B an entry.
    """
    rising, order = keys.sort(stable=True)
    new = torch.ones_like(rising, dtype=torch.bool)
    new[1:] = rising[1:] != rising[:-1]
    found = rising[new]
    sums = torch.zeros(len(found), dtype=torch.float64, device=keys.device)
    return found, sums.index_add_(0, new.cumsum(0) - 1, values[order].double())
