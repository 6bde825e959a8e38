"""Where an object stood or leaned: the flat surfaces beside it go on, and its shade on them is gone.

A surface as it looks from straight above is put together out of the pictures that see it (Gaussians that lie over each
other are right in these alone) and completed (inpaint.py) where only the object covered it; each pixel of that becomes
a flat Gaussian. What no view has seen is made up, so it can be left out (`fill`).
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
from skimage.morphology import convex_hull_image
from torch import Tensor
from torch.nn.functional import normalize

from cgc.geometry import SH_C0, rgb_to_sh_dc, rotation_to_quat, sh_basis
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
MAX_SIDE = 256
"""Pixels of the picture of a surface, a side."""
TEXEL = 1.0
"""Pixels of a view that one of them is."""
COVER, KNOWN = 0.2, 0.4
"""What covers a surface has more than this weight in its picture; where it is known it has more than this itself."""
CLEAR, BEHIND = 0.05, 1.03
"""A view sees past an object that has less weight than this, and empty space before what is so much farther away."""
MIN_SHADE = 0.03
"""Less shade than this is none: more than one of the directions that light comes from."""
SPOILED = 2
"""Pixels around what was covered whose colours are part the object's."""
MAX_GAP = 0.25
"""Of what was covered: what is smaller, and enclosed by the surface beside that, is of the surface too."""
MANY = 0.75
"""Of the cameras that see most of a surface: points that so many see tell how it changes with the direction."""
RIDGE = 0.004
"""Of how many colours say how a surface changes with the direction, those that say it does not."""
MOSTLY = 0.5
"""Of what was covered: a surface ends with what is known of it if it has so much between that."""
WIDTH, OPACITY = 0.65, 0.98
"""A patch's Gaussians are so many of their distances wide, and so opaque."""


class Seen(NamedTuple):
    """What cameras see of Gaussians, [N] each: `known` bool, well enough; `hidden` [N] bool, only once the object is
    gone; `after`, the weight then. And pictures with the object: its weight and the depths, [H, W] each, and colours,
    [H, W, 3] each, which may be larger."""

    known: np.ndarray
    hidden: np.ndarray
    after: np.ndarray
    cameras: Sequence[Camera]
    weights: Sequence[np.ndarray]
    depths: Sequence[np.ndarray]
    pictures: Sequence[np.ndarray]

    def pixel_at(self, point: np.ndarray) -> float:
        """Return how large a pixel of the pictures is at a point [3], in the median, world units."""
        sizes = [
            np.linalg.norm(c.position.cpu().numpy() - point) / float(c.K[0, 0]) * c.width / picture.shape[1]
            for c, picture in zip(self.cameras, self.pictures)
        ]
        return float(np.median(sizes))

    def through(self, points: np.ndarray) -> np.ndarray:
        """Say which points [n, 3] two cameras or more look through, past the object at what is behind, [n] bool."""
        count = np.zeros(len(points))
        for k in range(len(self.cameras)):
            rows, _, farther = self._past(k, points)
            count[rows] += farther > BEHIND
        return count >= 2

    def colors(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the colours [C, n, 3] that the pictures show at points [n, 3], and who sees these, [C, n] bool."""
        shown, sees = np.zeros((len(self.cameras), len(points), 3)), np.zeros((len(self.cameras), len(points)), bool)
        for k, picture in enumerate(self.pictures):
            rows, xy, farther = self._past(k, points)
            rows, xy = rows[np.abs(farther - 1) < BEHIND - 1], xy[np.abs(farther - 1) < BEHIND - 1]
            x, y = (xy * picture.shape[1::-1] / (self.cameras[k].width, self.cameras[k].height)).T - 0.5
            sees[k, rows] = True
            for c in range(3):
                shown[k, rows, c] = ndimage.map_coordinates(picture[..., c], [y, x], order=1, mode="nearest")
        return shown, sees

    def _past(self, k: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return which points a camera has past the object, their pixels [m, 2], and how much farther it sees there."""
        camera = self.cameras[k]
        x, y, z = project(camera, points)
        inside = np.flatnonzero((z > 0) & (x > 0) & (x < camera.width) & (y > 0) & (y < camera.height))
        at = y[inside].astype(int), x[inside].astype(int)
        clear = self.weights[k][at] < CLEAR
        rows = inside[clear]
        return rows, np.stack([x[rows], y[rows]], 1), self.depths[k][at][clear] / z[rows]


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
        patch = _continue(replace(splats, sh=sh), surface, under, plane, thing, color, seen, rasterizer)
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
    color: np.ndarray,
    seen: Seen,
    rasterizer: Rasterizer,
) -> tuple[Splats, np.ndarray, np.ndarray] | None:
    """Return what continues a surface under a thing, which of its rows each is like, and which of `under` to drop."""
    centre, radius = ball_of(thing)
    radius *= 1 + MARGIN
    side = int(np.clip(round(2 * radius / (TEXEL * seen.pixel_at(centre))), 16, MAX_SIDE))
    camera = camera_along(plane.below(centre), plane.axes[2], plane.axes[0], radius, side)
    own = splats.select(torch.from_numpy(surface))
    shown, sees = seen.colors(points_of(camera, plane, np.ones((side, side), bool)))
    known = (alpha_of(own, camera, rasterizer) > KNOWN) & sees.any(0).reshape(side, side)
    covered = alpha_of(thing, camera, rasterizer) > COVER
    if len(under):
        covered |= alpha_of(splats.select(torch.from_numpy(under)), camera, rasterizer) > COVER
    hole = np.asarray(ndimage.binary_closing(covered & ~known), bool) & ~known
    hole[hole] = ~seen.through(points_of(camera, plane, hole))
    if not hole.any() or not known.any():
        return None
    hole = _widened(_bounded(hole, known), known)
    known &= ~hole
    if known.sum() < MIN_SURFACE:
        return None
    places = points_of(camera, plane, hole)
    like = surface[KDTree(own.means.cpu().numpy()).query(places)[1]]
    colors, rest = _taken_apart(shown, sees & known.ravel(), splats.sh_degree, seen.cameras, centre)
    image = colors.reshape(side, side, 3)
    image[known] /= light_on(occlusion(thing, plane, points_of(camera, plane, known), rasterizer), color)
    made = _flat_gaussians(splats.select(torch.from_numpy(like)), places, plane, 2 * radius / side)
    made.sh[:, 0] = rgb_to_sh_dc(torch.from_numpy(complete(image, known, hole)[hole])).to(made.sh)
    made.sh[:, 1:] = torch.from_numpy(rest).to(made.sh)
    near = np.asarray(ndimage.binary_dilation(hole, iterations=2), bool)
    gone = under[_inside(near, camera, splats.means[under])], surface[_inside(hole, camera, own.means)]
    return made, like, np.concatenate(gone)


