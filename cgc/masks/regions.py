"""Masks without trained weights: the settings, and the segmenter they are. Light: nothing heavy until it is called."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from cgc.errors import InputError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class RegionMerging:
    """Make nested id maps of a photo by merging patches. Lengths are shares of its longer side, areas of its own."""

    max_side: int = 800
    """Photos longer than so many pixels are shrunk to it; ids are brought back to full size by the nearest pixel."""
    levels: tuple[float, ...] = (11.0, 8.5, 6.0)
    """How far regions differ that stay apart (about a distance in Lab), coarse to fine: an id map each."""
    min_area: tuple[float, ...] = (1e-3, 5e-4, 2e-4)
    """Regions of a smaller share of the photo join the neighbour from which they differ least; for each level."""
    lightness: float = 0.6
    """Weight of lightness beside colour's, 1: less, because shadows change lightness alone."""
    texture: float = 3.0
    """Weight of texture (of the logarithm of the local contrast) beside colour's."""
    distances: tuple[float, ...] = (0.002, 0.005, 0.01)
    """How far apart the two sides of a border are compared; at least a pixel."""
    distance_weights: tuple[float, ...] = (0.4, 0.3, 0.3)
    """What each of these distances counts."""
    faint: float = 4.0
    """Borders of this strength count a half of it, and weaker ones ever less: shading makes slopes, not borders."""
    border: float = 0.5
    """Power of the border's strength in how far two regions differ, 0 to 1; their contents have the rest."""
    enclosed: float = 0.5
    """How much less a region differs from one that surrounds it wholly, 0 to 1: print belongs to its box."""
    unrest: float = 0.06
    """How much less two textured regions differ, for each unit of contrast inside both of them."""
    small: float = 0.02
    """Regions of a smaller share of the photo are merged the more easily, the smaller they are."""
    favour_small: float = 0.2
    """How much more easily: the power of their area over `small`."""

    def __post_init__(self) -> None:
        falls = all(a >= b for xs in (self.levels, self.min_area) for a, b in pairwise(xs))
        if not self.levels or len(self.levels) != len(self.min_area) or not falls:
            raise InputError(
                f"expected a least area for each level, both falling from coarse to fine, got {self.levels} and "
                f"{self.min_area}; give as many of both"
            )
        if len(self.distances) != len(self.distance_weights) or not sum(self.distance_weights) > 0:
            raise InputError(
                f"expected a weight for each distance, not all 0, got {self.distances} and {self.distance_weights}; "
                "give as many of both"
            )
        for name, value in vars(self).items():
            most = 1.0 if name in ("border", "enclosed") else math.inf
            for number in value if isinstance(value, tuple) else (value,):
                least = number > 0 if name in ("max_side", "small") else number >= 0
                if not (least and number <= most and math.isfinite(number)):
                    raise InputError(f"expected {name} to be {_range(name)}, got {number}; change it")

    def __call__(self, image: np.ndarray, depth: np.ndarray | None = None) -> list[np.ndarray]:
        """Return nested id maps [H, W] int32 of an image [H, W, 3] uint8, coarse to fine, ids from 1 without gaps.

        Every region of a map lies in one region of the map before it, and hangs together. Deterministic. depth [H, W],
        where it is known (over 0), says where things end too (see `Relief`).
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != "uint8" or image.size == 0:
            raise InputError(
                f"expected an image [H, W, 3] of uint8, got {list(image.shape)} of {image.dtype}; read it as RGB"
            )
        if depth is not None and depth.shape != image.shape[:2]:
            raise InputError(f"expected a depth for each pixel of {list(image.shape[:2])}, got {list(depth.shape)}")
        from cgc.masks.merge_regions import merge_regions

        return merge_regions(image, self, depth)


def _range(name: str) -> str:
    return "over 0" if name in ("max_side", "small") else "0 to 1" if name in ("border", "enclosed") else "at least 0"


PRESETS: dict[str, RegionMerging] = {
    "fast": RegionMerging(max_side=480),
    "default": RegionMerging(),
    "fine": RegionMerging(max_side=1000, levels=(8.5, 6.0, 4.5), min_area=(5e-4, 2e-4, 1e-4)),
}
"""Segmenters by effort: a small copy, the usual, and a large copy cut into finer parts."""
