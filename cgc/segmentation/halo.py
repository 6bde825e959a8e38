"""What an object leaves behind when its Gaussians are removed: its halo, and the colours of what it hid.

Three things show where an object was:
- Gaussians of no segment, or of an uncertain one, among those of the object;
- Gaussians with another label that have its colour, or lie over it in pictures: they carry it beyond its border;
- Gaussians that the object hid: no photo ever said what colour they are, and most are dark.

The first are found by their neighbours, as are those of its colour. For the others W tells, over some cameras: what
lies before the object in the pixels that it fills is spill; what has far more weight once the object is gone was
hidden. Spill is dropped. Flat surfaces go on where it hid them (patch.py); what else was hidden takes colours from what
is seen of the same segment beside it, in the measure in which it was hidden.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

from cgc.geometry import covariances, sh_dc_to_rgb
from cgc.rasterize.base import Rasterizer
from cgc.scene.cameras import project
from cgc.scene.types import Camera
from cgc.segmentation.patch import Seen, continue_surfaces
from cgc.segmentation.plane import ball_of
from cgc.splats.types import Splats

MAX_VIEWS = 16
"""Cameras that are looked through at most, evenly of those given ..."""
MAX_SIDE = 256
"""... at pictures of at most so many pixels a side."""
MAX_SHARP = 512
"""... and at their colours in larger ones."""
NEIGHBOURS = 8
MIN_CONFIDENCE = 0.6
"""Gaussians under this are uncertain."""
COLOR = 0.5
"""Its colour is the object's if it differs from that by less than this share of its difference to its segment's."""
MIN_SPILL = 0.4
"""What has this share of its weight before the object, in pixels that the object fills, is spill."""
HIDDEN, SEEN = 0.3, 0.7
"""Of its weight without the object: less than the first was hidden, more than the second was seen."""
OWN = 0.5
"""Times its confidence: the say of its own label in which segment's colours something hidden takes."""
UNSEEN = 0.1
"""Of less than this share seen the colour tells nothing."""
BARE = 0.2
"""What has this share of the weight that it would have on its own is plainly seen: others take its colour."""
HALF = 0.5
"""Seen less than this it is hidden, when it comes to what a surface is made of (and a pixel is empty) ..."""
PLAIN = 0.2
"""... and known if besides a camera sees this share of the weight that it would have on its own there, ..."""
MIN_ALONE = 0.1
"""... in pixels at least so much."""
NEAR = 5e-3
"""Of the median depth before a camera: what is nearer is not in its picture."""
REACH = 4.0
"""Radii of the object around it in which something is taken for hidden by it."""
MIN_MASS = 0.5
"""Pixels that a Gaussian must weigh once the object is gone for its colour to matter."""


class Halo(NamedTuple):
    """Which Gaussians to drop too, `spill` [N] bool; colours `sh` of all, and whose of them are new, `healed` [N].

    `fresh` are Gaussians to add (no features, no extras), which belong with the rows `like` [n].
    """

    spill: np.ndarray
    sh: Tensor
    healed: np.ndarray
    like: np.ndarray
    fresh: Splats


class Sight(NamedTuple):
    """The weight of each Gaussian over some cameras, [N] each: with the object, without it, before it.

    `plain` is the largest share of the weight it would have on its own that a camera sees with the object there.
    """

    before: np.ndarray
    after: np.ndarray
    over: np.ndarray
    plain: np.ndarray
    alone: np.ndarray


