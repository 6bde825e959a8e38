"""What a prompt in one view picks of what an id map shows there."""

from __future__ import annotations

import numpy as np

LARGEST_SHARE = 0.5
"""A mask picks the ids that lie in it with more than this share of their pixels."""


def mask_ids(target: np.ndarray, ids: np.ndarray) -> list[int]:
    """The ids that lie in the mask `target` [H, W] bool with more than half of their pixels; else the best single one.

    None where no id touches the mask.
    """
    area = np.bincount(ids.ravel())
    return ids_inside(np.bincount(ids[target], minlength=len(area)), area, int(target.sum()))


def ids_inside(inside: np.ndarray, area: np.ndarray, size: int) -> list[int]:
    """As `mask_ids`, from the pixels of each id inside the mask and in all, [K + 1], and those of the mask."""
    inside, area = np.append(0, inside[1:]), np.append(0, area[1:])
    picked = np.flatnonzero(inside > LARGEST_SHARE * area)
    if len(picked) or not inside.any():
        return picked.tolist()
    return [int((inside / np.maximum(area + size - inside, 1)).argmax())]
