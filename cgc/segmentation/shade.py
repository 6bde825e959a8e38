"""The shade that an object casts on a flat surface, from its shape alone.

A surface under light from everywhere loses the share AO of it that comes through the object, weighed by the cosine to
the normal n, and gets back what the object itself gives off, its colour c:

    AO(x) = integral alpha_object(x, d) (n d) dd / pi        light(x) = 1 - SHADE (1 - c) AO(x)

in linear light. How much of the light comes from everywhere cannot be told from the surface: patterns look like shade.
SHADE = 1/2 was measured (0.3 to 0.9 for the things of the bundled scene).
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from cgc.geometry import SH_C0
from cgc.rasterize.base import Rasterizer
from cgc.segmentation.plane import Plane, alpha_of, ball_of, camera_along, sample
from cgc.splats.types import Splats

SHADE = 0.5
GAMMA = 2.2
"""Linear light is a colour to this power."""
DIRECTIONS = 40
"""That light comes from, spread evenly in what they give to a surface."""
SIDE = 64
"""Pixels of the object's picture along each."""


def occlusion(occluder: Splats, plane: Plane, points: np.ndarray, rasterizer: Rasterizer) -> np.ndarray:
    """Return AO [n]: the share of the light of a plane that does not reach points [n, 3] through an object."""
    centre, radius = ball_of(occluder)
    total = np.zeros(len(points))
    for k in range(DIRECTIONS):
        off, turn = math.sqrt((k + 0.5) / DIRECTIONS), math.pi * (3 - math.sqrt(5)) * k  # sine to n; a spiral
        local = np.array([off * math.cos(turn), off * math.sin(turn), math.sqrt(1 - off * off)])
        camera = camera_along(centre, local @ plane.axes, plane.axes[2], radius, SIDE)
        total += sample(ndimage.gaussian_filter(alpha_of(occluder, camera, rasterizer), 1.0), camera, points)
    return total / DIRECTIONS


def light_on(shade: np.ndarray, color: np.ndarray) -> np.ndarray:
    """Return what is left of colours [n, 3], as they are written, in the shade [n] of an object of a colour [3]."""
    return (1 - SHADE * (1 - color.clip(0, 1) ** GAMMA) * shade[:, None]).clip(0.05, 1) ** (1 / GAMMA)


def lit(sh: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Return coefficients [n, K, 3] as they are with all light where they have `light` [n, 3] of it."""
    made = sh / light[:, None]
    made[:, 0] += 0.5 / SH_C0 * (1 / light - 1)  # colours are 0.5 + SH
    return made