def find_halo(
    splats: Splats,
    labels: np.ndarray,
    confidences: np.ndarray,
    gone: np.ndarray,
    rasterizer: Rasterizer | None = None,
    cameras: Sequence[Camera] = (),
    fill: bool = True,
) -> Halo:
    """Find what the Gaussians `gone` [N] bool would leave of themselves; without cameras, by neighbours alone.

    `fill` continues flat surfaces where they were hidden and takes the object's shade from them.
    """
    splats = splats.detach()
    means = splats.means.cpu().numpy().astype(float)
    near = KDTree(means).query(means, min(NEIGHBOURS + 1, len(means)))[1].reshape(len(means), -1)[:, 1:]
    among = gone[near].mean(1) > 0.5 if near.shape[1] else np.zeros(len(means), bool)
    spill = ~gone & among & ((labels <= 0) | (confidences < MIN_CONFIDENCE))
    colored = _has_color_of(splats, labels, means, gone, among)
    none = splats.select(torch.zeros(0, dtype=torch.long))
    if rasterizer is None or not len(cameras):
        return Halo(spill | colored, splats.sh, np.zeros(len(means), bool), np.zeros(0, int), none)
    chosen = _some(cameras)
    sight, weights, depths = _weigh(splats, gone, rasterizer, chosen)
    before, after = sight.before, sight.after
    spill |= ~gone & (sight.over > MIN_SPILL * np.maximum(before, 1e-9)) & (before > 0)
    seen = before / np.maximum(after, 1e-9)
    spill |= colored & (seen >= UNSEEN)
    spill |= ~gone & (labels <= 0) & (seen < HIDDEN) & (after > before)
    centre, radius = ball_of(splats.select(torch.from_numpy(np.flatnonzero(gone))))
    far = np.linalg.norm(means - centre, axis=1) > REACH * radius
    sh, healed = _heal(splats, labels, confidences, before, np.where(gone | spill | far, 0.0, after), sight.alone)
    if not fill:
        return Halo(spill, sh, healed, np.zeros(0, int), none)
    hidden = ~gone & ~spill & (seen < HALF) & (after > 0)
    known = ~spill & (seen >= HALF) & (sight.plain > PLAIN)
    healed &= ~known
    sh = torch.where(torch.from_numpy(healed).to(sh.device)[:, None, None], sh, splats.sh)
    pictures = [_picture(splats, rasterizer, camera) for camera in _some(cameras, MAX_SHARP)]
    facts = Seen(known, hidden, after, chosen, weights, depths, pictures)
    made = continue_surfaces(replace(splats, sh=sh), labels, gone, facts, rasterizer)
    healed |= (made.sh != splats.sh).flatten(1).any(1).cpu().numpy()
    return Halo(spill | made.replaced, made.sh, healed, made.like, made.fresh)


def seen_shares(
    splats: Splats, groups: Sequence[np.ndarray], rasterizer: Rasterizer, cameras: Sequence[Camera]
) -> list[np.ndarray]:
    """Return of each group of Gaussians (indices) how much of its weight alone each has in the scene, [n] each.

    1 where a camera sees all that there is of it, 0 where other things or the rest of the scene hide it; 1 where it has
    no weight even alone.
    """
    splats, chosen = splats.detach(), _some(cameras)
    scene = _mass(splats, rasterizer, chosen)
    made = []
    for rows in groups:
        alone = _mass(splats.select(torch.from_numpy(rows)), rasterizer, chosen)
        made.append(np.where(alone >= MIN_MASS, scene[rows] / np.maximum(alone, 1e-9), 1.0))
    return made


def _mass(splats: Splats, rasterizer: Rasterizer, cameras: Sequence[Camera]) -> np.ndarray:
    """Return the weight of each Gaussian over some cameras, [N]."""
    total = np.zeros(len(splats))
    for camera in cameras:
        w = rasterizer.contributions(splats, camera)
        total += np.bincount(w.ids.cpu().numpy(), w.weights.cpu().numpy(), minlength=len(splats))
    return total


