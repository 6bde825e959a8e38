"""Colours of numbers in 0..1: how far something is, and how sure its segment is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NEAR_TO_FAR = np.array(
    [[255, 244, 214], [250, 190, 110], [226, 112, 88], [152, 60, 110], [78, 44, 104], [26, 26, 56]], np.float32
)
"""Bright and warm where near, dark and blue where far."""
UNSURE_TO_SURE = np.array([[188, 52, 60], [226, 128, 62], [236, 204, 94], [122, 184, 128], [44, 142, 140]], np.float32)
"""Red where a guess, teal where all masks agree."""


def ramp(stops: NDArray[np.float32], values: np.ndarray) -> NDArray[np.float32]:
    """Colour values [...] by stops [n, 3] in 0..255, evenly spaced over 0..1, [..., 3] float32; outside is cut off."""
    place = np.clip(np.nan_to_num(values), 0, 1) * (len(stops) - 1)
    below = np.minimum(place.astype(np.int64), len(stops) - 2)
    share = (place - below).astype(np.float32)[..., None]
    return ((1 - share) * stops[below] + share * stops[below + 1]).astype(np.float32)
