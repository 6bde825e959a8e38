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
from cgc.appearance.losses import photometric_loss
from cgc.appearance.photos import over
from cgc.rasterize.base import Rasterizer
from cgc.scene.corrections import Correction
from cgc.scene.types import Camera
from cgc.settings import TrainSettings
from cgc.splats.types import Splats

PLACED = 50  # steps to find the camera of a photo that was held back
PLACING_LR, PLACING_LR_FINAL = 0.2, 0.02  # pixels, of turning and at the distance of an extent; its factor at the last
WHITE = 0.98  # pixels of a photo that are brighter may be clipped
PRIOR = 1e-4  # of no change of colours, to the mean over pixels
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


def place(
    splats: Splats,
    camera: Camera,
    photo: Tensor,
    rasterizer: Rasterizer,
    extent: float,
    settings: TrainSettings,
    background: Tensor | None = None,
) -> Correction:
    """Find how a photo [H, W, 3], in 0..1, was exposed and where its camera was, by splats that stay as they are.

    [H, W, 4] where some of it is see-through: colours times alpha, and alpha; the background [3] (None: black) is
    exposed too, as in training. What of it `settings` say is learned. For photos that were held back; nothing is
    learned from them but this.
    """
    splats, there = splats.detach(), camera.viewmat
    color = torch.eye(3, 4, device=photo.device)
    twist = torch.zeros(6, device=there.device, requires_grad=True)
    rate = PLACING_LR / float(camera.K[0, 0])
    optimizer = torch.optim.Adam([twist], lr=rate)
    behind = photo.new_zeros(3) if background is None else background.to(photo.device)

    def picture() -> Tensor:
        seen = replace(camera, viewmat=moved(there, twist, extent)) if settings.poses else camera
        colors = splats.colors(seen.position.detach())
        return rasterizer.render(splats, colors, [seen], backgrounds=background).values[0]

    def fitted() -> Tensor:
        with torch.no_grad():
            return exposure_of(picture(), photo, behind) if settings.exposure else color

    def as_taken(colors: Tensor) -> Tensor:
        shown = Correction(color, there).photographed(colors)
        return _clipped(shown) if settings.exposure else shown

    color = fitted()
    target = over(photo, as_taken(behind))
    for step in range(PLACED if settings.poses else 0):
        optimizer.param_groups[0]["lr"] = rate * PLACING_LR_FINAL ** (step / (PLACED - 1))
        photometric_loss(as_taken(picture()), target, settings.ssim_weight).backward()
        optimizer.step()
        optimizer.zero_grad()
    return Correction(fitted().cpu(), moved(there, twist.detach(), extent).cpu())


def exposure_of(picture: Tensor, photo: Tensor, behind: Tensor | None = None) -> Tensor:
    """Return the affine map [3, 4] that makes a photo of its picture [H, W, 3], by least squares where it is not white.

    min |X A^T - Y|^2 / P + PRIOR |A - (I, 0)|^2, over P pixels with X = (picture, 1) and Y = photo. Where some of a
    photo is see-through, [H, W, 4], `behind` [3] (None: black), which is exposed too, is taken off both sides: with
    alpha a, X = (picture - (1 - a) behind, a) and Y = photo, colours times alpha.
    """
    alpha = photo[..., 3:] if photo.shape[2] == 4 else torch.ones_like(photo[..., :1])  # [H, W, 1]
    own = picture if behind is None else picture - (1 - alpha) * behind
    counts = photo[..., :3].amax(-1) < WHITE * alpha[..., 0]
    x, y = torch.cat([own, alpha], 2)[counts].double(), photo[..., :3][counts].double()
    prior, pixels = torch.eye(4, dtype=x.dtype, device=x.device), max(len(x), 1)
    found = torch.linalg.solve(x.T @ x / pixels + PRIOR * prior, x.T @ y / pixels + PRIOR * prior[:, :3])
    return found.T.float()


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