def _alone(splats: Splats, cameras: Sequence[Camera]) -> np.ndarray:
    """Return the weight that each Gaussian would have on its own in pictures of some cameras, [C, N].

    A projected Gaussian of opacity o and covariance S weighs 2 pi o sqrt(det S).
    """
    cov, means = covariances(splats.quats, splats.scales).float().cpu(), splats.means.double().cpu()
    opacity, made = splats.opacities.float().cpu(), np.zeros((len(cameras), len(splats)))
    for total, camera in zip(made, cameras):
        view, K = camera.viewmat.double().cpu(), camera.K.double().cpu()
        x, y, z = (means @ view[:3, :3].T + view[:3, 3]).unbind(1)
        near = NEAR * z.clamp_min(0).median()
        in_front, z = z > near, z.where(z > near, 1.0)
        u, v = K[0, 0] * x / z + K[0, 2], K[1, 1] * y / z + K[1, 2]
        inside = in_front & (u > 0) & (u < camera.width) & (v > 0) & (v < camera.height)
        rows = inside.nonzero()[:, 0]
        x, y, z = (a[rows].float() for a in (x, y, z))
        J = torch.zeros(len(rows), 2, 3)
        J[:, 0, 0], J[:, 0, 2] = K[0, 0].float() / z, -K[0, 0].float() * x / z**2
        J[:, 1, 1], J[:, 1, 2] = K[1, 1].float() / z, -K[1, 1].float() * y / z**2
        J = J @ view[:3, :3].float()
        S = J @ cov[rows] @ J.transpose(1, 2) + 0.3 * torch.eye(2)
        det = (S[:, 0, 0] * S[:, 1, 1] - S[:, 0, 1] ** 2).clamp_min(0)
        total[rows.numpy()] = (opacity[rows] * 2 * math.pi * det.sqrt()).numpy()
    return made


def _has_color_of(
    splats: Splats, labels: np.ndarray, means: np.ndarray, gone: np.ndarray, among: np.ndarray
) -> np.ndarray:
    """Say whose colour is that of the nearest Gaussians `gone`, not of the nearest of its segment elsewhere, [N]."""
    rgb = sh_dc_to_rgb(splats.sh[:, 0].double()).cpu().numpy()
    found = np.zeros(len(means), bool)
    candidates = ~gone & among & (labels > 0)
    for label in np.unique(labels[candidates]).tolist():
        those, own = np.flatnonzero(candidates & (labels == label)), np.flatnonzero(~among & ~gone & (labels == label))
        if len(own):
            differs = []
            for of in (np.flatnonzero(gone), own):
                index = KDTree(means[of]).query(means[those], min(NEIGHBOURS, len(of)))[1].reshape(len(those), -1)
                differs.append(np.linalg.norm(rgb[those] - rgb[of[index]].mean(1), axis=1))
            found[those] = differs[0] < COLOR * differs[1]
    return found


def _picture(splats: Splats, rasterizer: Rasterizer, camera: Camera) -> np.ndarray:
    """Return the colours that a camera shows, less what is behind all, [H, W, 3] in 0..1."""
    colors = splats.colors(camera.position.to(splats.means))
    shown = rasterizer.render(splats, torch.cat([colors, torch.ones_like(colors[:, :1])], 1), [camera]).values[0]
    shown = shown.cpu().numpy().astype(float)
    return (shown[..., :3] / np.maximum(shown[..., 3:], 1e-6)).clip(0, 1)


