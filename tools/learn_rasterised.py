"""Learn features from sampled pixels by rasterising them in every step: what the contribution matrix saves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cgc.features.losses import contrastive_loss, smoothness_loss
from cgc.features.samples import Batch
from cgc.rasterize.base import Rasterizer
from cgc.scene.types import Camera
from cgc.settings import LiftSettings
from cgc.splats.types import Splats


def learn_by_rasterising(
    splats: Splats,
    cameras: Sequence[Camera],
    batches: Sequence[Batch],
    neighbours: Tensor,
    rasterizer: Rasterizer,
    settings: LiftSettings,
) -> Tensor:
    """Learn features [N, D] as `learn_features` does: from the same pixels and losses in as many steps.

    Every step rasterises the features of its views, forwards and backwards, where `learn_features` multiplies sparse
    matrices.
    """
    device = splats.means.device
    generator = torch.Generator().manual_seed(settings.seed)
    start = torch.randn(len(splats), settings.dim, generator=generator).mul_(0.1)
    features, neighbours = start.to(device).requires_grad_(), neighbours.to(device)
    optimizer = torch.optim.Adam([features], lr=settings.lr, betas=(0.9, 0.99), eps=1e-15)
    order: list[int] = []
    for step in range(settings.steps):
        optimizer.param_groups[0]["lr"] = settings.lr * 0.1 ** (step / settings.steps)
        optimizer.zero_grad()
        loss = torch.zeros((), device=device)
        for _ in range(settings.views_per_step):
            order = order or torch.randperm(len(batches), generator=generator).tolist()
            batch = batches[order.pop()]
            picture = rasterizer.render(splats, features, [cameras[batch.view]]).values[0]
            shown = picture.reshape(-1, settings.dim)[batch.weights.pixels.long().to(device)]
            masks = batch.masks.to(device)
            loss = loss + contrastive_loss(shown, masks, len(batch.mask_ids)) / settings.views_per_step
        anchors = torch.randint(len(features), (settings.anchors,), generator=generator).to(device)
        loss = loss + settings.spatial_weight * smoothness_loss(features, anchors, neighbours[anchors])
        loss.backward()
        optimizer.step()
    return features.detach()
