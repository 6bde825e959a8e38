"""The paper's features: rasterised, learned beside colour as its release does, or alone on splats that stay.

    L = L_appearance + lambda L_CC (every 50th of 30,000 steps) + L_spatial (every 100th)

L_CC is losses.contrastive_loss, summed over each mask's pixels, on the whole feature map of the step's view. Source:
Contrastive Gaussian Clustering (arXiv 2404.12784) and its released trainer. Shorter trainings go through the same
schedule faster: with f = 30,000 / steps, intervals are divided by f and the learning rate is multiplied by its root.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding, normalize

from cgc.features.contrast import contrast
from cgc.features.extremes import nearest_and_farthest
from cgc.features.losses import contrastive_loss
from cgc.masks.id_maps import resize_nearest
from cgc.progress import progress_bar
from cgc.rasterize.base import Rasterizer
from cgc.scene.types import Camera
from cgc.settings import JointSettings, to_json
from cgc.splats.types import Splats

PAPER_STEPS = 30_000
NEAR, FAR = 2, 5
NEAR_WEIGHT, FAR_WEIGHT = 0.05, 0.15
MOST = 300_000  # Gaussians among which the spatial term looks for neighbours
ADAM_EPS = 1e-15


class JointFeatures:
    """Features [N, D] that Gaussians carry: the `Companion` (appearance/companion.py) of the joint mode."""

    def __init__(self, id_maps: Mapping[int, np.ndarray], settings: JointSettings, steps: int) -> None:
        """Learn from the id maps [H, W] of some views, 0 = unassigned, in `steps` steps."""
        self._id_maps, self._settings, self._steps = id_maps, settings, steps

    def identity(self) -> str:
        """Hash settings and masks."""
        digest = hashlib.blake2b(json.dumps([to_json(self._settings), self._steps]).encode(), digest_size=16)
        for view, ids in sorted(self._id_maps.items()):
            digest.update(f"{view} {ids.shape}".encode() + np.ascontiguousarray(ids).tobytes())
        return digest.hexdigest()

    def start(self, splats: Splats) -> dict[str, Tensor]:
        """Return features drawn evenly from 0 to 1, as the release does."""
        generator = torch.Generator().manual_seed(self._settings.seed)
        drawn = torch.rand(len(splats), self._settings.dim, generator=generator)
        return {"features": drawn.to(splats.means.device)}

    def rates(self, step: int) -> dict[str, float]:
        """Return the one learning rate; it does not decay."""
        return {"features": self._settings.lr * (PAPER_STEPS / self._steps) ** 0.5}

    def betas(self) -> tuple[float, float]:
        """Return Adam's usual ones to the power f: its memory is as many of the paper's steps."""
        return 0.9 ** (PAPER_STEPS / self._steps), 0.999 ** (PAPER_STEPS / self._steps)

    def values(self, carried: Mapping[str, Tensor], step: int) -> Tensor | None:
        """Return the features at a contrastive step."""
        return carried["features"] if is_due(step, self._settings.contrastive_every, self._steps) else None

    def image_loss(self, view: int, camera: Camera, values: Tensor, step: int) -> Tensor | None:
        """Return lambda times the contrastive loss of a feature map [H, W, D]; None where the view has no masks."""
        found = pixels_of_masks(self._id_maps.get(view), camera, self._settings.ignore_pixels)
        if found is None:
            return None
        pixels, masks = (t.to(values.device) for t in found[:2])
        features = embedding(pixels, values.reshape(-1, values.shape[-1]))  # [P, D]
        loss = (_Contrast.apply if values.device.type == "cpu" else _contrast)(features, masks, found[2])
        return self._settings.contrastive_weight * loss  # pyright: ignore[reportOperatorIssue]

    def splat_loss(self, splats: Splats, carried: Mapping[str, Tensor], step: int) -> Tensor | None:
        """Return the spatial term at its steps."""
        if not is_due(step, self._settings.spatial_every, self._steps):
            return None
        seed = self._settings.seed * 1_000_003 + step
        generator = torch.Generator().manual_seed(seed)
        return spatial_loss(splats.means, carried["features"], self._settings.anchors, generator)


def is_due(step: int, every: int, steps: int) -> bool:
    """Return whether the `step`-th of `steps`, from 0, passes a multiple of `every` of the paper's 30,000."""
    whole = every * steps
    return (step + 1) * PAPER_STEPS // whole > step * PAPER_STEPS // whole