def _some(cameras: Sequence[Camera], largest: int = MAX_SIDE) -> list[Camera]:
    chosen = [cameras[i * len(cameras) // min(len(cameras), MAX_VIEWS)] for i in range(min(len(cameras), MAX_VIEWS))]
    made = []
    for camera in chosen:
        scale = min(1.0, largest / max(camera.width, camera.height))
        made.append(camera.resized(max(1, round(camera.width * scale)), max(1, round(camera.height * scale))))
    return made


def _weigh(
    splats: Splats, gone: np.ndarray, rasterizer: Rasterizer, cameras: Sequence[Camera]
) -> tuple[Sight, list[np.ndarray], list[np.ndarray]]:
    """Return what cameras see of each Gaussian, and the object's weight and the depth in each picture, [H, W] each."""
    n, rest = len(gone), np.flatnonzero(~gone)
    left, means = splats.select(torch.from_numpy(rest)), splats.means.cpu().numpy().astype(float)
    before, after, over, plain = np.zeros((4, n))
    fills, depths, alone = [], [], _alone(splats, cameras)
    for camera, single in zip(cameras, alone):
        w = rasterizer.contributions(splats, camera)
        ids, weights, rows = w.ids.cpu().numpy(), w.weights.cpu().numpy().astype(float), w.rows.cpu().numpy()
        mass = np.bincount(ids, weights, minlength=n)
        plain = np.maximum(plain, np.where(single > MIN_ALONE, mass / np.maximum(single, 1e-9), 0.0))
        before, after = before + mass, after + mass
        filled = np.bincount(rows, np.where(gone[ids], weights, 0.0), minlength=len(w))  # [P]: its weight in each pixel
        z = project(camera, means)[2]
        full = np.bincount(rows, weights, len(w))
        depth = np.where(full > HALF, np.bincount(rows, weights * z[ids], len(w)) / np.maximum(full, HALF), np.inf)
        for pictures, values in ((fills, filled), (depths, depth)):
            pictures.append(values.reshape(camera.height, camera.width))
        pixels = np.flatnonzero(filled)  # nothing changes in others
        if not len(pixels):
            continue
        there = filled[rows] > 0
        ids, weights, rows = ids[there], weights[there], rows[there]
        own = np.where(gone[ids], weights, 0.0)
        behind = np.cumsum(filled)[rows] - np.cumsum(own)  # of the object, behind each entry
        over += np.bincount(ids, weights * behind.clip(0), minlength=n)  # filled times the share that lies behind
        after -= np.bincount(ids, weights, minlength=n)
        w = rasterizer.contributions(left, camera, torch.from_numpy(pixels))
        after[rest] += np.bincount(w.ids.cpu().numpy(), w.weights.cpu().numpy(), minlength=len(rest))
    return Sight(before, np.where(gone, 0.0, after.clip(0)), over, plain, alone.sum(0)), fills, depths


def _heal(
    splats: Splats,
    labels: np.ndarray,
    confidences: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    alone: np.ndarray,
) -> tuple[Tensor, np.ndarray]:
    """Give what was hidden the colours of the nearest of its segment that were seen; say whose changed.

    Its label was as little seen as its colour: where most around it is of another segment, it takes that one's colours.
    """
    means = splats.means.cpu().numpy().astype(float)
    sh = splats.sh.cpu().numpy().copy()  # [N, K, 3]
    trust = ((before / np.maximum(after, 1e-9) - HIDDEN) / (SEEN - HIDDEN)).clip(0, 1)
    bare = before / np.maximum(alone, 1e-9)
    weighs = after >= MIN_MASS
    wanted, known = (
        np.flatnonzero(weighs & (trust < 1)),
        np.flatnonzero(weighs & (trust == 1) & (bare >= BARE) & (labels > 0)),
    )
    healed = np.zeros(len(means), bool)
    if not len(wanted) or not len(known):
        return splats.sh, healed
    share, index = _nearest(means[known], before[known], means[wanted])
    around = labels[known][index]  # [n, neighbours]
    votes = (share[:, :, None] * (around[:, :, None] == around[:, None, :])).sum(1)  # of each neighbour's segment
    best = around[np.arange(len(wanted)), votes.argmax(1)]
    segment = np.where(votes.max(1) > OWN * confidences[wanted] + _share_of(labels[wanted], around, share),
                       best, labels[wanted])  # fmt: skip
    for label in np.unique(segment[segment > 0]).tolist():
        theirs, to = known[labels[known] == label], wanted[segment == label]
        if not len(theirs):
            continue
        share, index = _nearest(means[theirs], before[theirs], means[to])
        own = trust[to, None, None]
        sh[to] = own * sh[to] + (1 - own) * np.einsum("nk,nkjc->njc", share, sh[theirs[index]])
        healed[to] = True
    return torch.from_numpy(sh).to(splats.sh), healed


def _share_of(labels: np.ndarray, around: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Return which share of the neighbours [n, k] are of labels [n]."""
    return (share * (around == labels[:, None])).sum(1)


def _nearest(points: np.ndarray, mass: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the points nearest to each wanted one, [n, k], and before them their shares.

    These rise with how much of a point was seen, its mass, and fall with its distance.
    """
    distance, index = KDTree(points).query(wanted, min(NEIGHBOURS, len(points)))
    index = index.reshape(len(wanted), -1)
    share = mass[index] / np.maximum(distance.reshape(index.shape), 1e-9)
    return share / share.sum(1, keepdims=True), index
