"""Where an object stood or leaned: the flat surfaces beside it go on, and its shade on them is gone.

A surface as seen from straight above is completed as a picture (inpaint.py) where only the object covered it; each
pixel of that becomes a flat Gaussian. What no view has seen is made up, so it can be left out (`fill`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import KDTree
from torch import Tensor

from cgc.geometry import SH_C0, rgb_to_sh_dc, rotation_to_quat
from cgc.rasterize.base import Rasterizer
from cgc.scene.cameras import project
from cgc.scene.types import Camera
from cgc.segmentation.inpaint import complete
from cgc.segmentation.plane import Plane, alpha_of, ball_of, camera_along, fit_plane, points_of
from cgc.segmentation.shade import light_on, lit, occlusion
from cgc.splats.types import PARAMETERS, Splats

FLAT, THICK = 0.05, 0.1
"""Of the object's size: a surface is flat if it is off its plane by less than the first; the second is what it has."""
MIN_SURFACE = 30
"""Gaussians that a surface takes."""
NEAR = 2.0
"""Of the object's size: surfaces are looked at so far around it ..."""
MARGIN = 0.6
"""... and completed from so much around what it covers."""
MIN_SHARE = 0.3
"""Of what was hidden: a surface that has less is not continued."""
MAX_SIDE = 160
"""Pixels of the picture of a surface, a side."""
TEXEL = 1.0
"""Pixels of a view that one of them is."""
COVER, KNOWN = 0.2, 0.4
"""What covers a surface has more than this weight in its picture; where it is known it has more than this itself."""
CLEAR, BEHIND = 0.05, 1.03
"""A view sees past an object that has less weight than this, and empty space before what is so much farther away."""
MIN_SHADE = 0.03
"""Less shade than this is none: more than one of the directions that light comes from."""
WIDTH, OPACITY = 0.65, 0.98
"""A patch's Gaussians are so many of their distances wide, and so opaque."""


class Seen(NamedTuple):
    """What cameras see of Gaussians, [N] each: `known` bool, well enough; `hidden` [N] bool, only once the object is
    gone; `after`, the weight then. And pictures with the object: its weight and the depths, [H, W] each."""

    known: np.ndarray
    hidden: np.ndarray
    after: np.ndarray
    cameras: Sequence[Camera]
    weights: Sequence[np.ndarray]
    depths: Sequence[np.ndarray]

    def through(self, points: np.ndarray) -> np.ndarray:
        """Say which points [n, 3] two cameras or more look through, past the object at what is behind, [n] bool."""
        count = np.zeros(len(points))
        for camera, weight, depth in zip(self.cameras, self.weights, self.depths):
            x, y, z = project(camera, points)
            inside = np.flatnonzero((z > 0) & (x > 0) & (x < camera.width) & (y > 0) & (y < camera.height))
            at = y[inside].astype(int), x[inside].astype(int)
            count[inside] += (weight[at] < CLEAR) & (depth[at] > BEHIND * z[inside])
        return count >= 2


class Continued(NamedTuple):
    """Colours `sh` [N, K, 3] less shade; which are replaced, [N] bool, by the `fresh`, each like a row `like` [n]."""

    sh: Tensor
    replaced: np.ndarray
    like: np.ndarray
    fresh: Splats


def continue_surfaces(
    splats: Splats, labels: np.ndarray, gone: np.ndarray, seen: Seen, rasterizer: Rasterizer
) -> Continued:
    """Continue the flat surfaces around an object, Gaussians `gone` [N] bool, below it."""
    means = splats.means.cpu().numpy().astype(float)
    thing = splats.select(torch.from_numpy(np.flatnonzero(gone)))
    centre, radius = ball_of(thing)
    size = radius / 0.6
    distance = KDTree(means[gone]).query(means, distance_upper_bound=NEAR * size)[0]  # infinite farther away
    around = seen.known & ~gone & (labels > 0) & (distance < size)
    hidden = seen.hidden & (distance < size)
    mass = np.bincount(np.maximum(labels[hidden], 0), seen.after[hidden], minlength=int(labels.max(initial=0)) + 1)
    opacity = thing.opacities.cpu().numpy().astype(float)
    color = np.average(thing.sh[:, 0].cpu().numpy() * SH_C0 + 0.5, axis=0, weights=opacity + 1e-9)
    sh, replaced, patches = splats.sh, np.zeros(len(means), bool), []
    for label in np.unique(labels[around]).tolist():
        near = np.flatnonzero(around & (labels == label))
        if len(near) < MIN_SURFACE:
            continue
        plane = fit_plane(means[near], centre)
        if plane.spread > FLAT * size or np.std(means[near] @ plane.axes[1]) < FLAT * size:  # bent, or thin as a wire
            continue
        level = (labels == label) & (np.abs(plane.height(means)) < THICK * size)
        surface = np.flatnonzero(level & seen.known & ~gone & np.isfinite(distance))
        sh = _without_shade(sh, surface, occlusion(thing, plane, means[surface], rasterizer), color)
        if mass[label] < MIN_SHARE * mass.sum() or not mass[label]:
            continue
        under = np.flatnonzero(hidden & ((labels == label) | (labels <= 0)))
        patch = _continue(replace(splats, sh=sh), surface, under, plane, thing, seen, rasterizer)
        if patch is not None:
            replaced[patch[2]] = True
            patches.append(patch)
    like = np.concatenate([p[1] for p in patches]) if patches else np.zeros(0, int)
    return Continued(sh, replaced, like, _joined(splats, [p[0] for p in patches]))