def _bounded(hole: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return what of a hole [H, W] lies between what is known, where that is most of it: a surface may end below."""
    between = hole & convex_hull_image(known)
    return between if between.sum() > MOSTLY * hole.sum() else hole


def _widened(hole: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return a hole [H, W] with the small gaps and islands beside it, and with what around it is spoiled."""
    for other in (~(hole | known), known):
        parts, n = ndimage.label(other)  # pyright: ignore[reportGeneralTypeIssues]
        small = np.bincount(parts.ravel(), minlength=n + 1) < MAX_GAP * hole.sum()
        edge = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
        beside = np.setdiff1d(parts[np.asarray(ndimage.binary_dilation(hole), bool)], [0, *edge])
        hole = hole | np.isin(parts, beside[small[beside]])
    return hole | (np.asarray(ndimage.binary_dilation(hole, iterations=SPOILED), bool) & known)


def _inside(where: np.ndarray, camera: Camera, means: Tensor) -> np.ndarray:
    """Say which points [n, 3] a camera has in some pixels [H, W], [n] bool."""
    x, y, _ = project(camera, means.cpu().numpy().astype(float))
    inside = (x > 0) & (x < camera.width) & (y > 0) & (y < camera.height)
    inside[inside] = where[y[inside].astype(int), x[inside].astype(int)]
    return inside


def _taken_apart(
    shown: np.ndarray, sees: np.ndarray, degree: int, cameras: Sequence[Camera], centre: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Take the colours of a surface apart into those of each point, [n, 3], and what the direction adds to all alike.

    shown: what cameras show, [C, n, 3], where they see it, `sees` [C, n] bool. What the direction adds is returned as
    harmonics, [K - 1, 3], fitted to the points that most cameras see: the mean colours of others say which ones do.
    """
    ways = torch.from_numpy(np.stack([centre - c.position.cpu().numpy() for c in cameras]))
    basis = sh_basis(normalize(ways.double(), dim=1), degree)[:, 1:].numpy()  # [C, K - 1]
    well = sees & (sees.sum(0) >= MANY * sees.sum(0).max(initial=1))
    count = well.sum(1)
    off = ((shown - _mean(shown, well)) * well[..., None]).sum(1)  # [C, 3]
    centred = basis - count @ basis / max(count.sum(), 1)
    squares = centred.T @ (centred * count[:, None]) + RIDGE * max(count.sum(), 1) * np.eye(basis.shape[1])
    rest = np.linalg.solve(squares, centred.T @ off)
    return _mean(shown - (basis @ rest)[:, None], sees), rest


def _mean(shown: np.ndarray, sees: np.ndarray) -> np.ndarray:
    """Return the mean over the cameras [C, n, 3] that see each point, [C, n] bool: [n, 3], 0 where none does."""
    return (shown * sees[..., None]).sum(0) / np.maximum(sees.sum(0), 1)[:, None]


def _flat_gaussians(like: Splats, places: np.ndarray, plane: Plane, step: float) -> Splats:
    """Return grey Gaussians at points [n, 3] of a plane, as `like` has them."""
    n = len(places)
    sigma = [WIDTH * step, WIDTH * step, min(max(plane.spread, 0.05 * step), 0.2 * step)]
    return replace(
        like,
        means=torch.from_numpy(places).to(like.means),
        quats=rotation_to_quat(torch.from_numpy(plane.axes.T.copy())).to(like.quats).repeat(n, 1),
        log_scales=torch.tensor(sigma, dtype=torch.float64).log().to(like.log_scales).repeat(n, 1),
        logit_opacities=torch.full_like(like.logit_opacities, math.log(OPACITY / (1 - OPACITY))),
        sh=torch.zeros_like(like.sh),
    )


def _joined(splats: Splats, parts: Sequence[Splats]) -> Splats:
    """Return some splats one after the other, none where there are none, without features and extras."""
    bare = replace(splats.select(torch.zeros(0, dtype=torch.long)), features=None, extras={})
    return replace(bare, **{name: torch.cat([getattr(p, name) for p in (bare, *parts)]) for name in PARAMETERS})
