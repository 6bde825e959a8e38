"""Cameras on a circle around something."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike

from cgc.errors import InputError
from cgc.geometry import vector
from cgc.scene.types import Camera
from cgc.segmentation.objects import Object, Selection, oriented_box
from cgc.segmentation.segmentation import Segmentation

if TYPE_CHECKING:
    from cgc.segmentation.context import Context

ROOM = 1.15
"""How much farther away a camera is than it would have to be to see all of the box."""
REACH = 3.0
"""Standard deviations of a Gaussian that are seen of it, however close their centres lie: there may be one alone."""


def orbit(
    around: Segmentation | Object | Selection,
    n: int = 36,
    *,
    elevation: float = 20.0,
    distance: float | None = None,
    up: ArrayLike | None = None,
    width: int = 800,
    height: int = 600,
    focal: float | None = None,
) -> list[Camera]:
    """Make n cameras on a circle that look at an object, a selection or all objects of a segmentation.

    elevation: degrees above the middle. distance: from the middle, in world units (None: so that all of it is seen).
    up: the direction the circle lies across (None: the views' own, z where there are none). focal: in pixels (None: the
    larger side).
    """
    if any(not isinstance(m, (int, np.integer)) or m < 1 for m in (n, width, height)):
        raise InputError(
            f"an orbit of {n} cameras of {width}x{height} cannot be made; each must be a whole number over 0"
        )
    if wrong := [x for x in (elevation, distance, focal) if not isinstance(x, (int, float, np.number, type(None)))]:
        raise InputError(f"an orbit's elevation, distance and focal length are numbers, got {wrong[0]!r}")
    context, means, reach = _extents(around)
    box = oriented_box(means)
    f = float(max(width, height)) if focal is None else focal
    if not f > 0:
        raise InputError(f"a focal length over 0 was expected, in pixels, got {focal!r}")
    radius = max(float(np.linalg.norm(box.size)) / 2, REACH * reach, 1e-6)
    whole = ROOM * radius / math.sin(math.atan(min(width, height) / (2 * f)))
    away = whole if distance is None else distance
    if not (math.isfinite(away) and away > 0 and math.isfinite(elevation)):
        raise InputError(f"an orbit at a distance of {away:g}, elevation {elevation:g} and focal {f:g} cannot be made")
    return circle(
        box.centre, context.up if up is None else up, away, n, elevation=elevation, width=width, height=height, focal=f
    )


def circle(
    centre: np.ndarray, up: ArrayLike, distance: float, n: int, *, elevation: float, width: int, height: int,
    focal: float,
) -> list[Camera]:  # fmt: skip
    """Make n cameras around a point [3] that look at it, `elevation` degrees above it; `up` is a direction [3].

    InputError where up is no direction; its length does not matter, but for 0.
    """
    axis = vector(up, 3, "an up direction (x, y, z)")
    if not np.linalg.norm(axis) > 0:
        raise InputError(f"the up direction {axis.tolist()} has length 0; give the vector that points up")
    axis = axis / np.linalg.norm(axis)
    first = np.cross(axis, np.eye(3)[int(np.abs(axis).argmin())])
    first /= np.linalg.norm(first)
    second, rise = np.cross(axis, first), math.radians(elevation)
    cameras = []
    for angle in 2 * math.pi * np.arange(n) / n:
        flat = math.cos(angle) * first + math.sin(angle) * second
        eye = centre + distance * (math.cos(rise) * flat + math.sin(rise) * axis)
        cameras.append(
            Camera.look_at(eye.tolist(), centre.tolist(), width=width, height=height, focal=focal, up=axis.tolist())
        )
    return cameras


def _extents(around: Segmentation | Object | Selection) -> tuple[Context, np.ndarray, float]:
    """The context, the Gaussians' centres [n, 3], and the median of their largest standard deviations."""
    if not isinstance(around, (Segmentation, Object, Selection)):
        raise InputError(f"an orbit goes around an object, a selection or a segmentation, got {around!r}")
    seg = around if isinstance(around, Segmentation) else around.segmentation
    indices = np.flatnonzero(seg.labels > 0) if isinstance(around, Segmentation) else around.indices
    if not len(indices):
        raise InputError("there is nothing to go around: no Gaussian is in an object, or nothing is selected")
    own = seg.splats.select(torch.from_numpy(indices)).detach()
    widths = own.scales.amax(dim=1)
    return seg.context, own.means.cpu().numpy(), float(widths.median())