def _without_shade(sh: Tensor, rows: np.ndarray, shade: np.ndarray, color: np.ndarray) -> Tensor:
    """Return coefficients [N, K, 3] without shade [n] on some rows."""
    rows, shade = rows[shade > MIN_SHADE], shade[shade > MIN_SHADE]
    made, which = sh.clone(), torch.from_numpy(rows)
    bright = lit(sh[which].cpu().numpy().astype(float), light_on(shade, color))
    made[which] = torch.from_numpy(bright).to(sh)
    return made


def _continue(
    splats: Splats,
    surface: np.ndarray,
    under: np.ndarray,
    plane: Plane,
    thing: Splats,
    seen: Seen,
    rasterizer: Rasterizer,
) -> tuple[Splats, np.ndarray, np.ndarray] | None:
    """Return what continues a surface under a thing, which of its rows each is like, and which of `under` to drop."""
    centre, radius = ball_of(thing)
    radius *= 1 + MARGIN
    pixel = np.median([np.linalg.norm(c.position.cpu().numpy() - centre) / float(c.K[0, 0]) for c in seen.cameras])
    side = int(np.clip(round(2 * radius / (TEXEL * pixel)), 16, MAX_SIDE))
    camera = camera_along(plane.below(centre), plane.axes[2], plane.axes[0], radius, side)
    own = splats.select(torch.from_numpy(surface))
    colors = torch.stack([own.colors(c.position.to(own.means)) for c in seen.cameras]).mean(0).clamp_max(1)
    shown = rasterizer.render(own, torch.cat([colors, torch.ones_like(colors[:, :1])], 1), [camera]).values[0]
    shown = shown.cpu().numpy().astype(float)
    known = shown[..., 3] > KNOWN
    image = shown[..., :3] / np.maximum(shown[..., 3:], 1e-6)
    covered = alpha_of(thing, camera, rasterizer) > COVER
    if len(under):
        covered |= alpha_of(splats.select(torch.from_numpy(under)), camera, rasterizer) > COVER
    hole = np.asarray(ndimage.binary_closing(covered & ~known), bool) & ~known
    hole[hole] = ~seen.through(points_of(camera, plane, hole))
    if not hole.any() or known.sum() < MIN_SURFACE:
        return None
    places = points_of(camera, plane, hole)
    like = surface[KDTree(own.means.cpu().numpy()).query(places)[1]]
    made = _flat_gaussians(splats.select(torch.from_numpy(like)), places, complete(image, known, hole)[hole], plane,
                           2 * radius / side)  # fmt: skip
    x, y, _ = project(camera, splats.means[torch.from_numpy(under)].cpu().numpy().astype(float))
    inside = (x > 0) & (x < side) & (y > 0) & (y < side)
    near = ndimage.binary_dilation(hole, iterations=2)
    inside[inside] = near[y[inside].astype(int), x[inside].astype(int)]
    return made, like, under[inside]


def _flat_gaussians(like: Splats, places: np.ndarray, rgb: np.ndarray, plane: Plane, step: float) -> Splats:
    """Return Gaussians at points [n, 3] of a plane, of some colours [n, 3]; the rest is as in `like`."""
    n = len(places)
    sigma = [WIDTH * step, WIDTH * step, min(max(plane.spread, 0.05 * step), 0.2 * step)]
    sh = torch.zeros_like(like.sh)
    sh[:, 0] = rgb_to_sh_dc(torch.from_numpy(rgb)).to(sh)
    return replace(
        like,
        means=torch.from_numpy(places).to(like.means),
        quats=rotation_to_quat(torch.from_numpy(plane.axes.T.copy())).to(like.quats).repeat(n, 1),
        log_scales=torch.tensor(sigma, dtype=torch.float64).log().to(like.log_scales).repeat(n, 1),
        logit_opacities=torch.full_like(like.logit_opacities, math.log(OPACITY / (1 - OPACITY))),
        sh=sh,
    )


def _joined(splats: Splats, parts: Sequence[Splats]) -> Splats:
    """Return some splats one after the other, none where there are none, without features and extras."""
    bare = replace(splats.select(torch.zeros(0, dtype=torch.long)), features=None, extras={})
    return replace(bare, **{name: torch.cat([getattr(p, name) for p in (bare, *parts)]) for name in PARAMETERS})
