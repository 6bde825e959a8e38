"""The colour of every segment, always the same one."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

NOISE_COLOR = (64, 64, 68)
"""Colour of what is in no segment."""

_GOLDEN = 0.6180339887498949  # multiples of it, mod 1, spread evenly however many are taken
_SILVER = 0.4142135623730950  # the same for a second coordinate, independent of the first
_LIGHTNESS = (0.50, 0.86)
_CHROMA = (0.20, 0.13)
_FIRST_HUE = 0.42  # turns; id 1 is a warm orange

_LMS_FROM_OKLAB = np.array(
    [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
_RGB_FROM_LMS = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def segment_colors(ids: ArrayLike) -> NDArray[np.uint8]:
    """Give every segment id [n] its colour [n, 3], always the same one; 0 and below are dark grey.

    Hues are multiples of the golden ratio in Oklab (Ottosson 2020), where equal steps look equal; lightness
    varies too, so that hundreds of segments can be told apart.
    """
    ids = np.asarray(ids, np.int64)
    hue = 2 * np.pi * ((ids * _GOLDEN + _FIRST_HUE) % 1.0)
    level = (ids * _SILVER) % 1.0
    lightness = _LIGHTNESS[0] + (_LIGHTNESS[1] - _LIGHTNESS[0]) * level
    chroma = _CHROMA[0] + (_CHROMA[1] - _CHROMA[0]) * level  # light colours hold less chroma in sRGB
    oklab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1)  # [n, 3]
    linear = np.clip((oklab @ _LMS_FROM_OKLAB.T) ** 3 @ _RGB_FROM_LMS.T, 0.0, 1.0)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    colors = (srgb * 255.0).round().astype(np.uint8)
    return np.where((ids > 0)[..., None], colors, np.array(NOISE_COLOR, np.uint8))