def pixels_of_masks(ids: np.ndarray | None, camera: Camera, ignore: int) -> tuple[Tensor, Tensor, int] | None:
    """Return pixels [P] inside masks, their masks [P] in [0, M), and M; None where there is none.

    Masks of at most `ignore` pixels, in the map `ids` as it is, are left out; it is then resized to the camera's size.
    """
    if ids is None:
        return None
    counts = np.bincount(ids.ravel())
    kept = counts > ignore
    kept[0] = False
    small = resize_nearest(ids, camera.width, camera.height).ravel()
    pixels = np.flatnonzero(kept[small])
    present = np.bincount(small[pixels], minlength=len(counts)) > 0
    if not present.any():
        return None
    number = np.cumsum(present) - 1
    masks = number[small[pixels]].astype(np.int64)
    return torch.from_numpy(pixels), torch.from_numpy(masks), int(present.sum())


def _contrast(features: Tensor, masks: Tensor, n_masks: int) -> Tensor:
    """Return the same in steps of torch, on any device."""
    return contrastive_loss(features, masks, n_masks, "sum")


class _Contrast(torch.autograd.Function):
    """losses.contrastive_loss, summed over pixels, with its gradient by hand."""

    @staticmethod
    def forward(ctx, features: Tensor, masks: Tensor, n_masks: int) -> Tensor:  # pyright: ignore
        loss, gradient = contrast(features.detach().numpy(), masks.numpy(), n_masks, "sum")
        ctx.gradient = torch.from_numpy(gradient)
        return features.new_tensor(loss)

    @staticmethod
    def backward(ctx, v_loss: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        return v_loss * ctx.gradient, None, None


def spatial_loss(means: Tensor, features: Tensor, n_anchors: int, generator: torch.Generator) -> Tensor:
    """Return a share of 0.05 sigmoid(1 - mean cos(2 nearest)) + 0.15 sigmoid(mean cos(5 farthest)) of some anchors.

    means [N, 3] get no gradient; features [N, D]. An anchor is among its own nearest, as in the release. The share is
    that of N in 300,000, of the loss and of the `n_anchors`: a Gaussian is an anchor as often, and feels it as much, as
    among 300,000.
    """
    share = min(len(means) / MOST, 1.0)
    order = torch.randperm(len(means), generator=generator)[:MOST].to(means.device)
    if len(order) < len(means):
        means, features = means[order], embedding(order, features)
        order = torch.randperm(len(order), generator=generator).to(means.device)
    anchors = order[: max(round(share * n_anchors), 1)]
    near, far = nearest_and_farthest(means, anchors, NEAR, FAR)
    # embedding, not indexing: its gradient adds up in one order, so a run can be repeated bit for bit
    unit = normalize(embedding(anchors, features), dim=-1)[:, None]
    near_cosine = (normalize(embedding(near, features), dim=-1) * unit).sum(-1).mean()
    far_cosine = (normalize(embedding(far, features), dim=-1) * unit).sum(-1).mean()
    return share * (NEAR_WEIGHT * (1 - near_cosine).sigmoid() + FAR_WEIGHT * far_cosine.sigmoid())


def learn_rasterised(
    splats: Splats,
    cameras: Sequence[Camera],
    id_maps: Mapping[int, np.ndarray],
    rasterizer: Rasterizer,
    settings: JointSettings,
    *,
    quiet: bool = False,
) -> Tensor:
    """Return features [N, D] learned as in the joint mode in `settings.steps` steps, while the splats stay as they are.

    Nothing but features is rendered, and only where a step wants them; every epoch is a random order of the views that
    have an id map. All is done where the splats are.
    """
    companion, frozen = JointFeatures(id_maps, settings, settings.steps), splats.detach()
    features = torch.nn.Parameter(companion.start(frozen)["features"])
    carried = {"features": features}
    fused = features.device.type in ("cpu", "cuda")
    adam = torch.optim.Adam([features], betas=companion.betas(), eps=ADAM_EPS, fused=fused)
    generator = torch.Generator().manual_seed(settings.seed)
    views, order, shown = sorted(id_maps), [], {}
    with progress_bar("features", settings.steps, quiet=quiet) as bar:
        for step in range(settings.steps):
            order = order or [views[i] for i in torch.randperm(len(views), generator=generator).tolist()]
            view = order.pop()
            terms = [companion.splat_loss(frozen, carried, step)]
            values = companion.values(carried, step)
            if values is not None:
                camera = cameras[view].to(features.device)
                picture = rasterizer.render(frozen, values, [camera]).values[0]
                terms.append(companion.image_loss(view, cameras[view], picture, step))
            losses = [term for term in terms if term is not None]
            features.grad = torch.zeros_like(features)  # without a loss Adam goes on, as in training
            if losses:
                loss = torch.stack(losses).sum()
                loss.backward()
                shown["loss"] = float(loss.detach())  # few steps have one
            adam.param_groups[0]["lr"] = companion.rates(step)["features"]
            adam.step()
            bar.advance(1, **shown)
    return features.detach()
