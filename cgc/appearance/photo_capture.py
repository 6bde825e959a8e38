"""Photos as phones take them: exposed each by itself, by cameras that are a little off; both learned with the splats.

Notation: V training photos. A_v [3, 4]: a photo is (I + A_v) (render, 1), the affine exposure of Kerbl et al. 2024
(arXiv 2406.12080). x_v = (w, t): its camera is cam_from_world turned by w, in radians, then shifted by t, in extents
of the scene; the gradient with respect to a pose is the rasteriser's (as Lin et al. 2021, BARF, arXiv 2104.06405, have
it of radiance fields).

What all photos have in common is not theirs: one brightness of all is that of the splats, and cameras that turn, shift
and draw together like one body have moved the world. Photos do not say where that lies, so Adam's noise would carry it
off, from the views that are held back too. Both are taken off: the mean of A, and of x its part along J y, where J_v is
what a motion y [7] of the world (turn, shift, growth about the mean of all cameras) does to camera v: Q Q^T x, where Q
[6 V, 7] spans what J does. Gradients go round what is taken off. (A single photo has nothing of its own.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cgc.appearance.capture import IdentityCapture
from cgc.scene.corrections import Correction
from cgc.scene.types import Camera
from cgc.settings import TrainSettings

LEAK = 0.1  # of what is brighter than a photo can be
LEAST_SINGULAR = 1e-6  # times the largest: under it cameras do not tell, as those of one place of growth
TINY = 1e-24  # added to a squared angle in radians: it may be 0, its root has a gradient


class PhotoCapture(IdentityCapture):
    """How photos were exposed (`settings.exposure`) and where their cameras were (`settings.poses`), learned.

    cameras: those of the training photos, by the number of their view; extent: the scene's.
    """

    def __init__(self, cameras: Mapping[int, Camera], extent: float, settings: TrainSettings) -> None:
        self._settings, self._extent = settings, extent
        self._place = {view: place for place, view in enumerate(cameras)}
        device = next(iter(cameras.values())).viewmat.device
        self._viewmats = torch.stack([camera.viewmat.detach() for camera in cameras.values()])  # [V, 4, 4]
        self.colors = torch.zeros(len(cameras), 3, 4, device=device, requires_grad=True)
        self.twists = torch.zeros(len(cameras), 6, device=device, requires_grad=True)
        self._motions = _range(world_motions(_centred(self._viewmats.cpu().double()), extent)).float().to(device)

    def cameras(self, view: int, camera: Camera) -> Sequence[Camera]:
        """Return the photo's camera where it is now thought to have been."""
        if not self._settings.poses:
            return [camera]
        own = self._own_twists()[self._place[view]]
        return [replace(camera, viewmat=moved(camera.viewmat, own, self._extent))]

    def predict(self, view: int, renders: Tensor) -> Tensor:
        """Return the render as the camera exposed it."""
        if not self._settings.exposure:
            return renders[0]
        own = self._own_colors()[self._place[view]]
        return _clipped(renders[0] + (renders[0] @ own[:, :3].T + own[:, 3]))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return what is asked for, with its rates."""
        s = self._settings
        learned = ((s.exposure, self.colors, s.exposure_lr), (s.poses, self.twists, s.poses_lr))
        return [{"params": [value], "lr": rate, "final": s.capture_lr_final} for on, value, rate in learned if on]

    @torch.no_grad()
    def found(self) -> dict[int, Correction]:
        """Return what was found of each photo, by the number of its view, on the CPU."""
        colors = (torch.eye(3, 4, device=self.colors.device) + self._own_colors()).cpu()
        twists, viewmats = self._own_twists().cpu(), self._viewmats.cpu()
        return {
            view: Correction(colors[place], moved(viewmats[place], twists[place], self._extent))
            for view, place in self._place.items()
        }

    def _own_colors(self) -> Tensor:
        """A without what all photos have in common, [V, 3, 4]."""
        return self.colors - self.colors.detach().mean(0)

    def _own_twists(self) -> Tensor:
        """x without what moves the world, [V, 6]."""
        common = self._motions @ (self._motions.T @ self.twists.detach().reshape(-1))
        return self.twists - common.reshape(-1, 6)


class KnownExposure(IdentityCapture):
    """Photos of which is known how they were exposed; the cameras are where they are."""

    def __init__(self, corrections: Mapping[int, Correction]) -> None:
        self._corrections = corrections

    def predict(self, view: int, renders: Tensor) -> Tensor:
        """Return the render as the camera exposed it."""
        if view not in self._corrections:
            return renders[0]
        return _clipped(self._corrections[view].photographed(renders[0]))


def _clipped(picture: Tensor) -> Tensor:
    """Return a picture as a camera clips it at 1, but for LEAK, so that what is too bright is still told so."""
    return torch.where(picture > 1, 1 + LEAK * (picture - 1), picture)


def moved(viewmat: Tensor, twist: Tensor, unit: float) -> Tensor:
    """Return cam_from_world [4, 4] turned by w (Rodrigues' formula), shifted by t units; twist [6] = (w, t)."""
    w, t = twist[:3], unit * twist[3:]
    angle = (w @ w + TINY).sqrt()
    cross = _cross(w[None])[0]
    turn = torch.sin(angle) / angle * cross + (1 - torch.cos(angle)) / angle**2 * (cross @ cross)
    turn = turn + torch.eye(3, device=w.device)
    top = torch.cat([turn @ viewmat[:3, :3], (turn @ viewmat[:3, 3] + t)[:, None]], 1)
    return torch.cat([top, viewmat[3:]])


def _centred(viewmats: Tensor) -> Tensor:
    """Return cam_from_world [V, 4, 4] of cameras in a world whose origin is the mean of their centres."""
    R, t = viewmats[:, :3, :3], viewmats[:, :3, 3:]
    centre = -(R.mT @ t).mean(0)  # [3, 1]
    return torch.cat([torch.cat([R, t + R @ centre], 2), viewmats[:, 3:]], 1)


def _range(matrix: Tensor) -> Tensor:
    """Return an orthonormal basis of what the columns of a matrix [M, 7] span, [M, at most 7]."""
    U, sizes, _ = torch.linalg.svd(matrix, full_matrices=False)
    return U[:, sizes > LEAST_SINGULAR * sizes[0]]


def world_motions(viewmats: Tensor, unit: float) -> Tensor:
    """Return J [6 V, 7] float64: how cameras [V, 4, 4] move, as twists, when the world turns, shifts and grows.

    T exp(y) = exp(Ad_T y) T; growth moves a camera along cam_from_world's shift.
    """
    R, t = viewmats[:, :3, :3].double(), viewmats[:, :3, 3].double() / unit
    turned = torch.cat([R, R.new_zeros(len(R), 3, 4)], 2)
    shifted = torch.cat([_cross(t) @ R, R, t[..., None]], 2)
    return torch.cat([turned, shifted], 1).reshape(-1, 7)


def _cross(v: Tensor) -> Tensor:
    """Return the matrices [V, 3, 3] that take the cross product with vectors [V, 3]."""
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(-1, 3, 3)
