"""How well a mask finds one true object: IoU and boundary IoU of two masks [H, W] bool."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import minimum_filter

from cgc.errors import InputError
from cgc.evaluation.instances import band_depth


@dataclass(frozen=True)
class Counts:
    """Pixels of the true mask, of the predicted one, and of both."""

    true: int
    predicted: int
    shared: int

    @property
    def iou(self) -> float:
        """Intersection over union; 0 where both are empty, which who scores must leave out."""
        return self.shared / max(self.true + self.predicted - self.shared, 1)

    def __add__(self, other: Counts) -> Counts:
        """Pool two views."""
        return Counts(self.true + other.true, self.predicted + other.predicted, self.shared + other.shared)


def count(true: np.ndarray, predicted: np.ndarray) -> Counts:
    """Count the pixels of two masks [H, W] bool."""
    if true.shape != predicted.shape:
        raise InputError(f"a predicted mask is {predicted.shape} where the true one is {true.shape}; resize it first")
    return Counts(int(true.sum()), int(predicted.sum()), int((true & predicted).sum()))


def boundary(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask [H, W] within 2 % of the diagonal of its border or of the image's edge."""
    size = 2 * band_depth(mask.shape) + 1
    inside = minimum_filter(mask.astype(np.uint8), size, mode="constant", cval=0)
    return mask & (inside == 0)
